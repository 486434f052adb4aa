//! Time as devices see it: one clock a VM, timers on one service.

use std::sync::Arc;
use std::time::Instant;

/// Nanoseconds of VM time since the VM's creation. Stops while the VM is paused.
pub type Nanos = u64;

/// The VM's clock.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Nanos;
}

/// A clock that follows the host's monotonic clock.
#[derive(Debug)]
pub struct HostClock {
    start: Instant,
}

impl Default for HostClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
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
