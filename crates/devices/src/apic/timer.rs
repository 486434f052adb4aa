//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM vol. 3, 12.5.4).
//!
//! The count-down modes run at a fixed bus frequency divided by the divide configuration register.
//! A period shorter than [`MIN_PERIOD`] fires that often only, so that a guest cannot keep the timer
//! thread busy; the count register shows the true count.

use mimeo_bus::{Clock, Nanos, TscClock};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The shortest time between two expiries of the periodic mode that the host delivers, in
/// nanoseconds.
pub(super) const MIN_PERIOD: Nanos = 50_000;

/// The LVT timer's mode (bits 17 and 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub(super) const fn of(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer's saved state; times are VM time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicTimerV1 {
    /// Initial count register.
    pub initial: u32,
    /// Divide configuration register (bits 0, 1 and 3).
    pub divide: u32,
    /// A moment at which the count was known.
    pub base: Nanos,
    /// The count then.
    pub base_count: u32,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    pub tsc_deadline: u64,
    /// When the next expiry is due; `None` when stopped.
    pub fires_at: Option<Nanos>,
}

/// The clocks that a local APIC's timer runs on.
#[derive(Clone)]
pub struct ApicClocks {
    /// VM time.
    pub clock: Arc<dyn Clock>,
    /// The guest's time-stamp counter.
    pub tsc: Arc<dyn TscClock>,
    /// Frequency of the undivided count-down, in Hz; not zero.
    pub timer_hz: u64,
}

pub(super) struct ApicTimer {
    pub(super) s: ApicTimerV1,
    clocks: ApicClocks,
}

fn scale(value: u64, num: u64, den: u64, round_up: bool) -> u64 {
    let den = u128::from(den.max(1));
    let product = u128::from(value) * u128::from(num);
    let add = if round_up { den - 1 } else { 0 };
    u64::try_from((product + add) / den).unwrap_or(u64::MAX)
}

impl ApicTimer {
    pub(super) fn new(clocks: ApicClocks) -> Self {
        Self {
            s: ApicTimerV1::default(),
            clocks,
        }
    }

    fn now(&self) -> Nanos {
        self.clocks.clock.now()
    }

    fn divisor(&self) -> u64 {
        match (self.s.divide & 3) | ((self.s.divide >> 1) & 4) {
            7 => 1,
            n => 2 << n,
        }
    }

    fn nanos(&self, count: u32) -> Nanos {
        let ticks = u64::from(count) * self.divisor();
        scale(ticks, 1_000_000_000, self.clocks.timer_hz, true)
    }

    /// The current count register.
    pub(super) fn current(&self, mode: Mode) -> u32 {
        if matches!(mode, Mode::TscDeadline | Mode::Reserved) || self.s.fires_at.is_none() {
            return 0;
        }
        let elapsed = self.now().saturating_sub(self.s.base);
        let ticks = scale(elapsed, self.clocks.timer_hz, 1_000_000_000, false) / self.divisor();
        let left = u64::from(self.s.base_count).checked_sub(ticks);
        let count = match (left, mode) {
            (Some(left), _) => left,
            (None, Mode::Periodic) => {
                let over =
                    (ticks - u64::from(self.s.base_count)) % u64::from(self.s.initial.max(1));
                u64::from(self.s.initial) - over
            }
            (None, _) => 0,
        };
        // At most the initial count, which has 32 bits.
        count as u32
    }

    fn start(&mut self, count: u32) {
        self.s.base = self.now();
        self.s.base_count = count;
        self.s.fires_at = (count != 0).then(|| self.s.base.saturating_add(self.nanos(count)));
    }

    /// A write to the initial count register.
    pub(super) fn set_initial(&mut self, mode: Mode, value: u32) {
        // Ignored in TSC-deadline mode (SDM vol. 3, 12.5.4.1).
        if !matches!(mode, Mode::TscDeadline) {
            self.s.initial = value;
            self.start(value);
        }
    }

    /// A write to the divide configuration register.
    pub(super) fn set_divide(&mut self, mode: Mode, value: u32) {
        let count = self.current(mode);
        self.s.divide = value & 0xb;
        if self.s.fires_at.is_some() && !matches!(mode, Mode::TscDeadline) {
            self.start(count.max(1));
        }
    }

    /// The LVT entry's mode goes from `old` to `new`.
    pub(super) fn set_mode(&mut self, old: Mode, new: Mode) {
        // Only one-shot and periodic change into each other with the count running.
        let counts = |m| matches!(m, Mode::OneShot | Mode::Periodic);
        if old != new && !(counts(old) && counts(new)) {
            self.s.fires_at = None;
            self.s.tsc_deadline = 0;
            self.s.initial = 0;
            self.s.base_count = 0;
        }
    }

    fn until_deadline(&self) -> Nanos {
        let left = self.s.tsc_deadline.saturating_sub(self.clocks.tsc.tsc());
        scale(left, 1_000_000_000, self.clocks.tsc.hz(), true)
    }

    /// IA32_TSC_DEADLINE: zero in the other modes and when disarmed.
    pub(super) fn deadline_msr(&self, mode: Mode) -> u64 {
        if mode == Mode::TscDeadline {
            self.s.tsc_deadline
        } else {
            0
        }
    }

    /// A write to IA32_TSC_DEADLINE: ignored in the other modes, 0 disarms, the past fires at once
    /// (true).
    pub(super) fn set_deadline(&mut self, mode: Mode, value: u64) -> bool {
        if mode != Mode::TscDeadline {
            return false;
        }
        self.s.tsc_deadline = value;
        self.s.fires_at = None;
        if value == 0 {
            return false;
        }
        match self.until_deadline() {
            0 => {
                self.s.tsc_deadline = 0;
                true
            }
            left => {
                self.s.fires_at = Some(self.now().saturating_add(left));
                false
            }
        }
    }

    /// The time is `now`: whether the timer expires.
    pub(super) fn due(&mut self, mode: Mode, now: Nanos) -> bool {
        let Some(at) = self.s.fires_at.filter(|&at| at <= now) else {
            return false;
        };
        match mode {
            Mode::OneShot | Mode::Reserved => {
                self.s.fires_at = None;
                self.s.base_count = 0;
            }
            Mode::Periodic => {
                let period = self.nanos(self.s.initial).max(1);
                let missed = (now - at) / period;
                self.s.base = at + missed * period;
                self.s.base_count = self.s.initial;
                let next = self.s.base.saturating_add(period);
                if period < MIN_PERIOD {
                    self.s.fires_at = Some(next.max(now.saturating_add(MIN_PERIOD)));
                } else {
                    self.s.fires_at = Some(next);
                }
            }
            Mode::TscDeadline => match self.until_deadline() {
                0 => {
                    self.s.fires_at = None;
                    self.s.tsc_deadline = 0;
                }
                left => {
                    // The host's timer and the counter drift apart: wait for the rest.
                    self.s.fires_at = Some(now.saturating_add(left));
                    return false;
                }
            },
        }
        true
    }
}
