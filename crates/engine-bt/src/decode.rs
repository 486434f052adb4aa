//! From guest bytes to a list of classified instructions with flag liveness.
//!
//! A block lies in one page, ends at an unconditional branch or at an instruction that changes how
//! what follows executes, and may have side exits. Liveness is that of the six status flags before
//! and after each instruction, computed backwards from the block's end; where a direct branch stays
//! in the page, a few instructions at its target are looked at.

use crate::lower;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_isa_x86::form::flag::STATUS;
use mimeo_isa_x86::{Class, Form, Unit};

/// Most instructions in one block.
pub(crate) const MAX_INSNS: usize = 64;
/// Instructions looked at beyond a branch to find its live flags.
const LOOKAHEAD: usize = 8;

/// The CPU mode that a block is translated for (64-bit code throughout).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Mode(pub(crate) u8);

impl Mode {
    /// CPL 3.
    pub(crate) const USER: u8 = 1 << 0;
    /// x87 and MMX instructions may execute.
    pub(crate) const X87: u8 = 1 << 1;
    /// SSE instructions may execute.
    pub(crate) const SSE: u8 = 1 << 2;
    /// VEX instructions may execute.
    pub(crate) const AVX: u8 = 1 << 3;
    /// The page lies in a large page, within which direct branches may be chained.
    pub(crate) const LARGE: u8 = 1 << 4;
    /// CPL 0.
    pub(crate) const KERNEL: u8 = 1 << 5;

    /// The units that may execute.
    pub(crate) const UNITS: u8 = Self::X87 | Self::SSE | Self::AVX;

    pub(crate) fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// How an instruction is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Re-encoded.
    Native,
    /// Nothing to do.
    Nop,
    /// A near branch.
    Branch,
    /// A stack instruction with its own lowering.
    Stack,
    /// A sensitive instruction with its own lowering.
    System,
    /// A change of privilege level with its own lowering: ends the block.
    World,
    /// REP MOVS, REP STOS.
    String,
    /// BT and its like with memory and a bit number in a register.
    Bits,
    /// The interpreter executes it.
    Interp,
}

/// One decoded instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Insn {
    /// As decoded.
    pub(crate) i: Instruction,
    /// Its row.
    pub(crate) form: Option<&'static Form>,
    /// What becomes of it.
    pub(crate) plan: Plan,
    /// Status flags that are needed before it.
    pub(crate) live_in: u32,
}

/// A decoded block.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// Its instructions.
    pub(crate) insns: Vec<Insn>,
    /// Byte ranges of the page (offset, length) that the result depends on.
    pub(crate) ranges: Vec<(usize, usize)>,
    /// RIP after the last instruction.
    pub(crate) next: u64,
    /// Control may run past the last instruction.
    pub(crate) falls_through: bool,
    /// The instruction at `next` leaves the page (or is none).
    pub(crate) next_crosses: bool,
}

fn classify(i: &Instruction, mode: Mode, cpu: &CpuModel) -> (Option<&'static Form>, Plan) {
    let Some(form) = mimeo_isa_x86::lookup(i.code()) else {
        return (None, Plan::Interp);
    };
    let unit = match form.unit {
        Unit::None | Unit::VexGpr => true,
        Unit::X87 | Unit::Mmx => mode.has(Mode::X87),
        Unit::MmxSse => mode.has(Mode::X87) && mode.has(Mode::SSE),
        Unit::Sse => mode.has(Mode::SSE),
        Unit::Avx => mode.has(Mode::AVX),
        _ => false,
    };
    let plan = if !unit || !form.available(|f| cpu.has(f)) || !form.modes.contains(64) {
        Plan::Interp
    } else {
        match form.class {
            Class::Native if form.mem.bit_string && memory(i) => match lower::inline_bits(i) {
                Some(_) => Plan::Bits,
                None => Plan::Interp,
            },
            Class::Native => Plan::Native,
            Class::Nop => Plan::Nop,
            Class::Control if branch64(i) => Plan::Branch,
            Class::Interp if stack(i.code()) => Plan::Stack,
            Class::Interp if mxcsr(i.code()) => Plan::Native,
            Class::Interp if lower::inline_string(i).is_some() => Plan::String,
            Class::Monitor | Class::Control
                if lower::inline_world(i.code(), mode.has(Mode::KERNEL), mode.has(Mode::USER)) =>
            {
                Plan::World
            }
            Class::Monitor if lower::inline(i, mode.has(Mode::KERNEL)) => Plan::System,
            _ => Plan::Interp,
        }
    };
    (Some(form), plan)
}

fn stack(code: Code) -> bool {
    matches!(
        code,
        Code::Push_r64
            | Code::Push_rm64
            | Code::Pushq_imm8
            | Code::Pushq_imm32
            | Code::Pop_r64
            | Code::Leaveq
    )
}

/// MXCSR is the guest's own while translated code runs, so that these are plain loads and stores. (A
/// reserved bit makes the host fault, and the interpreter raise #GP.)
fn mxcsr(code: Code) -> bool {
    matches!(
        code,
        Code::Ldmxcsr_m32 | Code::Stmxcsr_m32 | Code::VEX_Vldmxcsr_m32 | Code::VEX_Vstmxcsr_m32
    )
}

