//! From a decoded block to host code.
//!
//! Every instruction either becomes code that commits last (so that the state at its first host
//! instruction is the guest's state at its boundary), or an exit to the interpreter. The emitted
//! patterns are documented in `docs/design/bt.md`; the verifier holds emitted code against them.
//!
//! `hot` is the straight path, `cold` holds the stubs that leave.

mod bits;
mod control;
mod flags;
mod mem;
mod native;
mod stack;
mod strings;
mod system;
mod worlds;

use crate::ctx::{T, at, field};
use crate::decode::{Decoded, Insn, Plan};
use crate::emit::{Asm, Mem, reg};
use crate::index::{AUX_FP, Site, SiteKind};
use iced_x86::{Code, InstructionInfoFactory};
use mimeo_isa_x86::Unit;

/// A host position inside the block under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    None,
    /// Offset in `hot`.
    Hot(usize),
    /// First host instruction of guest instruction `n` (resolved at the end; none past the last).
    Insn(usize),
}

#[derive(Debug, Clone, Copy)]
struct Draft {
    kind: SiteKind,
    rip: u64,
    host: Place,
    aux: u8,
    code: u16,
}

/// A finished block, relocated to its place.
#[derive(Debug)]
pub(crate) struct Emitted {
    /// Hot code.
    pub(crate) hot: Vec<u8>,
    /// Cold stubs.
    pub(crate) cold: Vec<u8>,
    /// Sites, numbered from the first site given.
    pub(crate) sites: Vec<Site>,
    /// (guest offset from the block's RIP, host offset) of every instruction.
    pub(crate) insns: Vec<(u16, u32)>,
    /// Instructions handed to the interpreter.
    pub(crate) interp: u32,
}

/// Where things are in the code cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Offset of the block's hot code.
    pub(crate) hot: u32,
    /// Offset of its cold code.
    pub(crate) cold: u32,
    /// Offset of the jump to the exit trampoline.
    pub(crate) exit: u32,
    /// Number of the block's first site.
    pub(crate) first_site: u32,
}

/// What lowering needs to know beside the instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    /// Direct branches may be chained to targets in `rip & !mask == target & !mask`.
    pub(crate) chain_mask: u64,
    /// Direct branches leave even where they lead into the block itself.
    pub(crate) split: bool,
    /// Count how often the instruction at this address is entered.
    pub(crate) trace: Option<u64>,
    /// PEXT is fast here.
    pub(crate) pext: bool,
    /// Offsets in the page, ascending, of instructions that have met misaligned operands.
    pub(crate) misaligned: &'a [u16],
    /// Flags are to be exact at every instruction.
    pub(crate) precise: bool,
    /// The guest's processor is AMD's.
    pub(crate) amd: bool,
}

struct Lower<'a> {
    block: &'a Decoded,
    options: Options<'a>,
    first_site: u32,
    hot: Asm,
    cold: Asm,
    /// Displacements in `hot` that lead to a cold position.
    to_cold: Vec<(usize, usize)>,
    /// Displacements in `cold` that lead to a hot position.
    to_hot: Vec<(usize, usize)>,
    /// Displacements in `cold` that lead to the exit.
    to_exit: Vec<usize>,
    /// Displacements in `hot` that lead to a guest instruction of this block.
    to_insn: Vec<(usize, usize)>,
    sites: Vec<Draft>,
    starts: Vec<usize>,
    interp: u32,
    /// Index of the instruction being lowered.
    n: usize,
    /// The current instruction was left to the interpreter.
    interpreted: bool,
    /// Where the status flags are.
    status: flags::Status,
    info: InstructionInfoFactory,
    /// What is special about boundaries: [`SHADOW`], [`INEXACT`], [`CLOSED`].
    marks: Vec<(usize, u16)>,
}

pub(crate) use bits::inline_bits;
pub(crate) use strings::inline_string;
pub(crate) use system::inline;
pub(crate) use worlds::inline_world;

