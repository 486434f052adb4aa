//! What switches a PC off and resets it: ACPI's fixed registers, the reset control register, port
//! 92h.
//!
//! Models: ACPI 6.5, 4.8.3 (PM1a status, enable and control, PM timer, fixed power button) for a
//! machine that is always in ACPI mode (no SMI command port: SCI_EN reads as one); the reset control
//! register CF9h and port 92h as Intel's chipsets have them (82371AB, 82801). Not modelled: sleep
//! states other than S5, general-purpose events (the tables announce none), bus master and global
//! lock bits. The A20 gate is remembered, but memory is never masked by it.

mod acpi;
mod ports;
#[cfg(test)]
mod tests;

pub use acpi::{AcpiPm, AcpiPmV1};
pub use ports::{Port92, Port92V1, ResetControl, ResetControlV1};

/// What the guest wants of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Switch it off.
    Off,
    /// Reset it; the text names the means.
    Reset(&'static str),
}

/// Where such wishes go. Called on the thread of the vCPU that wrote, with the device's lock held.
pub type PowerSink = std::sync::Arc<dyn Fn(PowerRequest) + Send + Sync>;
