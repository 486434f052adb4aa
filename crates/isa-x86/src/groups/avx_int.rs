//! AVX forms of the 128-bit integer instructions (SDM vol. 1, 14.1).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::gpr::{NONE, RAX, RCX, RDX};
use crate::form::{Form, Group, Unit};

forms! {
    // integer
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)] {
        any: VEX_Vpunpcklbw_xmm_xmm_xmmm128 r 16, VEX_Vpunpcklwd_xmm_xmm_xmmm128 r 16,
            VEX_Vpunpckldq_xmm_xmm_xmmm128 r 16, VEX_Vpacksswb_xmm_xmm_xmmm128 r 16,
            VEX_Vpcmpgtb_xmm_xmm_xmmm128 r 16, VEX_Vpcmpgtw_xmm_xmm_xmmm128 r 16,
            VEX_Vpcmpgtd_xmm_xmm_xmmm128 r 16, VEX_Vpackuswb_xmm_xmm_xmmm128 r 16,
            VEX_Vpunpckhbw_xmm_xmm_xmmm128 r 16, VEX_Vpunpckhwd_xmm_xmm_xmmm128 r 16,
            VEX_Vpunpckhdq_xmm_xmm_xmmm128 r 16, VEX_Vpackssdw_xmm_xmm_xmmm128 r 16,
            VEX_Vpunpcklqdq_xmm_xmm_xmmm128 r 16, VEX_Vpunpckhqdq_xmm_xmm_xmmm128 r 16,
            VEX_Vpshufd_xmm_xmmm128_imm8 r 16, VEX_Vpshufhw_xmm_xmmm128_imm8 r 16,
            VEX_Vpshuflw_xmm_xmmm128_imm8 r 16, VEX_Vpsrlw_xmm_xmm_imm8, VEX_Vpsraw_xmm_xmm_imm8,
            VEX_Vpsllw_xmm_xmm_imm8, VEX_Vpsrld_xmm_xmm_imm8, VEX_Vpsrad_xmm_xmm_imm8,
            VEX_Vpslld_xmm_xmm_imm8, VEX_Vpsrlq_xmm_xmm_imm8, VEX_Vpsrldq_xmm_xmm_imm8,
            VEX_Vpsllq_xmm_xmm_imm8, VEX_Vpslldq_xmm_xmm_imm8, VEX_Vpcmpeqb_xmm_xmm_xmmm128 r 16,
            VEX_Vpcmpeqw_xmm_xmm_xmmm128 r 16, VEX_Vpcmpeqd_xmm_xmm_xmmm128 r 16,
            VEX_Vpsrlw_xmm_xmm_xmmm128 r 16, VEX_Vpsrld_xmm_xmm_xmmm128 r 16,
            VEX_Vpsrlq_xmm_xmm_xmmm128 r 16, VEX_Vpaddq_xmm_xmm_xmmm128 r 16,
            VEX_Vpmullw_xmm_xmm_xmmm128 r 16, VEX_Vpmovmskb_r32_xmm,
            VEX_Vpsubusb_xmm_xmm_xmmm128 r 16, VEX_Vpsubusw_xmm_xmm_xmmm128 r 16,
            VEX_Vpminub_xmm_xmm_xmmm128 r 16, VEX_Vpand_xmm_xmm_xmmm128 r 16,
            VEX_Vpaddusb_xmm_xmm_xmmm128 r 16, VEX_Vpaddusw_xmm_xmm_xmmm128 r 16,
            VEX_Vpmaxub_xmm_xmm_xmmm128 r 16, VEX_Vpandn_xmm_xmm_xmmm128 r 16,
            VEX_Vpavgb_xmm_xmm_xmmm128 r 16, VEX_Vpsraw_xmm_xmm_xmmm128 r 16,
            VEX_Vpsrad_xmm_xmm_xmmm128 r 16, VEX_Vpavgw_xmm_xmm_xmmm128 r 16,
            VEX_Vpmulhuw_xmm_xmm_xmmm128 r 16, VEX_Vpmulhw_xmm_xmm_xmmm128 r 16,
            VEX_Vpsubsb_xmm_xmm_xmmm128 r 16, VEX_Vpsubsw_xmm_xmm_xmmm128 r 16,
            VEX_Vpminsw_xmm_xmm_xmmm128 r 16, VEX_Vpor_xmm_xmm_xmmm128 r 16,
            VEX_Vpaddsb_xmm_xmm_xmmm128 r 16, VEX_Vpaddsw_xmm_xmm_xmmm128 r 16,
            VEX_Vpmaxsw_xmm_xmm_xmmm128 r 16, VEX_Vpxor_xmm_xmm_xmmm128 r 16,
            VEX_Vpsllw_xmm_xmm_xmmm128 r 16, VEX_Vpslld_xmm_xmm_xmmm128 r 16,
            VEX_Vpsllq_xmm_xmm_xmmm128 r 16, VEX_Vpmuludq_xmm_xmm_xmmm128 r 16,
            VEX_Vpmaddwd_xmm_xmm_xmmm128 r 16, VEX_Vpsadbw_xmm_xmm_xmmm128 r 16,
            VEX_Vpsubb_xmm_xmm_xmmm128 r 16, VEX_Vpsubw_xmm_xmm_xmmm128 r 16,
            VEX_Vpsubd_xmm_xmm_xmmm128 r 16, VEX_Vpsubq_xmm_xmm_xmmm128 r 16,
            VEX_Vpaddb_xmm_xmm_xmmm128 r 16, VEX_Vpaddw_xmm_xmm_xmmm128 r 16,
            VEX_Vpaddd_xmm_xmm_xmmm128 r 16, VEX_Vpshufb_xmm_xmm_xmmm128 r 16,
            VEX_Vphaddw_xmm_xmm_xmmm128 r 16, VEX_Vphaddd_xmm_xmm_xmmm128 r 16,
            VEX_Vphaddsw_xmm_xmm_xmmm128 r 16, VEX_Vpmaddubsw_xmm_xmm_xmmm128 r 16,
            VEX_Vphsubw_xmm_xmm_xmmm128 r 16, VEX_Vphsubd_xmm_xmm_xmmm128 r 16,
            VEX_Vphsubsw_xmm_xmm_xmmm128 r 16, VEX_Vpsignb_xmm_xmm_xmmm128 r 16,
            VEX_Vpsignw_xmm_xmm_xmmm128 r 16, VEX_Vpsignd_xmm_xmm_xmmm128 r 16,
            VEX_Vpmulhrsw_xmm_xmm_xmmm128 r 16, VEX_Vpabsb_xmm_xmmm128 r 16,
            VEX_Vpabsw_xmm_xmmm128 r 16, VEX_Vpabsd_xmm_xmmm128 r 16, VEX_Vpmovsxbw_xmm_xmmm64 r 8,
            VEX_Vpmovsxbd_xmm_xmmm32 r 4, VEX_Vpmovsxbq_xmm_xmmm16 r 2,
            VEX_Vpmovsxwd_xmm_xmmm64 r 8, VEX_Vpmovsxwq_xmm_xmmm32 r 4,
            VEX_Vpmovsxdq_xmm_xmmm64 r 8, VEX_Vpmuldq_xmm_xmm_xmmm128 r 16,
            VEX_Vpcmpeqq_xmm_xmm_xmmm128 r 16, VEX_Vpackusdw_xmm_xmm_xmmm128 r 16,
            VEX_Vpmovzxbw_xmm_xmmm64 r 8, VEX_Vpmovzxbd_xmm_xmmm32 r 4,
            VEX_Vpmovzxbq_xmm_xmmm16 r 2, VEX_Vpmovzxwd_xmm_xmmm64 r 8,
            VEX_Vpmovzxwq_xmm_xmmm32 r 4, VEX_Vpmovzxdq_xmm_xmmm64 r 8,
            VEX_Vpcmpgtq_xmm_xmm_xmmm128 r 16, VEX_Vpminsb_xmm_xmm_xmmm128 r 16,
            VEX_Vpminsd_xmm_xmm_xmmm128 r 16, VEX_Vpminuw_xmm_xmm_xmmm128 r 16,
            VEX_Vpminud_xmm_xmm_xmmm128 r 16, VEX_Vpmaxsb_xmm_xmm_xmmm128 r 16,
            VEX_Vpmaxsd_xmm_xmm_xmmm128 r 16, VEX_Vpmaxuw_xmm_xmm_xmmm128 r 16,
            VEX_Vpmaxud_xmm_xmm_xmmm128 r 16, VEX_Vpmulld_xmm_xmm_xmmm128 r 16,
            VEX_Vphminposuw_xmm_xmmm128 r 16, VEX_Vpblendw_xmm_xmm_xmmm128_imm8 r 16,
            VEX_Vpalignr_xmm_xmm_xmmm128_imm8 r 16, VEX_Vpblendvb_xmm_xmm_xmmm128_xmm r 16;
        m64: VEX_Vpmovmskb_r64_xmm;
    }
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx).writes_flags(ZF | CF)
        .clears_flags(OF | SF | AF | PF)] {
        any: VEX_Vptest_xmm_xmmm128 r 16, VEX_Vptest_ymm_ymmm256 r 32;
    }
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).implicit(RAX | RDX, NONE)
        .writes_xmm0()] {
        any: VEX_Vpcmpestrm_xmm_xmmm128_imm8 r 16;
        m64: VEX_Vpcmpestrm64_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).implicit(RAX | RDX, RCX)] {
        any: VEX_Vpcmpestri_xmm_xmmm128_imm8 r 16;
        m64: VEX_Vpcmpestri64_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).writes_xmm0()] {
        any: VEX_Vpcmpistrm_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Avx).needs(Feature::Avx).unit(Unit::Avx)
        .writes_flags(OF | SF | ZF | CF).clears_flags(AF | PF).implicit(NONE, RCX)] {
        any: VEX_Vpcmpistri_xmm_xmmm128_imm8 r 16;
    }
}
