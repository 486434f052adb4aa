//! AVX moves, broadcasts, shuffles and inserts (SDM vol. 1, 14.1).

use crate::Feature;
use crate::form::gpr::{NONE, RDI};
use crate::form::{Form, Group, ImplicitMemory, Unit};

forms! {
    // moves and logic, integer
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)] {
        any: VEX_Vmovups_xmm_xmmm128 r 16, VEX_Vmovups_ymm_ymmm256 r 32,
            VEX_Vmovupd_xmm_xmmm128 r 16, VEX_Vmovupd_ymm_ymmm256 r 32, VEX_Vmovss_xmm_xmm_xmm,
            VEX_Vmovss_xmm_m32 r 4, VEX_Vmovsd_xmm_xmm_xmm, VEX_Vmovsd_xmm_m64 r 8,
            VEX_Vmovups_xmmm128_xmm w 16, VEX_Vmovups_ymmm256_ymm w 32,
            VEX_Vmovupd_xmmm128_xmm w 16, VEX_Vmovupd_ymmm256_ymm w 32,
            VEX_Vmovss_xmm_xmm_xmm_0F11, VEX_Vmovss_m32_xmm w 4, VEX_Vmovsd_xmm_xmm_xmm_0F11,
            VEX_Vmovsd_m64_xmm w 8, VEX_Vmovhlps_xmm_xmm_xmm, VEX_Vmovlps_xmm_xmm_m64 r 8,
            VEX_Vmovlpd_xmm_xmm_m64 r 8, VEX_Vmovsldup_xmm_xmmm128 r 16,
            VEX_Vmovsldup_ymm_ymmm256 r 32, VEX_Vmovddup_xmm_xmmm64 r 8,
            VEX_Vmovddup_ymm_ymmm256 r 32, VEX_Vmovlps_m64_xmm w 8, VEX_Vmovlpd_m64_xmm w 8,
            VEX_Vunpcklps_xmm_xmm_xmmm128 r 16, VEX_Vunpcklps_ymm_ymm_ymmm256 r 32,
            VEX_Vunpcklpd_xmm_xmm_xmmm128 r 16, VEX_Vunpcklpd_ymm_ymm_ymmm256 r 32,
            VEX_Vunpckhps_xmm_xmm_xmmm128 r 16, VEX_Vunpckhps_ymm_ymm_ymmm256 r 32,
            VEX_Vunpckhpd_xmm_xmm_xmmm128 r 16, VEX_Vunpckhpd_ymm_ymm_ymmm256 r 32,
            VEX_Vmovlhps_xmm_xmm_xmm, VEX_Vmovhps_xmm_xmm_m64 r 8, VEX_Vmovhpd_xmm_xmm_m64 r 8,
            VEX_Vmovshdup_xmm_xmmm128 r 16, VEX_Vmovshdup_ymm_ymmm256 r 32,
            VEX_Vmovhps_m64_xmm w 8, VEX_Vmovhpd_m64_xmm w 8, VEX_Vmovmskps_r32_xmm,
            VEX_Vmovmskps_r32_ymm, VEX_Vmovmskpd_r32_xmm, VEX_Vmovmskpd_r32_ymm,
            VEX_Vmovd_xmm_rm32 r 4, VEX_Vmovdqu_xmm_xmmm128 r 16, VEX_Vmovdqu_ymm_ymmm256 r 32,
            VEX_Vzeroupper, VEX_Vzeroall, VEX_Vmovd_rm32_xmm w 4, VEX_Vmovq_xmm_xmmm64 r 8,
            VEX_Vmovdqu_xmmm128_xmm w 16, VEX_Vmovdqu_ymmm256_ymm w 32,
            VEX_Vpinsrw_xmm_xmm_r32m16_imm8 r 2, VEX_Vpextrw_r32_xmm_imm8,
            VEX_Vshufps_xmm_xmm_xmmm128_imm8 r 16, VEX_Vshufps_ymm_ymm_ymmm256_imm8 r 32,
            VEX_Vshufpd_xmm_xmm_xmmm128_imm8 r 16, VEX_Vshufpd_ymm_ymm_ymmm256_imm8 r 32,
            VEX_Vmovq_xmmm64_xmm w 8, VEX_Vlddqu_xmm_m128 r 16, VEX_Vlddqu_ymm_m256 r 32,
            VEX_Vpermilps_xmm_xmm_xmmm128 r 16, VEX_Vpermilps_ymm_ymm_ymmm256 r 32,
            VEX_Vpermilpd_xmm_xmm_xmmm128 r 16, VEX_Vpermilpd_ymm_ymm_ymmm256 r 32,
            VEX_Vbroadcastss_xmm_m32 r 4, VEX_Vbroadcastss_ymm_m32 r 4,
            VEX_Vbroadcastsd_ymm_m64 r 8, VEX_Vbroadcastf128_ymm_m128 r 16,
            VEX_Vpermilps_xmm_xmmm128_imm8 r 16, VEX_Vpermilps_ymm_ymmm256_imm8 r 32,
            VEX_Vpermilpd_xmm_xmmm128_imm8 r 16, VEX_Vpermilpd_ymm_ymmm256_imm8 r 32,
            VEX_Vperm2f128_ymm_ymm_ymmm256_imm8 r 32, VEX_Vblendps_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vblendps_ymm_ymm_ymmm256_imm8 r 32, VEX_Vblendpd_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vblendpd_ymm_ymm_ymmm256_imm8 r 32, VEX_Vpextrb_r32m8_xmm_imm8 w 1,
            VEX_Vpextrw_r32m16_xmm_imm8 w 2, VEX_Vpextrd_rm32_xmm_imm8 w 4,
            VEX_Vextractps_rm32_xmm_imm8 w 4, VEX_Vinsertf128_ymm_ymm_xmmm128_imm8 r 16,
            VEX_Vextractf128_xmmm128_ymm_imm8 w 16, VEX_Vpinsrb_xmm_xmm_r32m8_imm8 r 1,
            VEX_Vinsertps_xmm_xmm_xmmm32_imm8 r 4, VEX_Vpinsrd_xmm_xmm_rm32_imm8 r 4,
            VEX_Vblendvps_xmm_xmm_xmmm128_xmm r 16, VEX_Vblendvps_ymm_ymm_ymmm256_ymm r 32,
            VEX_Vblendvpd_xmm_xmm_xmmm128_xmm r 16, VEX_Vblendvpd_ymm_ymm_ymmm256_ymm r 32;
        m64: VEX_Vmovmskps_r64_xmm, VEX_Vmovmskps_r64_ymm, VEX_Vmovmskpd_r64_xmm,
            VEX_Vmovmskpd_r64_ymm, VEX_Vmovq_xmm_rm64 r 8, VEX_Vmovq_rm64_xmm w 8,
            VEX_Vpinsrw_xmm_xmm_r64m16_imm8 r 2, VEX_Vpextrw_r64_xmm_imm8,
            VEX_Vpextrb_r64m8_xmm_imm8 w 1, VEX_Vpextrw_r64m16_xmm_imm8 w 2,
            VEX_Vpextrq_rm64_xmm_imm8 w 8, VEX_Vextractps_r64m32_xmm_imm8 w 4,
            VEX_Vpinsrb_xmm_xmm_r64m8_imm8 r 1, VEX_Vpinsrq_xmm_xmm_rm64_imm8 r 8;
    }
    // moves and logic
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).aligned()] {
        any: VEX_Vmovaps_xmm_xmmm128 r 16, VEX_Vmovaps_ymm_ymmm256 r 32,
            VEX_Vmovapd_xmm_xmmm128 r 16, VEX_Vmovapd_ymm_ymmm256 r 32,
            VEX_Vmovaps_xmmm128_xmm w 16, VEX_Vmovaps_ymmm256_ymm w 32,
            VEX_Vmovapd_xmmm128_xmm w 16, VEX_Vmovapd_ymmm256_ymm w 32, VEX_Vmovntps_m128_xmm w 16,
            VEX_Vmovntps_m256_ymm w 32, VEX_Vmovntpd_m128_xmm w 16, VEX_Vmovntpd_m256_ymm w 32,
            VEX_Vmovdqa_xmm_xmmm128 r 16, VEX_Vmovdqa_ymm_ymmm256 r 32,
            VEX_Vmovdqa_xmmm128_xmm w 16, VEX_Vmovdqa_ymmm256_ymm w 32, VEX_Vmovntdq_m128_xmm w 16,
            VEX_Vmovntdq_m256_ymm w 32, VEX_Vmovntdqa_xmm_m128 r 16;
    }
    [Form::interp(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)] {
        any: VEX_Vldmxcsr_m32 r 4, VEX_Vstmxcsr_m32 w 4;
    }
    [Form::interp(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).implicit(RDI, NONE)
        .memory(ImplicitMemory::MaskMove)] {
        any: VEX_Vmaskmovdqu_rDI_xmm_xmm w 16;
    }
    [Form::interp(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).masked()] {
        any: VEX_Vmaskmovps_xmm_xmm_m128 r 16, VEX_Vmaskmovps_ymm_ymm_m256 r 32,
            VEX_Vmaskmovpd_xmm_xmm_m128 r 16, VEX_Vmaskmovpd_ymm_ymm_m256 r 32,
            VEX_Vmaskmovps_m128_xmm_xmm w 16, VEX_Vmaskmovps_m256_ymm_ymm w 32,
            VEX_Vmaskmovpd_m128_xmm_xmm w 16, VEX_Vmaskmovpd_m256_ymm_ymm w 32;
    }
}
