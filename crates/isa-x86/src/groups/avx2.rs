//! AVX2 (SDM vol. 1, 14.7).

use crate::Feature;
use crate::form::{Form, Group, Unit};

forms! {
    // integer, moves and logic
    [Form::native(Group::Avx2).needs(Feature::Avx2).unit(Unit::Avx)] {
        any: VEX_Vpunpcklbw_ymm_ymm_ymmm256 r 32, VEX_Vpunpcklwd_ymm_ymm_ymmm256 r 32,
            VEX_Vpunpckldq_ymm_ymm_ymmm256 r 32, VEX_Vpacksswb_ymm_ymm_ymmm256 r 32,
            VEX_Vpcmpgtb_ymm_ymm_ymmm256 r 32, VEX_Vpcmpgtw_ymm_ymm_ymmm256 r 32,
            VEX_Vpcmpgtd_ymm_ymm_ymmm256 r 32, VEX_Vpackuswb_ymm_ymm_ymmm256 r 32,
            VEX_Vpunpckhbw_ymm_ymm_ymmm256 r 32, VEX_Vpunpckhwd_ymm_ymm_ymmm256 r 32,
            VEX_Vpunpckhdq_ymm_ymm_ymmm256 r 32, VEX_Vpackssdw_ymm_ymm_ymmm256 r 32,
            VEX_Vpunpcklqdq_ymm_ymm_ymmm256 r 32, VEX_Vpunpckhqdq_ymm_ymm_ymmm256 r 32,
            VEX_Vpshufd_ymm_ymmm256_imm8 r 32, VEX_Vpshufhw_ymm_ymmm256_imm8 r 32,
            VEX_Vpshuflw_ymm_ymmm256_imm8 r 32, VEX_Vpsrlw_ymm_ymm_imm8, VEX_Vpsraw_ymm_ymm_imm8,
            VEX_Vpsllw_ymm_ymm_imm8, VEX_Vpsrld_ymm_ymm_imm8, VEX_Vpsrad_ymm_ymm_imm8,
            VEX_Vpslld_ymm_ymm_imm8, VEX_Vpsrlq_ymm_ymm_imm8, VEX_Vpsrldq_ymm_ymm_imm8,
            VEX_Vpsllq_ymm_ymm_imm8, VEX_Vpslldq_ymm_ymm_imm8, VEX_Vpcmpeqb_ymm_ymm_ymmm256 r 32,
            VEX_Vpcmpeqw_ymm_ymm_ymmm256 r 32, VEX_Vpcmpeqd_ymm_ymm_ymmm256 r 32,
            VEX_Vpsrlw_ymm_ymm_xmmm128 r 16, VEX_Vpsrld_ymm_ymm_xmmm128 r 16,
            VEX_Vpsrlq_ymm_ymm_xmmm128 r 16, VEX_Vpaddq_ymm_ymm_ymmm256 r 32,
            VEX_Vpmullw_ymm_ymm_ymmm256 r 32, VEX_Vpmovmskb_r32_ymm,
            VEX_Vpsubusb_ymm_ymm_ymmm256 r 32, VEX_Vpsubusw_ymm_ymm_ymmm256 r 32,
            VEX_Vpminub_ymm_ymm_ymmm256 r 32, VEX_Vpand_ymm_ymm_ymmm256 r 32,
            VEX_Vpaddusb_ymm_ymm_ymmm256 r 32, VEX_Vpaddusw_ymm_ymm_ymmm256 r 32,
            VEX_Vpmaxub_ymm_ymm_ymmm256 r 32, VEX_Vpandn_ymm_ymm_ymmm256 r 32,
            VEX_Vpavgb_ymm_ymm_ymmm256 r 32, VEX_Vpsraw_ymm_ymm_xmmm128 r 16,
            VEX_Vpsrad_ymm_ymm_xmmm128 r 16, VEX_Vpavgw_ymm_ymm_ymmm256 r 32,
            VEX_Vpmulhuw_ymm_ymm_ymmm256 r 32, VEX_Vpmulhw_ymm_ymm_ymmm256 r 32,
            VEX_Vpsubsb_ymm_ymm_ymmm256 r 32, VEX_Vpsubsw_ymm_ymm_ymmm256 r 32,
            VEX_Vpminsw_ymm_ymm_ymmm256 r 32, VEX_Vpor_ymm_ymm_ymmm256 r 32,
            VEX_Vpaddsb_ymm_ymm_ymmm256 r 32, VEX_Vpaddsw_ymm_ymm_ymmm256 r 32,
            VEX_Vpmaxsw_ymm_ymm_ymmm256 r 32, VEX_Vpxor_ymm_ymm_ymmm256 r 32,
            VEX_Vpsllw_ymm_ymm_xmmm128 r 16, VEX_Vpslld_ymm_ymm_xmmm128 r 16,
            VEX_Vpsllq_ymm_ymm_xmmm128 r 16, VEX_Vpmuludq_ymm_ymm_ymmm256 r 32,
            VEX_Vpmaddwd_ymm_ymm_ymmm256 r 32, VEX_Vpsadbw_ymm_ymm_ymmm256 r 32,
            VEX_Vpsubb_ymm_ymm_ymmm256 r 32, VEX_Vpsubw_ymm_ymm_ymmm256 r 32,
            VEX_Vpsubd_ymm_ymm_ymmm256 r 32, VEX_Vpsubq_ymm_ymm_ymmm256 r 32,
            VEX_Vpaddb_ymm_ymm_ymmm256 r 32, VEX_Vpaddw_ymm_ymm_ymmm256 r 32,
            VEX_Vpaddd_ymm_ymm_ymmm256 r 32, VEX_Vpshufb_ymm_ymm_ymmm256 r 32,
            VEX_Vphaddw_ymm_ymm_ymmm256 r 32, VEX_Vphaddd_ymm_ymm_ymmm256 r 32,
            VEX_Vphaddsw_ymm_ymm_ymmm256 r 32, VEX_Vpmaddubsw_ymm_ymm_ymmm256 r 32,
            VEX_Vphsubw_ymm_ymm_ymmm256 r 32, VEX_Vphsubd_ymm_ymm_ymmm256 r 32,
            VEX_Vphsubsw_ymm_ymm_ymmm256 r 32, VEX_Vpsignb_ymm_ymm_ymmm256 r 32,
            VEX_Vpsignw_ymm_ymm_ymmm256 r 32, VEX_Vpsignd_ymm_ymm_ymmm256 r 32,
            VEX_Vpmulhrsw_ymm_ymm_ymmm256 r 32, VEX_Vpermps_ymm_ymm_ymmm256 r 32,
            VEX_Vpabsb_ymm_ymmm256 r 32, VEX_Vpabsw_ymm_ymmm256 r 32, VEX_Vpabsd_ymm_ymmm256 r 32,
            VEX_Vpmovsxbw_ymm_xmmm128 r 16, VEX_Vpmovsxbd_ymm_xmmm64 r 8,
            VEX_Vpmovsxbq_ymm_xmmm32 r 4, VEX_Vpmovsxwd_ymm_xmmm128 r 16,
            VEX_Vpmovsxwq_ymm_xmmm64 r 8, VEX_Vpmovsxdq_ymm_xmmm128 r 16,
            VEX_Vpmuldq_ymm_ymm_ymmm256 r 32, VEX_Vpcmpeqq_ymm_ymm_ymmm256 r 32,
            VEX_Vpackusdw_ymm_ymm_ymmm256 r 32, VEX_Vpmovzxbw_ymm_xmmm128 r 16,
            VEX_Vpmovzxbd_ymm_xmmm64 r 8, VEX_Vpmovzxbq_ymm_xmmm32 r 4,
            VEX_Vpmovzxwd_ymm_xmmm128 r 16, VEX_Vpmovzxwq_ymm_xmmm64 r 8,
            VEX_Vpmovzxdq_ymm_xmmm128 r 16, VEX_Vpermd_ymm_ymm_ymmm256 r 32,
            VEX_Vpcmpgtq_ymm_ymm_ymmm256 r 32, VEX_Vpminsb_ymm_ymm_ymmm256 r 32,
            VEX_Vpminsd_ymm_ymm_ymmm256 r 32, VEX_Vpminuw_ymm_ymm_ymmm256 r 32,
            VEX_Vpminud_ymm_ymm_ymmm256 r 32, VEX_Vpmaxsb_ymm_ymm_ymmm256 r 32,
            VEX_Vpmaxsd_ymm_ymm_ymmm256 r 32, VEX_Vpmaxuw_ymm_ymm_ymmm256 r 32,
            VEX_Vpmaxud_ymm_ymm_ymmm256 r 32, VEX_Vpmulld_ymm_ymm_ymmm256 r 32,
            VEX_Vpsrlvd_xmm_xmm_xmmm128 r 16, VEX_Vpsrlvd_ymm_ymm_ymmm256 r 32,
            VEX_Vpsrlvq_xmm_xmm_xmmm128 r 16, VEX_Vpsrlvq_ymm_ymm_ymmm256 r 32,
            VEX_Vpsravd_xmm_xmm_xmmm128 r 16, VEX_Vpsravd_ymm_ymm_ymmm256 r 32,
            VEX_Vpsllvd_xmm_xmm_xmmm128 r 16, VEX_Vpsllvd_ymm_ymm_ymmm256 r 32,
            VEX_Vpsllvq_xmm_xmm_xmmm128 r 16, VEX_Vpsllvq_ymm_ymm_ymmm256 r 32,
            VEX_Vpbroadcastd_xmm_xmmm32 r 4, VEX_Vpbroadcastd_ymm_xmmm32 r 4,
            VEX_Vpbroadcastq_xmm_xmmm64 r 8, VEX_Vpbroadcastq_ymm_xmmm64 r 8,
            VEX_Vbroadcasti128_ymm_m128 r 16, VEX_Vpbroadcastb_xmm_xmmm8 r 1,
            VEX_Vpbroadcastb_ymm_xmmm8 r 1, VEX_Vpbroadcastw_xmm_xmmm16 r 2,
            VEX_Vpbroadcastw_ymm_xmmm16 r 2, VEX_Vpermq_ymm_ymmm256_imm8 r 32,
            VEX_Vpermpd_ymm_ymmm256_imm8 r 32, VEX_Vpblendd_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vpblendd_ymm_ymm_ymmm256_imm8 r 32, VEX_Vpblendw_ymm_ymm_ymmm256_imm8 r 32,
            VEX_Vpalignr_ymm_ymm_ymmm256_imm8 r 32, VEX_Vinserti128_ymm_ymm_xmmm128_imm8 r 16,
            VEX_Vextracti128_xmmm128_ymm_imm8 w 16, VEX_Vmpsadbw_ymm_ymm_ymmm256_imm8 r 32,
            VEX_Vperm2i128_ymm_ymm_ymmm256_imm8 r 32, VEX_Vpblendvb_ymm_ymm_ymmm256_ymm r 32,
            VEX_Vbroadcastss_xmm_xmm, VEX_Vbroadcastss_ymm_xmm, VEX_Vbroadcastsd_ymm_xmm;
        m64: VEX_Vpmovmskb_r64_ymm;
    }
    // moves and logic
    [Form::native(Group::Avx2).needs(Feature::Avx2).unit(Unit::Avx).aligned()] {
        any: VEX_Vmovntdqa_ymm_m256 r 32;
    }
    // integer, moves and logic
    [Form::interp(Group::Avx2).needs(Feature::Avx2).unit(Unit::Avx).masked()] {
        any: VEX_Vpmaskmovd_xmm_xmm_m128 r 16, VEX_Vpmaskmovd_ymm_ymm_m256 r 32,
            VEX_Vpmaskmovq_xmm_xmm_m128 r 16, VEX_Vpmaskmovq_ymm_ymm_m256 r 32,
            VEX_Vpmaskmovd_m128_xmm_xmm w 16, VEX_Vpmaskmovd_m256_ymm_ymm w 32,
            VEX_Vpmaskmovq_m128_xmm_xmm w 16, VEX_Vpmaskmovq_m256_ymm_ymm w 32,
            VEX_Vpgatherdd_xmm_vm32x_xmm r 4, VEX_Vpgatherdd_ymm_vm32y_ymm r 4,
            VEX_Vpgatherdq_xmm_vm32x_xmm r 8, VEX_Vpgatherdq_ymm_vm32x_ymm r 8,
            VEX_Vpgatherqd_xmm_vm64x_xmm r 4, VEX_Vpgatherqd_xmm_vm64y_xmm r 4,
            VEX_Vpgatherqq_xmm_vm64x_xmm r 8, VEX_Vpgatherqq_ymm_vm64y_ymm r 8,
            VEX_Vgatherdps_xmm_vm32x_xmm r 4, VEX_Vgatherdps_ymm_vm32y_ymm r 4,
            VEX_Vgatherdpd_xmm_vm32x_xmm r 8, VEX_Vgatherdpd_ymm_vm32x_ymm r 8,
            VEX_Vgatherqps_xmm_vm64x_xmm r 4, VEX_Vgatherqps_xmm_vm64y_xmm r 4,
            VEX_Vgatherqpd_xmm_vm64x_xmm r 8, VEX_Vgatherqpd_ymm_vm64y_ymm r 8;
    }
}
