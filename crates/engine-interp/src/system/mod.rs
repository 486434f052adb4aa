//! Privileged and sensitive behaviour: interrupts, control registers, MSRs, descriptor tables.

pub(crate) mod debug;
pub(crate) mod events;
pub(crate) mod interrupt;
pub(crate) mod segment;

use crate::Op;
use crate::decode::Lower;
use iced_x86::Instruction;

/// Completes the op of an instruction of one of these groups.
pub(crate) fn lower(_i: &Instruction, _op: &mut Op, _bits: u32) -> Lower {
    Lower::No
}
