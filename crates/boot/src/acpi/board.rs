//! What ACPI tells about a machine, as plain data that a board fills in.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Everything that the tables say. The board's devices must be there and behave so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardDescription {
    /// Six characters naming the maker.
    pub oem_id: [u8; 6],
    /// Eight characters naming the board.
    pub oem_table_id: [u8; 8],
    /// The local APIC identifiers of all processors, the boot processor's first.
    pub apic_ids: Vec<u32>,
    /// The local APICs' address, 0xfee00000 on a PC.
    pub local_apic: u32,
    /// I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// Where ISA interrupts differ from "the same number, edge, active high".
    pub overrides: Vec<InterruptOverride>,
    /// The fixed power-management registers.
    pub power: PowerRegisters,
    /// The reset register: an I/O port and the value that resets.
    pub reset: Option<(u16, u8)>,
    /// A keyboard controller with a keyboard and a mouse at ports 0x60 and 0x64, interrupts 1 and
    /// 12. False when port 0x64 only resets.
    pub keyboard_controller: bool,
    /// A VGA adapter that may be probed.
    pub vga: bool,
    /// An MC146818 clock at ports 0x70 and 0x71, interrupt 8.
    pub cmos_clock: bool,
    /// Serial ports of the 16550 kind.
    pub serial: Vec<SerialPort>,
    /// virtio devices on MMIO.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// A PCI Express host bridge.
    pub pci: Option<PciRoot>,
}

/// An I/O APIC (ACPI 6.3, 5.2.12.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    /// Its identifier, different from every other I/O APIC's.
    pub id: u8,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// The global system interrupt of its first pin.
    pub gsi_base: u32,
}

/// An interrupt source override (ACPI 6.3, 5.2.12.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptOverride {
    /// ISA interrupt.
    pub irq: u8,
    /// The global system interrupt that it arrives at.
    pub gsi: u32,
    /// Level-triggered rather than edge.
    pub level: bool,
    /// Active low rather than high.
    pub active_low: bool,
}

/// The fixed hardware registers (ACPI 6.3, 4.8.3), all in I/O space; the machine is always in ACPI
/// mode (no SMI command port). The power button is the fixed one, in PM1 status and enable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerRegisters {
    /// PM1a status (2 bytes) and enable (2 bytes).
    pub event: u16,
    /// PM1a control (2 bytes); SCI_EN reads as one.
    pub control: u16,
    /// The power-management timer: 32 bits at 3.579545 MHz.
    pub timer: u16,
    /// The system control interrupt (an ISA interrupt number; see the overrides).
    pub sci: u8,
    /// SLP_TYP of the S5 (off) state, 0 to 7.
    pub s5: u8,
}

/// A 16550 at an ISA address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// ISA interrupt, 0 to 15.
    pub irq: u8,
}

/// A virtio device on MMIO (virtio 1.2, 4.2; the `LNRO0005` identifier is Linux's and QEMU's).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioMmio {
    /// First address of its registers, below 4 GB.
    pub base: u32,
    /// Length in bytes.
    pub len: u32,
    /// Global system interrupt.
    pub gsi: u32,
    /// Level-triggered rather than edge; active high either way.
    pub level: bool,
}

/// A PCI Express host bridge with ECAM, segment 0, buses from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciRoot {
    /// ECAM's first address, below 4 GB; each bus takes 1 MB.
    pub ecam: u32,
    /// The last bus number.
    pub last_bus: u8,
    /// I/O ports for devices (not all 65536 of them).
    pub io: Option<RangeInclusive<u16>>,
    /// Addresses below 4 GB for devices.
    pub mmio32: RangeInclusive<u32>,
    /// Addresses above 4 GB for devices.
    pub mmio64: Option<RangeInclusive<u64>>,
    /// The global system interrupts behind INTA to INTD of device 0; device n's are rotated by n.
    /// Level-triggered, active high as the I/O APIC sees them.
    pub interrupts: [u32; 4],
}
