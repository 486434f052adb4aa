//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE (SDM vol. 2). PUSHF, POPF and POP to segment registers are in
//! `system`.

use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::is_mem;
use crate::{Access, Cpu, Exec, Handler, Op, Trap, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};
use mimeo_arch_x86::{Gpr, Seg};
use mimeo_vcpu::CpuIo;

const SS: u8 = Seg::Ss as u8;
const SP: usize = Gpr::Rsp as usize;

/// Pushes one value.
///
/// # Errors
/// #SS, #PF, #AC; the stack pointer has not moved then.
#[inline(always)]
pub(crate) fn push<T: Width>(cpu: &mut Cpu, v: T, io: &mut dyn CpuIo) -> Result<(), Trap> {
    let sp = cpu.state.gpr[SP].wrapping_sub(T::BYTES as u64) & cpu.stack_mask();
    cpu.store(SS, sp, v, io)?;
    cpu.set_sp(sp);
    Ok(())
}

/// Pops one value.
///
/// # Errors
/// #SS, #PF, #AC; the stack pointer has not moved then.
#[inline(always)]
pub(crate) fn pop<T: Width>(cpu: &mut Cpu, io: &mut dyn CpuIo) -> Result<T, Trap> {
    let sp = cpu.state.gpr[SP];
    let v = cpu.load(SS, sp & cpu.stack_mask(), io)?;
    cpu.set_sp(sp.wrapping_add(T::BYTES as u64));
    Ok(v)
}

fn push_r<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, op.r0);
    push(cpu, v, io)
}

fn push_i<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    push(cpu, T::trunc(op.imm), io)
}

fn push_m<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.load_op::<T>(op, io)?;
    push(cpu, v, io)
}

/// PUSH of a segment register: the selector in the low 16 bits. Processors write only 16 bits in
/// 32-bit operand size; the rest of the slot is left as it was (SDM vol. 2, PUSH).
fn push_seg<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.state.seg[usize::from(op.r0).min(5)].selector;
    if T::BYTES != 4 {
        return push(cpu, T::trunc(u64::from(v)), io);
    }
    let sp = cpu.state.gpr[SP].wrapping_sub(4) & cpu.stack_mask();
    cpu.store(SS, sp, v, io)?;
    cpu.set_sp(sp);
    Ok(())
}

fn pop_r<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = pop::<T>(cpu, io)?;
    set(cpu, op.r0, v);
    Ok(())
}

/// POP to memory: an address based on the stack pointer uses its value after the pop.
fn pop_m<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let old = cpu.state.gpr[SP];
    let v = pop::<T>(cpu, io)?;
    let r = cpu.store_op(op, v, io);
    if r.is_err() {
        cpu.state.gpr[SP] = old;
    }
    r
}

/// PUSHA: eight registers, SP as it was before; all checked before any is written.
fn pusha<T: Width>(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    let mask = cpu.stack_mask();
    let sp = cpu.state.gpr[SP];
    let values: [T; 8] = std::array::from_fn(|n| get(cpu, n as u8));
    for n in 1..=8u64 {
        let at = sp.wrapping_sub(n * T::BYTES as u64) & mask;
        let linear = cpu.linear(SS, at, T::BYTES, Access::Write)?;
        cpu.probe(SS, linear, T::BYTES, Access::Write)?;
    }
    for v in values {
        push(cpu, v, io)?;
    }
    Ok(())
}

/// POPA: the slot of SP is skipped.
fn popa<T: Width>(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    let mask = cpu.stack_mask();
    let sp = cpu.state.gpr[SP];
    let mut values = [T::trunc(0); 8];
    for (n, v) in values.iter_mut().enumerate() {
        let at = sp.wrapping_add((n * T::BYTES) as u64) & mask;
        *v = cpu.load(SS, at, io)?;
    }
    cpu.set_sp(sp.wrapping_add(8 * T::BYTES as u64));
    for (n, v) in values.into_iter().enumerate() {
        let r = 7 - n as u8;
        if r != Gpr::Rsp as u8 {
            set(cpu, r, v);
        }
    }
    Ok(())
}

