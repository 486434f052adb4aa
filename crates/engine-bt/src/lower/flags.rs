//! Where the guest's status flags are while lookups and tag comparisons use the host's.
//!
//! They live in the host's flags. Where they are needed later and a check is about to overwrite them,
//! nothing is saved if they can be made again: the instruction that set them is repeated (comparisons),
//! undone and repeated (additions and subtractions), or stood in for by a TEST of its result (logic). Only
//! where the block does not know what set them are they kept in AX, as LAHF and SETO leave them,
//! and in the context when somebody needs RAX.
//!
//! They stay lost until somebody needs them: a reader, the end of the block, a stub that leaves. Boundaries in
//! between are marked [`super::INEXACT`]: nothing enters there, and an interrupt waits for the next one that is
//! not. An instruction that the host may fault on, or that ends in the interpreter, has them back first.

use super::Lower;
use crate::ctx::{HOST, at, field, in_memory, slot};
use crate::decode::{Insn, Plan, memory};
use crate::emit::{Asm, Fields, Map, Mem, Reg, Rm, reg};
use crate::reencode::{Subst, encode};
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register};
use mimeo_isa_x86::form::flag::STATUS;
use mimeo_isa_x86::{Access, Unit};

const RAX: u16 = 1;
const RSP: u16 = 1 << 4;

/// How lost flags are made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipe {
    /// They are in AX; RAX's value is in its slot.
    Saved,
    /// They are in the context, as they were in AX.
    Image,
    /// Instruction `n` of the block again: done twice, it leaves the same.
    Again(usize),
    /// TEST of the destination of instruction `n` with itself.
    Test(usize),
    /// The inverse of instruction `n`, an ADD or SUB, and the instruction again; since it, the stack pointer (if
    /// it is the destination) has moved by this much.
    Redo { n: usize, moved: i32 },
}

/// The state of the flags between two host instructions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Status {
    /// They are not in the host's flags, but are made so.
    pub(super) lost: Option<Recipe>,
    /// They are in the host's flags, and could be made so.
    known: Option<Recipe>,
    /// They were kept in AX when the current instruction began.
    saved_before: bool,
}

/// What an instruction needs once its operand is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// The flags may stay lost as they are.
    Nothing,
    /// RAX.
    Rax,
    /// The flags.
    Flags,
}

/// General registers that an instruction reads and writes, a bit each.
fn touched(l: &mut Lower<'_>, i: &Instruction) -> (u16, u16) {
    let info = l.info.info(i);
    let (mut reads, mut writes) = (0, 0);
    for r in info
        .used_registers()
        .iter()
        .filter(|r| r.register().is_gpr())
    {
        let bit = 1 << r.register().full_register().number();
        match r.access() {
            OpAccess::None | OpAccess::NoMemAccess => {}
            OpAccess::Read | OpAccess::CondRead => reads |= bit,
            OpAccess::Write | OpAccess::CondWrite => writes |= bit,
            _ => {
                reads |= bit;
                writes |= bit;
            }
        }
    }
    (reads, writes)
}

/// Reads or changes status flags.
fn uses_flags(insn: &Insn) -> bool {
    insn.form
        .is_none_or(|f| (f.flags.read | f.flags.changed()) & STATUS != 0)
}

/// Lost flags may stay lost over it.
fn tolerant(insn: &Insn) -> bool {
    matches!(
        insn.plan,
        Plan::Native | Plan::Nop | Plan::Stack | Plan::Branch
    )
}

