//! Effective addresses and table lookups.

use super::flags::{Afterwards, Recipe};
use super::{Lower, Place};
use crate::ctx::{E, HOST, RL, RL_BIAS, T, at, field, in_memory, slot};
use crate::emit::{Asm, Mem, NO_BASE, Reg, cc, reg};
use crate::index::SiteKind;
use iced_x86::{Instruction, Register};

/// An effective address: linear, as translated code sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ea {
    /// The host register that holds it: a pinned guest register, or [`E`].
    pub(super) reg: Reg,
    /// Its value, when known.
    pub(super) konst: Option<u64>,
}

/// An access to be checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    /// Bytes.
    pub(super) size: usize,
    /// Store or read-modify-write.
    pub(super) write: bool,
    /// The host itself faults on a misaligned operand, so that it cannot straddle a page.
    pub(super) aligned: bool,
}

fn segment_base(i: &Instruction) -> Option<Mem> {
    match i.memory_segment() {
        Register::FS => Some(field(at!(fs_base))),
        Register::GS => Some(field(at!(gs_base))),
        _ => None,
    }
}

impl Lower<'_> {
    /// The offset part of a memory operand (no segment base), in a pinned register or in E. Uses T.
    /// Flags are untouched.
    pub(super) fn offset(&mut self, i: &Instruction) -> Ea {
        let (base, index) = (i.memory_base(), i.memory_index());
        let rip = i.is_ip_rel_memory_operand();
        if rip || (base == Register::None && index == Register::None) {
            let value = if rip {
                i.ip_rel_memory_address()
            } else {
                i.memory_displacement64()
            };
            return Ea {
                reg: E,
                konst: Some(value),
            };
        }
        let narrow = base.is_gpr32() || index.is_gpr32();
        let disp = i.memory_displacement64() as i32;
        let b = if base == Register::None {
            NO_BASE
        } else {
            self.fetch(base.number(), E)
        };
        let x = (index != Register::None).then(|| {
            (
                self.fetch(index.number(), T),
                i.memory_index_scale().trailing_zeros() as u8,
            )
        });
        if x.is_none() && disp == 0 && !narrow {
            return Ea {
                reg: b,
                konst: None,
            };
        }
        let m = Mem {
            base: b,
            index: x,
            disp,
            gs: false,
        };
        if narrow {
            self.hot.lea32(E, m);
        } else {
            self.hot.lea(E, m);
        }
        Ea {
            reg: E,
            konst: None,
        }
    }

    /// The host register of a guest register, loaded into `temp` if it lives in the context.
    pub(super) fn fetch(&mut self, guest: usize, temp: Reg) -> Reg {
        if in_memory(guest & 15) {
            self.hot.load(temp, slot(guest & 15));
            temp
        } else {
            HOST[guest & 15]
        }
    }

    /// The linear address of a memory operand. Flags are untouched.
    pub(super) fn effective_address(&mut self, i: &Instruction) -> Ea {
        let ea = self.offset(i);
        let Some(base) = segment_base(i) else {
            if let Some(v) = ea.konst {
                self.hot.mov_imm(E, v);
            }
            return ea;
        };
        match ea.konst {
            Some(v) => {
                self.hot.load(E, base);
                if let Ok(d) = i32::try_from(v as i64) {
                    self.hot.lea(E, Mem::base(E, d));
                } else {
                    self.hot.mov_imm(T, v);
                    self.hot.lea(E, Mem::indexed(E, T, 0, 0));
                }
            }
            None => {
                self.hot.load(T, base);
                self.hot.lea(E, Mem::indexed(ea.reg, T, 0, 0));
            }
        }
        Ea {
            reg: E,
            konst: None,
        }
    }

    /// T = the addend of `ea`, tested; gives the branch that is taken if there is none. Flags are lost.
    pub(super) fn addend(&mut self, ea: Ea, write: bool) -> usize {
        self.index_and_load(ea, write);
        self.hot.test_rr(T, T);
        self.hot.jcc(cc::Z)
    }

    fn index_and_load(&mut self, ea: Ea, write: bool) {
        let pext = self.options.pext;
        let asm = &mut self.hot;
        if let Some(v) = ea.konst {
            asm.mov_imm(T, crate::lat::index(v) as u64);
        } else if pext {
            asm.pext(T, ea.reg, field(at!(page_mask)));
        } else {
            asm.rorx(T, ea.reg, 48);
            asm.shrx(T, T, RL);
        }
        asm.load(
            T,
            Mem {
                gs: write,
                ..Mem::indexed(RL, T, 3, -(RL_BIAS as i32))
            },
        );
    }

    /// Carry is set afterwards if `size` bytes at `ea` cross a page. Uses T.
    fn straddle(asm: &mut Asm, ea: Reg, size: usize) {
        asm.mov_rr32(T, ea);
        asm.alu32_imm(1, T, -4096);
        asm.alu32_imm(0, T, size as i32 - 1);
    }

    /// Looks `ea` up: afterwards T holds the addend, and the operand's host address is what is given.
    pub(super) fn lookup(&mut self, mut ea: Ea, want: Want) -> Mem {
        let live = self.live();
        let mut then = Afterwards::Nothing;
        if live {
            if ea.reg == reg::RAX {
                self.hot.mov_rr(E, reg::RAX);
                ea.reg = E;
            }
            self.lose();
            then = self.afterwards();
            if then == Afterwards::Flags && self.remade_in(ea.reg) {
                self.hot.mov_rr(E, ea.reg);
                ea.reg = E;
            }
        }
        let fits = ea
            .konst
            .is_some_and(|v| (v & 4095) as usize + want.size <= 4096);
        let locked = self.locked();
        let check = want.size > 1 && !want.aligned && (locked || !fits);
        let by_alignment = check
            && want.size <= 32
            && want.size.is_power_of_two()
            && (locked || ea.konst.is_none() && !self.meets_misaligned());
        let slow = (check && !by_alignment).then(|| {
            Self::straddle(&mut self.hot, ea.reg, want.size);
            self.hot.jcc(cc::C)
        });
        self.index_and_load(ea, want.write);
        self.hot.test_rr(T, T);
        let miss = self.hot.jcc(cc::Z);
        let unaligned = by_alignment.then(|| {
            self.hot.test_r8_imm(ea.reg, want.size as u8 - 1);
            self.hot.jcc(cc::NZ)
        });
        if let Some(d) = slow {
            self.slow_stub(d, live, then);
        }
        self.miss_stub(miss, ea, want, live);
        match unaligned {
            Some(d) if locked => self.slow_stub(d, live, then),
            Some(d) => self.misaligned_stub(d, live),
            None => {}
        }
        match then {
            Afterwards::Nothing => {}
            Afterwards::Rax => self.free_rax(),
            Afterwards::Flags => self.settle(),
        }
        Mem::indexed(ea.reg, T, 0, 0)
    }

    /// The access is atomic. One that is not aligned may split a cache line, where hosts make it slow, or
    /// forbid it, and where it must be atomic all the same: the interpreter's bus lock sees to that.
    fn locked(&self) -> bool {
        let insn = self.insn();
        insn.i.has_lock_prefix() || insn.form.is_some_and(|f| f.implicit_lock)
    }

    /// The instruction is known for misaligned operands.
    fn meets_misaligned(&self) -> bool {
        let offset = self.insn().i.ip() as u16 & 4095;
        self.options.misaligned.binary_search(&offset).is_ok()
    }

    /// The interpreter does the whole instruction; `then` is what the straight path would have done.
    pub(super) fn slow_stub(&mut self, from: usize, live: bool, then: Afterwards) {
        let cold = self.cold.pos();
        self.to_cold.push((from, cold));
        if live {
            self.remake_in_cold();
        }
        // The next instruction looks for them in AX or in the context: this way they are in neither.
        let saved = self.status.lost == Some(Recipe::Saved) && then != Afterwards::Flags;
        let after = if saved { Place::None } else { self.after() };
        let i = self.insn().i;
        self.leave(SiteKind::Interp, i.ip(), after);
    }

    /// Fill the table and retry the instruction.
    fn miss_stub(&mut self, from: usize, ea: Ea, want: Want, live: bool) {
        let cold = self.cold.pos();
        self.to_cold.push((from, cold));
        self.refill(ea, want.write, live);
    }

    /// In `cold`: leaves to have the table filled for `ea`.
    pub(super) fn refill(&mut self, ea: Ea, write: bool, live: bool) {
        if ea.reg != E {
            self.cold.mov_rr(E, ea.reg);
        }
        if live {
            self.remake_in_cold();
        }
        let kind = if write {
            SiteKind::Write
        } else {
            SiteKind::Read
        };
        let i = self.insn().i;
        let start = if self.may_retry() {
            Place::Hot(self.starts[self.n])
        } else {
            Place::None
        };
        self.leave(kind, i.ip(), start);
    }

    /// A misaligned operand: the instruction is translated again, with the page test in place.
    fn misaligned_stub(&mut self, from: usize, live: bool) {
        let cold = self.cold.pos();
        self.to_cold.push((from, cold));
        if live {
            self.remake_in_cold();
        }
        let i = self.insn().i;
        self.leave(
            SiteKind::Misaligned,
            i.ip(),
            Place::Hot(self.starts[self.n]),
        );
    }
}
