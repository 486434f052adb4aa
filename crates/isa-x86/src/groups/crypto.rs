//! AES, PCLMULQDQ and SHA (SDM vol. 1, 12.13; vol. 2 by mnemonic).

use crate::Feature;
use crate::form::{Form, Group, Unit};

forms! {
    // moves and logic
    [Form::native(Group::Crypto).needs(Feature::ShaNi).unit(Unit::Sse).aligned()] {
        any: Sha1nexte_xmm_xmmm128 r 16, Sha1msg1_xmm_xmmm128 r 16, Sha1msg2_xmm_xmmm128 r 16,
            Sha256msg1_xmm_xmmm128 r 16, Sha256msg2_xmm_xmmm128 r 16,
            Sha1rnds4_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Crypto).needs(Feature::ShaNi).unit(Unit::Sse).reads_xmm0().aligned()] {
        any: Sha256rnds2_xmm_xmmm128 r 16;
    }
    [Form::native(Group::Crypto).needs(Feature::Aes).unit(Unit::Sse).aligned()] {
        any: Aesimc_xmm_xmmm128 r 16, Aesenc_xmm_xmmm128 r 16, Aesenclast_xmm_xmmm128 r 16,
            Aesdec_xmm_xmmm128 r 16, Aesdeclast_xmm_xmmm128 r 16,
            Aeskeygenassist_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Crypto).needs(Feature::Avx).needs(Feature::Aes).unit(Unit::Avx)] {
        any: VEX_Vaesimc_xmm_xmmm128 r 16, VEX_Vaesenc_xmm_xmm_xmmm128 r 16,
            VEX_Vaesenclast_xmm_xmm_xmmm128 r 16, VEX_Vaesdec_xmm_xmm_xmmm128 r 16,
            VEX_Vaesdeclast_xmm_xmm_xmmm128 r 16, VEX_Vaeskeygenassist_xmm_xmmm128_imm8 r 16;
    }
    // integer
    [Form::native(Group::Crypto).needs(Feature::Pclmulqdq).unit(Unit::Sse).aligned()] {
        any: Pclmulqdq_xmm_xmmm128_imm8 r 16;
    }
    [Form::native(Group::Crypto).needs(Feature::Avx).needs(Feature::Pclmulqdq).unit(Unit::Avx)] {
        any: VEX_Vpclmulqdq_xmm_xmm_xmmm128_imm8 r 16;
    }
}
