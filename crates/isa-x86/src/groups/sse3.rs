//! SSE3 and SSSE3 (SDM vol. 1, 12.3 to 12.7).

use crate::Feature;
use crate::form::{Form, Group, Unit};

forms! {
    // moves and logic
    [Form::native(Group::Sse3).needs(Feature::Pni).unit(Unit::Sse).aligned()] {
        any: Movsldup_xmm_xmmm128 r 16, Movshdup_xmm_xmmm128 r 16;
    }
    [Form::native(Group::Sse3).needs(Feature::Pni).unit(Unit::Sse)] {
        any: Movddup_xmm_xmmm64 r 8, Lddqu_xmm_m128 r 16;
    }
    // floating point
    [Form::native(Group::Sse3).needs(Feature::Pni).unit(Unit::Sse).mxcsr().aligned()] {
        any: Haddpd_xmm_xmmm128 r 16, Haddps_xmm_xmmm128 r 16, Hsubpd_xmm_xmmm128 r 16,
            Hsubps_xmm_xmmm128 r 16, Addsubpd_xmm_xmmm128 r 16, Addsubps_xmm_xmmm128 r 16;
    }
    // integer
    [Form::native(Group::Sse3).needs(Feature::Ssse3).unit(Unit::Mmx)] {
        any: Pshufb_mm_mmm64 r 8, Phaddw_mm_mmm64 r 8, Phaddd_mm_mmm64 r 8, Phaddsw_mm_mmm64 r 8,
            Pmaddubsw_mm_mmm64 r 8, Phsubw_mm_mmm64 r 8, Phsubd_mm_mmm64 r 8, Phsubsw_mm_mmm64 r 8,
            Psignb_mm_mmm64 r 8, Psignw_mm_mmm64 r 8, Psignd_mm_mmm64 r 8, Pmulhrsw_mm_mmm64 r 8,
            Pabsb_mm_mmm64 r 8, Pabsw_mm_mmm64 r 8, Pabsd_mm_mmm64 r 8, Palignr_mm_mmm64_imm8 r 8;
    }
    [Form::native(Group::Sse3).needs(Feature::Ssse3).unit(Unit::Sse).aligned()] {
        any: Pshufb_xmm_xmmm128 r 16, Phaddw_xmm_xmmm128 r 16, Phaddd_xmm_xmmm128 r 16,
            Phaddsw_xmm_xmmm128 r 16, Pmaddubsw_xmm_xmmm128 r 16, Phsubw_xmm_xmmm128 r 16,
            Phsubd_xmm_xmmm128 r 16, Phsubsw_xmm_xmmm128 r 16, Psignb_xmm_xmmm128 r 16,
            Psignw_xmm_xmmm128 r 16, Psignd_xmm_xmmm128 r 16, Pmulhrsw_xmm_xmmm128 r 16,
            Pabsb_xmm_xmmm128 r 16, Pabsw_xmm_xmmm128 r 16, Pabsd_xmm_xmmm128 r 16,
            Palignr_xmm_xmmm128_imm8 r 16;
    }
}
