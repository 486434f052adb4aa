//! MC146818 real-time clock with a PC's CMOS memory.
//!
//! Models: Motorola MC146818A datasheet (registers A to D, update cycle with UIP, alarm with don't
//! care codes, periodic rates, binary and BCD, 12 and 24 hours, SET), the century at 32h and the
//! memory sizes that PC firmware leaves (bytes 15h to 18h, 30h, 31h, 34h, 35h, 5Bh to 5Dh; 5Fh: CPUs
//! less one). The time is the host's when the machine starts, and VM time from then on. Not
//! modelled: daylight saving (DSE holds what is written), the square-wave pin, a weekday that
//! disagrees with the date, NMI masking by bit 7 of the index.
//!
//! Offsets: 0 and 1 are the ports 70h and 71h.
//!
//! Locks: this device's, then that of what the line leads to.

mod calendar;
#[cfg(test)]
mod tests;

use calendar::{Date, from_unix, to_unix};
use mimeo_bus::{Clock, IrqLine, Nanos, PortDevice, RestoreError, SaveRestore, TimedModel};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const SECOND: i128 = 1_000_000_000;
/// UIP rises this long before the time changes: 244 microseconds of warning and 1984 of update.
const UPDATE: i128 = 2_228_000;

mod reg {
    pub const SECONDS: u8 = 0;
    pub const SECONDS_ALARM: u8 = 1;
    pub const MINUTES: u8 = 2;
    pub const MINUTES_ALARM: u8 = 3;
    pub const HOURS: u8 = 4;
    pub const HOURS_ALARM: u8 = 5;
    pub const WEEKDAY: u8 = 6;
    pub const DAY: u8 = 7;
    pub const MONTH: u8 = 8;
    pub const YEAR: u8 = 9;
    pub const A: u8 = 10;
    pub const B: u8 = 11;
    pub const C: u8 = 12;
    pub const D: u8 = 13;
    pub const CENTURY: u8 = 0x32;
}
/// Register B.
mod b {
    pub const SET: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
    pub const BINARY: u8 = 4;
    pub const HOURS_24: u8 = 2;
}
/// Register C.
mod c {
    pub const IRQ: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
}

/// Saved state of the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcV1 {
    /// The index register.
    pub index: u8,
    /// The 128 bytes; the time's own hold what was written last.
    pub bytes: Vec<u8>,
    /// Unix time in nanoseconds at VM time zero.
    pub unix_at_zero: i64,
    /// VM time up to which events have been noted.
    pub noted: Nanos,
    /// The interrupt line's level.
    pub irq: bool,
}

/// The register model.
pub struct Rtc {
    index: u8,
    bytes: [u8; 128],
    unix_at_zero: i64,
    noted: Nanos,
    line: bool,
    clock: Arc<dyn Clock>,
    irq: IrqLine,
}

impl Rtc {
    /// A clock that shows `unix_at_zero` (nanoseconds since 1970, UTC) at VM time zero.
    pub fn new(clock: Arc<dyn Clock>, irq: IrqLine, unix_at_zero: i64) -> Self {
        let mut bytes = [0; 128];
        // As firmware leaves it: 32.768 kHz, 1024 Hz, BCD, 24 hours, battery good.
        bytes[usize::from(reg::A)] = 0x26;
        bytes[usize::from(reg::B)] = b::HOURS_24;
        bytes[usize::from(reg::D)] = 0x80;
        // Equipment: a mathematics coprocessor.
        bytes[0x14] = 2;
        Self {
            index: 0,
            bytes,
            unix_at_zero,
            noted: clock.now(),
            line: false,
            clock,
            irq,
        }
    }

    /// Writes the memory sizes (bytes below and above 4 GB) and the number of CPUs as PC firmware
    /// does.
    pub fn set_machine(&mut self, below_4g: u64, above_4g: u64, cpus: u32) {
        let limit = |n: u64| n.min(0xffff) as u16;
        let mut word = |at: usize, n: u64| {
            self.bytes[at..at + 2].copy_from_slice(&limit(n).to_le_bytes());
        };
        word(0x15, (below_4g >> 10).min(640));
        let extended = below_4g.saturating_sub(1 << 20) >> 10;
        word(0x17, extended);
        word(0x30, extended);
        word(0x34, below_4g.saturating_sub(16 << 20) >> 16);
        let high = (above_4g >> 16).min(0xff_ffff).to_le_bytes();
        self.bytes[0x5b..0x5e].copy_from_slice(&high[..3]);
        self.bytes[0x5f] = cpus.saturating_sub(1).min(255) as u8;
    }

    /// RESET: interrupts off and forgotten. Time and memory stay (they have a battery).
    pub fn reset(&mut self) {
        self.bytes[usize::from(reg::B)] &= !(b::PERIODIC | b::ALARM | b::UPDATE | 8);
        self.bytes[usize::from(reg::C)] = 0;
        self.index = 0;
        self.update_line();
    }

    fn get(&self, reg: u8) -> u8 {
        self.bytes[usize::from(reg & 127)]
    }

