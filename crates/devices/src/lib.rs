//! Register models of the emulated chips, one folder a device.
//!
//! A model is a plain structure: it is handed lines, clocks and sinks, and is told of accesses and
//! of times; `machines` wraps it in a lock and binds it to addresses. Every model's state is a
//! serde structure with a version in its name (`SaveRestore`).

pub mod apic;
#[cfg(test)]
mod contract;
pub mod debug_exit;
#[cfg(test)]
mod hostile;
pub mod i8042;
pub mod ioapic;
pub mod kvmclock;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod testdev;
#[cfg(test)]
mod testing;
pub mod uart;
pub mod virtio;
