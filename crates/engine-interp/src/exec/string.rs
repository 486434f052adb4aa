//! MOVS, STOS, LODS, CMPS, SCAS with their repeat prefixes (SDM vol. 2, REP). INS and OUTS are in
//! `system`.
//!
//! A repeated MOVS or STOS moves runs that stay inside a page of memory at once; everything else goes
//! element by element. RCX, RSI and RDI are exact whenever the guest can look: at a fault, and when
//! an event stops the instruction between two runs.

use super::flags::{self, DF, STATUS, ZF};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Prefix, Trap, TrapKind, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};
use mimeo_arch_x86::{Gpr, RFlags, Seg};
use mimeo_vcpu::CpuIo;

const ES: u8 = Seg::Es as u8;
/// Elements handled between two looks at the event word.
const SLICE: u64 = 4096;

/// The value of an address or count register.
#[inline(always)]
pub(crate) fn address(cpu: &Cpu, r: Gpr, size: u8) -> u64 {
    cpu.gpr(r) & super::address_mask(size)
}

/// Writes an address or count register: 32-bit ones are zero-extended.
#[inline(always)]
pub(crate) fn set_address(cpu: &mut Cpu, r: Gpr, size: u8, v: u64) {
    match size {
        8 => cpu.state.gpr[r as usize] = v,
        4 => cpu.state.gpr[r as usize] = v & 0xffff_ffff,
        _ => set(cpu, r as u8, v as u16),
    }
}

/// Adds `elements` elements to an address register, in the direction of DF.
#[inline(always)]
pub(crate) fn advance<T: Width>(cpu: &mut Cpu, r: Gpr, size: u8, elements: u64) {
    let bytes = elements.wrapping_mul(T::BYTES as u64);
    let step = if flags::any(cpu, DF) {
        bytes.wrapping_neg()
    } else {
        bytes
    };
    let v = cpu.gpr(r).wrapping_add(step);
    set_address(cpu, r, size, v);
}

fn repeated(op: &Op) -> bool {
    op.prefix.has(Prefix::REP | Prefix::REPNE)
}

/// Repeats `run(cpu, op, io, count)`, which does at most `count` elements, says how many it did and
/// whether the instruction ends early, until RCX is zero.
#[inline(always)]
pub(crate) fn repeat(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
    mut run: impl FnMut(&mut Cpu, &Op, &mut dyn CpuIo, u64) -> Result<(u64, bool), Trap>,
) -> Exec {
    if !repeated(op) {
        return run(cpu, op, io, 1).map(|_| ());
    }
    let mut budget = SLICE;
    loop {
        let count = address(cpu, Gpr::Rcx, op.addr);
        if count == 0 {
            return Ok(());
        }
        let single = cpu.state.rflags.contains(RFlags::TF) || cpu.pending_debug != 0;
        let limit = if single { 1 } else { count };
        let (done, end) = run(cpu, op, io, limit)?;
        let left = count.wrapping_sub(done);
        set_address(cpu, Gpr::Rcx, op.addr, left);
        if end || left == 0 {
            return Ok(());
        }
        budget = budget.saturating_sub(done.max(1));
        let look = budget == 0 || done > 1;
        if single || cpu.pending_debug != 0 || (look && cpu.events_pending()) {
            return Err(Trap::yielded());
        }
        if budget == 0 {
            budget = SLICE;
        }
    }
}

fn movs<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    repeat(cpu, op, io, |cpu, op, io, count| {
        let (from, to) = (
            address(cpu, Gpr::Rsi, op.addr),
            address(cpu, Gpr::Rdi, op.addr),
        );
        let mut done = 0;
        if count > 1 && !flags::any(cpu, DF) {
            done = cpu.copy_run::<T>(op.seg, from, to, count, op.addr, io)?;
        }
        if done == 0 {
            let v = cpu.load::<T>(op.seg, from, io)?;
            cpu.store(ES, to, v, io)?;
            done = 1;
        }
        advance::<T>(cpu, Gpr::Rsi, op.addr, done);
        advance::<T>(cpu, Gpr::Rdi, op.addr, done);
        Ok((done, false))
    })
}

