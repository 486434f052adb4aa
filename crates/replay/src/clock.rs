//! Virtual time: a function of instructions retired.

use mimeo_bus::{Clock, Nanos};
use std::sync::atomic::{AtomicU64, Ordering};

/// One instruction takes `2^NANOS_PER_INSTRUCTION_SHIFT` nanoseconds of virtual time.
pub const NANOS_PER_INSTRUCTION_SHIFT: u32 = 0;

/// The clock of a deterministic VM. It stands still within a slice except for TSC reads, and moves
/// when the driver moves it.
#[derive(Debug)]
pub struct VirtualClock {
    now: AtomicU64,
    tsc_khz: u64,
}

impl VirtualClock {
    /// A clock at zero whose TSC runs at `tsc_khz`.
    #[must_use]
    pub fn new(tsc_khz: u64) -> Self {
        Self {
            now: AtomicU64::new(0),
            tsc_khz,
        }
    }

    /// The guest's TSC `instructions` into the current slice.
    #[must_use]
    pub fn tsc(&self, instructions: u64) -> u64 {
        let now = self
            .now()
            .saturating_add(instructions << NANOS_PER_INSTRUCTION_SHIFT);
        let ticks = u128::from(now) * u128::from(self.tsc_khz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Moves to a later time; an earlier one is ignored.
    pub fn advance_to(&self, now: Nanos) {
        self.now.fetch_max(now, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Nanos {
        self.now.load(Ordering::Relaxed)
    }
}
