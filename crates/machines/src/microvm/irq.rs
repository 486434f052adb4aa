//! Interrupt routing: from ISA lines to both kinds of interrupt controller, as on a PC.

use super::layout::gsi;
use mimeo_bus::{IrqLine, IrqSink};
use std::sync::Arc;

/// The board's wires. A pin number is an ISA line (0 to 15) or, from 16, a line that only the I/O
/// APIC has.
///
/// No lock: the wires never change. Lock order: device, then this, then PIC, then I/O APIC, then APIC.
pub(super) struct Wires {
    pub(super) ioapic: Arc<dyn IrqSink>,
    pub(super) pic: Arc<dyn IrqSink>,
}

impl IrqSink for Wires {
    fn set_level(&self, pin: u32, level: bool) {
        // The guest uses one of the two; the other has its input masked.
        if pin < 16 {
            self.pic.set_level(pin, level);
        }
        let gsi = if pin < 16 { gsi(pin as u8) } else { pin };
        self.ioapic.set_level(gsi, level);
    }
}

impl Wires {
    /// The end of ISA line `isa` that a device drives.
    pub(super) fn isa(self: &Arc<Self>, isa: u8) -> IrqLine {
        IrqLine::new(self.clone(), u32::from(isa))
    }
}

/// The PIC pair's output: LINT0 of every CPU (only the boot processor's is unmasked by stock
/// kernels; MADT says that LINT0 is ExtINT everywhere).
pub(super) struct PicOutput {
    pub(super) apics: Arc<dyn IrqSink>,
    pub(super) cpus: u32,
}

impl IrqSink for PicOutput {
    fn set_level(&self, _pin: u32, level: bool) {
        for cpu in 0..self.cpus {
            // Pin 2n of the APIC bus is CPU n's LINT0.
            self.apics.set_level(2 * cpu, level);
        }
    }
}