/// The host may fault on it, though its operand was looked up.
fn may_fault(insn: &Insn) -> bool {
    insn.form
        .is_none_or(|f| !matches!(f.unit, Unit::None | Unit::VexGpr) || f.mem.align > 1)
        || matches!(insn.i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
}

/// It has a memory operand that is looked up.
fn looks_up(insn: &Insn) -> bool {
    memory(&insn.i)
        && insn
            .form
            .is_some_and(|f| !matches!(f.mem.access, Access::Address | Access::Hint))
}

/// It moves the stack pointer by a constant, and says so ([`Lower::stack_moved`]).
fn moves_stack(insn: &Insn) -> bool {
    match insn.plan {
        Plan::Stack => {
            insn.i.code() != Code::Leaveq
                && !(insn.i.code() == Code::Pop_r64 && insn.i.op0_register() == Register::RSP)
        }
        Plan::Branch => matches!(
            insn.i.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return
        ),
        _ => false,
    }
}

/// The register is its own host register, or RSP, all of it or its low part.
fn pinned(r: Register) -> bool {
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    r.is_gpr() && !high && !in_memory(r.full_register().number())
}

fn number(r: Register) -> usize {
    r.full_register().number()
}

impl Lower<'_> {
    /// The flags that the instruction before position `n` has set can be made again like this.
    fn recipe(&self, n: usize) -> Option<Recipe> {
        let i = &self.block.insns[n].i;
        let registers = (0..i.op_count())
            .filter(|&k| i.op_kind(k) == OpKind::Register)
            .all(|k| pinned(i.op_register(k)));
        let into_register = i.op0_kind() == OpKind::Register;
        if !registers || i.has_lock_prefix() {
            return None;
        }
        let same = i.op1_kind() == OpKind::Register && i.op0_register() == i.op1_register();
        match i.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test if !memory(i) => Some(Recipe::Again(n)),
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor if into_register => Some(Recipe::Test(n)),
            Mnemonic::Sub if into_register && same => Some(Recipe::Again(n)),
            Mnemonic::Add | Mnemonic::Sub
                if into_register
                    && !memory(i)
                    && !same
                    && (i.op1_kind() == OpKind::Register || i.immediate(1) as i32 != i32::MIN)
                    && (i.op0_register().is_gpr32() || i.op0_register().is_gpr64()) =>
            {
                Some(Recipe::Redo { n, moved: 0 })
            }
            _ => None,
        }
    }

    /// Registers that a recipe reads.
    fn sources(&self, r: Recipe) -> u16 {
        let of = |n: usize| {
            let i = &self.block.insns[n].i;
            (0..i.op_count())
                .filter(|&k| i.op_kind(k) == OpKind::Register)
                .fold(0, |mask, k| mask | 1 << number(i.op_register(k)))
        };
        match r {
            Recipe::Saved => RAX,
            Recipe::Image => 0,
            Recipe::Again(n) | Recipe::Redo { n, .. } => of(n),
            Recipe::Test(n) => 1 << number(self.block.insns[n].i.op0_register()),
        }
    }

    /// Whether `r` no longer works after an instruction with these effects on registers.
    fn spoils(&self, insn: &Insn, r: Recipe, (reads, writes): (u16, u16)) -> bool {
        if r == Recipe::Saved {
            return (reads | writes) & RAX != 0;
        }
        let follows =
            moves_stack(insn) && matches!(r, Recipe::Redo { n, .. } if self.follows_stack(n));
        let writes = if follows { writes & !RSP } else { writes };
        writes & self.sources(r) != 0
    }

    /// The stack pointer has just been moved by `by`.
    pub(super) fn stack_moved(&mut self, by: i32) {
        let moved = |l: &Self, r: Recipe| match r {
            _ if l.sources(r) & RSP == 0 => Some(r),
            Recipe::Redo { n, moved } if l.follows_stack(n) => Some(Recipe::Redo {
                n,
                moved: moved + by,
            }),
            _ => None,
        };
        let lost = self.status.lost.and_then(|r| moved(self, r));
        debug_assert_eq!(lost.is_some(), self.status.lost.is_some());
        self.status.lost = lost;
        self.status.known = self.status.known.and_then(|r| moved(self, r));
    }

    /// Instruction `n`, an ADD or SUB, changes the stack pointer by a constant.
    fn follows_stack(&self, n: usize) -> bool {
        let i = &self.block.insns[n].i;
        i.op0_register() == Register::RSP && i.op1_kind() != OpKind::Register
    }

    /// Emits what makes the flags again.
    ///
    /// An ADD or SUB is repeated in `temp`, if there is one: the register itself is on the guest's critical path.
    pub(super) fn remake(&self, asm: &mut Asm, r: Recipe, temp: Option<Reg>) {
        let guest = |n: usize| &self.block.insns[n].i;
        match r {
            Recipe::Saved => Self::restore_flags(asm),
            Recipe::Image => {
                asm.store(slot(0), reg::RAX);
                asm.load32(reg::RAX, field(at!(flags)));
                Self::restore_flags(asm);
            }
            Recipe::Again(n) => {
                let s = Subst {
                    gpr: HOST,
                    mem: None,
                };
                let done = encode(asm, guest(n), &s);
                debug_assert!(done.is_ok(), "it was encoded with these operands before");
            }
            Recipe::Test(n) => {
                let r = guest(n).op0_register();
                let host = HOST[number(r)];
                let mut f = Fields::legacy(
                    Map::One,
                    if r.is_gpr8() { 0x84 } else { 0x85 },
                    r.is_gpr64(),
                );
                f.opsize = r.is_gpr16();
                f.force_rex = r.is_gpr8() && host >= 4;
                asm.insn(&f, host, Rm::Reg(host));
            }
            Recipe::Redo { n, moved } => Self::redo(asm, guest(n), moved, temp),
        }
    }

    fn redo(asm: &mut Asm, i: &Instruction, moved: i32, temp: Option<Reg>) {
        let (r, w) = (HOST[number(i.op0_register())], i.op0_register().is_gpr64());
        let sub = i.mnemonic() == Mnemonic::Sub;
        if i.op1_kind() == OpKind::Register {
            let other = HOST[number(i.op1_register())];
            if let Some(t) = temp {
                asm.mov_rr(t, r);
                for op in if sub { [0x01, 0x29] } else { [0x29, 0x01] } {
                    asm.insn(&Fields::legacy(Map::One, op, w), other, Rm::Reg(t));
                }
                return;
            }
            for op in if sub { [0x01, 0x29] } else { [0x29, 0x01] } {
                asm.insn(&Fields::legacy(Map::One, op, w), other, Rm::Reg(r));
            }
            return;
        }
        let imm = i.immediate(1) as i32;
        let back = if sub { imm } else { imm.wrapping_neg() };
        if let (Some(t), Some(both)) = (temp, back.checked_sub(moved)) {
            if w {
                asm.lea(t, Mem::base(r, both));
            } else {
                asm.lea32(t, Mem::base(r, both));
            }
            asm.alu_imm(if sub { 5 } else { 0 }, Rm::Reg(t), imm, w);
            return;
        }
        if w {
            match back.checked_sub(moved) {
                Some(both) => asm.lea(r, Mem::base(r, both)),
                None => {
                    asm.lea(r, Mem::base(r, back));
                    asm.lea(r, Mem::base(r, -moved));
                }
            }
        } else {
            asm.lea32(r, Mem::base(r, back));
        }
        asm.alu_imm(if sub { 5 } else { 0 }, Rm::Reg(r), imm, w);
        if w && moved != 0 {
            asm.lea(r, Mem::base(r, moved));
        }
    }

    /// The flags are in the host's from here on.
    pub(super) fn settle(&mut self) {
        if let Some(r) = self.status.lost.take() {
            let mut hot = std::mem::take(&mut self.hot);
            self.remake(&mut hot, r, None);
            self.hot = hot;
            let kept = !matches!(r, Recipe::Saved | Recipe::Image);
            self.status.known = kept.then_some(r);
        }
    }

    /// RAX has its value again; flags that AX holds go to the context.
    pub(super) fn free_rax(&mut self) {
        if self.status.lost == Some(Recipe::Saved) {
            self.hot.store32(field(at!(flags)), reg::RAX);
            self.hot.load(reg::RAX, slot(0));
            self.status.lost = Some(Recipe::Image);
        }
    }

    /// Emits in `cold` what makes the flags again for somebody who leaves.
    pub(super) fn remake_in_cold(&mut self) {
        let r = self.status.lost.unwrap_or(Recipe::Saved);
        let mut cold = std::mem::take(&mut self.cold);
        self.remake(&mut cold, r, None);
        self.cold = cold;
    }

    /// The host's flags are about to be overwritten: gives how they are made again.
    pub(super) fn lose(&mut self) -> Recipe {
        if let Some(r) = self.status.lost {
            return r;
        }
        let r = self.status.known.take().unwrap_or_else(|| {
            self.save_flags();
            Recipe::Saved
        });
        self.status.lost = Some(r);
        r
    }

    /// The flags could be made again without saving them.
    pub(super) fn remakable(&self) -> bool {
        self.status.known.is_some()
    }

    /// What the current instruction needs after its checks.
    pub(super) fn afterwards(&mut self) -> Afterwards {
        let insn = *self.insn();
        if !tolerant(&insn) {
            return Afterwards::Flags;
        }
        let Some(r) = self.status.lost else {
            return Afterwards::Nothing;
        };
        if may_fault(&insn) || insn.plan == Plan::Native && uses_flags(&insn) {
            return Afterwards::Flags;
        }
        let effects = touched(self, &insn.i);
        match (self.spoils(&insn, r, effects), r) {
            (false, _) => Afterwards::Nothing,
            (true, Recipe::Saved) => Afterwards::Rax,
            (true, _) => Afterwards::Flags,
        }
    }

    /// Making the flags again changes `host` for a moment.
    pub(super) fn remade_in(&self, host: Reg) -> bool {
        matches!(self.status.lost, Some(Recipe::Redo { n, .. })
            if HOST[number(self.block.insns[n].i.op0_register())] == host)
    }

    /// Where to try the current instruction again from a stub: not where AX would be taken for flags.
    pub(super) fn may_retry(&self) -> bool {
        !self.status.saved_before
    }

    /// Before the current instruction's boundary. `entered`: branches of the block lead to it.
    pub(super) fn flags_before(&mut self, entered: bool) {
        if !self.live() {
            if self.status.lost == Some(Recipe::Saved) {
                self.hot.load(reg::RAX, slot(0));
            }
            self.status = Status::default();
        } else if entered {
            self.settle();
            self.status.known = None;
        }
        self.status.saved_before = self.status.lost == Some(Recipe::Saved);
    }

    /// Whether the current boundary may be entered from elsewhere: what is known of the flags holds only for
    /// who comes through the block.
    pub(super) fn closed(&self) -> bool {
        self.status.known.is_some()
    }

    /// At the start of the current instruction's code.
    pub(super) fn flags_at_start(&mut self, insn: &Insn) {
        let Some(r) = self.status.lost else {
            return;
        };
        let (mut early, mut rax) = (false, false);
        match insn.plan {
            Plan::Nop => {}
            Plan::Native | Plan::Stack => {
                let effects = touched(self, &insn.i);
                let spoils = self.spoils(insn, r, effects);
                rax = r == Recipe::Saved && spoils;
                early = insn.plan == Plan::Native
                    && (may_fault(insn) || !looks_up(insn) && (uses_flags(insn) || spoils && !rax));
            }
            Plan::Branch => match insn.i.flow_control() {
                FlowControl::Call | FlowControl::Return | FlowControl::UnconditionalBranch => {}
                FlowControl::IndirectBranch | FlowControl::IndirectCall => rax = true,
                _ => early = true,
            },
            _ => early = true,
        }
        if early {
            self.settle();
        } else if rax {
            self.free_rax();
        }
    }

    /// After the current instruction.
    pub(super) fn flags_after(&mut self, insn: &Insn) {
        if insn.plan == Plan::Nop {
            return;
        }
        if !tolerant(insn) || self.interpreted {
            self.status = Status::default();
            return;
        }
        if insn.plan == Plan::Native && uses_flags(insn) {
            let changed = insn.form.map_or(0, |f| {
                if f.flags.conditional {
                    0
                } else {
                    f.flags.changed()
                }
            });
            let touches = insn.form.is_none_or(|f| f.flags.changed() & STATUS != 0);
            if touches {
                debug_assert!(self.status.lost.is_none());
                self.status.known = (changed & STATUS == STATUS && self.wanted_later())
                    .then(|| self.recipe(self.n))
                    .flatten();
                return;
            }
        }
        if self.status.lost.is_some() || self.status.known.is_some() {
            let effects = touched(self, &insn.i);
            let spoilt =
                |l: &Self, r: Option<Recipe>| r.is_some_and(|r| l.spoils(insn, r, effects));
            debug_assert!(!spoilt(self, self.status.lost));
            if spoilt(self, self.status.known) {
                self.status.known = None;
            }
        }
    }

    /// Somebody needs the flags after the current instruction.
    fn wanted_later(&self) -> bool {
        self.block
            .insns
            .get(self.n + 1)
            .is_none_or(|next| next.live_in != 0)
    }
}
