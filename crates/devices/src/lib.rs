//! Register models of the emulated chips, one folder a device.

pub mod apic;
pub mod debug_exit;
pub mod ioapic;
pub mod pic;
pub mod pit;
#[cfg(test)]
mod testing;
pub mod uart;
