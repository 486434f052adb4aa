//! AVX floating point (SDM vol. 1, 14.1).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::{Form, Group, Unit};

forms! {
    // floating point
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).mxcsr()] {
        any: VEX_Vcvtsi2ss_xmm_xmm_rm32 r 4, VEX_Vcvttss2si_r32_xmmm32 r 4,
            VEX_Vcvttsd2si_r32_xmmm64 r 8, VEX_Vcvtss2si_r32_xmmm32 r 4,
            VEX_Vcvtsd2si_r32_xmmm64 r 8, VEX_Vsqrtps_xmm_xmmm128 r 16,
            VEX_Vsqrtps_ymm_ymmm256 r 32, VEX_Vsqrtpd_xmm_xmmm128 r 16,
            VEX_Vsqrtpd_ymm_ymmm256 r 32, VEX_Vsqrtss_xmm_xmm_xmmm32 r 4,
            VEX_Vsqrtsd_xmm_xmm_xmmm64 r 8, VEX_Vaddps_xmm_xmm_xmmm128 r 16,
            VEX_Vaddps_ymm_ymm_ymmm256 r 32, VEX_Vaddpd_xmm_xmm_xmmm128 r 16,
            VEX_Vaddpd_ymm_ymm_ymmm256 r 32, VEX_Vaddss_xmm_xmm_xmmm32 r 4,
            VEX_Vaddsd_xmm_xmm_xmmm64 r 8, VEX_Vmulps_xmm_xmm_xmmm128 r 16,
            VEX_Vmulps_ymm_ymm_ymmm256 r 32, VEX_Vmulpd_xmm_xmm_xmmm128 r 16,
            VEX_Vmulpd_ymm_ymm_ymmm256 r 32, VEX_Vmulss_xmm_xmm_xmmm32 r 4,
            VEX_Vmulsd_xmm_xmm_xmmm64 r 8, VEX_Vcvtps2pd_xmm_xmmm64 r 8,
            VEX_Vcvtps2pd_ymm_xmmm128 r 16, VEX_Vcvtpd2ps_xmm_xmmm128 r 16,
            VEX_Vcvtpd2ps_xmm_ymmm256 r 32, VEX_Vcvtss2sd_xmm_xmm_xmmm32 r 4,
            VEX_Vcvtsd2ss_xmm_xmm_xmmm64 r 8, VEX_Vcvtdq2ps_xmm_xmmm128 r 16,
            VEX_Vcvtdq2ps_ymm_ymmm256 r 32, VEX_Vcvtps2dq_xmm_xmmm128 r 16,
            VEX_Vcvtps2dq_ymm_ymmm256 r 32, VEX_Vcvttps2dq_xmm_xmmm128 r 16,
            VEX_Vcvttps2dq_ymm_ymmm256 r 32, VEX_Vsubps_xmm_xmm_xmmm128 r 16,
            VEX_Vsubps_ymm_ymm_ymmm256 r 32, VEX_Vsubpd_xmm_xmm_xmmm128 r 16,
            VEX_Vsubpd_ymm_ymm_ymmm256 r 32, VEX_Vsubss_xmm_xmm_xmmm32 r 4,
            VEX_Vsubsd_xmm_xmm_xmmm64 r 8, VEX_Vminps_xmm_xmm_xmmm128 r 16,
            VEX_Vminps_ymm_ymm_ymmm256 r 32, VEX_Vminpd_xmm_xmm_xmmm128 r 16,
            VEX_Vminpd_ymm_ymm_ymmm256 r 32, VEX_Vminss_xmm_xmm_xmmm32 r 4,
            VEX_Vminsd_xmm_xmm_xmmm64 r 8, VEX_Vdivps_xmm_xmm_xmmm128 r 16,
            VEX_Vdivps_ymm_ymm_ymmm256 r 32, VEX_Vdivpd_xmm_xmm_xmmm128 r 16,
            VEX_Vdivpd_ymm_ymm_ymmm256 r 32, VEX_Vdivss_xmm_xmm_xmmm32 r 4,
            VEX_Vdivsd_xmm_xmm_xmmm64 r 8, VEX_Vmaxps_xmm_xmm_xmmm128 r 16,
            VEX_Vmaxps_ymm_ymm_ymmm256 r 32, VEX_Vmaxpd_xmm_xmm_xmmm128 r 16,
            VEX_Vmaxpd_ymm_ymm_ymmm256 r 32, VEX_Vmaxss_xmm_xmm_xmmm32 r 4,
            VEX_Vmaxsd_xmm_xmm_xmmm64 r 8, VEX_Vhaddpd_xmm_xmm_xmmm128 r 16,
            VEX_Vhaddpd_ymm_ymm_ymmm256 r 32, VEX_Vhaddps_xmm_xmm_xmmm128 r 16,
            VEX_Vhaddps_ymm_ymm_ymmm256 r 32, VEX_Vhsubpd_xmm_xmm_xmmm128 r 16,
            VEX_Vhsubpd_ymm_ymm_ymmm256 r 32, VEX_Vhsubps_xmm_xmm_xmmm128 r 16,
            VEX_Vhsubps_ymm_ymm_ymmm256 r 32, VEX_Vcmpps_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vcmpps_ymm_ymm_ymmm256_imm8 r 32, VEX_Vcmppd_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vcmppd_ymm_ymm_ymmm256_imm8 r 32, VEX_Vcmpss_xmm_xmm_xmmm32_imm8 r 4,
            VEX_Vcmpsd_xmm_xmm_xmmm64_imm8 r 8, VEX_Vaddsubpd_xmm_xmm_xmmm128 r 16,
            VEX_Vaddsubpd_ymm_ymm_ymmm256 r 32, VEX_Vaddsubps_xmm_xmm_xmmm128 r 16,
            VEX_Vaddsubps_ymm_ymm_ymmm256 r 32, VEX_Vcvttpd2dq_xmm_xmmm128 r 16,
            VEX_Vcvttpd2dq_xmm_ymmm256 r 32, VEX_Vcvtpd2dq_xmm_xmmm128 r 16,
            VEX_Vcvtpd2dq_xmm_ymmm256 r 32, VEX_Vroundps_xmm_xmmm128_imm8 r 16,
            VEX_Vroundps_ymm_ymmm256_imm8 r 32, VEX_Vroundpd_xmm_xmmm128_imm8 r 16,
            VEX_Vroundpd_ymm_ymmm256_imm8 r 32, VEX_Vroundss_xmm_xmm_xmmm32_imm8 r 4,
            VEX_Vroundsd_xmm_xmm_xmmm64_imm8 r 8, VEX_Vdpps_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vdpps_ymm_ymm_ymmm256_imm8 r 32, VEX_Vdppd_xmm_xmm_xmmm128_imm8 r 16;
        m64: VEX_Vcvtsi2ss_xmm_xmm_rm64 r 8, VEX_Vcvtsi2sd_xmm_xmm_rm64 r 8,
            VEX_Vcvttss2si_r64_xmmm32 r 4, VEX_Vcvttsd2si_r64_xmmm64 r 8,
            VEX_Vcvtss2si_r64_xmmm32 r 4, VEX_Vcvtsd2si_r64_xmmm64 r 8;
    }
    // moves and logic
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)] {
        any: VEX_Vcvtsi2sd_xmm_xmm_rm32 r 4, VEX_Vrsqrtps_xmm_xmmm128 r 16,
            VEX_Vrsqrtps_ymm_ymmm256 r 32, VEX_Vrsqrtss_xmm_xmm_xmmm32 r 4,
            VEX_Vrcpps_xmm_xmmm128 r 16, VEX_Vrcpps_ymm_ymmm256 r 32,
            VEX_Vrcpss_xmm_xmm_xmmm32 r 4, VEX_Vandps_xmm_xmm_xmmm128 r 16,
            VEX_Vandps_ymm_ymm_ymmm256 r 32, VEX_Vandpd_xmm_xmm_xmmm128 r 16,
            VEX_Vandpd_ymm_ymm_ymmm256 r 32, VEX_Vandnps_xmm_xmm_xmmm128 r 16,
            VEX_Vandnps_ymm_ymm_ymmm256 r 32, VEX_Vandnpd_xmm_xmm_xmmm128 r 16,
            VEX_Vandnpd_ymm_ymm_ymmm256 r 32, VEX_Vorps_xmm_xmm_xmmm128 r 16,
            VEX_Vorps_ymm_ymm_ymmm256 r 32, VEX_Vorpd_xmm_xmm_xmmm128 r 16,
            VEX_Vorpd_ymm_ymm_ymmm256 r 32, VEX_Vxorps_xmm_xmm_xmmm128 r 16,
            VEX_Vxorps_ymm_ymm_ymmm256 r 32, VEX_Vxorpd_xmm_xmm_xmmm128 r 16,
            VEX_Vxorpd_ymm_ymm_ymmm256 r 32, VEX_Vcvtdq2pd_xmm_xmmm64 r 8,
            VEX_Vcvtdq2pd_ymm_xmmm128 r 16, VEX_Vmpsadbw_xmm_xmm_xmmm128_imm8 r 16;
    }
    // floating point
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).mxcsr()
        .writes_flags(ZF | PF | CF).clears_flags(OF | SF | AF)] {
        any: VEX_Vucomiss_xmm_xmmm32 r 4, VEX_Vucomisd_xmm_xmmm64 r 8, VEX_Vcomiss_xmm_xmmm32 r 4,
            VEX_Vcomisd_xmm_xmmm64 r 8;
    }
    // moves and logic
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).writes_flags(ZF | CF)
        .clears_flags(OF | SF | AF | PF)] {
        any: VEX_Vtestps_xmm_xmmm128 r 16, VEX_Vtestps_ymm_ymmm256 r 32,
            VEX_Vtestpd_xmm_xmmm128 r 16, VEX_Vtestpd_ymm_ymmm256 r 32;
    }
}
