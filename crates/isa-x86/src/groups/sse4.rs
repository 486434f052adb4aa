//! SSE4.1 and SSE4.2 (SDM vol. 1, 12.8 to 12.12).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::gpr::{NONE, RAX, RCX, RDX};
use crate::form::{Form, Group, Unit};

forms! {
    // integer, moves and logic
    [Form::native(Group::Sse4).needs(Feature::Sse41).unit(Unit::Sse).reads_xmm0().aligned()] {
        any: Pblendvb_xmm_xmmm128 r 16, Blendvps_xmm_xmmm128 r 16, Blendvpd_xmm_xmmm128 r 16;
    }
    // integer
    [Form::native(Group::Sse4).needs(Feature::Sse41).unit(Unit::Sse).writes_flags(ZF | CF)
        .clears_flags(OF | SF | AF | PF).aligned()] {
        any: Ptest_xmm_xmmm128 r 16;
    }
    // integer, moves and logic
    [Form::native(Group::Sse4).needs(Feature::Sse41).unit(Unit::Sse)] {
        any: Pmovsxbw_xmm_xmmm64 r 8, Pmovsxbd_xmm_xmmm32 r 4, Pmovsxbq_xmm_xmmm16 r 2,
            Pmovsxwd_xmm_xmmm64 r 8, Pmovsxwq_xmm_xmmm32 r 4, Pmovsxdq_xmm_xmmm64 r 8,
            Pmovzxbw_xmm_xmmm64 r 8, Pmovzxbd_xmm_xmmm32 r 4, Pmovzxbq_xmm_xmmm16 r 2,
            Pmovzxwd_xmm_xmmm64 r 8, Pmovzxwq_xmm_xmmm32 r 4, Pmovzxdq_xmm_xmmm64 r 8,
            Pextrb_r32m8_xmm_imm8 w 1, Pextrw_r32m16_xmm_imm8 w 2, Pextrd_rm32_xmm_imm8 w 4,
            Extractps_rm32_xmm_imm8 w 4, Pinsrb_xmm_r32m8_imm8 r 1, Insertps_xmm_xmmm32_imm8 r 4,
            Pinsrd_xmm_rm32_imm8 r 4;
        m64: Pextrb_r64m8_xmm_imm8 w 1, Pextrw_r64m16_xmm_imm8 w 2, Pextrq_rm64_xmm_imm8 w 8,
            Extractps_r64m32_xmm_imm8 w 4, Pinsrb_xmm_r64m8_imm8 r 1, Pinsrq_xmm_rm64_imm8 r 8;
    }
    [Form::native(Group::Sse4).needs(Feature::Sse41).unit(Unit::Sse).aligned()] {
        any: Pmuldq_xmm_xmmm128 r 16, Pcmpeqq_xmm_xmmm128 r 16, Movntdqa_xmm_m128 r 16,
            Packusdw_xmm_xmmm128 r 16, Pminsb_xmm_xmmm128 r 16, Pminsd_xmm_xmmm128 r 16,
            Pminuw_xmm_xmmm128 r 16, Pminud_xmm_xmmm128 r 16, Pmaxsb_xmm_xmmm128 r 16,
            Pmaxsd_xmm_xmmm128 r 16, Pmaxuw_xmm_xmmm128 r 16, Pmaxud_xmm_xmmm128 r 16,
            Pmulld_xmm_xmmm128 r 16, Phminposuw_xmm_xmmm128 r 16, Blendps_xmm_xmmm128_imm8 r 16,
            Blendpd_xmm_xmmm128_imm8 r 16, Pblendw_xmm_xmmm128_imm8 r 16,
            Mpsadbw_xmm_xmmm128_imm8 r 16;
    }
    // integer
    [Form::native(Group::Sse4).needs(Feature::Sse42).unit(Unit::Sse).aligned()] {
        any: Pcmpgtq_xmm_xmmm128 r 16;
    }
    // floating point
    [Form::native(Group::Sse4).needs(Feature::Sse41).unit(Unit::Sse).mxcsr().aligned()] {
        any: Roundps_xmm_xmmm128_imm8 r 16, Roundpd_xmm_xmmm128_imm8 r 16,
            Dpps_xmm_xmmm128_imm8 r 16, Dppd_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Sse4).needs(Feature::Sse41).unit(Unit::Sse).mxcsr()] {
        any: Roundss_xmm_xmmm32_imm8 r 4, Roundsd_xmm_xmmm64_imm8 r 8;
    }
    // integer
    [Form::native(Group::Sse4).needs(Feature::Sse42).unit(Unit::Sse)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).implicit(RAX | RDX, NONE)
        .writes_xmm0()] {
        any: Pcmpestrm_xmm_xmmm128_imm8 r 16;
        m64: Pcmpestrm64_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Sse4).needs(Feature::Sse42).unit(Unit::Sse)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).implicit(RAX | RDX, RCX)] {
        any: Pcmpestri_xmm_xmmm128_imm8 r 16;
        m64: Pcmpestri64_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Sse4).needs(Feature::Sse42).unit(Unit::Sse)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).writes_xmm0()] {
        any: Pcmpistrm_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Sse4).needs(Feature::Sse42).unit(Unit::Sse)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).implicit(NONE, RCX)] {
        any: Pcmpistri_xmm_xmmm128_imm8 r 16;
    }
}
