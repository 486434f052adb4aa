//! Bounded counts: REP MOVS and REP STOS, bit numbers.
//!
//! The bytes from an address x to the end of its page are `4096 - (x & 4095)`, which is minus (x with
//! bits 12 to 63 set): `or r, -4096; neg r`. Shifted right that is a number of whole elements; the lesser of
//! two numbers (`cmp a, b; cmovb b, a`) obeys the bounds of both.

use crate::state::{Flags, Id, State, Val};
use iced_x86::{Code, Instruction, OpKind};

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

fn reg(i: &Instruction, n: u32) -> Option<usize> {
    let r = i.op_register(n);
    (i.op_kind(n) == OpKind::Register && r.is_gpr()).then(|| r.full_register().number())
}

/// What the destination holds, for the instructions that compute bounded numbers.
pub(crate) fn value(i: &Instruction, s: &State) -> Option<Val> {
    let dst = reg(i, 0)?;
    match (i.code(), s.regs[dst]) {
        (Code::Or_rm64_imm32, Val::Plain(of)) if i.immediate32to64() == -4096 => {
            Some(Val::Above(of))
        }
        (Code::Neg_rm64, Val::Above(of)) => Some(Val::Elements {
            of,
            also: None,
            shift: 0,
        }),
        (Code::Shr_rm64_imm8, Val::Elements { of, also, shift: 0 }) if i.immediate8() < 12 => {
            Some(Val::Elements {
                of,
                also,
                shift: i.immediate8(),
            })
        }
        (Code::And_rm32_imm8, _) if (0..64).contains(&i.immediate8to32()) => {
            Some(Val::Below(i.immediate8to32() as u32 + 1))
        }
        (Code::Cmovb_r64_rm64, old) => {
            let src = reg(i, 1)?;
            // Only right after comparing the source with the destination is it the lesser of both.
            if s.flags != Flags::Less(src as u8, dst as u8) {
                return None;
            }
            lesser(old, s.regs[src])
        }
        _ => None,
    }
}

/// The lesser of two numbers: what is known of either holds of it.
fn lesser(a: Val, b: Val) -> Option<Val> {
    match (a, b) {
        (
            Val::Elements {
                of,
                also: None,
                shift,
            },
            Val::Elements {
                of: other,
                also: None,
                shift: same,
            },
        ) if shift == same => Some(Val::Elements {
            of,
            also: Some(other),
            shift,
        }),
        (Val::Elements { .. }, _) => Some(a),
        (_, Val::Elements { .. }) => Some(b),
        _ => None,
    }
}

/// Checks the registers of a REP MOVS (`moves`) or REP STOS with elements of `1 << shift` bytes.
///
/// # Errors
/// What is wrong.
pub(crate) fn check(s: &State, shift: u8, moves: bool) -> Result<(), String> {
    let Val::Elements {
        of,
        also,
        shift: of_count,
    } = s.regs[RCX]
    else {
        return Err("repeats without a bound".into());
    };
    if of_count != shift {
        return Err("counts elements of another size".into());
    }
    let bounded = |id: Id| id == of || also == Some(id);
    match s.regs[RDI] {
        Val::Host { of, write: true } if bounded(of) => {}
        _ => return Err("stores to an address that was not looked up and counted".into()),
    }
    match s.regs[RSI] {
        _ if !moves => Ok(()),
        Val::Host { of, .. } if bounded(of) => Ok(()),
        _ => Err("loads from an address that was not looked up and counted".into()),
    }
}