    fn put(&mut self, reg: u8, value: u8) {
        self.bytes[usize::from(reg & 127)] = value;
    }

    fn unix(&self, now: Nanos) -> i128 {
        i128::from(self.unix_at_zero) + i128::from(now)
    }

    fn seconds(&self, now: Nanos) -> i64 {
        // Both parts fit 64 bits, and so does their sum over 10^9.
        self.unix(now).div_euclid(SECOND) as i64
    }

    /// The time runs: SET is clear and the divider is not held in reset.
    fn runs(&self) -> bool {
        self.get(reg::B) & b::SET == 0 && self.get(reg::A) & 0x60 != 0x60
    }

    fn encode(&self, value: u32) -> u8 {
        // At most 99.
        let value = value as u8;
        if self.get(reg::B) & b::BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u32 {
        u32::from(if self.get(reg::B) & b::BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 15)
        })
    }

    fn encode_hours(&self, hour: u32) -> u8 {
        if self.get(reg::B) & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hours(&self, value: u8) -> u32 {
        if self.get(reg::B) & b::HOURS_24 != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// Copies the running time into its bytes.
    fn show(&mut self, now: Nanos) {
        let date = from_unix(self.seconds(now));
        let century = date.year.div_euclid(100).rem_euclid(100) as u32;
        let year = date.year.rem_euclid(100) as u32;
        let values = [
            (reg::SECONDS, self.encode(date.second)),
            (reg::MINUTES, self.encode(date.minute)),
            (reg::HOURS, self.encode_hours(date.hour)),
            (reg::WEEKDAY, self.encode(date.weekday)),
            (reg::DAY, self.encode(date.day)),
            (reg::MONTH, self.encode(date.month)),
            (reg::YEAR, self.encode(year)),
            (reg::CENTURY, self.encode(century)),
        ];
        for (reg, value) in values {
            self.put(reg, value);
        }
    }

    /// Makes the time what its bytes say, keeping the fraction of the second.
    fn set_time(&mut self, now: Nanos) {
        let date = Date {
            year: i64::from(self.decode(self.get(reg::CENTURY))) * 100
                + i64::from(self.decode(self.get(reg::YEAR))),
            month: self.decode(self.get(reg::MONTH)),
            day: self.decode(self.get(reg::DAY)),
            hour: self.decode_hours(self.get(reg::HOURS)),
            minute: self.decode(self.get(reg::MINUTES)),
            second: self.decode(self.get(reg::SECONDS)),
            weekday: 0,
        };
        let fraction = self.unix(now).rem_euclid(SECOND);
        let unix = i128::from(to_unix(&date)) * SECOND + fraction;
        let at_zero = unix - i128::from(now);
        self.unix_at_zero = i64::try_from(at_zero).unwrap_or(i64::MAX);
    }

    /// Nanoseconds between periodic interrupts.
    fn period(&self) -> Option<Nanos> {
        let rate = match self.get(reg::A) & 15 {
            0 => return None,
            // 256 and 128 Hz, as the rates 8 and 9.
            r @ 1..=2 => r + 7,
            r => r,
        };
        Some((1_000_000_000 << (rate - 1)) >> 15)
    }

    /// The values of one alarm byte that match, as bits 0 to 59.
    fn alarm_mask(&self, reg: u8, count: u32) -> u64 {
        let value = self.get(reg);
        if value >= 0xc0 {
            return (1 << count) - 1;
        }
        let n = if reg == reg::HOURS_ALARM {
            self.decode_hours(value)
        } else {
            self.decode(value)
        };
        if n < count { 1 << n } else { 0 }
    }

    /// The first second after `after` (Unix time) at which the alarm matches.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let seconds = self.alarm_mask(reg::SECONDS_ALARM, 60);
        let minutes = self.alarm_mask(reg::MINUTES_ALARM, 60);
        let hours = self.alarm_mask(reg::HOURS_ALARM, 24);
        if seconds == 0 || minutes == 0 || hours == 0 {
            return None;
        }
        let day = after.div_euclid(86_400) * 86_400;
        let has = |mask: u64, n: i64| mask & (1 << n) != 0;
        // Today's later matches, else tomorrow's first: at most two days of hours, each matching
        // hour ending the search within itself or passing to the next.
        (0..49)
            .map(|h| (day + h * 3600, h % 24))
            .filter(|&(_, h)| has(hours, h))
            .flat_map(|(at, _)| {
                (0..60)
                    .filter(|&m| has(minutes, m))
                    .map(move |m| at + m * 60)
            })
            .filter(|&minute| minute + 59 > after)
            .flat_map(|at| (0..60).filter(|&s| has(seconds, s)).map(move |s| at + s))
            .find(|&second| second > after)
    }

    /// VM time at which Unix second `second` begins.
    fn vm_time(&self, second: i64) -> Option<Nanos> {
        u64::try_from(i128::from(second) * SECOND - i128::from(self.unix_at_zero)).ok()
    }

    /// Notes in register C what has happened since the last look.
    fn note(&mut self) {
        let (from, now) = (self.noted, self.clock.now());
        if now <= from {
            return;
        }
        self.noted = now;
        let mut flags = 0;
        if let Some(period) = self.period()
            && now / period != from / period
        {
            flags |= c::PERIODIC;
        }
        if self.runs() && self.seconds(now) != self.seconds(from) {
            flags |= c::UPDATE;
            let alarm = self.next_alarm(self.seconds(from));
            if alarm.is_some_and(|at| at <= self.seconds(now)) {
                flags |= c::ALARM;
            }
        }
        self.put(reg::C, self.get(reg::C) | flags);
        self.update_line();
    }

    fn update_line(&mut self) {
        let active = self.get(reg::C) & self.get(reg::B) & (c::PERIODIC | c::ALARM | c::UPDATE);
        let level = active != 0;
        let flags = self.get(reg::C) & !c::IRQ;
        self.put(reg::C, if level { flags | c::IRQ } else { flags });
        if level != self.line {
            self.line = level;
            self.irq.set(level);
        }
    }

    fn read(&mut self) -> u8 {
        self.note();
        let now = self.clock.now();
        match self.index {
            reg::SECONDS | reg::MINUTES | reg::HOURS | reg::WEEKDAY..=reg::YEAR | reg::CENTURY
                if self.runs() =>
            {
                self.show(now);
            }
            reg::A => {
                let left = SECOND - self.unix(now).rem_euclid(SECOND);
                let updating = self.runs() && left <= UPDATE;
                return self.get(reg::A) & 0x7f | u8::from(updating) << 7;
            }
            reg::C => {
                let value = self.get(reg::C);
                self.put(reg::C, 0);
                self.update_line();
                return value;
            }
            _ => {}
        }
        self.get(self.index)
    }

    fn write(&mut self, value: u8) {
        self.note();
        let now = self.clock.now();
        match self.index {
            reg::SECONDS | reg::MINUTES | reg::HOURS | reg::WEEKDAY..=reg::YEAR | reg::CENTURY => {
                if self.runs() {
                    self.show(now);
                    self.put(self.index, value);
                    self.set_time(now);
                } else {
                    self.put(self.index, value);
                }
            }
            reg::A => self.change_mode(now, |bytes| bytes[usize::from(reg::A)] = value & 0x7f),
            reg::B => self.change_mode(now, |bytes| {
                bytes[usize::from(reg::B)] = if value & b::SET != 0 {
                    value & !b::UPDATE
                } else {
                    value
                };
            }),
            reg::C | reg::D => {}
            _ => self.put(self.index, value),
        }
        self.update_line();
    }

    /// Changes register A or B, which may stop the time (its bytes then hold it) or let it go on
    /// from what its bytes say.
    fn change_mode(&mut self, now: Nanos, change: impl FnOnce(&mut [u8; 128])) {
        let ran = self.runs();
        if ran {
            self.show(now);
        }
        change(&mut self.bytes);
        if !ran && self.runs() {
            self.set_time(now);
        }
    }
}

