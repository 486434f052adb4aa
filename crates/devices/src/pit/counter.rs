//! One counter of an 8254. Times are in ticks of its 1.193182 MHz clock.

use serde::{Deserialize, Serialize};

/// The frequency of the counters' clock, in Hz.
pub(super) const HZ: u64 = 1_193_182;

/// Saved state of one counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterV1 {
    /// Mode, 0 to 5.
    pub mode: u8,
    /// The count is in BCD.
    pub bcd: bool,
    /// Access: 1 low byte, 2 high byte, 3 low then high.
    pub access: u8,
    /// The number that is counted down from, 1 to 65536 (10000 in BCD); `None` until written.
    pub count: Option<u32>,
    /// A new number that is loaded at the end of the period (modes 2 and 3).
    pub next_count: Option<u32>,
    /// The tick at which counting began; `None` while it waits for a count or a trigger.
    pub start: Option<u64>,
    /// Ticks counted when the gate stopped it.
    pub stopped: Option<u64>,
    /// Level of the gate.
    pub gate: bool,
    /// The low byte of a count that is being written.
    pub low_byte: Option<u8>,
    /// The next read gives the high byte.
    pub read_high: bool,
    /// A latched count.
    pub latch: Option<u16>,
    /// A latched status.
    pub status: Option<u8>,
    /// The count written last has not been loaded (status bit 6).
    pub null_count: bool,
}

pub(super) struct Counter {
    pub(super) s: CounterV1,
}

fn from_bcd(v: u16) -> u32 {
    (0..4)
        .rev()
        .fold(0, |n, i| n * 10 + u32::from(v >> (4 * i) & 15))
}

