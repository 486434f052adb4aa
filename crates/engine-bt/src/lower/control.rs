//! Near branches in 64-bit mode (SDM vol. 1, 7.3.8).
//!
//! A direct branch to an instruction of the same block is a host branch. One within the chaining
//! unit (the page, or a large page of kernel text) starts as an exit and is patched to its target.
//! Every other branch goes through the indirect-branch cache of the current view.

use super::mem::Want;
use super::{Lower, Place};
use crate::ctx::{E, GSP, HOST, T, at, field, in_memory, slot};
use crate::decode::{Insn, memory};
use crate::emit::{Mem, reg};
use crate::index::SiteKind;
use iced_x86::{Code, FlowControl, Instruction};

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
                self.indirect(i);
            }
            _ => self.interpret(insn),
        }
    }

    /// Hands the instruction to the interpreter, before it has done anything, if the target in T is not
    /// canonical. Jumps and plain returns need no such test: no cache knows such a target, and the run
    /// loop can undo them.
    fn leave_unless_canonical(&mut self) {
        self.hot.store(slot(1), reg::RCX);
        // Bits 63 to 47 are all equal if T + 2^47 has no bit above 47.
        self.hot.mov_imm(reg::RCX, 1 << 47);
        self.hot.lea(reg::RCX, Mem::indexed(reg::RCX, T, 0, 0));
        self.hot.rorx(reg::RCX, reg::RCX, 48);
        self.hot.movzx16(reg::RCX, reg::RCX);
        let canonical = self.hot.jrcxz();
        self.hot.load(reg::RCX, slot(1));
        let other = self.hot.jmp();
        self.hot.bind8(canonical);
        self.hot.load(reg::RCX, slot(1));
        self.leave_if(other);
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
                let here = self.hot.pos();
                let d = (here - over - 4) as u32;
                self.hot.buf[over..over + 4].copy_from_slice(&d.to_le_bytes());
            }
            _ => self.jump_to(target, Some(op & 15)),
        }
    }

    /// Branches to a known RIP, if `condition` holds.
    pub(super) fn jump_to(&mut self, target: u64, condition: Option<u8>) {
        let own = self.block.insns.iter().position(|x| x.i.ip() == target);
        if let Some(n) = own.filter(|_| !self.options.split) {
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
        let asm = if in_cold {
            &mut self.cold
        } else {
            &mut self.hot
        };
        let slot_at = i32::from(target as u16) * 16;
        asm.store(slot(1), reg::RCX);
        asm.mov_imm(T, target);
        asm.load(E, field(at!(ibtc)));
        asm.load(reg::RCX, Mem::base(E, slot_at));
        asm.lea(reg::RCX, Mem::indexed(reg::RCX, T, 0, 1));
        let hit = asm.jrcxz();
        asm.load(reg::RCX, slot(1));
        let miss = asm.jmp();
        asm.bind8(hit);
        asm.load(reg::RCX, slot(1));
        asm.jmp_mem(Mem::base(E, slot_at + 8));
        if in_cold {
            let d = (self.cold.pos() - miss - 4) as u32;
            self.cold.buf[miss..miss + 4].copy_from_slice(&d.to_le_bytes());
        } else {
            self.to_cold.push((miss, self.cold.pos()));
        }
        self.leave(SiteKind::Far, target, Place::None);
    }

    /// Through the branch cache to the RIP in T.
    fn indirect(&mut self, i: &Instruction) {
        // What the target does with the flags is not known: they are kept.
        self.hot.store(slot(1), reg::RCX);
        self.hot.movzx16(reg::RCX, T);
        self.hot
            .lea(reg::RCX, Mem::indexed(reg::RCX, reg::RCX, 0, 0));
        self.hot.load(E, field(at!(ibtc)));
        self.hot.lea(E, Mem::indexed(E, reg::RCX, 3, 0));
        self.hot.load(reg::RCX, Mem::base(E, 0));
        self.hot.lea(reg::RCX, Mem::indexed(reg::RCX, T, 0, 1));
        let hit = self.hot.jrcxz();
        self.hot.load(reg::RCX, slot(1));
        let miss = self.hot.jmp();
        self.hot.bind8(hit);
        self.hot.load(reg::RCX, slot(1));
        self.hot.jmp_mem(Mem::base(E, 8));
        self.to_cold.push((miss, self.cold.pos()));
        self.leave(SiteKind::Indirect, i.ip(), Place::None);
    }
}

fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}
