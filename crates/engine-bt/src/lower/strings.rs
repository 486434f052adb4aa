//! REP MOVS and REP STOS in 64-bit mode (SDM vol. 2, REP): the host's own instruction on host
//! addresses, page by page.
//!
//! Each turn moves what lies in the pages that RSI and RDI point into, then puts the guest's registers
//! to where they stand and, if RCX is not zero yet, starts over at the instruction's first host
//! instruction: a boundary, where an interrupt is taken with exact registers. A descending direction
//! and elements that span two pages are the interpreter's.

use super::Lower;
use super::flags::Afterwards;
use super::mem::Ea;
use crate::ctx::{E, T, at, field, slot};
use crate::decode::Insn;
use crate::emit::{Mem, Reg, cc, reg};
use crate::index::SiteKind;
use iced_x86::{Code, Instruction, OpKind, Register};

const RSI: Reg = 6;
const RDI: Reg = 7;

/// Element size and whether it is STOS, for the forms that are lowered here.
pub(crate) fn inline_string(i: &Instruction) -> Option<(usize, bool)> {
    let shape = match i.code() {
        Code::Movsb_m8_m8 => (1, false),
        Code::Movsw_m16_m16 => (2, false),
        Code::Movsd_m32_m32 => (4, false),
        Code::Movsq_m64_m64 => (8, false),
        Code::Stosb_m8_AL => (1, true),
        Code::Stosw_m16_AX => (2, true),
        Code::Stosd_m32_EAX => (4, true),
        Code::Stosq_m64_RAX => (8, true),
        _ => return None,
    };
    let wide = i.op_kinds().all(|k| {
        matches!(
            k,
            OpKind::MemoryESRDI | OpKind::MemorySegRSI | OpKind::Register
        )
    });
    let based = matches!(i.segment_prefix(), Register::FS | Register::GS);
    (i.has_rep_prefix() && !i.has_repne_prefix() && wide && !based).then_some(shape)
}

impl Lower<'_> {
    /// Lowers one of them.
    pub(super) fn string(&mut self, insn: &Insn) {
        let Some((size, stos)) = inline_string(&insn.i) else {
            return self.interpret(insn);
        };
        let live = self.live();
        let shift = size.trailing_zeros() as u8;
        let none = self.hot.short(0xe3, false);
        let over = self.hot.short(0xeb, false);
        self.hot.bind8(none);
        let done = self.hot.jmp();
        self.hot.bind8(over);
        if live {
            self.save_flags();
        }
        self.hot.cmp_m32_imm(field(at!(df)), 0);
        let down = self.hot.jcc(cc::NZ);
        self.elements(E, RDI, shift);
        if !stos {
            self.elements(T, RSI, shift);
            self.hot.cmp_rr(T, E);
            self.hot.cmovb(E, T);
        }
        if shift > 0 {
            self.hot.alu_imm(7, crate::emit::Rm::Reg(E), 0, true);
            let spans = self.hot.jcc(cc::Z);
            self.slow_stub(spans, live, Afterwards::Flags);
        }
        self.slow_stub(down, live, Afterwards::Flags);
        self.hot.cmp_rr(reg::RCX, E);
        self.hot.cmovb(E, reg::RCX);
        self.point(RDI, true, live, false);
        if !stos {
            self.point(RSI, false, live, true);
        }
        self.hot.store(slot(1), reg::RCX);
        self.hot.mov_rr(reg::RCX, E);
        if live && stos {
            self.hot.store(field(at!(scratch)), reg::RAX);
            self.hot.load(reg::RAX, slot(0));
        }
        self.hot.rep_string(stos, size);
        if live && stos {
            self.hot.load(reg::RAX, field(at!(scratch)));
        }
        for (r, used) in [(RDI, true), (RSI, !stos)] {
            if used {
                self.hot.load(r, slot(usize::from(r)));
                self.hot.lea(r, Mem::indexed(r, E, shift, 0));
            }
        }
        self.hot.load(reg::RCX, slot(1));
        self.hot.sub_rr(reg::RCX, E);
        if live {
            Self::restore_flags(&mut self.hot);
        }
        // No flag is needed: RCX itself says whether there is more.
        let finished = self.hot.short(0xe3, false);
        let again = self.hot.jmp();
        self.hot.bind8(finished);
        if self.marks.iter().any(|(n, _)| *n == self.n) {
            // Nothing may enter at this boundary: the interpreter does the rest.
            let cold = self.cold.pos();
            self.to_cold.push((again, cold));
            self.leave(SiteKind::Interp, insn.i.ip(), self.after());
        } else {
            self.to_insn.push((again, self.n));
        }
        self.hot.bind32(done);
    }

    /// `to` = whole elements from the guest address in `from` to the end of its page.
    fn elements(&mut self, to: Reg, from: Reg, shift: u8) {
        self.hot.mov_rr(to, from);
        self.hot.alu_imm(1, crate::emit::Rm::Reg(to), -4096, true);
        self.hot.neg(to);
        if shift > 0 {
            self.hot.shift64(5, to, shift);
        }
    }

    /// Turns the guest address in `r` into a host address, the guest's in its slot. `rdi_moved`: RDI
    /// has been turned before.
    fn point(&mut self, r: Reg, write: bool, live: bool, rdi_moved: bool) {
        self.hot.store(slot(usize::from(r)), r);
        let ea = Ea {
            reg: r,
            konst: None,
        };
        let miss = self.addend(ea, write);
        let cold = self.cold.pos();
        self.to_cold.push((miss, cold));
        if rdi_moved {
            self.cold.load(RDI, slot(usize::from(RDI)));
        }
        self.refill(ea, write, live);
        self.hot.lea(r, Mem::indexed(r, T, 0, 0));
    }
}
