//! What the handlers of this folder share: operands, privilege checks.

use crate::op::NO_REG;
use crate::{Cpu, Exec, Op, Trap};
use iced_x86::{Instruction, OpKind};
use mimeo_arch_x86::{Cr0, Exception, Gpr, RFlags};
use mimeo_vcpu::CpuIo;

/// The general register that operand `n` is, or [`NO_REG`] for memory.
pub(super) fn register(i: &Instruction, n: u32) -> u8 {
    if i.op_kind(n) == OpKind::Register {
        crate::op::reg_number(i.op_register(n))
    } else {
        NO_REG
    }
}

/// #GP(0) unless at CPL 0.
pub(super) fn cpl0(cpu: &Cpu) -> Exec {
    if cpu.state.cpl == 0 {
        Ok(())
    } else {
        Err(Exception::gp(0).into())
    }
}

/// Protected mode proper (long mode included): neither real-address nor virtual-8086 mode.
pub(super) fn is_protected(cpu: &Cpu) -> bool {
    cpu.state.cr0.contains(Cr0::PE) && !is_v86(cpu)
}

/// Virtual-8086 mode.
pub(super) fn is_v86(cpu: &Cpu) -> bool {
    cpu.state.rflags.contains(RFlags::VM)
}

/// #UD in real-address and virtual-8086 mode.
pub(super) fn protected(cpu: &Cpu) -> Exec {
    if is_protected(cpu) {
        Ok(())
    } else {
        Err(Exception::ud().into())
    }
}

/// A general register's value in full.
pub(super) fn get(cpu: &Cpu, reg: u8) -> u64 {
    cpu.state.gpr[usize::from(reg & 15)]
}

/// EDX:EAX.
pub(super) fn edx_eax(cpu: &Cpu) -> u64 {
    (cpu.gpr(Gpr::Rdx) << 32) | (cpu.gpr(Gpr::Rax) & 0xffff_ffff)
}

/// Sets EDX:EAX, both zero-extended.
pub(super) fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.state.gpr[Gpr::Rax as usize] = value & 0xffff_ffff;
    cpu.state.gpr[Gpr::Rdx as usize] = value >> 32;
}

/// ECX.
pub(super) fn ecx(cpu: &Cpu) -> u32 {
    cpu.gpr(Gpr::Rcx) as u32
}

/// Writes a general register in 2, 4 or 8 bytes.
pub(super) fn set(cpu: &mut Cpu, reg: u8, size: u8, value: u64) {
    let r = &mut cpu.state.gpr[usize::from(reg & 15)];
    *r = match size {
        2 => (*r & !0xffff) | (value & 0xffff),
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// A 16-bit source: register `reg`, or the memory operand where that is [`NO_REG`].
pub(super) fn source16(cpu: &mut Cpu, op: &Op, reg: u8, io: &mut dyn CpuIo) -> Result<u16, Trap> {
    if reg == NO_REG {
        cpu.load_op(op, io)
    } else {
        Ok(get(cpu, reg) as u16)
    }
}

/// Writes to register `op.r0` in the operand's size, or 16 bits to memory (SLDT, STR, SMSW, MOV from
/// a segment register).
pub(super) fn store16(cpu: &mut Cpu, op: &Op, value: u64, io: &mut dyn CpuIo) -> Exec {
    if op.r0 == NO_REG {
        return cpu.store_op(op, value as u16, io);
    }
    set(cpu, op.r0, op.size, value);
    Ok(())
}
