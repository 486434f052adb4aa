//! Random instances of a form.

mod operands;
mod setup;

use crate::case::{self, Case, Registers, State};
use crate::exclude;
use crate::layout::{DATA, DATA_LEN, NOTHING, PAGE, READ_ONLY, START};
use crate::random::Random;
use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction};
use mimeo_isa_x86::form::gpr;
use mimeo_isa_x86::{Form, Modes, Unit};

/// How many instances are tried before a form counts as not encodable.
const ATTEMPTS: u32 = 40;

/// One random case of a form. `None`: no instance of it can be encoded in this code size.
#[must_use]
pub fn case(form: &Form, r: &mut Random) -> Option<Case> {
    let bits = match form.modes {
        Modes::Only64 => 64,
        Modes::Legacy => 32,
        Modes::Any => {
            if r.chance(20) {
                32
            } else {
                64
            }
        }
    };
    (0..ATTEMPTS).find_map(|_| Builder::new(form, bits, r).build())
}

/// An address for a memory operand of `size` bytes: mostly accessible, sometimes straddling the
/// pages, sometimes into the read-only or the missing page, sometimes not canonical.
fn address(r: &mut Random, size: u64, align: u64, bits: u32) -> u64 {
    let size = size.max(1);
    let inside = |r: &mut Random| DATA + 512 + r.below(DATA_LEN as u64 - 1024 - size.min(512));
    let straddle = |r: &mut Random, page: u64| page - r.below(size + 1);
    let a = match r.below(100) {
        0..=69 => inside(r),
        70..=81 => straddle(r, DATA + PAGE),
        82..=87 => straddle(r, READ_ONLY),
        88..=93 => straddle(r, NOTHING),
        94..=95 => READ_ONLY + 64 * r.below(32),
        96..=97 => DATA - 1 - r.below(64),
        _ if bits == 64 => 1 << 47 | r.next() >> 17,
        _ => inside(r),
    };
    // Mostly as the form wants it, so that alignment faults stay a small part.
    if r.chance(if align > 1 { 90 } else { 40 }) {
        a & !(align.max(size.next_power_of_two().min(64)) - 1)
    } else {
        a
    }
}

struct Builder<'a> {
    form: &'a Form,
    bits: u32,
    r: &'a mut Random,
    i: Instruction,
    gpr: [u64; 16],
    /// Registers whose value is decided.
    fixed: u16,
    target: Option<u64>,
    bases: [u64; 2],
}

impl<'a> Builder<'a> {
    fn new(form: &'a Form, bits: u32, r: &'a mut Random) -> Self {
        let mut i = Instruction::default();
        i.set_code(form.code);
        let gpr = std::array::from_fn(|_| r.integer());
        Self {
            form,
            bits,
            r,
            i,
            gpr,
            fixed: 0,
            target: None,
            bases: [0; 2],
        }
    }

    fn build(mut self) -> Option<Case> {
        let info = self.form.code.op_code();
        for n in 0..info.op_count() {
            self.operand(n, info.op_kind(n))?;
        }
        if self.form.unit == Unit::Xsave && self.fixed & (gpr::RAX | gpr::RDX) != 0 {
            // EDX:EAX must name components that both sides have.
            return None;
        }
        self.implicit();
        self.prefixes();
        let bytes = self.encode()?;
        let mut data = case::data(self.r);
        self.special_data(&mut data);
        let mut fp = case::fp(self.r);
        if exclude::may_start_pending(self.form) && self.r.chance(5) {
            // An unmasked exception that is pending.
            fp.fcw &= !1;
            fp.fsw |= 0x8081;
        }
        self.vsib_indices(&mut fp.ymm);
        if self.bits == 32 {
            for g in &mut self.gpr {
                *g &= 0xffff_ffff;
            }
            self.gpr[8..].fill(0);
        }
        let uses_fp = !matches!(self.form.unit, Unit::None | Unit::VexGpr);
        let restarts = self.i.has_rep_prefix() || self.i.has_repne_prefix() || self.i.is_vsib();
        Some(Case {
            bytes,
            restarts,
            bits: self.bits,
            state: State {
                registers: Registers {
                    gpr: self.gpr,
                    rip: START,
                    rflags: case::flags(self.r),
                    bases: self.bases,
                },
                fp,
                data,
            },
            uses_fp,
        })
    }

    /// Encodes, and checks that what is decoded is this form again.
    fn encode(&mut self) -> Option<Vec<u8>> {
        let mut encoder = Encoder::try_new(self.bits).ok()?;
        encoder.encode(&self.i, START).ok()?;
        let bytes = encoder.take_buffer();
        let mut decoder = Decoder::with_ip(self.bits, &bytes, START, DecoderOptions::NONE);
        let back = decoder.decode();
        (back.code() == self.form.code && back.len() == bytes.len()).then_some(bytes)
    }
}
