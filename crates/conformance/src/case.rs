//! The state before an instruction, as both sides get it.

use crate::layout::{DATA, DATA_LEN};
use crate::random::Random;
use mimeo_arch_x86::state::FpState;
use std::sync::LazyLock;

/// Registers that unprivileged code sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// RAX to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Bases of FS and GS; not 0 only where an operand is in that segment.
    pub bases: [u64; 2],
}

/// What an instruction ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It completed.
    Done,
    /// It faulted.
    Fault(Fault),
}

/// Faults as far as a process can tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// #DE.
    Divide,
    /// #BR, #OF, #GP (the host's kernel reports them alike).
    General,
    /// #PF at a linear address.
    Page(u64),
    /// #SS or #AC.
    Stack,
    /// #MF or #XM.
    FloatingPoint,
    /// #UD.
    Undefined,
}

/// Everything before or after one instruction.
#[derive(Debug, Clone)]
pub struct State {
    /// General registers.
    pub registers: Registers,
    /// FP and vector registers.
    pub fp: FpState,
    /// The two data pages.
    pub data: Vec<u8>,
}

/// One test case.
#[derive(Debug, Clone)]
pub struct Case {
    /// The encoded instruction.
    pub bytes: Vec<u8>,
    /// 64 or 32.
    pub bits: u32,
    /// What holds before.
    pub state: State,
    /// The form uses FP or vector registers: both sides load and save them.
    pub uses_fp: bool,
    /// Can be interrupted in the middle: a repeated string instruction or a gather.
    pub restarts: bool,
}

/// Random status flags, and DF.
pub fn flags(r: &mut Random) -> u64 {
    const STATUS: u64 = 0x8d5;
    let direction = u64::from(r.chance(30)) << 10;
    0x202 | r.next() & STATUS | direction
}

/// Random FP state.
pub fn fp(r: &mut Random) -> FpState {
    let mut fp = FpState {
        fcw: 0x037f,
        ..FpState::default()
    };
    if r.chance(50) {
        fp.fcw = 0x40 | (r.next() as u16 & 0x0f00) | 0x3f;
        if fp.fcw & 0x300 == 0x100 {
            // Reserved precision.
            fp.fcw |= 0x300;
        }
    }
    if r.chance(25) {
        fp.fcw &= !(r.next() as u16 & 0x3f);
    }
    // Condition codes, TOP, and exception flags that are masked.
    let flags = if r.chance(50) { fp.fcw & 0x3f } else { 0 };
    fp.fsw = r.next() as u16 & (0x7f00 | flags);
    fp.ftw = match r.below(4) {
        0 => 0xff,
        1 => 0,
        _ => r.next() as u8,
    };
    fp.mxcsr = 0x1f80;
    if r.chance(60) {
        fp.mxcsr |= r.next() as u32 & 0xe07f;
    }
    if r.chance(25) {
        fp.mxcsr &= !(r.next() as u32 & 0x1f80);
    }
    for st in &mut fp.st {
        *st = r.extended();
    }
    for y in &mut fp.ymm {
        for q in y {
            *q = r.vector_quad();
        }
    }
    fp
}

/// Random values that the data pages of the cases are cut from.
static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut r = Random::new(7);
    (0..DATA_LEN)
        .flat_map(|_| r.vector_quad().to_le_bytes())
        .collect()
});

/// Random contents of the data pages.
pub fn data(r: &mut Random) -> Vec<u8> {
    let at = 8 * r.below((POOL.len() - DATA_LEN) as u64 / 8) as usize;
    POOL[at..at + DATA_LEN].to_vec()
}

/// The bytes at a linear address of the data pages, for setting up operands; `None` outside.
pub fn slice(data: &mut [u8], linear: u64, len: usize) -> Option<&mut [u8]> {
    let at = usize::try_from(linear.checked_sub(DATA)?).ok()?;
    data.get_mut(at..at.checked_add(len)?)
}
