//! MUL, IMUL, DIV, IDIV, MULX (SDM vol. 2).
//!
//! Undefined flags of MUL and IMUL: SF, ZF and PF follow the low half of the result, AF is cleared.
//! DIV and IDIV leave the flags alone.

use super::flags::{self, CF, OF, STATUS};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::NO_REG;
use crate::{Cpu, Exec, Handler, Op, Trap, Width};
use iced_x86::{Instruction, Mnemonic};
use mimeo_arch_x86::{Exception, Gpr, Vector};
use mimeo_vcpu::CpuIo;

const AX: u8 = Gpr::Rax as u8;
const DX: u8 = Gpr::Rdx as u8;
const AH: u8 = 16;

/// The explicit operand: `r0`, or memory.
#[inline(always)]
fn operand<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<T, Trap> {
    if op.r0 == NO_REG {
        cpu.load_op(op, io)
    } else {
        Ok(get(cpu, op.r0))
    }
}

fn set_flags<T: Width>(cpu: &mut Cpu, low: T, overflow: bool) {
    let of = if overflow { CF | OF } else { 0 };
    flags::put(cpu, STATUS, flags::szp(low) | of);
}

/// The double-width product into AX, DX:AX, EDX:EAX or RDX:RAX.
fn set_product<T: Width>(cpu: &mut Cpu, low: T, high: T) {
    if T::BYTES == 1 {
        set(cpu, AX, low.zext() as u16 | (high.zext() as u16) << 8);
    } else {
        set(cpu, AX, low);
        set(cpu, DX, high);
    }
}

fn mul<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = operand::<T>(cpu, op, io)?;
    let wide = u128::from(get::<T>(cpu, AX).zext()) * u128::from(b.zext());
    let (low, high) = (T::trunc(wide as u64), T::trunc((wide >> T::BITS) as u64));
    set_product(cpu, low, high);
    set_flags(cpu, low, high.zext() != 0);
    Ok(())
}

fn imul1<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = operand::<T>(cpu, op, io)?;
    let wide = i128::from(get::<T>(cpu, AX).sext()) * i128::from(b.sext());
    let (low, high) = (T::trunc(wide as u64), T::trunc((wide >> T::BITS) as u64));
    set_product(cpu, low, high);
    set_flags(cpu, low, i128::from(low.sext()) != wide);
    Ok(())
}

fn imul<T: Width>(cpu: &mut Cpu, op: &Op, a: T, b: T) -> Exec {
    let wide = i128::from(a.sext()) * i128::from(b.sext());
    let low = T::trunc(wide as u64);
    set(cpu, op.r0, low);
    set_flags(cpu, low, i128::from(low.sext()) != wide);
    Ok(())
}

/// IMUL r, r/m.
fn imul2<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = if op.r1 == NO_REG {
        cpu.load_op::<T>(op, io)?
    } else {
        get(cpu, op.r1)
    };
    let a = get(cpu, op.r0);
    imul(cpu, op, a, b)
}

/// IMUL r, r/m, imm.
fn imul3<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let a = if op.r1 == NO_REG {
        cpu.load_op::<T>(op, io)?
    } else {
        get(cpu, op.r1)
    };
    imul(cpu, op, a, T::trunc(op.imm))
}

fn divide_error() -> Trap {
    Exception::new(Vector::De).into()
}

/// The dividend: AX, or DX:AX and wider.
fn dividend<T: Width>(cpu: &Cpu) -> u128 {
    if T::BYTES == 1 {
        return u128::from(get::<u16>(cpu, AX));
    }
    u128::from(get::<T>(cpu, DX).zext()) << T::BITS | u128::from(get::<T>(cpu, AX).zext())
}

fn set_quotient<T: Width>(cpu: &mut Cpu, quotient: T, remainder: T) {
    set(cpu, AX, quotient);
    set(cpu, if T::BYTES == 1 { AH } else { DX }, remainder);
}

fn div<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = operand::<T>(cpu, op, io)?.zext();
    if b == 0 {
        return Err(divide_error());
    }
    let n = dividend::<T>(cpu);
    // Most dividends fit 64 bits; a 128-bit division is slow.
    let (q, r) = match u64::try_from(n) {
        Ok(n) => (u128::from(n / b), n % b),
        Err(_) => (n / u128::from(b), (n % u128::from(b)) as u64),
    };
    if q >> T::BITS != 0 {
        return Err(divide_error());
    }
    set_quotient(cpu, T::trunc(q as u64), T::trunc(r));
    Ok(())
}

fn idiv<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = i128::from(operand::<T>(cpu, op, io)?.sext());
    if b == 0 {
        return Err(divide_error());
    }
    let unused = 128 - 2 * T::BITS;
    let n = (dividend::<T>(cpu) << unused) as i128 >> unused;
    let (q, r) = match (i64::try_from(n), b as i64) {
        (Ok(n), d) if d != -1 => (i128::from(n / d), i128::from(n % d)),
        // i128::MIN / -1 does not fit: the guest's -2^127 / -1.
        _ => match (n.checked_div(b), n.checked_rem(b)) {
            (Some(q), Some(r)) => (q, r),
            _ => return Err(divide_error()),
        },
    };
    if i128::from(T::trunc(q as u64).sext()) != q {
        return Err(divide_error());
    }
    set_quotient(cpu, T::trunc(q as u64), T::trunc(r as u64));
    Ok(())
}

/// MULX: high half to `r0`, low half to `r1`, RDX times the last operand; no flags.
fn mulx<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = if op.r2 == NO_REG {
        cpu.load_op::<T>(op, io)?
    } else {
        get(cpu, op.r2)
    };
    let wide = u128::from(get::<T>(cpu, DX).zext()) * u128::from(b.zext());
    set(cpu, op.r1, T::trunc(wide as u64));
    set(cpu, op.r0, T::trunc((wide >> T::BITS) as u64));
    Ok(())
}

macro_rules! by_size {
    ($f:ident, $size:expr) => {
        match $size {
            1 => $f::<u8> as Handler,
            2 => $f::<u16>,
            4 => $f::<u32>,
            _ => $f::<u64>,
        }
    };
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let run = match i.mnemonic() {
        Mnemonic::Mul => by_size!(mul, op.size),
        Mnemonic::Imul => match i.op_count() {
            1 => by_size!(imul1, op.size),
            2 => by_size!(imul2, op.size),
            _ => by_size!(imul3, op.size),
        },
        Mnemonic::Div => by_size!(div, op.size),
        Mnemonic::Idiv => by_size!(idiv, op.size),
        Mnemonic::Mulx => by_size!(mulx, op.size),
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}
