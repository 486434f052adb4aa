//! The independent verifier of code that the translator emits (ENGINE-REVIEW F2).
//!
//! One wrong base register in the emitter would let a guest reach the monitor's memory. This crate
//! decodes the *host* bytes of a finished block afresh (with `iced-x86`; nothing is shared with the
//! emitter) and follows them with an abstract interpretation. A block is accepted only if
//!
//! - every memory operand is a permitted field of the context block (`[rsp + const]`), a slot of the
//!   linear addend table (`[r15 + index * 8 - bias]` right after the index was computed and bounded),
//!   an entry of the branch cache, or `[x + T]` where T is the addend that was looked up for exactly
//!   that x and found not zero, from the write table if the instruction may write, and where x
//!   cannot straddle a page for that access;
//! - every branch goes to an instruction of the block, to the exit (after its site number was
//!   stored), or through a branch-cache entry whose tag was compared with the target;
//! - RSP and R15 keep their meaning, the FS and GS bases and every system register are untouched,
//!   and no instruction touches memory implicitly, traps by design or is privileged;
//! - REP MOVS and REP STOS run on looked-up addresses, and for no more elements than lie between each
//!   of them and the end of its page;
//! - each instruction belongs to an instruction-set extension that is on the list here: default-deny.
//!
//! Not covered: whether the code does what the guest meant. That is lockstep's business.

mod allow;
mod check;
mod state;
mod strings;

pub use check::verify;

/// What the context block allows, in displacements from RSP.
#[derive(Debug, Clone)]
pub struct Contract {
    /// Fields that may be read: ranges of displacements.
    pub readable: Vec<std::ops::Range<i32>>,
    /// Fields that may be written: ranges of displacements.
    pub writable: Vec<std::ops::Range<i32>>,
    /// The field that takes the site's number before the exit (32 bits).
    pub site: i32,
    /// The field that holds the table register's value. Only R15 may be stored there.
    pub view: i32,
    /// Fields that hold a table register value for some view; R15 may be loaded from them.
    pub views: Vec<i32>,
    /// What R15 is above the read table's first entry; its low six bits are 28.
    pub bias: i32,
    /// The field that holds bits 47 to 12 of an address set, PEXT's mask for a table index. Never written.
    pub page_mask: i32,
    /// Entries of the branch cache, 16 bytes each: the guest's RIP, the host address. The last ends where the
    /// read table begins.
    pub cache_entries: u32,
}

/// A finished block.
#[derive(Debug, Clone)]
pub struct Block<'a> {
    /// The straight path.
    pub hot: &'a [u8],
    /// Its place in the code cache, as an offset.
    pub hot_at: u32,
    /// The stubs.
    pub cold: &'a [u8],
    /// Their place.
    pub cold_at: u32,
    /// Host addresses at which execution may begin with nothing known: offsets in `hot`, of the
    /// first host instruction of each guest instruction.
    pub entries: &'a [u32],
    /// The exit's place in the code cache.
    pub exit: u32,
    /// Numbers of the sites that belong to this block.
    pub sites: std::ops::Range<u32>,
}

/// Why a block was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("emitted code rejected at offset {at:#x} ({text}): {why}")]
pub struct Rejected {
    /// Offset in the code cache.
    pub at: u32,
    /// The host instruction.
    pub text: String,
    /// The rule that it breaks.
    pub why: String,
}
