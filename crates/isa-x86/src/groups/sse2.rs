//! SSE2 (SDM vol. 1, chapter 11).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::gpr::{NONE, RDI};
use crate::form::{Form, Group, ImplicitMemory, Unit};

forms! {
    // moves and logic, integer
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::Sse)] {
        any: Movupd_xmm_xmmm128 r 16, Movsd_xmm_xmmm64 r 8, Movupd_xmmm128_xmm w 16,
            Movsd_xmmm64_xmm w 8, Movlpd_xmm_m64 r 8, Movlpd_m64_xmm w 8, Movhpd_xmm_m64 r 8,
            Movhpd_m64_xmm w 8, Cvtsi2sd_xmm_rm32 r 4, Movmskpd_r32_xmm, Movd_xmm_rm32 r 4,
            Movdqu_xmm_xmmm128 r 16, Psrlw_xmm_imm8, Psraw_xmm_imm8, Psllw_xmm_imm8,
            Psrld_xmm_imm8, Psrad_xmm_imm8, Pslld_xmm_imm8, Psrlq_xmm_imm8, Psrldq_xmm_imm8,
            Psllq_xmm_imm8, Pslldq_xmm_imm8, Movd_rm32_xmm w 4, Movq_xmm_xmmm64 r 8,
            Movdqu_xmmm128_xmm w 16, Pinsrw_xmm_r32m16_imm8 r 2, Pextrw_r32_xmm_imm8,
            Movq_xmmm64_xmm w 8, Pmovmskb_r32_xmm, Cvtdq2pd_xmm_xmmm64 r 8;
        m64: Movmskpd_r64_xmm, Movq_xmm_rm64 r 8, Movq_rm64_xmm w 8, Pinsrw_xmm_r64m16_imm8 r 2,
            Pextrw_r64_xmm_imm8, Pmovmskb_r64_xmm;
    }
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::Sse).aligned()] {
        any: Unpcklpd_xmm_xmmm128 r 16, Unpckhpd_xmm_xmmm128 r 16, Movapd_xmm_xmmm128 r 16,
            Movapd_xmmm128_xmm w 16, Movntpd_m128_xmm w 16, Andpd_xmm_xmmm128 r 16,
            Andnpd_xmm_xmmm128 r 16, Orpd_xmm_xmmm128 r 16, Xorpd_xmm_xmmm128 r 16,
            Punpcklbw_xmm_xmmm128 r 16, Punpcklwd_xmm_xmmm128 r 16, Punpckldq_xmm_xmmm128 r 16,
            Packsswb_xmm_xmmm128 r 16, Pcmpgtb_xmm_xmmm128 r 16, Pcmpgtw_xmm_xmmm128 r 16,
            Pcmpgtd_xmm_xmmm128 r 16, Packuswb_xmm_xmmm128 r 16, Punpckhbw_xmm_xmmm128 r 16,
            Punpckhwd_xmm_xmmm128 r 16, Punpckhdq_xmm_xmmm128 r 16, Packssdw_xmm_xmmm128 r 16,
            Punpcklqdq_xmm_xmmm128 r 16, Punpckhqdq_xmm_xmmm128 r 16, Movdqa_xmm_xmmm128 r 16,
            Pshufd_xmm_xmmm128_imm8 r 16, Pshufhw_xmm_xmmm128_imm8 r 16,
            Pshuflw_xmm_xmmm128_imm8 r 16, Pcmpeqb_xmm_xmmm128 r 16, Pcmpeqw_xmm_xmmm128 r 16,
            Pcmpeqd_xmm_xmmm128 r 16, Movdqa_xmmm128_xmm w 16, Shufpd_xmm_xmmm128_imm8 r 16,
            Psrlw_xmm_xmmm128 r 16, Psrld_xmm_xmmm128 r 16, Psrlq_xmm_xmmm128 r 16,
            Paddq_xmm_xmmm128 r 16, Pmullw_xmm_xmmm128 r 16, Psubusb_xmm_xmmm128 r 16,
            Psubusw_xmm_xmmm128 r 16, Pminub_xmm_xmmm128 r 16, Pand_xmm_xmmm128 r 16,
            Paddusb_xmm_xmmm128 r 16, Paddusw_xmm_xmmm128 r 16, Pmaxub_xmm_xmmm128 r 16,
            Pandn_xmm_xmmm128 r 16, Pavgb_xmm_xmmm128 r 16, Psraw_xmm_xmmm128 r 16,
            Psrad_xmm_xmmm128 r 16, Pavgw_xmm_xmmm128 r 16, Pmulhuw_xmm_xmmm128 r 16,
            Pmulhw_xmm_xmmm128 r 16, Movntdq_m128_xmm w 16, Psubsb_xmm_xmmm128 r 16,
            Psubsw_xmm_xmmm128 r 16, Pminsw_xmm_xmmm128 r 16, Por_xmm_xmmm128 r 16,
            Paddsb_xmm_xmmm128 r 16, Paddsw_xmm_xmmm128 r 16, Pmaxsw_xmm_xmmm128 r 16,
            Pxor_xmm_xmmm128 r 16, Psllw_xmm_xmmm128 r 16, Pslld_xmm_xmmm128 r 16,
            Psllq_xmm_xmmm128 r 16, Pmuludq_xmm_xmmm128 r 16, Pmaddwd_xmm_xmmm128 r 16,
            Psadbw_xmm_xmmm128 r 16, Psubb_xmm_xmmm128 r 16, Psubw_xmm_xmmm128 r 16,
            Psubd_xmm_xmmm128 r 16, Psubq_xmm_xmmm128 r 16, Paddb_xmm_xmmm128 r 16,
            Paddw_xmm_xmmm128 r 16, Paddd_xmm_xmmm128 r 16;
    }
    // moves and logic
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::MmxSse)] {
        any: Cvtpi2pd_xmm_mmm64 r 8, Movq2dq_xmm_mm, Movdq2q_mm_xmm;
    }
    // floating point
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::Sse).mxcsr()] {
        m64: Cvtsi2sd_xmm_rm64 r 8, Cvttsd2si_r64_xmmm64 r 8, Cvtsd2si_r64_xmmm64 r 8;
        any: Cvttsd2si_r32_xmmm64 r 8, Cvtsd2si_r32_xmmm64 r 8, Sqrtsd_xmm_xmmm64 r 8,
            Addsd_xmm_xmmm64 r 8, Mulsd_xmm_xmmm64 r 8, Cvtps2pd_xmm_xmmm64 r 8,
            Cvtss2sd_xmm_xmmm32 r 4, Cvtsd2ss_xmm_xmmm64 r 8, Subsd_xmm_xmmm64 r 8,
            Minsd_xmm_xmmm64 r 8, Divsd_xmm_xmmm64 r 8, Maxsd_xmm_xmmm64 r 8,
            Cmpsd_xmm_xmmm64_imm8 r 8;
    }
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::MmxSse).mxcsr().aligned()] {
        any: Cvttpd2pi_mm_xmmm128 r 16, Cvtpd2pi_mm_xmmm128 r 16;
    }
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::Sse).mxcsr()
        .writes_flags(ZF | PF | CF).clears_flags(OF | SF | AF)] {
        any: Ucomisd_xmm_xmmm64 r 8, Comisd_xmm_xmmm64 r 8;
    }
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::Sse).mxcsr().aligned()] {
        any: Sqrtpd_xmm_xmmm128 r 16, Addpd_xmm_xmmm128 r 16, Mulpd_xmm_xmmm128 r 16,
            Cvtpd2ps_xmm_xmmm128 r 16, Cvtdq2ps_xmm_xmmm128 r 16, Cvtps2dq_xmm_xmmm128 r 16,
            Cvttps2dq_xmm_xmmm128 r 16, Subpd_xmm_xmmm128 r 16, Minpd_xmm_xmmm128 r 16,
            Divpd_xmm_xmmm128 r 16, Maxpd_xmm_xmmm128 r 16, Cmppd_xmm_xmmm128_imm8 r 16,
            Cvttpd2dq_xmm_xmmm128 r 16, Cvtpd2dq_xmm_xmmm128 r 16;
    }
    // moves and logic
    [Form::native(Group::Sse2).needs(Feature::Sse2)] {
        any: Movnti_m32_r32 w 4;
        m64: Movnti_m64_r64 w 8;
    }
    // integer
    [Form::native(Group::Sse2).needs(Feature::Sse2).unit(Unit::Mmx)] {
        any: Pmuludq_mm_mmm64 r 8, Psubq_mm_mmm64 r 8;
    }
    // moves and logic
    [Form::interp(Group::Sse2).needs(Feature::Sse2).unit(Unit::Sse).implicit(RDI, NONE)
        .memory(ImplicitMemory::MaskMove)] {
        any: Maskmovdqu_rDI_xmm_xmm w 16;
    }
}
