//! One 8259A.

use serde::{Deserialize, Serialize};

/// Saved state of one 8259A.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipV1 {
    /// Levels of the inputs.
    pub lines: u8,
    /// Interrupt request register.
    pub irr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// Edge/level control: 1 is level.
    pub elcr: u8,
    /// Vector of input 0 (a multiple of 8).
    pub base: u8,
    /// The input of lowest priority.
    pub lowest: u8,
    /// The next byte to port 1 is ICW2 (1), ICW3 (2), ICW4 (3), or a mask (0).
    pub init_step: u8,
    /// ICW4 is to come.
    pub needs_icw4: bool,
    /// ICW1 said that there is no cascade.
    pub single: bool,
    /// Automatic EOI.
    pub auto_eoi: bool,
    /// Rotate in automatic EOI.
    pub rotate_auto: bool,
    /// Special fully nested mode.
    pub special_nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Port 0 reads ISR rather than IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

pub(super) struct Chip {
    pub(super) s: ChipV1,
    /// Inputs that can be level-triggered.
    elcr_mask: u8,
    /// Inputs to which another 8259A is wired.
    cascades: u8,
}

impl Chip {
    pub(super) fn new(elcr_mask: u8, cascades: u8) -> Self {
        let mut chip = Self {
            s: ChipV1::default(),
            elcr_mask,
            cascades,
        };
        chip.reset();
        chip
    }

    pub(super) fn reset(&mut self) {
        self.s = ChipV1 {
            lines: self.s.lines,
            lowest: 7,
            ..ChipV1::default()
        };
    }

    /// The input of highest priority among `inputs`, with its rank (0 is highest).
    fn first(&self, inputs: u8) -> Option<(u8, u8)> {
        (0..8u8)
            .map(|rank| (rank, (self.s.lowest + 1 + rank) & 7))
            .find(|(_, input)| inputs & (1 << input) != 0)
    }

    /// The input whose interrupt is to be acknowledged.
    pub(super) fn request(&self) -> Option<u8> {
        if self.s.init_step != 0 {
            return None;
        }
        let (rank, input) = self.first(self.s.irr & !self.s.imr)?;
        let mut blocking = self.s.isr;
        if self.s.special_mask {
            blocking &= !self.s.imr;
        }
        if self.s.special_nested {
            blocking &= !self.cascades;
        }
        match self.first(blocking) {
            Some((serving, _)) if serving <= rank => None,
            _ => Some(input),
        }
    }

    pub(super) fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let rises = level && self.s.lines & bit == 0;
        if level {
            self.s.lines |= bit;
        } else {
            self.s.lines &= !bit;
            self.s.irr &= !bit;
        }
        if rises || (level && self.s.elcr & bit != 0) {
            self.s.irr |= bit;
        }
    }

    /// INTA: the input that is in service now; `None` when nothing requests.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let input = self.request()?;
        let bit = 1 << input;
        if self.s.elcr & bit == 0 {
            self.s.irr &= !bit;
        }
        if !self.s.auto_eoi {
            self.s.isr |= bit;
        } else if self.s.rotate_auto {
            self.s.lowest = input;
        }
        Some(input)
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.s.base | input
    }

    pub(super) fn elcr(&self) -> u8 {
        self.s.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.s.elcr = value & self.elcr_mask;
        // A level that is there requests as soon as it is looked at as a level.
        self.s.irr |= self.s.lines & self.s.elcr;
    }

    pub(super) fn read(&mut self, high: bool) -> u8 {
        if std::mem::take(&mut self.s.poll) {
            return self.acknowledge().map_or(0, |input| 0x80 | input);
        }
        match (high, self.s.read_isr) {
            (true, _) => self.s.imr,
            (false, true) => self.s.isr,
            (false, false) => self.s.irr,
        }
    }

    pub(super) fn write(&mut self, high: bool, value: u8) {
        if !high {
            if value & 0x10 != 0 {
                self.icw1(value);
            } else if value & 8 != 0 {
                self.ocw3(value);
            } else {
                self.ocw2(value);
            }
            return;
        }
        match self.s.init_step {
            1 => {
                self.s.base = value & 0xf8;
                self.s.init_step = self.after_icw(2);
            }
            // The wiring of the cascade is the board's.
            2 => self.s.init_step = self.after_icw(3),
            3 => {
                self.s.auto_eoi = value & 2 != 0;
                self.s.special_nested = value & 0x10 != 0;
                self.s.init_step = 0;
            }
            _ => self.s.imr = value,
        }
    }

    fn after_icw(&self, next: u8) -> u8 {
        match next {
            2 if !self.s.single => 2,
            _ if self.s.needs_icw4 => 3,
            _ => 0,
        }
    }

    fn icw1(&mut self, value: u8) {
        let s = &mut self.s;
        // The edge detectors are reset: an input must rise anew.
        s.irr = s.lines & s.elcr;
        (s.imr, s.isr, s.lowest) = (0, 0, 7);
        (s.special_mask, s.read_isr, s.poll) = (false, false, false);
        (s.auto_eoi, s.rotate_auto, s.special_nested) = (false, false, false);
        s.needs_icw4 = value & 1 != 0;
        s.single = value & 2 != 0;
        s.init_step = 1;
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0 => self.s.rotate_auto = false,
            4 => self.s.rotate_auto = true,
            1 | 5 => {
                // In special mask mode the masked inputs are not cleared by a non-specific EOI.
                let hidden = if self.s.special_mask { self.s.imr } else { 0 };
                if let Some((_, input)) = self.first(self.s.isr & !hidden) {
                    self.s.isr &= !(1 << input);
                    if value >> 5 == 5 {
                        self.s.lowest = input;
                    }
                }
            }
            3 => self.s.isr &= !(1 << level),
            7 => {
                self.s.isr &= !(1 << level);
                self.s.lowest = level;
            }
            6 => self.s.lowest = level,
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        self.s.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.s.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.s.special_mask = value & 0x20 != 0;
        }
    }
}
