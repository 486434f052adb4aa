//! ACPI's fixed hardware registers.

use super::{PowerRequest, PowerSink};
use mimeo_bus::{Clock, IrqLine, Nanos, PortDevice, RestoreError, SaveRestore, TimedModel};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The power management timer's frequency, in Hz.
const PM_HZ: u64 = 3_579_545;
/// The status bit is set when the timer's top bit changes, every 2^31 counts.
const PM_HALF: u64 = 1 << 31;

/// Bits of PM1 status and enable.
mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    /// The clock's alarm. Its status is never set: the clock interrupts by its own line and there is
    /// no sleep to wake from. Systems enable it all the same and complain when that does not hold.
    pub const RTC: u16 = 1 << 10;
    /// Enables that are kept; status bits that raise the SCI.
    pub const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;
}
/// Bits of PM1 control.
mod control {
    pub const SCI_EN: u16 = 1;
    pub const BM_RLD: u16 = 2;
    pub const SLP_TYP: u16 = 7 << 10;
    pub const SLP_EN: u16 = 1 << 13;
}

/// Saved state of the fixed registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmV1 {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without SCI_EN.
    pub control: u16,
    /// How often the timer's top bit had changed when that was last looked at.
    pub halves: u64,
    /// The SCI's level.
    pub sci: bool,
}

/// The register model. Offsets: 0 PM1 status, 2 PM1 enable, 4 PM1 control, 8 PM timer (32 bits).
pub struct AcpiPm {
    s: AcpiPmV1,
    s5: u8,
    clock: Arc<dyn Clock>,
    sci: IrqLine,
    sink: PowerSink,
}

impl AcpiPm {
    /// The registers after power-up. `s5` is the SLP_TYP (0 to 7) that the DSDT gives for soft off;
    /// `sci` is the system control interrupt, level-triggered.
    pub fn new(clock: Arc<dyn Clock>, sci: IrqLine, sink: PowerSink, s5: u8) -> Self {
        Self {
            s: AcpiPmV1::default(),
            s5,
            clock,
            sci,
            sink,
        }
    }

    /// RESET.
    pub fn reset(&mut self) {
        (self.s.status, self.s.enable, self.s.control) = (0, 0, 0);
        self.update();
    }

    /// The person presses the power button: the guest's system is asked to shut down.
    pub fn press_power_button(&mut self) {
        self.s.status |= pm1::POWER_BUTTON;
        self.update();
    }

    fn counts(now: Nanos) -> u64 {
        // Below 2^64, since PM_HZ is below 10^9.
        (u128::from(now) * u128::from(PM_HZ) / 1_000_000_000) as u64
    }

    /// Notes whether the timer's top bit has changed.
    fn note_timer(&mut self) {
        let halves = Self::counts(self.clock.now()) / PM_HALF;
        if halves != self.s.halves {
            self.s.halves = halves;
            self.s.status |= pm1::TIMER;
            self.update();
        }
    }

    fn update(&mut self) {
        let level = self.s.status & self.s.enable & pm1::ENABLES != 0;
        if level != self.s.sci {
            self.s.sci = level;
            self.sci.set(level);
        }
    }

    fn read_byte(&mut self, offset: u16) -> u8 {
        let timer = Self::counts(self.clock.now()) as u32;
        let byte = |word: u16| word.to_le_bytes()[usize::from(offset & 1)];
        match offset {
            0 | 1 => byte(self.s.status),
            2 | 3 => byte(self.s.enable),
            4 | 5 => byte(self.s.control | control::SCI_EN),
            8..=11 => timer.to_le_bytes()[usize::from(offset - 8)],
            _ => 0,
        }
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
        let shift = 8 * (offset & 1);
        let (keep, new) = (!(0xff << shift), u16::from(value) << shift);
        match offset {
            0 | 1 => self.s.status &= !new,
            2 | 3 => self.s.enable = (self.s.enable & keep | new) & pm1::ENABLES,
            4 | 5 => {
                let kept = control::SLP_TYP | control::BM_RLD;
                self.s.control = (self.s.control & keep | new) & kept;
                let kind = (self.s.control & control::SLP_TYP) >> 10;
                if new & control::SLP_EN != 0 && kind == u16::from(self.s5) {
                    (self.sink)(PowerRequest::Off);
                }
            }
            _ => {}
        }
        self.update();
    }
}

impl PortDevice for AcpiPm {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        self.note_timer();
        if (offset, size) == (8, 4) {
            // All bytes of one moment.
            return Self::counts(self.clock.now()) as u32;
        }
        (0..u16::from(size.min(4))).fold(0, |value, i| {
            value | u32::from(self.read_byte(offset.saturating_add(i))) << (8 * i)
        })
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        self.note_timer();
        for i in 0..u16::from(size.min(4)) {
            self.write_byte(offset.saturating_add(i), (value >> (8 * i)) as u8);
        }
    }
}

impl TimedModel for AcpiPm {
    fn deadline(&self) -> Option<Nanos> {
        if self.s.enable & pm1::TIMER == 0 || self.s.sci {
            return None;
        }
        let counts = u128::from(self.s.halves + 1) * u128::from(PM_HALF) * 1_000_000_000;
        u64::try_from(counts.div_ceil(u128::from(PM_HZ))).ok()
    }

    fn due(&mut self, _now: Nanos) {
        self.note_timer();
    }
}

impl SaveRestore for AcpiPm {
    type Saved = AcpiPmV1;

    fn save(&self) -> AcpiPmV1 {
        self.s
    }

    fn restore(&mut self, saved: &AcpiPmV1) -> Result<(), RestoreError> {
        let check = |ok| RestoreError::unless(ok, "ACPI's registers", "a number is out of range");
        check(saved.halves < u64::MAX / PM_HALF)?;
        check(saved.enable & !pm1::ENABLES == 0)?;
        check(saved.control & !(control::SLP_TYP | control::BM_RLD) == 0)?;
        self.s = *saved;
        Ok(())
    }
}
