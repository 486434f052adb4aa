//! Time as devices see it: one clock a VM, timers on one service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds of VM time since the VM's creation. Stops while the VM is paused.
pub type Nanos = u64;

/// The VM's clock.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Nanos;
}

/// The guest's time-stamp counter as the machine keeps it: before IA32_TSC_ADJUST, which is the
/// engine's, is added.
pub trait TscClock: Send + Sync {
    /// The counter now. Never goes back.
    fn tsc(&self) -> u64;
    /// Its constant frequency in Hz; not zero.
    fn hz(&self) -> u64;
}

/// The value of [`HostClock::frozen`] while time runs.
const RUNNING: u64 = u64::MAX;

/// A clock that follows the host's monotonic clock while the VM runs and stands still while it is
/// paused.
#[derive(Debug)]
pub struct HostClock {
    start: Instant,
    /// Nanoseconds (wrapping) that VM time is behind `start.elapsed()`.
    behind: AtomicU64,
    /// The time at which the clock stands, or [`RUNNING`].
    frozen: AtomicU64,
}

impl Default for HostClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            behind: AtomicU64::new(0),
            frozen: AtomicU64::new(RUNNING),
        }
    }
}

impl HostClock {
    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Stops time. Without effect when it stands already. One caller at a time (the VM's life
    /// cycle); readers may be anywhere.
    pub fn pause(&self) {
        let now = self.now();
        self.frozen.store(now, Ordering::SeqCst);
    }

    /// Lets time go on from where it stands. Without effect when it runs. As [`Self::pause`], one
    /// caller at a time.
    pub fn resume(&self) {
        let at = self.frozen.load(Ordering::SeqCst);
        if at != RUNNING {
            let behind = self.elapsed().wrapping_sub(at);
            self.behind.store(behind, Ordering::SeqCst);
            self.frozen.store(RUNNING, Ordering::SeqCst);
        }
    }

    /// Stops time at `now` (restoring a snapshot, before the devices are restored).
    pub fn pause_at(&self, now: Nanos) {
        self.frozen.store(now.min(RUNNING - 1), Ordering::SeqCst);
    }

    /// Whether time stands.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.frozen.load(Ordering::SeqCst) != RUNNING
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        match self.frozen.load(Ordering::Acquire) {
            RUNNING => self
                .elapsed()
                .wrapping_sub(self.behind.load(Ordering::Acquire)),
            at => at,
        }
    }
}

/// What happens when a timer expires. Called on the service's thread (or, in deterministic mode, on
/// the vCPU's) without any lock of the service held.
pub trait Timer: Send + Sync {
    /// The deadline has passed; `now` is at or after it.
    fn expired(&self, now: Nanos);
}

/// An armed or idle timer. Dropping it cancels.
pub trait TimerHandle: Send + Sync {
    /// Arms (or re-arms) at an absolute time; one shot.
    fn arm(&self, deadline: Nanos);
    /// Disarms. An expiry that is already being delivered may still happen.
    fn cancel(&self);
}

/// Creates timers on the VM's clock.
pub trait TimerService: Send + Sync {
    /// The clock the deadlines are on.
    fn clock(&self) -> Arc<dyn Clock>;
    /// A new, idle timer.
    fn timer(&self, target: Arc<dyn Timer>) -> Box<dyn TimerHandle>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_clock_stands_and_goes_on_from_there() {
        let c = HostClock::default();
        c.pause_at(5_000_000_000);
        assert!(c.paused());
        assert_eq!(c.now(), 5_000_000_000);
        c.pause();
        c.resume();
        assert!(!c.paused());
        let a = c.now();
        assert!((5_000_000_000..3_600_000_000_000).contains(&a));
        c.pause();
        let b = c.now();
        assert!(b >= a);
        assert_eq!(c.now(), b);
    }
}
