//! MTRRs and PAT: which values are allowed (SDM vol. 3, 13.11 and 13.12).
//!
//! Memory types have no effect here: guest RAM is the host's write-back memory.

use super::index as i;
use crate::state::Msrs;

/// Number of variable-range pairs.
pub(super) const VARIABLE: usize = 8;

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
pub(super) const CAP: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;

/// Uncacheable, write-combining, write-through, write-protected, write-back.
const fn is_type(t: u64) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

/// All eight bytes satisfy `ok`.
fn bytes(value: u64, ok: impl Fn(u64) -> bool) -> bool {
    value.to_le_bytes().into_iter().all(|b| ok(u64::from(b)))
}

/// A value that IA32_PAT may hold; type 7 is UC-.
pub(super) fn pat_is_valid(value: u64) -> bool {
    bytes(value, |t| is_type(t) || t == 7)
}

/// The place of an MTRR in [`Msrs`].
enum Place {
    Base(usize),
    Mask(usize),
    Fixed(usize),
    DefaultType,
}

fn place(msr: u32) -> Option<Place> {
    Some(match msr {
        i::IA32_MTRR_PHYSBASE0..=i::IA32_MTRR_PHYSMASK7 => {
            let n = (msr - i::IA32_MTRR_PHYSBASE0) as usize;
            if n.is_multiple_of(2) {
                Place::Base(n / 2)
            } else {
                Place::Mask(n / 2)
            }
        }
        i::IA32_MTRR_FIX64K_00000 => Place::Fixed(0),
        i::IA32_MTRR_FIX16K_80000 => Place::Fixed(1),
        i::IA32_MTRR_FIX16K_A0000 => Place::Fixed(2),
        i::IA32_MTRR_FIX4K_C0000..=i::IA32_MTRR_FIX4K_F8000 => {
            Place::Fixed((msr - i::IA32_MTRR_FIX4K_C0000) as usize + 3)
        }
        i::IA32_MTRR_DEF_TYPE => Place::DefaultType,
        _ => return None,
    })
}

/// Whether `msr` is one of the MTRRs.
pub(super) fn is_mtrr(msr: u32) -> bool {
    place(msr).is_some()
}

/// Reads an MTRR.
pub(super) fn read(m: &Msrs, msr: u32) -> Option<u64> {
    Some(match place(msr)? {
        Place::Base(n) => m.mtrr_var[n].0,
        Place::Mask(n) => m.mtrr_var[n].1,
        Place::Fixed(n) => m.mtrr_fixed[n],
        Place::DefaultType => m.mtrr_def_type,
    })
}

/// Writes an MTRR of a CPU with `physical_bits`; `None`: the value is not allowed.
pub(super) fn write(m: &mut Msrs, msr: u32, value: u64, physical_bits: u32) -> Option<()> {
    if !mtrr_is_valid(msr, value, physical_bits) {
        return None;
    }
    match place(msr)? {
        Place::Base(n) => m.mtrr_var[n].0 = value,
        Place::Mask(n) => m.mtrr_var[n].1 = value,
        Place::Fixed(n) => m.mtrr_fixed[n] = value,
        Place::DefaultType => m.mtrr_def_type = value,
    }
    Some(())
}

/// Whether `value` may be written to MTRR `msr` of a CPU with `physical_bits`.
fn mtrr_is_valid(msr: u32, value: u64, physical_bits: u32) -> bool {
    match msr {
        i::IA32_MTRR_DEF_TYPE => value & !0xcff == 0 && is_type(value & 0xff),
        i::IA32_MTRR_PHYSBASE0..=i::IA32_MTRR_PHYSMASK7 => {
            let address = ((1u64 << physical_bits) - 1) & !0xfff;
            if msr.is_multiple_of(2) {
                value & !(address | 0xff) == 0 && is_type(value & 0xff)
            } else {
                value & !(address | 1 << 11) == 0
            }
        }
        _ => bytes(value, is_type),
    }
}
