//! Unprivileged integer instructions, one file a group.

use crate::decode::Lower;
use crate::{Cpu, Exec, Op};
use iced_x86::Instruction;
use mimeo_arch_x86::Exception;
use mimeo_vcpu::CpuIo;

/// #UD: what has no row in the instruction table.
pub(crate) fn undefined(_: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    Err(Exception::ud().into())
}

/// Completes the op of an instruction of one of these groups.
pub(crate) fn lower(_i: &Instruction, _op: &mut Op, _bits: u32) -> Lower {
    Lower::No
}
