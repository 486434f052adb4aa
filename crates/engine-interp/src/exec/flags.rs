//! Arithmetic flags (SDM vol. 1, 3.4.3.1 and appendix A).

use crate::{Cpu, Width};
use mimeo_arch_x86::RFlags;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
/// The six of them.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

const fn parity_table() -> [u8; 256] {
    let mut t = [0; 256];
    let mut n = 0;
    while n < 256 {
        if (n as u8).count_ones().is_multiple_of(2) {
            t[n] = PF as u8;
        }
        n += 1;
    }
    t
}

static PARITY: [u8; 256] = parity_table();

/// SF, ZF and PF of a result.
#[inline(always)]
pub(crate) fn szp<T: Width>(r: T) -> u64 {
    let v = r.zext();
    u64::from(PARITY[(v & 0xff) as usize]) | u64::from(v == 0) << 6 | (v >> (T::BITS - 1)) << 7
}

/// All six flags of `r = a + b (+ carry)`.
#[inline(always)]
pub(crate) fn add<T: Width>(a: T, b: T, r: T) -> u64 {
    let (a, b, v) = (a.zext(), b.zext(), r.zext());
    let carry = (a & b) | ((a | b) & !v);
    let overflow = (a ^ v) & (b ^ v);
    szp(r) | carry >> (T::BITS - 1) & 1 | (a ^ b ^ v) & AF | (overflow >> (T::BITS - 1) & 1) << 11
}

/// All six flags of `r = a - b (- borrow)`.
#[inline(always)]
pub(crate) fn sub<T: Width>(a: T, b: T, r: T) -> u64 {
    let (a, b, v) = (a.zext(), b.zext(), r.zext());
    let borrow = (!a & b) | ((!a | b) & v);
    let overflow = (a ^ b) & (a ^ v);
    szp(r) | borrow >> (T::BITS - 1) & 1 | (a ^ b ^ v) & AF | (overflow >> (T::BITS - 1) & 1) << 11
}

/// Replaces the flags in `mask`.
#[inline(always)]
pub(crate) fn put(cpu: &mut Cpu, mask: u64, value: u64) {
    let old = cpu.state.rflags.bits();
    cpu.state.rflags = RFlags::from_bits_retain(old & !mask | value & mask);
}

/// Whether the flags in `mask` are not all clear.
#[inline(always)]
pub(crate) fn any(cpu: &Cpu, mask: u64) -> bool {
    cpu.state.rflags.bits() & mask != 0
}

/// Condition `cc` (the low four bits of Jcc's opcode).
#[inline(always)]
pub(crate) fn condition(cpu: &Cpu, cc: u8) -> bool {
    let f = cpu.state.rflags.bits();
    let less = (f >> 7 ^ f >> 11) & 1 != 0;
    let value = match cc >> 1 & 7 {
        0 => f & OF != 0,
        1 => f & CF != 0,
        2 => f & ZF != 0,
        3 => f & (CF | ZF) != 0,
        4 => f & SF != 0,
        5 => f & PF != 0,
        6 => less,
        _ => less || f & ZF != 0,
    };
    value != (cc & 1 != 0)
}