fn stos<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, 0);
    repeat(cpu, op, io, |cpu, op, io, count| {
        let to = address(cpu, Gpr::Rdi, op.addr);
        let mut done = 0;
        if count > 1 && !flags::any(cpu, DF) {
            done = cpu.fill_run::<T>(to, v, count, op.addr)?;
        }
        if done == 0 {
            cpu.store(ES, to, v, io)?;
            done = 1;
        }
        advance::<T>(cpu, Gpr::Rdi, op.addr, done);
        Ok((done, false))
    })
}

fn lods<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    repeat(cpu, op, io, |cpu, op, io, _| {
        let v = cpu.load::<T>(op.seg, address(cpu, Gpr::Rsi, op.addr), io)?;
        set(cpu, 0, v);
        advance::<T>(cpu, Gpr::Rsi, op.addr, 1);
        Ok((1, false))
    })
}

/// Compares as CMP does; whether a REPE or REPNE ends here.
#[inline(always)]
fn compare<T: Width>(cpu: &mut Cpu, op: &Op, a: T, b: T) -> bool {
    let r = T::trunc(a.zext().wrapping_sub(b.zext()));
    flags::put(cpu, STATUS, flags::sub(a, b, r));
    let equal = flags::any(cpu, ZF);
    if op.prefix.has(Prefix::REPNE) {
        equal
    } else {
        !equal
    }
}

/// A fault of CMPS or SCAS between repetitions gives back the flags from before the instruction
/// (SDM vol. 2, REP).
#[inline(always)]
fn keep_flags(cpu: &mut Cpu, run: impl FnOnce(&mut Cpu) -> Exec) -> Exec {
    let before = cpu.state.rflags;
    let result = run(cpu);
    if let Err(trap) = &result
        && !matches!(trap.kind(), TrapKind::Yield)
    {
        cpu.state.rflags = before;
    }
    result
}

fn cmps<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    keep_flags(cpu, |cpu| compare_strings::<T>(cpu, op, io))
}

fn compare_strings<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    repeat(cpu, op, io, |cpu, op, io, _| {
        let a = cpu.load::<T>(op.seg, address(cpu, Gpr::Rsi, op.addr), io)?;
        let b = cpu.load::<T>(ES, address(cpu, Gpr::Rdi, op.addr), io)?;
        let end = compare(cpu, op, a, b);
        advance::<T>(cpu, Gpr::Rsi, op.addr, 1);
        advance::<T>(cpu, Gpr::Rdi, op.addr, 1);
        Ok((1, end))
    })
}

fn scas<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    keep_flags(cpu, |cpu| scan_string::<T>(cpu, op, io))
}

fn scan_string<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    repeat(cpu, op, io, |cpu, op, io, _| {
        let b = cpu.load::<T>(ES, address(cpu, Gpr::Rdi, op.addr), io)?;
        let a = get::<T>(cpu, 0);
        let end = compare(cpu, op, a, b);
        advance::<T>(cpu, Gpr::Rdi, op.addr, 1);
        Ok((1, end))
    })
}

macro_rules! group {
    ($f:ident, $size:expr) => {
        match $size {
            1 => $f::<u8> as Handler,
            2 => $f::<u16>,
            4 => $f::<u32>,
            _ => $f::<u64>,
        }
    };
}

/// The source segment of a string instruction.
fn source_segment(i: &Instruction) -> u8 {
    crate::op::seg_number(i.memory_segment())
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let string = (0..i.op_count()).any(|n| {
        matches!(
            i.op_kind(n),
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    });
    if !string {
        return Lower::No;
    }
    let size = crate::op::mem_bytes(i);
    op.seg = source_segment(i);
    let run = match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            group!(movs, size)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            group!(stos, size)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            group!(lods, size)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            group!(cmps, size)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            group!(scas, size)
        }
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}
