//! What the tests of many devices need: a clock that is set, and lines that are looked at.

use mimeo_bus::{Clock, IrqSink, Nanos, TimerHandle, TimerService, TscClock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A clock that stands until it is set; also a 1 GHz time-stamp counter.
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn set(&self, now: Nanos) {
        self.0.store(now, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Nanos {
        self.0.load(Ordering::SeqCst)
    }
}

impl TscClock for TestClock {
    fn tsc(&self) -> u64 {
        self.now()
    }
    fn hz(&self) -> u64 {
        1_000_000_000
    }
}

/// Timers that never fire: tests look at a model's deadline and call it themselves.
pub(crate) struct NoTimers(pub(crate) Arc<TestClock>);

struct NoTimer;

impl TimerHandle for NoTimer {
    fn arm(&self, _: Nanos) {}
    fn cancel(&self) {}
}

impl TimerService for NoTimers {
    fn clock(&self) -> Arc<dyn Clock> {
        self.0.clone()
    }
    fn timer(&self, _: Arc<dyn mimeo_bus::Timer>) -> Box<dyn TimerHandle> {
        Box::new(NoTimer)
    }
}

/// Every level that a device drove, in order.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<Vec<(u32, bool)>>);

impl IrqSink for Lines {
    fn set_level(&self, pin: u32, level: bool) {
        self.0.lock().unwrap().push((pin, level));
    }
}

impl Lines {
    /// The level of `pin` now.
    pub(crate) fn level(&self, pin: u32) -> bool {
        let log = self.0.lock().unwrap();
        log.iter()
            .rev()
            .find(|(p, _)| *p == pin)
            .is_some_and(|l| l.1)
    }

    /// How often `pin` rose since the last call; forgets everything.
    pub(crate) fn edges(&self, pin: u32) -> usize {
        let mut log = self.0.lock().unwrap();
        let n = log.iter().filter(|l| **l == (pin, true)).count();
        log.retain(|l| l.0 != pin);
        n
    }
}