/// The ports are one byte wide; the high bytes of wider writes are ignored.
impl PortDevice for Rtc {
    fn port_read(&mut self, offset: u16, _size: u8) -> u32 {
        // The index cannot be read back.
        u32::from(if offset == 1 { self.read() } else { 0xff })
    }

    fn port_write(&mut self, offset: u16, _size: u8, value: u32) {
        if offset == 1 {
            self.write(value as u8);
        } else {
            self.index = value as u8 & 0x7f;
        }
    }
}

impl TimedModel for Rtc {
    fn deadline(&self) -> Option<Nanos> {
        let enabled = self.get(reg::B);
        // What is pending already needs no further interrupt until it is read.
        if self.line {
            return None;
        }
        let periodic = self
            .period()
            .filter(|_| enabled & b::PERIODIC != 0)
            .map(|p| (self.noted / p + 1).saturating_mul(p));
        let second = self.seconds(self.noted);
        let runs = self.runs();
        let update = if runs && enabled & b::UPDATE != 0 {
            self.vm_time(second.saturating_add(1))
        } else {
            None
        };
        let alarm = if runs && enabled & b::ALARM != 0 {
            self.next_alarm(second).and_then(|at| self.vm_time(at))
        } else {
            None
        };
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn due(&mut self, _now: Nanos) {
        self.note();
    }
}

impl SaveRestore for Rtc {
    type Saved = RtcV1;

    fn save(&self) -> RtcV1 {
        RtcV1 {
            index: self.index,
            bytes: self.bytes.to_vec(),
            unix_at_zero: self.unix_at_zero,
            noted: self.noted,
            irq: self.line,
        }
    }

    fn restore(&mut self, saved: &RtcV1) -> Result<(), RestoreError> {
        let bytes = <[u8; 128]>::try_from(saved.bytes.as_slice());
        let Some(bytes) = bytes.ok().filter(|_| saved.index < 128) else {
            return Err(RestoreError {
                device: "the real-time clock",
                what: "it does not have 128 bytes",
            });
        };
        self.index = saved.index;
        self.bytes = bytes;
        self.unix_at_zero = saved.unix_at_zero;
        self.noted = saved.noted;
        self.line = saved.irq;
        Ok(())
    }
}
