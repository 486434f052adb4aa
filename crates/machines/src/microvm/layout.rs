//! Where everything is on the `microvm` board: the same places as on a PC, so that stock kernels
//! find them (docs/reference/microvm.md).

use mimeo_memory::{RegionKind, RegionSpec};

/// RAM below 4 GB ends here at the latest; above lie PCI windows, interrupt controllers and (on
/// other boards) firmware.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM that does not fit below the hole goes on here.
pub const HIGH_RAM: u64 = 1 << 32;

/// PCI functions' memory below 4 GB begins where RAM ends at the latest.
pub const PCI_MEMORY: u64 = LOW_RAM_END;
/// Bytes of it.
pub const PCI_MEMORY_LEN: u64 = PCI_ECAM - PCI_MEMORY;
/// PCI Express configuration space (ECAM) of bus 0.
pub const PCI_ECAM: u64 = 0xe000_0000;
/// One bus.
pub const PCI_ECAM_LEN: u64 = 1 << 20;
/// PCI functions' ports.
pub const PCI_IO: u16 = 0xc000;
/// Number of them.
pub const PCI_IO_LEN: u16 = 0x4000;
/// The configuration ports: CF8h (CF9h is the reset control register) and CFCh.
pub const PCI_CONFIG: &[(u16, u16, u16)] = &[(0xcf8, 1, 0), (0xcfc, 4, 4)];
/// INTA to INTD of slot 0; a slot's number turns them.
pub const PCI_GSI: [u32; 4] = [16, 17, 18, 19];

/// Virtio devices over MMIO: the first one's registers.
pub const VIRTIO_MMIO: u64 = 0xfeb0_0000;
/// Bytes from one to the next.
pub const VIRTIO_MMIO_STEP: u64 = 0x1000;
/// Number of places.
pub const VIRTIO_MMIO_PLACES: usize = 32;
/// The lines that they share: device n is on the line n modulo 4.
pub const VIRTIO_MMIO_GSI: [u32; 4] = [20, 21, 22, 23];

/// The I/O APIC's registers (82093AA's place on a PC).
pub const IOAPIC: u64 = 0xfec0_0000;
/// Bytes that the I/O APIC answers in.
pub const IOAPIC_LEN: u64 = 0x1000;
/// The local APICs' power-up address (SDM vol. 3, 12.4.1): each CPU sees its own there.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// The test device's memory (QEMU's pc-testdev).
pub const TESTDEV_MMIO: u64 = 0xff00_0000;
/// Bytes of it.
pub const TESTDEV_MMIO_LEN: u64 = 0x1_0000;

/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// The 8259A pair: (first port, ports, the chip's offset).
pub const PIC: &[(u16, u16, u16)] = &[(0x20, 2, 0), (0xa0, 2, 2), (0x4d0, 2, 4)];
/// The 8254 and the speaker port that is wired to it.
pub const PIT: &[(u16, u16, u16)] = &[(0x40, 4, 0), (0x61, 1, 4)];
/// The keyboard controller.
pub const I8042: &[(u16, u16, u16)] = &[(0x60, 1, 0), (0x64, 1, 4)];
/// The real-time clock and its memory.
pub const RTC: u16 = 0x70;
/// The fast A20 gate and reset of PS/2 machines.
pub const PORT92: u16 = 0x92;
/// ACPI's PM1a event block: status and enable, two bytes each.
pub const PM_EVENT: u16 = 0x600;
/// ACPI's PM1a control block, two bytes.
pub const PM_CONTROL: u16 = 0x604;
/// ACPI's power-management timer, four bytes.
pub const PM_TIMER: u16 = 0x608;
/// Ports of ACPI's fixed registers, from [`PM_EVENT`] on.
pub const PM_LEN: u16 = 12;
/// SLP_TYP of S5, soft off.
pub const PM_S5: u8 = 5;
/// The reset control register, where PC chipsets have it.
pub const RESET: u16 = 0xcf9;
/// What resets the machine when written there: a hard reset.
pub const RESET_VALUE: u8 = 0x06;
/// The test device: port, flush, serial output; the ports of its lines.
pub const TESTDEV: &[(u16, u16, u16)] = &[(0xe0, 12, 0), (0xf1, 1, 0x11), (0x2000, 24, 0x100)];
/// QEMU's isa-debug-exit, where test kernels expect it.
pub const DEBUG_EXIT: u16 = 0xf4;

/// Number of global system interrupts: the I/O APIC's pins.
pub const GSIS: u32 = 24;

/// ISA interrupt lines.
pub mod isa_line {
    /// The 8254's counter 0.
    pub const PIT: u8 = 0;
    /// The keyboard controller's keyboard output.
    pub const KEYBOARD: u8 = 1;
    /// The first serial port.
    pub const COM1: u8 = 4;
    /// The real-time clock.
    pub const RTC: u8 = 8;
    /// ACPI's system control interrupt.
    pub const SCI: u8 = 9;
    /// The keyboard controller's auxiliary output.
    pub const AUX: u8 = 12;
}

/// The global system interrupt of an ISA line: line for line, but the 8254 is wired to pin 2 of the
/// I/O APIC, where a PC has it (MADT's interrupt source override says so).
#[must_use]
pub const fn gsi(isa: u8) -> u32 {
    if isa == isa_line::PIT { 2 } else { isa as u32 }
}

/// RAM of `bytes`, below and above the hole.
#[must_use]
pub fn ram(bytes: u64) -> Vec<RegionSpec> {
    let region = |gpa, len| RegionSpec {
        gpa,
        len,
        kind: RegionKind::Ram,
    };
    let low = bytes.min(LOW_RAM_END);
    let mut regions = vec![region(0, low)];
    if bytes > low {
        regions.push(region(HIGH_RAM, bytes - low));
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        let lens =
            |bytes| -> Vec<(u64, u64)> { ram(bytes).iter().map(|r| (r.gpa, r.len)).collect() };
        assert_eq!(lens(256 << 20), [(0, 256 << 20)]);
        assert_eq!(lens(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(lens(4 << 30), [(0, LOW_RAM_END), (HIGH_RAM, 1 << 30)]);
    }

    #[test]
    fn the_timer_is_on_pin_2() {
        assert_eq!((gsi(0), gsi(4), gsi(9)), (2, 4, 9));
    }
}
