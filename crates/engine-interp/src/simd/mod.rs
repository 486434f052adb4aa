//! x87, MMX, SSE, AVX and the XSAVE family.
//!
//! Arithmetic runs on the host CPU through generated thunks ([`thunk`]) on the monitor's own
//! buffers, so that results, flags and rounding are the hardware's own; what surrounds it is here:
//! availability (#UD, #NM), pending x87 exceptions (#MF), SIMD exceptions (#XM), memory operands
//! with their alignment and faults, MMX aliasing, register tags, the state areas. Frequent moves
//! and logic are plain Rust ([`moves`]).
//!
//! Source: SDM vol. 1, chapters 8 to 14; vol. 2 by mnemonic; vol. 3, chapters 12 to 14.
//!
//! Not modelled: FERR#/IGNNE# (with CR0.NE clear a pending x87 exception is ignored, as if IGNNE#
//! were asserted); the last x87 opcode is recorded for unmasked exceptions only, as processors since
//! the Pentium 4 do (SDM vol. 1, 8.1.9.1). MXCSR.PE next to an *unmasked* overflow or underflow is
//! judged on the rounded result, not with an unbounded exponent (vol. 1, 11.5.2.4 and 11.5.2.5); and
//! when DPPS or DPPD raise an unmasked exception, MXCSR has the flags of all their stages, and with
//! underflow unmasked an exact denormal between their stages goes unnoticed.

mod check;
mod environment;
mod fxsave;
mod layout;
mod masked;
mod memory;
mod mmx;
mod moves;
mod native;
mod thunk;
mod vector;
mod x87;
mod xsave;
mod xsave_registers;

use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op};
use iced_x86::{Instruction, OpKind};
use mimeo_isa_x86::{Class, Form, Group, Unit, X87, lookup};
use mimeo_vcpu::{CpuIo, EngineError};
use std::collections::HashMap;

/// State of the native helpers of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Simd {
    /// Instructions that run in a thunk: [`Op::imm`]'s low half is an index into this.
    native: Vec<Native>,
    /// Where each of them is. Bounded by forms times immediates, not by the guest's code.
    index: HashMap<(iced_x86::Code, bool, u8, u8), u32>,
}

/// One instruction that runs in a thunk, without its register numbers (those are in the high half
/// of [`Op::imm`], a byte each).
#[derive(Debug, Clone, Copy)]
struct Native {
    entry: native::Entry,
    form: &'static Form,
    kinds: [Kind; 4],
}

/// What an operand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Ymm,
    Mm,
    Gpr,
    Memory,
}

/// Completes the op of an instruction of this group.
pub(crate) fn lower(cpu: &mut Cpu, i: &Instruction, op: &mut Op) -> Lower {
    let Some(form) = lookup(i.code()) else {
        return Lower::No;
    };
    if !form.available(|f| cpu.model.has(f)) {
        return Lower::No;
    }
    let plain = match form.group {
        Group::Xsave => xsave::handler(form).or_else(|| fxsave::handler(form.code)),
        Group::X87 => environment::handler(form.code).or_else(|| x87::handler(form.code)),
        Group::Mmx
        | Group::Sse
        | Group::Sse2
        | Group::Sse3
        | Group::Sse4
        | Group::Crypto
        | Group::Avx
        | Group::Avx2
        | Group::Fma => fxsave::handler(form.code)
            .or_else(|| moves::handler(i, op))
            .or_else(|| mmx::handler(form.code))
            .or_else(|| masked::handler(i, op, form)),
        _ => return Lower::No,
    };
    if let Some(run) = plain {
        op.run = run;
    } else if form.class == Class::Native {
        op.run = lower_native(cpu, i, op, form);
    } else {
        return Lower::No;
    }
    if form.ends_block {
        Lower::End
    } else {
        Lower::Plain
    }
}

fn lower_native(cpu: &mut Cpu, i: &Instruction, op: &mut Op, form: &'static Form) -> Handler {
    let (mut kinds, mut registers) = ([Kind::None; 4], 0_u64);
    let (mut imm, mut sti) = (0, 0);
    for n in 0..i.op_count().min(4) {
        let kind = match i.op_kind(n) {
            OpKind::Memory => Kind::Memory,
            OpKind::Register => {
                let r = i.op_register(n);
                registers |= (r.number() as u64 & 15) << (32 + 8 * n);
                if r.is_st() {
                    sti = sti.max(r.number() as u8);
                    Kind::None
                } else if r.is_mm() {
                    Kind::Mm
                } else if r.is_gpr() {
                    Kind::Gpr
                } else {
                    Kind::Ymm
                }
            }
            _ => {
                imm = i.immediate8();
                Kind::None
            }
        };
        kinds[n as usize] = kind;
    }
    let key = (form.code, kinds.contains(&Kind::Memory), imm, sti);
    let simd = &mut cpu.simd;
    let index = match simd.index.get(&key) {
        Some(index) => *index,
        None => {
            let Some(entry) = thunk::thunk(i, form) else {
                return no_thunk;
            };
            let index = simd.native.len() as u32;
            simd.native.push(Native { entry, form, kinds });
            simd.index.insert(key, index);
            index
        }
    };
    op.imm = u64::from(index) | registers;
    if form.x87 == X87::None {
        vector::handler(form)
    } else {
        x87::native
    }
}

/// The host allows no executable memory.
fn no_thunk(_: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    Err(EngineError::Unsupported {
        engine: "interp",
        reason: format!(
            "{:?} needs executable memory, which this host refuses: allow memfd_create with \
             MFD_EXEC or a cache directory that is not mounted noexec",
            op.code
        ),
    }
    .into())
}

/// The thunk of an op; the op came from [`lower_native`].
#[inline(always)]
fn native_of(cpu: &Cpu, op: &Op) -> Native {
    cpu.simd.native[op.imm as u32 as usize]
}

/// The number of register operand `n` of an op made by [`lower_native`].
#[inline(always)]
fn register_of(op: &Op, n: u32) -> u8 {
    (op.imm >> (32 + 8 * n)) as u8
}

/// Whether a unit's registers are VEX-encoded, so that writes clear the rest of a YMM register.
const fn vex(unit: Unit) -> bool {
    matches!(unit, Unit::Avx)
}
