//! Decoded instructions of sites that the interpreter executes: so that it need not fetch and decode
//! them each time.
//!
//! An instruction belongs to a site of translated code, and is as valid as the block that the site lies
//! in: a write to its bytes drops the block, and with the block every way to come by the site.

use mimeo_engine_interp::Op;

const ENTRIES: usize = 1024;
const NONE: u32 = u32::MAX;

/// A direct-mapped cache by site number.
pub(super) struct OpCache {
    entries: Box<[(u32, Option<Op>)]>,
    /// The code cache generation in which the site numbers are valid.
    generation: u64,
}

impl OpCache {
    pub(super) fn new() -> Self {
        Self {
            entries: vec![(NONE, None); ENTRIES].into_boxed_slice(),
            generation: 0,
        }
    }

    /// The instruction of site `number`, if it is known.
    pub(super) fn get(&mut self, number: u32, generation: u64) -> Option<Op> {
        if self.generation != generation {
            self.generation = generation;
            self.entries.fill((NONE, None));
        }
        let (owner, op) = self.entries[number as usize % ENTRIES];
        (owner == number).then_some(op).flatten()
    }

    /// Remembers the instruction of site `number`, after [`Self::get`] in the same generation.
    pub(super) fn put(&mut self, number: u32, op: Op) {
        if number != NONE {
            self.entries[number as usize % ENTRIES] = (number, Some(op));
        }
    }
}
