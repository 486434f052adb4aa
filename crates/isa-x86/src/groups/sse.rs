//! SSE (SDM vol. 1, chapter 10), with its additions to MMX.

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::gpr::{NONE, RDI};
use crate::form::{Form, Group, ImplicitMemory, Unit};

forms! {
    // moves and logic
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::Sse)] {
        any: Movups_xmm_xmmm128 r 16, Movss_xmm_xmmm32 r 4, Movups_xmmm128_xmm w 16,
            Movss_xmmm32_xmm w 4, Movhlps_xmm_xmm, Movlps_xmm_m64 r 8, Movlps_m64_xmm w 8,
            Movlhps_xmm_xmm, Movhps_xmm_m64 r 8, Movhps_m64_xmm w 8, Movmskps_r32_xmm,
            Rsqrtss_xmm_xmmm32 r 4, Rcpss_xmm_xmmm32 r 4;
        m64: Movmskps_r64_xmm;
    }
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::Sse).aligned()] {
        any: Unpcklps_xmm_xmmm128 r 16, Unpckhps_xmm_xmmm128 r 16, Movaps_xmm_xmmm128 r 16,
            Movaps_xmmm128_xmm w 16, Movntps_m128_xmm w 16, Rsqrtps_xmm_xmmm128 r 16,
            Rcpps_xmm_xmmm128 r 16, Andps_xmm_xmmm128 r 16, Andnps_xmm_xmmm128 r 16,
            Orps_xmm_xmmm128 r 16, Xorps_xmm_xmmm128 r 16, Shufps_xmm_xmmm128_imm8 r 16;
    }
    // floating point
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::MmxSse).mxcsr()] {
        any: Cvtpi2ps_xmm_mmm64 r 8, Cvttps2pi_mm_xmmm64 r 8, Cvtps2pi_mm_xmmm64 r 8;
    }
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::Sse).mxcsr()] {
        any: Cvtsi2ss_xmm_rm32 r 4, Cvttss2si_r32_xmmm32 r 4, Cvtss2si_r32_xmmm32 r 4,
            Sqrtss_xmm_xmmm32 r 4, Addss_xmm_xmmm32 r 4, Mulss_xmm_xmmm32 r 4,
            Subss_xmm_xmmm32 r 4, Minss_xmm_xmmm32 r 4, Divss_xmm_xmmm32 r 4, Maxss_xmm_xmmm32 r 4,
            Cmpss_xmm_xmmm32_imm8 r 4;
        m64: Cvtsi2ss_xmm_rm64 r 8, Cvttss2si_r64_xmmm32 r 4, Cvtss2si_r64_xmmm32 r 4;
    }
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::Sse).mxcsr()
        .writes_flags(ZF | PF | CF).clears_flags(OF | SF | AF)] {
        any: Ucomiss_xmm_xmmm32 r 4, Comiss_xmm_xmmm32 r 4;
    }
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::Sse).mxcsr().aligned()] {
        any: Sqrtps_xmm_xmmm128 r 16, Addps_xmm_xmmm128 r 16, Mulps_xmm_xmmm128 r 16,
            Subps_xmm_xmmm128 r 16, Minps_xmm_xmmm128 r 16, Divps_xmm_xmmm128 r 16,
            Maxps_xmm_xmmm128 r 16, Cmpps_xmm_xmmm128_imm8 r 16;
    }
    // integer, moves and logic
    [Form::native(Group::Sse).needs(Feature::Sse).unit(Unit::Mmx)] {
        any: Pshufw_mm_mmm64_imm8 r 8, Pinsrw_mm_r32m16_imm8 r 2, Pextrw_r32_mm_imm8,
            Pmovmskb_r32_mm, Pminub_mm_mmm64 r 8, Pmaxub_mm_mmm64 r 8, Pavgb_mm_mmm64 r 8,
            Pavgw_mm_mmm64 r 8, Pmulhuw_mm_mmm64 r 8, Movntq_m64_mm w 8, Pminsw_mm_mmm64 r 8,
            Pmaxsw_mm_mmm64 r 8, Psadbw_mm_mmm64 r 8;
        m64: Pinsrw_mm_r64m16_imm8 r 2, Pextrw_r64_mm_imm8, Pmovmskb_r64_mm;
    }
    // moves and logic
    [Form::interp(Group::Sse).needs(Feature::Sse).unit(Unit::Sse)] {
        any: Ldmxcsr_m32 r 4, Stmxcsr_m32 w 4;
    }
    [Form::interp(Group::Sse).needs(Feature::Sse).unit(Unit::Mmx).implicit(RDI, NONE)
        .memory(ImplicitMemory::MaskMove)] {
        any: Maskmovq_rDI_mm_mm w 8;
    }
}