fn to_bcd(v: u32) -> u16 {
    (0..4).fold(0, |n, i| n | ((v / 10u32.pow(i) % 10) << (4 * i))) as u16
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            s: CounterV1 {
                mode: 3,
                bcd: false,
                access: 3,
                count: None,
                next_count: None,
                start: None,
                stopped: None,
                gate,
                low_byte: None,
                read_high: false,
                latch: None,
                status: None,
                null_count: true,
            },
        }
    }

    pub(super) fn valid(s: &CounterV1) -> bool {
        let count = |c: Option<u32>| c.is_none_or(|c| (1..=0x1_0000).contains(&c));
        s.mode < 6 && (1..4).contains(&s.access) && count(s.count) && count(s.next_count)
    }

    /// The modulus of the counting element.
    fn modulus(&self) -> u32 {
        if self.s.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Loads a waiting count if the period at whose end it is loaded is over.
    fn advance(&mut self, now: u64) {
        if let (Some(next), Some(start), Some(count)) =
            (self.s.next_count, self.s.start, self.s.count)
            && now.saturating_sub(start) >= u64::from(count)
        {
            self.s.start = Some(start + u64::from(count));
            self.s.count = Some(next);
            self.s.next_count = None;
            self.s.null_count = false;
        }
    }

    /// (Ticks since the count was loaded, count); `None` while nothing counts.
    fn elapsed(&self, now: u64) -> Option<(u64, u64)> {
        let elapsed = match (self.s.stopped, self.s.start) {
            (Some(stopped), _) => stopped,
            (None, start) => now.saturating_sub(start?),
        };
        Some((elapsed, u64::from(self.s.count?.max(1))))
    }

    /// The level of the output.
    pub(super) fn output(&mut self, now: u64) -> bool {
        self.advance(now);
        let Some((elapsed, count)) = self.elapsed(now) else {
            return self.s.mode != 0;
        };
        if matches!(self.s.mode, 2 | 3) && !self.s.gate {
            return true;
        }
        match self.s.mode {
            0 | 1 => elapsed >= count,
            2 => elapsed % count != count - 1 || count == 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// The tick of the output's next rising edge after `now`.
    pub(super) fn next_rise(&mut self, now: u64) -> Option<u64> {
        self.advance(now);
        let start = self.s.start.filter(|_| self.s.stopped.is_none())?;
        let (elapsed, count) = self.elapsed(now)?;
        let after = match self.s.mode {
            0 | 1 => Some(count).filter(|_| elapsed < count),
            2 | 3 => Some((elapsed / count + 1) * count),
            _ => Some(count + 1).filter(|_| elapsed <= count),
        }?;
        start.checked_add(after)
    }

    /// The value of the counting element.
    fn value(&mut self, now: u64) -> u16 {
        self.advance(now);
        let Some((elapsed, count)) = self.elapsed(now) else {
            return self.encode(self.s.count.unwrap_or(0));
        };
        let modulus = u64::from(self.modulus());
        let value = match self.s.mode {
            2 => count - elapsed % count,
            // Two at a time through each half of the period.
            3 => {
                let (half, at) = (count.div_ceil(2), elapsed % count);
                (count & !1).saturating_sub(2 * if at < half { at } else { at - half })
            }
            // On through zero: the others count round and round.
            _ => (count + modulus - elapsed % modulus) % modulus,
        };
        // At most 65536.
        self.encode(value as u32)
    }

    fn encode(&self, value: u32) -> u16 {
        if self.s.bcd {
            to_bcd(value % 10_000)
        } else {
            value as u16
        }
    }

    /// A control word for this counter (bits 0 to 5), or the latch command.
    pub(super) fn control(&mut self, value: u8, now: u64) {
        let access = value >> 4 & 3;
        if access == 0 {
            self.latch_count(now);
            return;
        }
        let mode = value >> 1 & 7;
        self.s = CounterV1 {
            // The modes 2 and 3 have two codes each.
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: value & 1 != 0,
            access,
            gate: self.s.gate,
            ..Self::new(true).s
        };
    }

    fn latch_count(&mut self, now: u64) {
        if self.s.latch.is_none() {
            self.s.latch = Some(self.value(now));
        }
    }

    /// The read-back command.
    pub(super) fn read_back(&mut self, count: bool, status: bool, now: u64) {
        if status && self.s.status.is_none() {
            let output = self.output(now);
            let s = &self.s;
            self.s.status = Some(
                u8::from(output) << 7
                    | u8::from(s.null_count) << 6
                    | s.access << 4
                    | s.mode << 1
                    | u8::from(s.bcd),
            );
        }
        if count {
            self.latch_count(now);
        }
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.s.status.take() {
            return status;
        }
        let value = match self.s.latch {
            Some(latch) => latch,
            None => self.value(now),
        };
        let high = self.s.access == 2 || (self.s.access == 3 && self.s.read_high);
        if self.s.access == 3 {
            self.s.read_high = !self.s.read_high;
        }
        if self.s.access != 3 || high {
            self.s.latch = None;
        }
        let [low, top] = value.to_le_bytes();
        if high { top } else { low }
    }

    /// A byte of a count. Whether the counting changed by it.
    pub(super) fn write(&mut self, value: u8, now: u64) -> bool {
        let count = match (self.s.access, self.s.low_byte.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.s.low_byte = Some(value);
                if self.s.mode == 0 {
                    // The first byte of two stops the counting and takes the output low.
                    self.s.start = None;
                    self.s.stopped = None;
                    return true;
                }
                return false;
            }
        };
        let count = if self.s.bcd {
            from_bcd(count)
        } else {
            u32::from(count)
        };
        let count = if count == 0 { self.modulus() } else { count };
        self.load(count, now)
    }

    fn load(&mut self, count: u32, now: u64) -> bool {
        self.advance(now);
        match self.s.mode {
            // A count for the next period.
            2 | 3 if self.s.start.is_some() => {
                self.s.next_count = Some(count);
                self.s.null_count = true;
                false
            }
            // Counting begins with the next trigger.
            1 | 5 => {
                self.s.next_count = Some(count);
                self.s.null_count = true;
                false
            }
            _ => {
                self.s.count = Some(count);
                self.s.null_count = false;
                self.s.start = Some(now);
                self.s.stopped = (!self.s.gate).then_some(0);
                true
            }
        }
    }

    /// The gate has this level now.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        self.advance(now);
        let rises = gate && !self.s.gate;
        let falls = !gate && self.s.gate;
        self.s.gate = gate;
        match self.s.mode {
            1 | 5 if rises => {
                if let Some(count) = self.s.next_count.take() {
                    self.s.count = Some(count);
                    self.s.null_count = false;
                }
                self.s.start = self.s.count.map(|_| now);
            }
            2 | 3 if rises && self.s.start.is_some() => {
                self.s.start = Some(now);
                self.s.stopped = None;
                if let Some(count) = self.s.next_count.take() {
                    self.s.count = Some(count);
                    self.s.null_count = false;
                }
            }
            0 | 4 if rises => {
                if let Some(stopped) = self.s.stopped.take() {
                    self.s.start = Some(now.saturating_sub(stopped));
                }
            }
            0 | 2 | 3 | 4 if falls => {
                self.s.stopped = self.elapsed(now).map(|(elapsed, _)| elapsed);
            }
            _ => {}
        }
    }
}
