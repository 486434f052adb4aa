//! Privileged and sensitive behaviour: interrupts, control registers, MSRs, descriptor tables,
//! segments, far transfers, tasks. One file a concern; `operand` is what they share.

mod code_segment;
pub(crate) mod control_regs;
pub(crate) mod debug;
pub(crate) mod events;
mod fast_calls;
mod flags;
pub(crate) mod interrupt;
mod io;
mod iret;
mod misc;
mod msr;
mod operand;
mod random;
pub(crate) mod segment;
mod stack;
mod string_io;
mod tables;
mod task;
mod tlb;
mod transfer;

#[cfg(test)]
mod tests;

use crate::Op;
use crate::decode::Lower;
use iced_x86::Instruction;

/// Completes the op of an instruction of one of these groups.
pub(crate) fn lower(i: &Instruction, op: &mut Op, _bits: u32) -> Lower {
    let groups = [
        fast_calls::lower,
        iret::lower,
        flags::lower,
        segment::lower,
        io::lower,
        string_io::lower,
        transfer::lower,
        interrupt::lower,
        control_regs::lower,
        msr::lower,
        tables::lower,
        tlb::lower,
        misc::lower,
        random::lower,
    ];
    groups
        .iter()
        .find_map(|lower| lower(i, op))
        .unwrap_or(Lower::No)
}