/// Set in a guest offset of [`Emitted::insns`]: no interrupt may be delivered at that boundary.
pub(crate) const SHADOW: u16 = 1 << 15;
/// Set in a guest offset of [`Emitted::insns`]: the flags are not in the host's there, so that nothing may
/// enter or leave.
pub(crate) const INEXACT: u16 = 1 << 14;
/// Set in a guest offset of [`Emitted::insns`]: only the block itself may go on there.
pub(crate) const CLOSED: u16 = 1 << 13;

/// Lowers `block`.
pub(crate) fn lower(block: &Decoded, options: Options<'_>, layout: Layout) -> Emitted {
    let mut l = Lower {
        block,
        options,
        first_site: layout.first_site,
        hot: Asm::with_capacity(64 + 40 * block.insns.len()),
        cold: Asm::with_capacity(64 + 48 * block.insns.len()),
        to_cold: Vec::with_capacity(2 * block.insns.len()),
        to_hot: Vec::new(),
        to_exit: Vec::with_capacity(2 * block.insns.len()),
        to_insn: Vec::new(),
        sites: Vec::with_capacity(2 * block.insns.len()),
        starts: Vec::with_capacity(block.insns.len()),
        interp: 0,
        n: 0,
        interpreted: false,
        status: flags::Status::default(),
        info: InstructionInfoFactory::new(),
        marks: Vec::new(),
    };
    let entered = branched_to(block);
    for n in 0..block.insns.len() {
        l.n = n;
        l.interpreted = false;
        l.flags_before(entered.contains(&n));
        l.starts.push(l.hot.pos());
        if l.status.lost.is_some() {
            l.marks.push((n, INEXACT));
        } else if l.closed() {
            l.marks.push((n, CLOSED));
        }
        if options.trace == Some(block.insns[n].i.ip()) {
            l.count_entry();
        }
        l.instruction(&block.insns[n]);
        l.flags_after(&block.insns[n]);
    }
    if block.falls_through {
        l.jump_to(block.next, None);
    }
    l.finish(layout)
}

/// Instructions of the block that its own branches lead to.
fn branched_to(block: &Decoded) -> Vec<usize> {
    let first = block.insns.first().map_or(0, |x| x.i.ip());
    block
        .insns
        .iter()
        .filter(|x| x.plan == Plan::Branch)
        .filter_map(|x| crate::decode::direct_target(&x.i))
        .filter(|t| (first..block.next).contains(t))
        .filter_map(|t| block.insns.iter().position(|x| x.i.ip() == t))
        .collect()
}