/// A near branch with 64-bit operand size.
fn branch64(i: &Instruction) -> bool {
    i.op0_kind() == iced_x86::OpKind::NearBranch64
        || matches!(
            i.code(),
            Code::Jmp_rm64 | Code::Call_rm64 | Code::Retnq | Code::Retnq_imm16
        )
}

/// The instruction has an explicit memory operand.
pub(crate) fn memory(i: &Instruction) -> bool {
    i.op_kinds().any(|k| k == iced_x86::OpKind::Memory)
}

fn flags(insn: &Insn) -> (u32, u32) {
    match (insn.form, insn.plan) {
        (_, Plan::Interp) | (None, _) => (STATUS, 0),
        (Some(f), _) => {
            let killed = if f.flags.conditional {
                0
            } else {
                f.flags.changed()
            };
            (f.flags.read & STATUS, killed & STATUS)
        }
    }
}

/// The target of a direct near branch.
pub(crate) fn direct_target(i: &Instruction) -> Option<u64> {
    matches!(
        i.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call
    )
    .then(|| i.near_branch_target())
}

struct PageCode<'a> {
    bytes: &'a [u8],
    base: u64,
    mode: Mode,
    cpu: &'a CpuModel,
}

impl PageCode<'_> {
    /// The instruction at `rip`; `None` when it leaves the page.
    fn at(&self, rip: u64) -> Option<Insn> {
        let offset = rip.wrapping_sub(self.base);
        let bytes = self.bytes.get(usize::try_from(offset).ok()?..)?;
        let i = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
        if i.is_invalid() && bytes.len() < 15 {
            return None;
        }
        let (form, plan) = classify(&i, self.mode, self.cpu);
        Some(Insn {
            i,
            form,
            plan,
            live_in: STATUS,
        })
    }

    /// Status flags live at `rip`, looking a few instructions ahead within the page.
    fn live_at(&self, rip: u64, ranges: &mut Vec<(usize, usize)>) -> u32 {
        if rip.wrapping_sub(self.base) >= 4096 {
            return STATUS;
        }
        let (mut at, mut live, mut killed) = (rip, 0, 0);
        for _ in 0..LOOKAHEAD {
            let Some(insn) = self.at(at) else {
                break;
            };
            let (read, kill) = flags(&insn);
            live |= read & !killed;
            killed |= kill;
            at = at.wrapping_add(insn.i.len() as u64);
            if killed == STATUS || insn.plan == Plan::Branch || insn.plan == Plan::Interp {
                break;
            }
        }
        ranges.push(((rip - self.base) as usize, (at - rip) as usize));
        live | (STATUS & !killed)
    }
}

/// Decodes the block at `rip` from a copy of its page. Empty when the first instruction leaves the
/// page or cannot be decoded. With a copy of two pages (an instruction that spans them): that one
/// instruction. It ends before the first of `known`, RIPs in ascending order: code that is translated
/// already.
pub(crate) fn block(
    bytes: &[u8],
    rip: u64,
    mode: Mode,
    cpu: &CpuModel,
    precise_flags: bool,
    known: &[u64],
) -> Decoded {
    let code = PageCode {
        bytes,
        base: rip & !4095,
        mode,
        cpu,
    };
    let mut d = Decoded {
        insns: Vec::with_capacity(24),
        ranges: Vec::new(),
        next: rip,
        falls_through: true,
        next_crosses: false,
    };
    let limit = if bytes.len() > 4096 { 1 } else { MAX_INSNS };
    while d.insns.len() < limit {
        if known.binary_search(&d.next).is_ok() {
            break;
        }
        let Some(insn) = code.at(d.next) else {
            d.next_crosses = true;
            break;
        };
        d.next = d.next.wrapping_add(insn.i.len() as u64);
        d.insns.push(insn);
        let ends = match insn.plan {
            Plan::Branch => insn.i.flow_control() != FlowControl::ConditionalBranch,
            Plan::World => true,
            Plan::Interp => insn.form.is_none_or(|f| f.ends_block),
            _ => false,
        };
        if ends {
            d.falls_through = false;
            break;
        }
    }
    if d.insns.is_empty() {
        return d;
    }
    d.ranges
        .push(((rip - code.base) as usize, (d.next - rip) as usize));
    if !precise_flags {
        liveness(&code, &mut d);
    }
    d
}

fn liveness(code: &PageCode<'_>, d: &mut Decoded) {
    let mut ranges = Vec::new();
    let mut live = if d.falls_through {
        code.live_at(d.next, &mut ranges)
    } else {
        STATUS
    };
    for k in (0..d.insns.len()).rev() {
        let insn = d.insns[k];
        if insn.plan == Plan::Branch {
            let target = direct_target(&insn.i).map(|t| {
                // Branches back into the block: what is known of it would need a second pass; look
                // at the code instead.
                code.live_at(t, &mut ranges)
            });
            live = match (target, insn.i.flow_control()) {
                (Some(t), FlowControl::ConditionalBranch) => live | t,
                (Some(t), _) => t,
                (None, _) => STATUS,
            };
        }
        let (read, killed) = flags(&insn);
        live = live & !killed | read;
        d.insns[k].live_in = live;
    }
    d.ranges.append(&mut ranges);
}
