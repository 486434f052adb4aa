//! 8254 interval timer, and the speaker's port 61h that is wired to it.
//!
//! Models: Intel 8254 datasheet (231164), all six modes, binary and BCD, the three ways of reading
//! and writing, counter and status latches, read-back, the gate of counter 2 (port 61h bit 0);
//! port 61h as PC chipsets have it (82371: gate, speaker data, refresh toggle, counter 2's output).
//! Counter 0's output is the interrupt line. Not modelled: sound; the one-clock delay between a
//! write and the load of a count; loading a new count in mode 3 at half a period (it is loaded at
//! the period's end). The interrupt line is low for an instant before each rising edge only, and
//! rises at most every 50 microseconds.
//!
//! Offsets: 0 to 3 are the ports 40h to 43h, 4 is port 61h.
//!
//! Locks: this device's, then that of what the line leads to.

mod counter;
#[cfg(test)]
mod tests;

pub use counter::CounterV1;

use counter::{Counter, HZ};
use mimeo_bus::{Clock, IrqLine, Nanos, PortDevice, RestoreError, SaveRestore, TimedModel};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The shortest time between two interrupts, in nanoseconds.
const MIN_PERIOD: Nanos = 50_000;
/// Port 61h toggles bit 4 with each refresh of a PC's memory, about every 15 microseconds.
const REFRESH: Nanos = 15_085;

/// Saved state of the 8254 and port 61h.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitV1 {
    /// The three counters.
    pub counters: [CounterV1; 3],
    /// Bits 0 (gate of counter 2) and 1 (speaker data) of port 61h.
    pub port61: u8,
    /// When counter 0's output rises next (VM time).
    pub rises_at: Option<Nanos>,
}

/// The register model.
pub struct Pit {
    counters: [Counter; 3],
    port61: u8,
    rises_at: Option<Nanos>,
    clock: Arc<dyn Clock>,
    irq: IrqLine,
}

fn ticks(now: Nanos) -> u64 {
    // 2^64 ns in ticks fits: HZ is below 10^9.
    (u128::from(now) * u128::from(HZ) / 1_000_000_000) as u64
}

fn nanos(ticks: u64) -> Nanos {
    let n = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(HZ));
    u64::try_from(n).unwrap_or(Nanos::MAX)
}

impl Pit {
    /// A timer after power-up: no counter counts until it is programmed.
    pub fn new(clock: Arc<dyn Clock>, irq: IrqLine) -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port61: 0,
            rises_at: None,
            clock,
            irq,
        }
    }

    /// RESET.
    pub fn reset(&mut self) {
        self.counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        self.port61 = 0;
        self.rises_at = None;
        self.irq.set(false);
    }

    fn now(&self) -> u64 {
        ticks(self.clock.now())
    }

    /// After counter 0 was programmed: its line, and when it rises next.
    fn reprogram(&mut self, now: u64) {
        self.irq.set(self.counters[0].output(now));
        self.rises_at = self.counters[0].next_rise(now).map(nanos);
    }

    fn control(&mut self, value: u8, now: u64) {
        match value >> 6 {
            3 => {
                for (i, counter) in self.counters.iter_mut().enumerate() {
                    if value & (2 << i) != 0 {
                        counter.read_back(value & 0x20 == 0, value & 0x10 == 0, now);
                    }
                }
            }
            n => {
                let counts = value & 0x30 != 0;
                self.counters[usize::from(n)].control(value, now);
                if n == 0 && counts {
                    self.reprogram(now);
                }
            }
        }
    }

    fn read_port61(&mut self, now: u64) -> u8 {
        let refresh = (self.clock.now() / REFRESH % 2) as u8;
        self.port61 | refresh << 4 | u8::from(self.counters[2].output(now)) << 5
    }
}

/// The ports are one byte wide; the high bytes of wider writes are ignored.
impl PortDevice for Pit {
    fn port_read(&mut self, offset: u16, _size: u8) -> u32 {
        let now = self.now();
        u32::from(match offset {
            0..=2 => self.counters[usize::from(offset)].read(now),
            4 => self.read_port61(now),
            // The control register cannot be read.
            _ => 0xff,
        })
    }

    fn port_write(&mut self, offset: u16, _size: u8, value: u32) {
        let (now, value) = (self.now(), value as u8);
        match offset {
            0..=2 => {
                let changed = self.counters[usize::from(offset)].write(value, now);
                if changed && offset == 0 {
                    self.reprogram(now);
                }
            }
            3 => self.control(value, now),
            4 => {
                self.port61 = value & 3;
                self.counters[2].set_gate(value & 1 != 0, now);
            }
            _ => {}
        }
    }
}

impl TimedModel for Pit {
    fn deadline(&self) -> Option<Nanos> {
        self.rises_at
    }

    fn due(&mut self, now: Nanos) {
        if self.rises_at.is_some_and(|at| at <= now) {
            self.irq.set(false);
            self.irq.set(true);
            // The tick that this moment belongs to may be rounded down to just before the edge.
            let tick = ticks(now);
            let next = self.counters[0].next_rise(tick).map(nanos);
            self.rises_at = next.map(|at| at.max(now.saturating_add(MIN_PERIOD)));
        }
    }
}

impl SaveRestore for Pit {
    type Saved = PitV1;

    fn save(&self) -> PitV1 {
        PitV1 {
            counters: [0, 1, 2].map(|i: usize| self.counters[i].s.clone()),
            port61: self.port61,
            rises_at: self.rises_at,
        }
    }

    fn restore(&mut self, saved: &PitV1) -> Result<(), RestoreError> {
        let valid = saved.counters.iter().all(Counter::valid);
        RestoreError::unless(valid, "the 8254", "a counter's registers are impossible")?;
        RestoreError::unless(saved.port61 < 4, "the 8254", "reserved bits are set")?;
        for (counter, s) in self.counters.iter_mut().zip(&saved.counters) {
            counter.s = s.clone();
        }
        self.port61 = saved.port61;
        self.rises_at = saved.rises_at;
        Ok(())
    }
}
