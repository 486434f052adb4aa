//! Bit test, scan, count and BMI (SDM vol. 1, 5.1.6, 5.1.16; CRC32 and POPCNT: 5.12).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::gpr::{NONE, RDX};
use crate::form::{Form, Group, Unit};

forms! {
    // BT
    [Form::native(Group::Bits).writes_flags(CF).undefined_flags(OF | SF | AF | PF)
        .bit_string()] {
        any: Bt_rm16_r16 r 2, Bt_rm32_r32 r 4;
        m64: Bt_rm64_r64 r 8;
    }
    // BTS, BTR, BTC
    [Form::native(Group::Bits).writes_flags(CF).undefined_flags(OF | SF | AF | PF).lockable()
        .bit_string()] {
        any: Bts_rm16_r16 rw 2, Bts_rm32_r32 rw 4, Btr_rm16_r16 rw 2, Btr_rm32_r32 rw 4,
            Btc_rm16_r16 rw 2, Btc_rm32_r32 rw 4;
        m64: Bts_rm64_r64 rw 8, Btr_rm64_r64 rw 8, Btc_rm64_r64 rw 8;
    }
    // POPCNT
    [Form::native(Group::Bits).needs(Feature::Popcnt).writes_flags(ZF)
        .clears_flags(OF | SF | AF | PF | CF)] {
        any: Popcnt_r16_rm16 r 2, Popcnt_r32_rm32 r 4;
        m64: Popcnt_r64_rm64 r 8;
    }
    // BT
    [Form::native(Group::Bits).writes_flags(CF).undefined_flags(OF | SF | AF | PF)] {
        any: Bt_rm16_imm8 r 2, Bt_rm32_imm8 r 4;
        m64: Bt_rm64_imm8 r 8;
    }
    // BTS, BTR, BTC
    [Form::native(Group::Bits).writes_flags(CF).undefined_flags(OF | SF | AF | PF).lockable()] {
        any: Bts_rm16_imm8 rw 2, Bts_rm32_imm8 rw 4, Btr_rm16_imm8 rw 2, Btr_rm32_imm8 rw 4,
            Btc_rm16_imm8 rw 2, Btc_rm32_imm8 rw 4;
        m64: Bts_rm64_imm8 rw 8, Btr_rm64_imm8 rw 8, Btc_rm64_imm8 rw 8;
    }
    // BSF, BSR
    [Form::native(Group::Bits).writes_flags(ZF).undefined_flags(OF | SF | AF | PF | CF)] {
        any: Bsf_r16_rm16 r 2, Bsf_r32_rm32 r 4, Bsr_r16_rm16 r 2, Bsr_r32_rm32 r 4;
        m64: Bsf_r64_rm64 r 8, Bsr_r64_rm64 r 8;
    }
    // TZCNT
    [Form::native(Group::Bits).needs(Feature::Bmi1).writes_flags(ZF | CF)
        .undefined_flags(OF | SF | AF | PF)] {
        any: Tzcnt_r16_rm16 r 2, Tzcnt_r32_rm32 r 4;
        m64: Tzcnt_r64_rm64 r 8;
    }
    // LZCNT
    [Form::native(Group::Bits).needs(Feature::Abm).writes_flags(ZF | CF)
        .undefined_flags(OF | SF | AF | PF)] {
        any: Lzcnt_r16_rm16 r 2, Lzcnt_r32_rm32 r 4;
        m64: Lzcnt_r64_rm64 r 8;
    }
    // BSWAP
    [Form::native(Group::Bits)] {
        any: Bswap_r16, Bswap_r32;
        m64: Bswap_r64;
    }
    // CRC32
    [Form::native(Group::Bits).needs(Feature::Sse42)] {
        any: Crc32_r32_rm8 r 1, Crc32_r32_rm16 r 2, Crc32_r32_rm32 r 4;
        m64: Crc32_r64_rm8 r 1, Crc32_r64_rm64 r 8;
    }
    // ANDN
    [Form::native(Group::Bits).needs(Feature::Bmi1).unit(Unit::VexGpr).writes_flags(SF | ZF)
        .clears_flags(OF | CF).undefined_flags(AF | PF)] {
        any: VEX_Andn_r32_r32_rm32 r 4;
        m64: VEX_Andn_r64_r64_rm64 r 8;
    }
    // BLSR, BLSI
    [Form::native(Group::Bits).needs(Feature::Bmi1).unit(Unit::VexGpr).writes_flags(SF | ZF | CF)
        .clears_flags(OF).undefined_flags(AF | PF)] {
        any: VEX_Blsr_r32_rm32 r 4, VEX_Blsi_r32_rm32 r 4;
        m64: VEX_Blsr_r64_rm64 r 8, VEX_Blsi_r64_rm64 r 8;
    }
    // BLSMSK
    [Form::native(Group::Bits).needs(Feature::Bmi1).unit(Unit::VexGpr).writes_flags(SF | CF)
        .clears_flags(OF | ZF).undefined_flags(AF | PF)] {
        any: VEX_Blsmsk_r32_rm32 r 4;
        m64: VEX_Blsmsk_r64_rm64 r 8;
    }
    // BZHI
    [Form::native(Group::Bits).needs(Feature::Bmi2).unit(Unit::VexGpr).writes_flags(SF | ZF | CF)
        .clears_flags(OF).undefined_flags(AF | PF)] {
        any: VEX_Bzhi_r32_rm32_r32 r 4;
        m64: VEX_Bzhi_r64_rm64_r64 r 8;
    }
    // PEXT, PDEP
    [Form::native(Group::Bits).needs(Feature::Bmi2).unit(Unit::VexGpr)] {
        any: VEX_Pext_r32_r32_rm32 r 4, VEX_Pdep_r32_r32_rm32 r 4;
        m64: VEX_Pext_r64_r64_rm64 r 8, VEX_Pdep_r64_r64_rm64 r 8;
    }
    // MULX
    [Form::native(Group::Bits).needs(Feature::Bmi2).unit(Unit::VexGpr).implicit(RDX, NONE)] {
        any: VEX_Mulx_r32_r32_rm32 r 4;
        m64: VEX_Mulx_r64_r64_rm64 r 8;
    }
    // BEXTR
    [Form::native(Group::Bits).needs(Feature::Bmi1).unit(Unit::VexGpr).writes_flags(ZF).clears_flags(OF | CF)
        .undefined_flags(SF | AF | PF)] {
        any: VEX_Bextr_r32_rm32_r32 r 4;
        m64: VEX_Bextr_r64_rm64_r64 r 8;
    }
}
