//! Payload loaders, boot protocols, ACPI tables.
//!
//! A [`Payload`] is recognised by its bytes; [`load`] puts it into guest memory with everything
//! that its boot protocol wants and gives the boot processor's registers. A board says what the
//! machine looks like ([`MemoryMap`], [`BootOptions`]).

pub mod acpi;
pub mod bios;
mod bzimage;
mod cpu;
mod elf;
mod error;
mod fields;
mod linux;
mod memory_map;
mod module;
mod multiboot;
mod options;
mod parts;
mod payload;
mod pvh;
mod recognise;
#[cfg(test)]
mod tests;

pub use cpu::firmware_msrs;
pub use error::{BootError, Rejection};
pub use memory_map::{MemoryMap, MemoryRange, RangeKind};
pub use module::Module;
pub use options::BootOptions;
pub use payload::{Payload, Protocol, load};
