//! I/O APIC with 24 pins.
//!
//! Models: Intel 82093AA datasheet (290566) with the version 20h additions of later chipsets: the
//! EOI register at offset 40h. Not modelled: the arbitration register's life (it reads as the ID),
//! SMIs. Edges on a masked pin are lost, as the datasheet says (3.2.4, interrupt mask). Lines carry
//! assertion, not voltage, so the polarity bit changes nothing.
//!
//! Locks: this device's, then an APIC's (messages are sent with the lock held). The APICs tell of
//! an EOI without a lock of theirs held.

use crate::apic::{Delivery, Destination, EoiSink, Message, MessageSink};
use mimeo_bus::{LineModel, MmioDevice, RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Number of interrupt input pins.
pub const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// Bits of a redirection entry that software may write.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const VERSION: u32 = 0x20;

/// Saved state of an I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicV1 {
    /// IOREGSEL.
    pub select: u8,
    /// APIC ID, 0 to 15.
    pub id: u8,
    /// Redirection table.
    pub redirection: [u64; PINS],
    /// Levels of the pins, one bit each.
    pub lines: u32,
}

/// The register model.
pub struct Ioapic {
    s: IoapicV1,
    out: Arc<dyn MessageSink>,
}

impl Ioapic {
    /// An I/O APIC after power-up that sends its messages to `out`.
    pub fn new(out: Arc<dyn MessageSink>) -> Self {
        Self {
            s: IoapicV1 {
                select: 0,
                id: 0,
                redirection: [MASKED; PINS],
                lines: 0,
            },
            out,
        }
    }

    /// RESET. The levels of the pins are their drivers' to change.
    pub fn reset(&mut self) {
        self.s.select = 0;
        self.s.id = 0;
        self.s.redirection = [MASKED; PINS];
    }

    fn line(&self, pin: usize) -> bool {
        self.s.lines & (1 << pin) != 0
    }

    fn send(&self, pin: usize) -> bool {
        let entry = self.s.redirection[pin];
        let Some(delivery) = Delivery::from_bits((entry >> 8) as u32) else {
            return false;
        };
        // Code 6 is start-up in an ICR only; here it is reserved.
        if delivery == Delivery::StartUp {
            return false;
        }
        let dest = (entry >> 56) as u32;
        self.out.send_message(&Message {
            to: if entry & LOGICAL != 0 {
                Destination::Logical(dest)
            } else {
                Destination::Physical(dest)
            },
            wide: false,
            delivery,
            vector: entry as u8,
            level: is_level(entry),
            to_one: delivery == Delivery::LowestPriority,
        })
    }

    /// Sends what a level-triggered pin asks for, unless the last one is still in service.
    fn service_level(&mut self, pin: usize) {
        let entry = self.s.redirection[pin];
        if is_level(entry) && entry & (MASKED | REMOTE_IRR) == 0 && self.line(pin) {
            // Set before sending: the EOI may come from another CPU at any moment after it.
            self.s.redirection[pin] |= REMOTE_IRR;
            if !self.send(pin) {
                self.s.redirection[pin] &= !REMOTE_IRR;
            }
        }
    }

    /// The interrupt with this vector has ended: by an APIC's broadcast or the EOI register.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = self.s.redirection[pin];
            if entry as u8 == vector && entry & REMOTE_IRR != 0 {
                self.s.redirection[pin] &= !REMOTE_IRR;
                self.service_level(pin);
            }
        }
    }

    fn read_indirect(&self) -> u32 {
        match self.s.select {
            0 | 2 => u32::from(self.s.id) << 24,
            1 => VERSION | (PINS as u32 - 1) << 16,
            n => match self
                .s
                .redirection
                .get(usize::from(n.wrapping_sub(0x10)) / 2)
            {
                Some(entry) if n >= 0x10 => (entry >> (n % 2 * 32)) as u32,
                _ => 0,
            },
        }
    }

    fn write_indirect(&mut self, value: u32) {
        let n = self.s.select;
        if n == 0 {
            self.s.id = (value >> 24) as u8 & 0xf;
            return;
        }
        let pin = usize::from(n.wrapping_sub(0x10)) / 2;
        if n < 0x10 || pin >= PINS {
            return;
        }
        let shift = n % 2 * 32;
        let half = 0xffff_ffff << shift;
        let old = self.s.redirection[pin];
        let mut new = old & !half | u64::from(value) << shift;
        new = new & WRITABLE | old & REMOTE_IRR;
        if !is_level(new) {
            new &= !REMOTE_IRR;
        }
        self.s.redirection[pin] = new;
        self.service_level(pin);
    }
}

/// Whether an entry is level-triggered: only the modes with a vector of the entry's own can be.
fn is_level(entry: u64) -> bool {
    entry & LEVEL != 0 && matches!((entry >> 8) & 7, 0 | 1)
}

impl LineModel for Ioapic {
    fn set_line(&mut self, pin: u32, level: bool) {
        let pin = pin as usize;
        if pin >= PINS || self.line(pin) == level {
            return;
        }
        self.s.lines ^= 1 << pin;
        let entry = self.s.redirection[pin];
        if is_level(entry) {
            self.service_level(pin);
        } else if level && entry & MASKED == 0 {
            self.send(pin);
        }
    }
}

impl EoiSink for Mutex<Ioapic> {
    fn end_of_interrupt(&self, vector: u8) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end_of_interrupt(vector);
    }
}

/// The registers are 32 bits wide; other sizes read as zero and are ignored (82093AA, 3.1).
impl MmioDevice for Ioapic {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let value = match offset {
            0x00 => u32::from(self.s.select),
            0x10 => self.read_indirect(),
            _ => 0,
        };
        match size {
            1 => u64::from(value & 0xff),
            2 => u64::from(value & 0xffff),
            _ => u64::from(value),
        }
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        match offset {
            0x00 => self.s.select = value as u8,
            0x10 if size == 4 => self.write_indirect(value as u32),
            0x40 => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl SaveRestore for Ioapic {
    type Saved = IoapicV1;

    fn save(&self) -> IoapicV1 {
        self.s.clone()
    }

    fn restore(&mut self, saved: &IoapicV1) -> Result<(), RestoreError> {
        let check = |ok, what| RestoreError::unless(ok, "the I/O APIC", what);
        check(saved.lines >> PINS == 0, "a pin that does not exist is set")?;
        check(saved.id < 16, "the ID is above 15")?;
        let entries = saved.redirection.iter();
        check(
            entries.fold(0, |a, e| a | e) & !(WRITABLE | REMOTE_IRR) == 0,
            "reserved bits of a redirection entry are set",
        )?;
        self.s = saved.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
