//! Deterministic time: a function of the instructions retired (crate `replay`).

use crate::time::MachineTime;
use mimeo_backends::ManualTimers;
use mimeo_bus::{Clock, Nanos, TimerService, TscClock};
use mimeo_replay::VirtualClock;
use std::sync::Arc;

/// The virtual counter's frequency: 1 GHz, so that the counter counts nanoseconds.
const TSC_KHZ: u64 = 1_000_000;

/// The wall clock of every deterministic run at its start: 1 January 2026, in nanoseconds.
const UNIX_AT_ZERO: i64 = 1_767_225_600 * 1_000_000_000;

struct VirtualTsc(Arc<VirtualClock>);

impl TscClock for VirtualTsc {
    fn tsc(&self) -> u64 {
        self.0.tsc(0)
    }

    fn hz(&self) -> u64 {
        TSC_KHZ * 1000
    }
}

/// Time that the deterministic driver moves. Timers run on the driver's thread, between slices.
pub struct VirtualTime {
    clock: Arc<VirtualClock>,
    timers: Arc<ManualTimers>,
}

impl Default for VirtualTime {
    fn default() -> Self {
        Self {
            clock: Arc::new(VirtualClock::new(TSC_KHZ)),
            timers: Arc::default(),
        }
    }
}

impl VirtualTime {
    /// The clock that the driver moves.
    #[must_use]
    pub fn virtual_clock(&self) -> &Arc<VirtualClock> {
        &self.clock
    }

    /// Tells the devices the time and runs the timers that are due; gives the next deadline.
    pub fn run_timers(&self, now: Nanos) -> Option<Nanos> {
        self.timers.set_now(now);
        self.timers.run_due();
        self.timers.next_deadline()
    }
}

impl MachineTime for VirtualTime {
    fn clock(&self) -> Arc<dyn Clock> {
        self.timers.clock()
    }

    fn tsc_clock(&self) -> Arc<dyn TscClock> {
        Arc::new(VirtualTsc(self.clock.clone()))
    }

    fn timers(&self) -> Arc<dyn TimerService> {
        self.timers.clone()
    }

    /// Nothing moves this clock but its driver.
    fn set_paused(&self, _paused: bool) {}

    fn tsc(&self, _cpu: u32, _retired: u64) -> u64 {
        self.clock.tsc(0)
    }

    fn unix_at_zero(&self) -> i64 {
        UNIX_AT_ZERO
    }

    fn restore(&self, (now, _tsc): (u64, u64)) {
        self.clock.advance_to(now);
        self.timers.set_now(now);
    }
}
