//! Unprivileged integer instructions, one file a group.

mod alu;
mod bcd;
mod bits;
mod bmi;
mod control;
mod exchange;
pub(crate) mod flags;
mod hints;
mod moves;
mod muldiv;
pub(crate) mod regs;
mod shift;
pub(crate) mod stack;
pub(crate) mod string;

pub(crate) use alu::{FlagsBefore, flags_before, without_flags};

use crate::decode::Lower;
use crate::{Cpu, Exec, Op};
use iced_x86::{ConditionCode, Instruction};
use mimeo_arch_x86::Exception;
use mimeo_vcpu::CpuIo;

/// #UD: what has no row in the instruction table.
pub(crate) fn undefined(_: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    Err(Exception::ud().into())
}

pub(crate) use hints::nop;

/// Bits of an address of `size` bytes.
#[inline(always)]
pub(crate) fn address_mask(size: u8) -> u64 {
    match size {
        8 => u64::MAX,
        4 => 0xffff_ffff,
        _ => 0xffff,
    }
}

/// A condition as the low four bits of Jcc's opcode.
fn condition_number(c: ConditionCode) -> u8 {
    match c {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        _ => 15,
    }
}

/// Completes the op of an instruction of one of these groups.
pub(crate) fn lower(i: &Instruction, op: &mut Op, bits: u32) -> Lower {
    let groups: [fn(&Instruction, &mut Op) -> Lower; 11] = [
        moves::lower,
        alu::lower,
        stack::lower,
        control::lower,
        shift::lower,
        muldiv::lower,
        bits::lower,
        string::lower,
        exchange::lower,
        bmi::lower,
        hints::lower,
    ];
    for group in groups {
        let done = group(i, op);
        if done != Lower::No {
            return done;
        }
    }
    if bits < 64 {
        bcd::lower(i, op)
    } else {
        Lower::No
    }
}
