//! XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B (SDM vol. 2).
//!
//! The compare forms always write their memory operand, with the old value where they differ, so a
//! read-only operand faults either way.

use super::flags::{self, STATUS, ZF};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::is_mem;
use crate::{Cpu, Exec, Handler, Op, Prefix, Width};
use iced_x86::{Instruction, Mnemonic};
use mimeo_arch_x86::Gpr;
use mimeo_vcpu::CpuIo;

fn xadd_r<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let (a, b) = (get::<T>(cpu, op.r0), get::<T>(cpu, op.r1));
    let r = T::trunc(a.zext().wrapping_add(b.zext()));
    set(cpu, op.r1, a);
    set(cpu, op.r0, r);
    flags::put(cpu, STATUS, flags::add(a, b, r));
    Ok(())
}

fn xadd_m<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = get::<T>(cpu, op.r0);
    let offset = cpu.ea(op);
    let sum = |a: T| T::trunc(a.zext().wrapping_add(b.zext()));
    let a = if op.prefix.has(Prefix::LOCK) {
        cpu.modify_locked::<T>(op.seg, offset, io, sum)?
    } else {
        let mut old = b;
        cpu.modify::<T>(op.seg, offset, io, |_, a| {
            old = a;
            sum(a)
        })?;
        old
    };
    set(cpu, op.r0, a);
    flags::put(cpu, STATUS, flags::add(a, b, sum(a)));
    Ok(())
}

/// Compares with the accumulator: flags, and the accumulator where they differ.
fn compare<T: Width>(cpu: &mut Cpu, old: T) -> bool {
    let a = get::<T>(cpu, 0);
    let r = T::trunc(a.zext().wrapping_sub(old.zext()));
    flags::put(cpu, STATUS, flags::sub(a, old, r));
    if a != old {
        set(cpu, 0, old);
    }
    a == old
}

fn cmpxchg_r<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let (old, new) = (get::<T>(cpu, op.r0), get::<T>(cpu, op.r1));
    // Unequal, only the accumulator is written: the upper half of a 32-bit destination stays.
    if compare(cpu, old) {
        set(cpu, op.r0, new);
    }
    Ok(())
}

fn cmpxchg_m<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let new = get::<T>(cpu, op.r0);
    let expected = get::<T>(cpu, 0);
    let offset = cpu.ea(op);
    let next = |old: T| if old == expected { new } else { old };
    let old = if op.prefix.has(Prefix::LOCK) {
        cpu.modify_locked::<T>(op.seg, offset, io, next)?
    } else {
        let mut was = new;
        cpu.modify::<T>(op.seg, offset, io, |_, old| {
            was = old;
            next(old)
        })?;
        was
    };
    compare(cpu, old);
    Ok(())
}

fn pair(cpu: &Cpu, high: Gpr, low: Gpr) -> u64 {
    cpu.gpr(high) << 32 | cpu.gpr(low) & 0xffff_ffff
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let expected = pair(cpu, Gpr::Rdx, Gpr::Rax);
    let new = pair(cpu, Gpr::Rcx, Gpr::Rbx);
    let offset = cpu.ea(op);
    // Locked with or without the prefix: harmless, and simpler.
    let old =
        cpu.modify_locked::<u64>(
            op.seg,
            offset,
            io,
            |old| {
                if old == expected { new } else { old }
            },
        )?;
    if old != expected {
        set(cpu, Gpr::Rax as u8, old as u32);
        set(cpu, Gpr::Rdx as u8, (old >> 32) as u32);
    }
    flags::put(cpu, ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let wide = |high, low| u128::from(cpu.gpr(high)) << 64 | u128::from(cpu.gpr(low));
    let expected = wide(Gpr::Rdx, Gpr::Rax);
    let new = wide(Gpr::Rcx, Gpr::Rbx);
    let offset = cpu.ea(op);
    let old = cpu.compare_exchange16(op.seg, offset, expected, new, io)?;
    if old != expected {
        set(cpu, Gpr::Rax as u8, old as u64);
        set(cpu, Gpr::Rdx as u8, (old >> 64) as u64);
    }
    flags::put(cpu, ZF, if old == expected { ZF } else { 0 });
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
    let mem = is_mem(i, 0);
    let run = match i.mnemonic() {
        Mnemonic::Xadd if mem => by_size!(xadd_m, op.size),
        Mnemonic::Xadd => by_size!(xadd_r, op.size),
        Mnemonic::Cmpxchg if mem => by_size!(cmpxchg_m, op.size),
        Mnemonic::Cmpxchg => by_size!(cmpxchg_r, op.size),
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}