impl Lower<'_> {
    fn insn(&self) -> &Insn {
        &self.block.insns[self.n]
    }

    /// Status flags are needed at the current instruction: its own lookups must keep them.
    fn live(&self) -> bool {
        self.insn().live_in != 0
    }

    fn instruction(&mut self, insn: &Insn) {
        self.flags_at_start(insn);
        match insn.plan {
            Plan::Nop if insn.i.code() == Code::Pause => self.hot.pause(),
            Plan::Nop => {}
            Plan::Native => self.native(insn),
            Plan::Branch => self.branch(insn),
            Plan::Stack => self.stack(insn),
            Plan::System => self.system(insn),
            Plan::World => self.world(insn),
            Plan::String => self.string(insn),
            Plan::Bits => self.bit_string(insn),
            Plan::Interp => self.interpret(insn),
        }
    }

    /// Hands the current instruction to the interpreter.
    fn interpret(&mut self, insn: &Insn) {
        self.settle();
        self.interpreted = true;
        self.interp += 1;
        let d = self.hot.jmp();
        let cold = self.cold.pos();
        self.to_cold.push((d, cold));
        self.leave(SiteKind::Interp, insn.i.ip(), self.after());
    }

    /// Counts an entry into the current instruction; a retry after a table fill counts again.
    fn count_entry(&mut self) {
        self.hot.load(T, field(at!(traced)));
        self.hot.lea(T, Mem::base(T, 1));
        self.hot.store(field(at!(traced)), T);
    }

    /// Where to go on after the current instruction was executed elsewhere.
    fn after(&self) -> Place {
        if self.n + 1 < self.block.insns.len() {
            Place::Insn(self.n + 1)
        } else {
            Place::None
        }
    }

    /// Emits in `cold`: note the site and leave.
    fn leave(&mut self, kind: SiteKind, rip: u64, host: Place) {
        let n = self.first_site + self.sites.len() as u32;
        let insn = self.insn();
        let fp = insn
            .form
            .is_some_and(|f| !matches!(f.unit, Unit::None | Unit::VexGpr));
        let aux = insn.i.len() as u8 | if fp { AUX_FP } else { 0 };
        let code = insn.i.code() as u16;
        self.sites.push(Draft {
            kind,
            rip,
            host,
            aux,
            code,
        });
        self.cold.store_imm32(field(at!(site)), n);
        let d = self.cold.jmp();
        self.to_exit.push(d);
    }

    /// Keeps the status flags in RAX while the checks clobber them; RAX's value goes to its slot.
    fn save_flags(&mut self) {
        Self::save_flags_in(&mut self.hot);
    }

    fn save_flags_in(asm: &mut Asm) {
        asm.store(crate::ctx::slot(0), reg::RAX);
        asm.lahf();
        asm.seto_al();
    }

    fn restore_flags(asm: &mut Asm) {
        asm.add_al(0x7f);
        asm.sahf();
        asm.load(reg::RAX, crate::ctx::slot(0));
    }

    /// Drops what was emitted for the current instruction.
    fn rewind(&mut self, mark: &Mark) {
        self.hot.buf.truncate(mark.hot);
        self.cold.buf.truncate(mark.cold);
        self.to_cold.truncate(mark.to_cold);
        self.to_hot.truncate(mark.to_hot);
        self.to_exit.truncate(mark.to_exit);
        self.to_insn.truncate(mark.to_insn);
        self.sites.truncate(mark.sites);
        self.status = mark.status;
    }

    fn mark(&self) -> Mark {
        Mark {
            hot: self.hot.pos(),
            cold: self.cold.pos(),
            to_cold: self.to_cold.len(),
            to_hot: self.to_hot.len(),
            to_exit: self.to_exit.len(),
            to_insn: self.to_insn.len(),
            sites: self.sites.len(),
            status: self.status,
        }
    }

    fn finish(mut self, layout: Layout) -> Emitted {
        let (hot, cold) = (i64::from(layout.hot), i64::from(layout.cold));
        let put = |asm: &mut Asm, at: usize, here: i64, target: i64| {
            let d = (target - (here + at as i64 + 4)) as i32;
            asm.buf[at..at + 4].copy_from_slice(&d.to_le_bytes());
        };
        for (d, c) in std::mem::take(&mut self.to_cold) {
            put(&mut self.hot, d, hot, cold + c as i64);
        }
        for (d, h) in std::mem::take(&mut self.to_hot) {
            put(&mut self.cold, d, cold, hot + h as i64);
        }
        for d in std::mem::take(&mut self.to_exit) {
            put(&mut self.cold, d, cold, i64::from(layout.exit));
        }
        for (d, n) in std::mem::take(&mut self.to_insn) {
            put(&mut self.hot, d, hot, hot + self.starts[n] as i64);
        }
        let resolve = |p| match p {
            Place::None => 0,
            Place::Hot(h) => layout.hot + h as u32,
            Place::Insn(n) => layout.hot + self.starts[n] as u32,
        };
        let sites = self
            .sites
            .iter()
            .map(|s| Site {
                kind: s.kind,
                rip: s.rip,
                host: resolve(s.host),
                aux: s.aux,
                code: s.code,
            })
            .collect();
        let rip = self.block.insns.first().map_or(0, |f| f.i.ip());
        let insns = self
            .block
            .insns
            .iter()
            .zip(&self.starts)
            .enumerate()
            .map(|(n, (insn, at))| {
                let offset = insn.i.ip().wrapping_sub(rip) as u16;
                let marks = self.marks.iter().filter(|m| m.0 == n);
                (marks.fold(offset, |all, m| all | m.1), *at as u32)
            })
            .collect();
        Emitted {
            hot: self.hot.buf,
            cold: self.cold.buf,
            sites,
            insns,
            interp: self.interp,
        }
    }
}

/// Lengths to go back to.
struct Mark {
    hot: usize,
    cold: usize,
    to_cold: usize,
    to_hot: usize,
    to_exit: usize,
    to_insn: usize,
    sites: usize,
    status: flags::Status,
}
