//! Register operands.

use crate::{Cpu, Width};

/// Reads general register `r` (16 to 19: AH, CH, DH, BH).
#[inline(always)]
pub(crate) fn get<T: Width>(cpu: &Cpu, r: u8) -> T {
    let v = cpu.state.gpr[usize::from(r & 15)];
    if T::BYTES == 1 {
        T::trunc(v >> ((r >> 4 & 1) << 3))
    } else {
        T::trunc(v)
    }
}

/// Writes general register `r`; 32-bit results are zero-extended, narrower ones leave the rest.
#[inline(always)]
pub(crate) fn set<T: Width>(cpu: &mut Cpu, r: u8, v: T) {
    let reg = &mut cpu.state.gpr[usize::from(r & 15)];
    let v = v.zext();
    match T::BYTES {
        1 => {
            let shift = (r >> 4 & 1) << 3;
            *reg = *reg & !(0xff << shift) | v << shift;
        }
        2 => *reg = *reg & !0xffff | v,
        _ => *reg = v,
    }
}
