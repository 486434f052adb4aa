//! Privileged and sensitive behaviour: interrupts, control registers, MSRs, descriptor tables,
//! segments, far transfers, tasks. One file a concern; `operand` is what they share.

pub(crate) mod control_regs;
pub(crate) mod debug;
pub(crate) mod events;
mod flags;
pub(crate) mod interrupt;
mod io;
mod misc;
mod msr;
mod operand;
pub(crate) mod segment;
mod tables;
mod tlb;

use crate::Op;
use crate::decode::Lower;
use iced_x86::Instruction;

/// Completes the op of an instruction of one of these groups.
pub(crate) fn lower(i: &Instruction, op: &mut Op, _bits: u32) -> Lower {
    let groups = [
        flags::lower,
        segment::lower,
        io::lower,
        control_regs::lower,
        msr::lower,
        tables::lower,
        tlb::lower,
        misc::lower,
    ];
    groups
        .iter()
        .find_map(|lower| lower(i, op))
        .unwrap_or(Lower::No)
}
