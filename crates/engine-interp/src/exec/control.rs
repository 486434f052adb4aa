//! Near branches: JMP, Jcc, CALL, RET, LOOP, JCXZ; UD (SDM vol. 2). Far branches and software
//! interrupts are in `system`.

use super::flags::{self, ZF};
use super::regs::get;
use super::stack;
use crate::decode::Lower;
use crate::op::is_mem;
use crate::{Cpu, Exec, Handler, Op, Trap, Width};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use mimeo_arch_x86::{Exception, Gpr, Seg};
use mimeo_vcpu::CpuIo;

/// Goes to `target`, truncated to the operand size.
///
/// # Errors
/// #GP(0) where the target is outside the code segment or not canonical.
#[inline(always)]
pub(crate) fn branch(cpu: &mut Cpu, target: u64, size: u8) -> Result<(), Trap> {
    if size == 8 {
        if !cpu.is_canonical(target) {
            return Err(Exception::gp(0).into());
        }
        cpu.state.rip = target;
        return Ok(());
    }
    branch_narrow(cpu, target, size)
}

fn branch_narrow(cpu: &mut Cpu, target: u64, size: u8) -> Result<(), Trap> {
    let target = target & super::address_mask(size);
    if !cpu.code64 && target > u64::from(cpu.state.segment(Seg::Cs).limit) {
        return Err(Exception::gp(0).into());
    }
    cpu.state.rip = target;
    Ok(())
}

/// Relative branches: the target is `imm` bytes from the next instruction.
#[inline(always)]
fn relative(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.state.rip.wrapping_add(op.imm);
    branch(cpu, target, op.size)
}

fn jmp(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    relative(cpu, op)
}

fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    if flags::condition(cpu, CC) {
        return relative(cpu, op);
    }
    Ok(())
}

fn jcc_handler(cc: u8) -> Handler {
    const TABLE: [Handler; 16] = [
        jcc::<0>, jcc::<1>, jcc::<2>, jcc::<3>, jcc::<4>, jcc::<5>, jcc::<6>, jcc::<7>, jcc::<8>,
        jcc::<9>, jcc::<10>, jcc::<11>, jcc::<12>, jcc::<13>, jcc::<14>, jcc::<15>,
    ];
    TABLE[usize::from(cc & 15)]
}

/// JCXZ, JECXZ, JRCXZ.
fn jcxz(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    if cpu.gpr(Gpr::Rcx) & super::address_mask(op.addr) == 0 {
        return relative(cpu, op);
    }
    Ok(())
}

/// LOOP, LOOPE, LOOPNE: `r2` is 0, 1 or 2.
fn loop_(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let mask = super::address_mask(op.addr);
    let old = cpu.gpr(Gpr::Rcx);
    let count = old.wrapping_sub(1) & mask;
    let zf = flags::any(cpu, ZF);
    let go = count != 0 && (op.r2 == 0 || zf == (op.r2 == 1));
    if go {
        relative(cpu, op)?;
    }
    // 32-bit counts are zero-extended in 64-bit mode.
    cpu.state.gpr[Gpr::Rcx as usize] = if op.addr == 2 {
        old & !mask | count
    } else {
        count
    };
    Ok(())
}

fn target<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<u64, Trap> {
    if op.r0 == crate::op::NO_REG {
        Ok(cpu.load_op::<T>(op, io)?.zext())
    } else {
        Ok(get::<T>(cpu, op.r0).zext())
    }
}

fn jmp_indirect<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let t = target::<T>(cpu, op, io)?;
    branch(cpu, t, T::BYTES as u8)
}

/// The push comes after the target's check, so that a fault of either leaves nothing behind.
#[inline(always)]
fn call_to<T: Width>(cpu: &mut Cpu, target: u64, io: &mut dyn CpuIo) -> Exec {
    let next = cpu.state.rip;
    branch(cpu, target, T::BYTES as u8)?;
    stack::push(cpu, T::trunc(next), io)
}

fn call<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let target = cpu.state.rip.wrapping_add(op.imm);
    call_to::<T>(cpu, target, io)
}

fn call_indirect<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let t = target::<T>(cpu, op, io)?;
    call_to::<T>(cpu, t, io)
}

/// RET and RET imm16.
fn ret<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let sp = cpu.gpr(Gpr::Rsp);
    let t = cpu.load::<T>(Seg::Ss as u8, sp & cpu.stack_mask(), io)?;
    branch(cpu, t.zext(), T::BYTES as u8)?;
    cpu.set_sp(sp.wrapping_add(T::BYTES as u64).wrapping_add(op.imm));
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

/// The operand size of a near branch, from its form.
fn branch_size(i: &Instruction) -> u8 {
    match i.op_kind(0) {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register => i.op_register(0).size() as u8,
        _ => crate::op::mem_bytes(i),
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let near = matches!(
        i.op_kind(0),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    );
    let far = i.is_jmp_far_indirect() || i.is_call_far_indirect();
    let run = match i.mnemonic() {
        Mnemonic::Jmp if near => {
            op.size = branch_size(i);
            jmp
        }
        Mnemonic::Call if near => {
            op.size = branch_size(i);
            by_size!(call, op.size)
        }
        Mnemonic::Jmp if !far && (is_mem(i, 0) || i.op_kind(0) == OpKind::Register) => {
            by_size!(jmp_indirect, branch_size(i))
        }
        Mnemonic::Call if !far && (is_mem(i, 0) || i.op_kind(0) == OpKind::Register) => {
            by_size!(call_indirect, branch_size(i))
        }
        Mnemonic::Ret => match i.code() {
            Code::Retnw | Code::Retnw_imm16 => ret::<u16>,
            Code::Retnd | Code::Retnd_imm16 => ret::<u32>,
            _ => ret::<u64>,
        },
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            op.size = branch_size(i);
            op.addr = counter_size(i);
            op.r2 = match i.mnemonic() {
                Mnemonic::Loop => 0,
                Mnemonic::Loope => 1,
                _ => 2,
            };
            loop_
        }
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            op.size = branch_size(i);
            op.addr = match i.mnemonic() {
                Mnemonic::Jcxz => 2,
                Mnemonic::Jecxz => 4,
                _ => 8,
            };
            jcxz
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => super::undefined,
        _ if i.is_jcc_short_or_near() => {
            op.size = branch_size(i);
            jcc_handler(super::condition_number(i.condition_code()))
        }
        _ => return Lower::No,
    };
    Lower::end(op, run)
}

/// LOOP counts in CX, ECX or RCX by the address size.
fn counter_size(i: &Instruction) -> u8 {
    match i.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX => 4,
        _ => 8,
    }
}
