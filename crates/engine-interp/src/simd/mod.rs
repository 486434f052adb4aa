//! x87, MMX, SSE, AVX and the XSAVE family.

use crate::decode::Lower;
use crate::{Cpu, Op};
use iced_x86::Instruction;

/// State of the native helpers of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Simd {}

/// Completes the op of an instruction of this group. A group may keep data of its own about the
/// instruction in [`Simd`] and its index in [`Op::imm`].
pub(crate) fn lower(_cpu: &mut Cpu, _i: &Instruction, _op: &mut Op) -> Lower {
    Lower::No
}
