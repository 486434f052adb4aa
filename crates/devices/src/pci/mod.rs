//! PCI Express: one root complex with one bus.
//!
//! Models: PCI Local Bus Specification 3.0 (configuration space, type 0 header, BAR sizing, the
//! configuration mechanism at CF8h and CFCh, INTx, MSI-X) and PCI Express Base Specification 3.0,
//! 7.2.2 (ECAM). Not modelled: bridges and further buses, expansion ROMs, power management, error
//! reporting, extended capabilities (that space reads as zero, which says that there are none).
//!
//! Every function sits on bus 0, function 0 of a slot. INTA of slot `n` is wired to line `n % 4` of
//! the four that the host has, shared by level.
//!
//! Locks: the host's, then one function's, then what its interrupts lead to. A function that
//! interrupts from another thread takes only its own locks.

mod bar;
mod config;
mod host;
mod intx;
mod msix;
#[cfg(test)]
mod tests;

pub use bar::{Bar, BarKind};
pub use config::{ConfigSpace, ConfigSpaceV1, Identity};
pub use host::{ConfigPorts, Ecam, PciHost, PciIo, PciMmio, PciWindows, SlotError};
pub use intx::{IntxLine, IntxRouter};
pub use msix::{MsiSink, Msix, MsixV1};

/// A function on the bus.
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&mut self) -> &mut ConfigSpace;

    /// A read of configuration space at `offset` (1, 2 or 4 bytes, within a doubleword).
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        self.config().read(offset, size)
    }

    /// A write to configuration space.
    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.config().write(offset, size, value);
    }

    /// A load of 1, 2, 4 or 8 bytes at `offset` of the BAR with index `bar`.
    fn bar_read(&mut self, bar: usize, offset: u64, size: u8) -> u64;

    /// A store of 1, 2, 4 or 8 bytes at `offset` of the BAR with index `bar`.
    fn bar_write(&mut self, bar: usize, offset: u64, size: u8, value: u64);

    /// RESET of the bus.
    fn reset(&mut self);
}
