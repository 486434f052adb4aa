//! What the board tells an operating system through ACPI.

use super::layout::{self, gsi, isa_line};
use mimeo_boot::acpi::{BoardDescription, InterruptOverride, IoApic, PowerRegisters, SerialPort};

/// The board's description for `cpus` CPUs whose APIC IDs are their indices.
pub(super) fn description(cpus: u32) -> BoardDescription {
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
        virtio_mmio: Vec::new(),
        pci: None,
    }
}
