//! ACPI tables for a board (ACPI specification 6.3): RSDP, XSDT, FADT, FACS, MADT, DSDT, MCFG.
//!
//! Not made: HPET (no board has one), SRAT and SLIT (one memory node), SPCR, SMBIOS.

mod board;
mod dsdt;
mod tables;
#[cfg(test)]
mod tests;

pub use board::{
    BoardDescription, InterruptOverride, IoApic, PciRoot, PowerRegisters, SerialPort, VirtioMmio,
};

use crate::BootError;
use mimeo_memory::GuestMemory;

/// Where the tables go: operating systems look for the root pointer from here to 1 MB, at multiples
/// of 16 (5.2.5.1). A map made by [`crate::MemoryMap::pc`] has it reserved.
const BASE: u64 = 0xe_0000;
const END: u64 = 0x10_0000;

/// All tables of a machine in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Guest-physical address of the first byte, which is the root pointer's.
    pub base: u64,
    /// The tables.
    pub bytes: Vec<u8>,
}

/// Makes the tables, to be put at `base` (a multiple of 64, below 4 GB).
#[must_use]
pub fn build(board: &BoardDescription, base: u64) -> AcpiTables {
    // The root pointer goes first but is made last.
    let mut bytes = vec![0; 64];
    let mut add = |table: &[u8]| {
        let at = bytes.len().next_multiple_of(64);
        bytes.resize(at, 0);
        bytes.extend_from_slice(table);
        base + at as u64
    };
    let facs = add(&tables::facs());
    let dsdt = add(&dsdt::dsdt(board));
    let mut list = vec![
        add(&tables::fadt(board, u32::try_from(facs).unwrap_or(0), dsdt)),
        add(&tables::madt(board)),
    ];
    if let Some(pci) = &board.pci {
        list.push(add(&tables::mcfg(board, pci)));
    }
    let xsdt = add(&tables::xsdt(board, &list));
    let rsdp = tables::rsdp(board, xsdt);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    AcpiTables { base, bytes }
}

/// Makes the tables, puts them below 1 MB, and gives the root pointer's address.
///
/// # Errors
/// [`BootError::NoRoom`] when they have more than 128 KB, [`BootError::Memory`] when there is no
/// memory.
pub fn install(mem: &GuestMemory, board: &BoardDescription) -> Result<u64, BootError> {
    let tables = build(board, BASE);
    if tables.bytes.len() as u64 > END - BASE {
        return Err(BootError::NoRoom("128 KB of ACPI tables"));
    }
    mem.write(BASE, &tables.bytes)?;
    Ok(BASE)
}