fn leave<T: Width>(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    let bp = cpu.gpr(Gpr::Rbp) & cpu.stack_mask();
    let v = cpu.load::<T>(SS, bp, io)?;
    cpu.set_sp(bp.wrapping_add(T::BYTES as u64));
    set(cpu, Gpr::Rbp as u8, v);
    Ok(())
}

/// ENTER: `imm` holds the size in its low half and the nesting level above it.
fn enter<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (size, level) = (op.imm & 0xffff, op.imm >> 16 & 31);
    let (old_sp, old_bp) = (cpu.state.gpr[SP], cpu.gpr(Gpr::Rbp));
    let r = enter_frame::<T>(cpu, size, level, io);
    if r.is_err() {
        cpu.state.gpr[SP] = old_sp;
        cpu.state.gpr[Gpr::Rbp as usize] = old_bp;
    }
    r
}

fn enter_frame<T: Width>(cpu: &mut Cpu, size: u64, level: u64, io: &mut dyn CpuIo) -> Exec {
    let mask = cpu.stack_mask();
    let bp = get::<T>(cpu, Gpr::Rbp as u8);
    push(cpu, bp, io)?;
    let frame = T::trunc(cpu.state.gpr[SP]);
    if level > 0 {
        let mut at = cpu.gpr(Gpr::Rbp);
        for _ in 1..level {
            at = at.wrapping_sub(T::BYTES as u64);
            let v = cpu.load::<T>(SS, at & mask, io)?;
            push(cpu, v, io)?;
        }
        push(cpu, frame, io)?;
    }
    let sp = cpu.state.gpr[SP].wrapping_sub(size);
    // The new top of the stack is checked for a write (SDM vol. 2, ENTER).
    let linear = cpu.linear(SS, sp & mask, T::BYTES, Access::Write)?;
    cpu.probe(SS, linear, T::BYTES, Access::Write)?;
    cpu.set_sp(sp);
    set(cpu, Gpr::Rbp as u8, frame);
    Ok(())
}

macro_rules! by_size {
    ($f:ident, $size:expr) => {
        match $size {
            2 => $f::<u16> as Handler,
            4 => $f::<u32>,
            _ => $f::<u64>,
        }
    };
}

/// Bytes that a stack instruction moves.
pub(crate) fn operand_bytes(i: &Instruction) -> u8 {
    i.stack_pointer_increment().unsigned_abs().min(8) as u8
}

fn lower_push(i: &Instruction, op: &mut Op) -> Handler {
    let size = operand_bytes(i);
    if is_mem(i, 0) {
        by_size!(push_m, size)
    } else if i.op_kind(0) != OpKind::Register {
        by_size!(push_i, size)
    } else if i.op_register(0).is_segment_register() {
        op.r0 = crate::op::seg_number(i.op_register(0));
        by_size!(push_seg, size)
    } else {
        by_size!(push_r, size)
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let size = operand_bytes(i);
    let run = match i.mnemonic() {
        Mnemonic::Push => lower_push(i, op),
        Mnemonic::Pop if is_mem(i, 0) => by_size!(pop_m, size),
        Mnemonic::Pop if i.op_register(0).is_segment_register() => return Lower::No,
        Mnemonic::Pop => by_size!(pop_r, size),
        Mnemonic::Pusha => pusha::<u16>,
        Mnemonic::Pushad => pusha::<u32>,
        Mnemonic::Popa => popa::<u16>,
        Mnemonic::Popad => popa::<u32>,
        Mnemonic::Leave => by_size!(leave, leave_size(i)),
        Mnemonic::Enter => {
            op.imm = i.immediate(0) & 0xffff | (i.immediate(1) & 0xff) << 16;
            match i.code() {
                iced_x86::Code::Enterw_imm16_imm8 => enter::<u16>,
                iced_x86::Code::Enterd_imm16_imm8 => enter::<u32>,
                _ => enter::<u64>,
            }
        }
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}

fn leave_size(i: &Instruction) -> u8 {
    match i.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    }
}
