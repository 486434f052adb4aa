//! What firmware would have left behind: ACPI and SMBIOS tables, two words of the BIOS data area, and the boot processor's APIC in virtual wire
//! mode, so that the 8259A pair's interrupts arrive before anybody programs an APIC.

use super::chips::Chips;
use super::layout::{self, gsi, isa_line};
use crate::machine::FirmwareTables;
use mimeo_boot::acpi::{
    self, BoardDescription, InterruptOverride, IoApic, PciRoot, PowerRegisters, SerialPort,
    VirtioMmio,
};
use mimeo_boot::{MemoryMap, bios};
use mimeo_memory::GuestMemory;

/// Spurious-interrupt vector register: software-enabled, vector FFh (SDM vol. 3, 12.9).
const SVR: (u64, u64) = (0xf0, 0x1ff);
/// LVT LINT0: ExtINT, not masked (SDM vol. 3, 12.5.1).
const LINT0: (u64, u64) = (0x350, 0x700);
/// LVT LINT1: NMI.
const LINT1: (u64, u64) = (0x360, 0x400);

/// Writes the tables and puts the boot processor's APIC into virtual wire mode (Intel
/// MultiProcessor Specification 1.4, 3.6.2.2).
pub(super) fn install(chips: &Chips, memory: &GuestMemory) -> Result<FirmwareTables, String> {
    let boot = chips.apics.cpu(0).ok_or("a machine without a CPU")?;
    for (register, value) in [SVR, LINT0, LINT1] {
        boot.mmio_write(register, 4, value);
    }
    let description = description(chips.apics.len() as u32, chips.cards.places());
    let rsdp = acpi::install(memory, &description).map_err(|e| e.to_string())?;
    bios::install(memory, "microvm").map_err(|e| e.to_string())?;
    Ok(FirmwareTables {
        memory_map: MemoryMap::pc(memory),
        acpi_rsdp: Some(rsdp),
    })
}

/// The board's description for `cpus` CPUs whose APIC IDs are their indices, with virtio devices at
/// the MMIO places (address, global system interrupt).
fn description(cpus: u32, places: Vec<(u64, u32)>) -> BoardDescription {
    BoardDescription {
        oem_id: *b"MIMEO ",
        oem_table_id: *b"MICROVM ",
        apic_ids: (0..cpus).collect(),
        local_apic: layout::LOCAL_APIC as u32,
        io_apics: vec![IoApic {
            id: 0,
            address: layout::IOAPIC as u32,
            gsi_base: 0,
        }],
        overrides: vec![
            InterruptOverride {
                irq: isa_line::PIT,
                gsi: gsi(isa_line::PIT),
                level: false,
                active_low: false,
            },
            InterruptOverride {
                irq: isa_line::SCI,
                gsi: gsi(isa_line::SCI),
                level: true,
                active_low: false,
            },
        ],
        power: PowerRegisters {
            event: layout::PM_EVENT,
            control: layout::PM_CONTROL,
            timer: layout::PM_TIMER,
            sci: isa_line::SCI,
            s5: layout::PM_S5,
        },
        reset: Some((layout::RESET, layout::RESET_VALUE)),
        keyboard_controller: false,
        vga: false,
        cmos_clock: true,
        serial: vec![SerialPort {
            port: layout::COM1,
            irq: isa_line::COM1,
        }],
        virtio_mmio: places
            .into_iter()
            .map(|(base, gsi)| VirtioMmio {
                // Below 4 GB.
                base: base as u32,
                len: layout::VIRTIO_MMIO_STEP as u32,
                gsi,
                level: true,
            })
            .collect(),
        pci: Some(PciRoot {
            ecam: layout::PCI_ECAM as u32,
            last_bus: 0,
            io: Some(layout::PCI_IO..=layout::PCI_IO + (layout::PCI_IO_LEN - 1)),
            mmio32: layout::PCI_MEMORY as u32..=(layout::PCI_ECAM - 1) as u32,
            mmio64: None,
            interrupts: layout::PCI_GSI,
        }),
    }
}
