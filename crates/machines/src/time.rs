//! The time of a machine: clock, time-stamp counter and timers that belong together.

use crate::tsc::{host_tsc, host_tsc_khz};
use mimeo_bus::{Clock, HostClock, TimerService, TscClock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The guest's time-stamp counter while time follows the host: the host's counter plus an offset.
/// It stands still while the machine is paused.
#[derive(Debug)]
pub struct HostTsc {
    hz: u64,
    /// Guest = host + offset (wrapping).
    offset: AtomicU64,
    /// The value at which the counter stands, plus one; 0 while it runs.
    frozen: AtomicU64,
}

impl Default for HostTsc {
    fn default() -> Self {
        Self {
            hz: host_tsc_khz() * 1000,
            offset: AtomicU64::new(0),
            frozen: AtomicU64::new(0),
        }
    }
}

impl HostTsc {
    /// Stops the counter. One caller at a time, as for [`HostClock::pause`].
    pub fn pause(&self) {
        if self.frozen.load(Ordering::SeqCst) == 0 {
            self.pause_at(self.tsc());
        }
    }

    /// Stops the counter at a value (restoring a snapshot).
    pub fn pause_at(&self, value: u64) {
        self.frozen
            .store(value.wrapping_add(1).max(1), Ordering::SeqCst);
    }

    /// Guest minus host, while it runs.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        let runs = self.frozen.load(Ordering::Acquire) == 0;
        runs.then(|| self.offset.load(Ordering::Relaxed))
    }

    /// Lets it count on from where it stands.
    pub fn resume(&self) {
        let frozen = self.frozen.load(Ordering::SeqCst);
        if frozen != 0 {
            let offset = (frozen - 1).wrapping_sub(host_tsc());
            self.offset.store(offset, Ordering::SeqCst);
            self.frozen.store(0, Ordering::SeqCst);
        }
    }
}

impl TscClock for HostTsc {
    #[inline]
    fn tsc(&self) -> u64 {
        match self.frozen.load(Ordering::Acquire) {
            0 => host_tsc().wrapping_add(self.offset.load(Ordering::Relaxed)),
            at => at - 1,
        }
    }

    fn hz(&self) -> u64 {
        self.hz
    }
}

/// Everything that keeps time for one machine.
pub trait MachineTime: Send + Sync {
    /// VM time.
    fn clock(&self) -> Arc<dyn Clock>;
    /// The guest's time-stamp counter.
    fn tsc_clock(&self) -> Arc<dyn TscClock>;
    /// Timers on that clock.
    fn timers(&self) -> Arc<dyn TimerService>;
    /// Time stops or goes on.
    fn set_paused(&self, paused: bool);
    /// The counter as vCPU `cpu`, which has retired `retired` instructions, reads it.
    fn tsc(&self, cpu: u32, retired: u64) -> u64;
    /// What the counter is ahead of the host's while it follows it (it then does until it is paused,
    /// which is done with every vCPU outside guest code); `None`: it does not.
    fn tsc_offset(&self) -> Option<u64> {
        None
    }
    /// The wall clock at VM time zero, in nanoseconds since 1970.
    fn unix_at_zero(&self) -> i64;
    /// (VM time, counter): what a snapshot holds.
    fn save(&self) -> (u64, u64) {
        (self.clock().now(), self.tsc_clock().tsc())
    }
    /// Puts both back; time stands until it is resumed.
    fn restore(&self, saved: (u64, u64));
}

/// Time that follows the host.
pub struct HostTime {
    clock: Arc<HostClock>,
    tsc: Arc<HostTsc>,
    timers: Arc<dyn TimerService>,
    pause_timers: Box<dyn Fn(bool) + Send + Sync>,
    unix_at_zero: i64,
}

impl HostTime {
    /// Time that runs; `timers` must be on `clock`. `pause_timers` is told when time stops (true)
    /// and goes on (false), after the clock.
    pub fn new(
        clock: Arc<HostClock>,
        timers: Arc<dyn TimerService>,
        pause_timers: Box<dyn Fn(bool) + Send + Sync>,
    ) -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos());
        let now = clock.now();
        Self {
            unix_at_zero: i64::try_from(unix).unwrap_or(i64::MAX) - now.cast_signed(),
            clock,
            tsc: Arc::default(),
            timers,
            pause_timers,
        }
    }
}

impl MachineTime for HostTime {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn tsc_clock(&self) -> Arc<dyn TscClock> {
        self.tsc.clone()
    }

    fn timers(&self) -> Arc<dyn TimerService> {
        self.timers.clone()
    }

    fn set_paused(&self, paused: bool) {
        if paused {
            self.clock.pause();
            self.tsc.pause();
        } else {
            self.tsc.resume();
            self.clock.resume();
        }
        (self.pause_timers)(paused);
    }

    fn tsc_offset(&self) -> Option<u64> {
        self.tsc.offset()
    }

    #[inline]
    fn tsc(&self, _cpu: u32, _retired: u64) -> u64 {
        self.tsc.tsc()
    }

    fn unix_at_zero(&self) -> i64 {
        self.unix_at_zero
    }

    fn restore(&self, (now, tsc): (u64, u64)) {
        self.clock.pause_at(now);
        self.tsc.pause_at(tsc);
        (self.pause_timers)(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_stands_while_paused_and_goes_on_from_there() {
        let tsc = HostTsc::default();
        let a = tsc.tsc();
        tsc.pause();
        let b = tsc.tsc();
        assert!(b >= a);
        assert_eq!(tsc.tsc(), b);
        tsc.resume();
        assert!(tsc.tsc().wrapping_sub(b) < tsc.hz() * 60);
        tsc.pause_at(0);
        assert_eq!(tsc.tsc(), 0);
        tsc.resume();
        assert!(tsc.tsc() < tsc.hz() * 60);
    }
}
