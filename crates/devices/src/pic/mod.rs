//! The pair of 8259A interrupt controllers of a PC.
//!
//! Models: Intel 8259A datasheet (231468): ICW1 to ICW4, OCW1 to OCW3, fully nested, special fully
//! nested and special mask modes, rotation, automatic EOI, polling, the default interrupt 7 (15) for
//! a request that went away, and the edge/level control registers of later chipsets (82371, ELCR).
//! Not modelled: MCS-80 mode, buffered mode's pins, a single controller (the pair is always
//! cascaded through input 2). As the datasheet asks, an edge-triggered request must stay until it is
//! acknowledged.
//!
//! Offsets: 0 and 1 are the master's ports (20h, 21h), 2 and 3 the slave's (A0h, A1h), 4 and 5 the
//! ELCRs (4D0h, 4D1h).
//!
//! Locks: this device's, then that of what its output leads to.

mod chip;
#[cfg(test)]
mod tests;

pub use chip::ChipV1;

use crate::apic::ExtIntSource;
use chip::Chip;
use mimeo_bus::{IrqLine, LineModel, PortDevice, RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// The master's input to which the slave is wired.
const CASCADE: u8 = 2;

/// Saved state of the pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicPairV1 {
    /// Inputs 0 to 7.
    pub master: ChipV1,
    /// Inputs 8 to 15.
    pub slave: ChipV1,
    /// The level of the output to the processor.
    pub output: bool,
}

/// The register model. Its lines are the inputs 0 to 15 (2 is the cascade, and ignored).
pub struct PicPair {
    master: Chip,
    slave: Chip,
    output: bool,
    intr: IrqLine,
}

impl PicPair {
    /// Both controllers after power-up; `intr` is the output to the processor.
    #[must_use]
    pub fn new(intr: IrqLine) -> Self {
        Self {
            master: Chip::new(0xf8, 1 << CASCADE),
            slave: Chip::new(0xde, 0),
            output: false,
            intr,
        }
    }

    /// RESET. The levels of the inputs are their drivers' to change.
    pub fn reset(&mut self) {
        self.master.reset();
        self.slave.reset();
        self.update();
    }

    fn update(&mut self) {
        self.master
            .set_line(CASCADE, self.slave.request().is_some());
        let output = self.master.request().is_some();
        if output != self.output {
            self.output = output;
            self.intr.set(output);
        }
    }

    /// The two INTA cycles: gives the vector.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge() {
            Some(CASCADE) => {
                let input = self.slave.acknowledge();
                // The slave's output falls in the acknowledge; a further request is a new edge.
                self.master.set_line(CASCADE, false);
                self.slave.vector(input.unwrap_or(7))
            }
            // Nothing requests any more: the default is 7.
            input => self.master.vector(input.unwrap_or(7)),
        };
        self.update();
        vector
    }
}

impl LineModel for PicPair {
    fn set_line(&mut self, pin: u32, level: bool) {
        match pin {
            2 => return,
            0..=7 => self.master.set_line(pin as u8, level),
            8..=15 => self.slave.set_line(pin as u8 - 8, level),
            _ => return,
        }
        self.update();
    }
}

impl ExtIntSource for Mutex<PicPair> {
    fn acknowledge(&self) -> u8 {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .acknowledge()
    }
}

/// The ports are one byte wide; the high bytes of wider writes are ignored.
impl PortDevice for PicPair {
    fn port_read(&mut self, offset: u16, _size: u8) -> u32 {
        let value = match offset {
            0 | 1 => self.master.read(offset == 1),
            2 | 3 => self.slave.read(offset == 3),
            4 => self.master.elcr(),
            5 => self.slave.elcr(),
            _ => 0xff,
        };
        self.update();
        u32::from(value)
    }

    fn port_write(&mut self, offset: u16, _size: u8, value: u32) {
        let value = value as u8;
        match offset {
            0 | 1 => self.master.write(offset == 1, value),
            2 | 3 => self.slave.write(offset == 3, value),
            4 => self.master.set_elcr(value),
            5 => self.slave.set_elcr(value),
            _ => {}
        }
        self.update();
    }
}

impl SaveRestore for PicPair {
    type Saved = PicPairV1;

    fn save(&self) -> PicPairV1 {
        PicPairV1 {
            master: self.master.s.clone(),
            slave: self.slave.s.clone(),
            output: self.output,
        }
    }

    fn restore(&mut self, saved: &PicPairV1) -> Result<(), RestoreError> {
        for chip in [&saved.master, &saved.slave] {
            RestoreError::unless(
                chip.lowest < 8 && chip.init_step < 4,
                "the 8259A pair",
                "a number is out of range",
            )?;
        }
        self.master.s = saved.master.clone();
        self.slave.s = saved.slave.clone();
        self.output = saved.output;
        Ok(())
    }
}
