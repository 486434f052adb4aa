//! BMI1 and BMI2 other than counts and shifts: ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, PDEP, PEXT
//! (SDM vol. 2). MULX is in `muldiv`, RORX and its kin in `shift`, TZCNT in `bits`.

use super::flags::{self, CF, STATUS};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::is_mem;
use crate::{Cpu, Exec, Handler, Op, Trap, Width};
use iced_x86::{Instruction, Mnemonic};
use mimeo_vcpu::CpuIo;

/// Destination, and the two sources of a three-operand form; `size` bit 7: operand 1 is memory, bit
/// 6: operand 2 is.
fn sources<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<(u64, u64), Trap> {
    Ok(if op.size & 0x80 != 0 {
        let a = cpu.load_op::<T>(op, io)?.zext();
        (a, get::<T>(cpu, op.r1).zext())
    } else if op.size & 0x40 != 0 {
        let b = cpu.load_op::<T>(op, io)?.zext();
        (get::<T>(cpu, op.r1).zext(), b)
    } else {
        (get::<T>(cpu, op.r1).zext(), get::<T>(cpu, op.r2).zext())
    })
}

fn finish<T: Width>(cpu: &mut Cpu, op: &Op, r: u64, cf: bool) -> Exec {
    let r = T::trunc(r);
    set(cpu, op.r0, r);
    flags::put(
        cpu,
        STATUS,
        flags::szp(r) & !flags::PF | (u64::from(cf) * CF),
    );
    Ok(())
}

fn andn<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (a, b) = sources::<T>(cpu, op, io)?;
    finish::<T>(cpu, op, !a & b, false)
}

fn bextr<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (v, control) = sources::<T>(cpu, op, io)?;
    let (start, len) = (control & 0xff, control >> 8 & 0xff);
    let shifted = if start < 64 { v >> start } else { 0 };
    let r = if len < 64 {
        shifted & ((1 << len) - 1)
    } else {
        shifted
    };
    let r = T::trunc(r);
    set(cpu, op.r0, r);
    // SF is undefined (cleared), ZF is the result's.
    flags::put(cpu, STATUS, flags::szp(r) & flags::ZF);
    Ok(())
}

fn bzhi<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (v, index) = sources::<T>(cpu, op, io)?;
    let n = (index & 0xff) as u32;
    let r = if n < T::BITS { v & ((1 << n) - 1) } else { v };
    finish::<T>(cpu, op, r, n >= T::BITS)
}

fn pdep<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (mut v, mut mask) = sources::<T>(cpu, op, io)?;
    let mut r = 0;
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if v & 1 != 0 {
            r |= bit;
        }
        v >>= 1;
        mask ^= bit;
    }
    set(cpu, op.r0, T::trunc(r));
    Ok(())
}

fn pext<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (v, mut mask) = sources::<T>(cpu, op, io)?;
    let (mut r, mut at) = (0, 0);
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        r |= u64::from(v & bit != 0) << at;
        at += 1;
        mask ^= bit;
    }
    set(cpu, op.r0, T::trunc(r));
    Ok(())
}

/// BLSI (0), BLSMSK (1), BLSR (2).
fn lowest<T: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = if op.size & 0x80 != 0 {
        cpu.load_op::<T>(op, io)?.zext()
    } else {
        get::<T>(cpu, op.r1).zext()
    };
    let (r, cf) = match KIND {
        0 => (v & v.wrapping_neg(), v != 0),
        1 => (v ^ v.wrapping_sub(1), v == 0),
        _ => (v & v.wrapping_sub(1), v == 0),
    };
    finish::<T>(cpu, op, r, cf)
}

macro_rules! by_size {
    ($f:ident, $wide:expr $(, $c:expr)?) => {
        if $wide {
            $f::<u64 $(, $c)?> as Handler
        } else {
            $f::<u32 $(, $c)?>
        }
    };
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let wide = op.size == 8;
    let run = match i.mnemonic() {
        Mnemonic::Andn => by_size!(andn, wide),
        Mnemonic::Bextr => by_size!(bextr, wide),
        Mnemonic::Bzhi => by_size!(bzhi, wide),
        Mnemonic::Pdep => by_size!(pdep, wide),
        Mnemonic::Pext => by_size!(pext, wide),
        Mnemonic::Blsi => by_size!(lowest, wide, 0),
        Mnemonic::Blsmsk => by_size!(lowest, wide, 1),
        Mnemonic::Blsr => by_size!(lowest, wide, 2),
        _ => return Lower::No,
    };
    if is_mem(i, 1) {
        op.size |= 0x80;
    } else if i.op_count() > 2 && is_mem(i, 2) {
        op.size |= 0x40;
    }
    Lower::plain(op, run)
}
