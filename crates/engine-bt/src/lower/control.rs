//! Near branches in 64-bit mode (SDM vol. 1, 7.3.8).
//!
//! A direct branch to an instruction of the same block is a host branch. One within the chaining
//! unit (the page, or a large page of kernel text) starts as an exit and is patched to its target.
//! Every other branch goes through the indirect-branch cache of the current view, which lies just below its
//! read table: a tag that is the whole RIP, and the host address. An RIP may stand in one of two entries; the
//! second is looked at out of line.

use super::flags::Recipe;
use super::mem::Want;
use super::{Lower, Place};
use crate::ctx::{E, GSP, HOST, RL, RL_BIAS, T, at, field, in_memory, slot};
use crate::decode::{Insn, memory};
use crate::emit::{Asm, Mem, Reg, cc};
use crate::ibtc;
use crate::index::SiteKind;
use iced_x86::{Code, FlowControl, Instruction};

/// The branch cache's first entry, from rL.
const IBTC: i32 = -(RL_BIAS as i32) - ibtc::BYTES as i32;

impl Lower<'_> {
    /// Lowers a branch.
    pub(super) fn branch(&mut self, insn: &Insn) {
        let i = &insn.i;
        if crate::decode::direct_target(i).is_some_and(|t| !canonical(t)) {
            // #GP belongs to the branch, not to its target (SDM vol. 2, CALL, JMP).
            return self.interpret(insn);
        }
        match i.flow_control() {
            FlowControl::ConditionalBranch => self.conditional(i),
            FlowControl::UnconditionalBranch => self.jump_to(i.near_branch_target(), None),
            FlowControl::Call => {
                self.push_constant(i.next_ip());
                self.jump_to(i.near_branch_target(), None);
            }
            FlowControl::IndirectBranch => {
                self.target(i);
                self.indirect(i);
            }
            FlowControl::IndirectCall => {
                self.target(i);
                self.leave_unless_canonical();
                self.hot.store(field(at!(scratch)), T);
                self.push_constant(i.next_ip());
                self.hot.load(T, field(at!(scratch)));
                self.indirect(i);
            }
            FlowControl::Return => {
                let extra = if i.code() == Code::Retnq_imm16 {
                    i32::from(i.immediate16())
                } else {
                    0
                };
                let m = self.top();
                self.hot.load(T, m);
                if extra != 0 {
                    self.leave_unless_canonical();
                }
                self.hot.lea(GSP, Mem::base(GSP, 8 + extra));
                self.stack_moved(8 + extra);
                self.indirect(i);
            }
            _ => self.interpret(insn),
        }
    }

    /// Hands the instruction to the interpreter, before it has done anything, if the target in T is not
    /// canonical. Jumps and plain returns need no such test: no cache knows such a target, and the run
    /// loop can undo them.
    fn leave_unless_canonical(&mut self) {
        self.lose();
        // Bits 63 to 47 are all equal if T + 2^47 has no bit above 47.
        self.hot.mov_imm(E, 1 << 47);
        self.hot.lea(E, Mem::indexed(E, T, 0, 0));
        self.hot.rorx(E, E, 48);
        self.hot.movzx16(E, E);
        self.hot.test_rr(E, E);
        let other = self.hot.jcc(cc::NZ);
        self.to_cold.push((other, self.cold.pos()));
        self.remake_in_cold();
        self.leave(SiteKind::Interp, self.insn().i.ip(), Place::None);
    }

    /// T = the target of an indirect jump or call.
    fn target(&mut self, i: &Instruction) {
        if memory(i) {
            let ea = self.effective_address(i);
            let m = self.lookup(
                ea,
                Want {
                    size: 8,
                    write: false,
                    aligned: false,
                },
            );
            self.hot.load(T, m);
        } else {
            let n = i.op0_register().number();
            if in_memory(n) {
                self.hot.load(T, slot(n));
            } else {
                self.hot.mov_rr(T, HOST[n]);
            }
        }
    }

    fn conditional(&mut self, i: &Instruction) {
        let target = i.near_branch_target();
        let op = i.op_code().op_code() as u8;
        match i.op_code().op_code_len() {
            // LOOPcc and JRCXZ: short forms only.
            _ if (0xe0..=0xe3).contains(&op) && !i.is_jcc_short_or_near() => {
                let narrow = matches!(
                    i.code(),
                    Code::Loop_rel8_64_ECX
                        | Code::Loope_rel8_64_ECX
                        | Code::Loopne_rel8_64_ECX
                        | Code::Jecxz_rel8_64
                );
                let taken = self.hot.short(op, narrow);
                let over = self.hot.jmp();
                self.hot.bind8(taken);
                self.jump_to(target, None);
                self.hot.bind32(over);
            }
            _ => self.jump_to(target, Some(op & 15)),
        }
    }

    /// Branches to a known RIP, if `condition` holds.
    pub(super) fn jump_to(&mut self, target: u64, condition: Option<u8>) {
        let own = self.block.insns.iter().position(|x| x.i.ip() == target);
        if let Some(n) = own.filter(|_| !self.options.split) {
            self.settle();
            let d = match condition {
                Some(c) => self.hot.jcc(c),
                None => self.hot.jmp(),
            };
            self.to_insn.push((d, n));
            return;
        }
        let here = self.block.insns[self.n].i.ip();
        let crosses = self.block.next_crosses && target == self.block.next;
        if (here ^ target) & self.options.chain_mask == 0 && !crosses {
            self.settle();
            // The displacement is patched while other CPUs execute: it must not cross a line.
            let before = if condition.is_some() { 2 } else { 1 };
            let pad = (before + self.hot.pos()).next_multiple_of(4) - (before + self.hot.pos());
            self.hot.nops(pad);
            let d = match condition {
                Some(c) => self.hot.jcc(c),
                None => self.hot.jmp(),
            };
            let cold = self.cold.pos();
            self.to_cold.push((d, cold));
            self.leave(SiteKind::Link, target, Place::Hot(d));
            return;
        }
        match condition {
            // The conditional case is rarely taken across pages: its cache lookup is in the cold part.
            Some(c) => {
                let d = self.hot.jcc(c);
                let cold = self.cold.pos();
                self.to_cold.push((d, cold));
                self.far(target, true);
            }
            None => self.far(target, false),
        }
    }

    /// Through the branch cache to a known RIP.
    fn far(&mut self, target: u64, in_cold: bool) {
        let status = self.status;
        let recipe = self.lose_for_far(in_cold);
        let (first, second) = ibtc::slots(target);
        let mut asm = std::mem::take(if in_cold {
            &mut self.cold
        } else {
            &mut self.hot
        });
        let narrow = i32::try_from(target as i64).ok();
        if narrow.is_none() {
            asm.mov_imm(T, target);
        }
        let compare = |asm: &mut Asm, slot: u16| {
            let tag = Self::entry(None, slot, 0);
            match narrow {
                Some(v) => asm.cmp_m_imm(tag, v),
                None => asm.cmp_rm(T, tag),
            }
            asm.jcc(cc::NZ)
        };
        let other = compare(&mut asm, first);
        self.remake(&mut asm, recipe, Some(T));
        asm.jmp_mem(Self::entry(None, first, 8));
        if in_cold {
            asm.bind32(other);
        } else {
            self.hot = std::mem::take(&mut asm);
            asm = std::mem::take(&mut self.cold);
            self.to_cold.push((other, asm.pos()));
        }
        let miss = compare(&mut asm, second);
        self.remake(&mut asm, recipe, Some(T));
        asm.jmp_mem(Self::entry(None, second, 8));
        asm.bind32(miss);
        self.remake(&mut asm, recipe, Some(T));
        self.cold = asm;
        self.leave(SiteKind::Far, target, Place::None);
        self.status = status;
    }

    fn lose_for_far(&mut self, in_cold: bool) -> Recipe {
        if in_cold && !self.remakable() {
            Self::save_flags_in(&mut self.cold);
            return Recipe::Saved;
        }
        self.lose()
    }

    /// A word of the branch cache: that of an entry's number, or of twice a number in E.
    fn entry(twice: Option<Reg>, number: u16, field: i32) -> Mem {
        let disp = IBTC + i32::from(number) * 16 + field;
        match twice {
            Some(r) => Mem::indexed(RL, r, 3, disp),
            None => Mem::base(RL, disp),
        }
    }

    /// Through the branch cache to the RIP in T.
    pub(super) fn indirect(&mut self, i: &Instruction) {
        // What the target does with the flags is not known: they are kept.
        let recipe = self.lose();
        let (tag, host) = (Self::entry(Some(E), 0, 0), Self::entry(Some(E), 0, 8));
        let mut hot = std::mem::take(&mut self.hot);
        let mut cold = std::mem::take(&mut self.cold);
        hot.movzx16(E, T);
        hot.lea(E, Mem::indexed(E, E, 0, 0));
        hot.cmp_rm(T, tag);
        let other = hot.jcc(cc::NZ);
        self.remake(&mut hot, recipe, Some(T));
        hot.jmp_mem(host);
        self.to_cold.push((other, cold.pos()));
        cold.rorx(E, T, ibtc::SECOND);
        cold.movzx16(E, E);
        cold.lea(E, Mem::indexed(E, E, 0, 0));
        cold.cmp_rm(T, tag);
        let miss = cold.jcc(cc::NZ);
        self.remake(&mut cold, recipe, Some(T));
        cold.jmp_mem(host);
        cold.bind32(miss);
        // T tells the run loop the target.
        self.remake(&mut cold, recipe, None);
        (self.hot, self.cold) = (hot, cold);
        self.leave(SiteKind::Indirect, i.ip(), Place::None);
        self.status.lost = None;
    }
}

fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}
