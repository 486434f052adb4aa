//! No-operations, prefetches, fences, cache-line flushes (SDM vol. 2 by mnemonic). The MPX, CET
//! and CLDEMOTE encodings among them are no-operations while those features are hidden.

use crate::Feature;
use crate::form::{Form, Group};

forms! {
    // NOP and reserved NOP, PAUSE, prefetch
    [Form::nop(Group::Hints)] {
        any: Nopw, Nopd, Pause, Reservednop_rm16_r16_0F0D hint 2, Reservednop_rm32_r32_0F0D hint 4,
            Prefetch_m8 hint 1, Prefetchw_m8 hint 1, Prefetchwt1_m8 hint 1,
            Reservednop_rm16_r16_0F18 hint 2, Reservednop_rm32_r32_0F18 hint 4,
            Reservednop_rm16_r16_0F19 hint 2, Reservednop_rm32_r32_0F19 hint 4,
            Reservednop_rm16_r16_0F1A hint 2, Reservednop_rm32_r32_0F1A hint 4,
            Reservednop_rm16_r16_0F1B hint 2, Reservednop_rm32_r32_0F1B hint 4,
            Reservednop_rm16_r16_0F1C hint 2, Reservednop_rm32_r32_0F1C hint 4,
            Reservednop_rm16_r16_0F1D hint 2, Reservednop_rm32_r32_0F1D hint 4,
            Reservednop_rm16_r16_0F1E hint 2, Reservednop_rm32_r32_0F1E hint 4,
            Reservednop_rm16_r16_0F1F hint 2, Reservednop_rm32_r32_0F1F hint 4,
            Prefetchnta_m8 hint 1, Prefetcht0_m8 hint 1, Prefetcht1_m8 hint 1,
            Prefetcht2_m8 hint 1, Cldemote_m8 hint 1, Rdsspd_r32, Endbr64, Endbr32,
            Nop_rm16 hint 2, Nop_rm32 hint 4, Prefetchreserved3_m8 hint 1,
            Prefetchreserved4_m8 hint 1, Prefetchreserved5_m8 hint 1, Prefetchreserved6_m8 hint 1,
            Prefetchreserved7_m8 hint 1, Prefetchit1_m8 hint 1, Prefetchit0_m8 hint 1;
        m64: Nopq, Reservednop_rm64_r64_0F0D hint 8, Reservednop_rm64_r64_0F18 hint 8,
            Reservednop_rm64_r64_0F19 hint 8, Reservednop_rm64_r64_0F1A hint 8,
            Reservednop_rm64_r64_0F1B hint 8, Reservednop_rm64_r64_0F1C hint 8,
            Reservednop_rm64_r64_0F1D hint 8, Reservednop_rm64_r64_0F1E hint 8,
            Reservednop_rm64_r64_0F1F hint 8, Rdsspq_r64, Nop_rm64 hint 8;
    }
    // cache line flush
    [Form::interp(Group::Hints).needs(Feature::Clwb)] {
        any: Clwb_m8 r 1;
    }
    [Form::interp(Group::Hints).needs(Feature::Clflush)] {
        any: Clflush_m8 r 1;
    }
    [Form::interp(Group::Hints).needs(Feature::Clflushopt)] {
        any: Clflushopt_m8 r 1;
    }
    // fences
    [Form::native(Group::Hints).needs(Feature::Sse2)] {
        any: Lfence, Lfence_E9, Lfence_EA, Lfence_EB, Lfence_EC, Lfence_ED, Lfence_EE, Lfence_EF,
            Mfence, Mfence_F1, Mfence_F2, Mfence_F3, Mfence_F4, Mfence_F5, Mfence_F6, Mfence_F7;
    }
    [Form::native(Group::Hints).needs(Feature::Sse)] {
        any: Sfence, Sfence_F9, Sfence_FA, Sfence_FB, Sfence_FC, Sfence_FD, Sfence_FE, Sfence_FF;
    }
}
