//! The tables with a fixed layout: RSDP, XSDT, FADT, FACS, MADT, MCFG (ACPI 6.3, 5.2; PCI Firmware
//! Specification 3.3, 4.1.2 for MCFG).

use super::board::{BoardDescription, PciRoot};
use crate::fields::Table;

/// The sum of all bytes of a table is zero (5.2.6).
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |s, b| s.wrapping_sub(*b))
}

/// A table with the common header (table 5.29) and this body.
pub(super) fn table(
    board: &BoardDescription,
    name: &[u8; 4],
    revision: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut t = Table::zeroed(36);
    t.put(0, name);
    t.put_u32(4, 36 + body.len() as u32);
    t.put_u8(8, revision);
    t.put(10, &board.oem_id);
    t.put(16, &board.oem_table_id);
    t.put_u32(24, 1);
    t.put(28, b"MIME");
    t.put_u32(32, 1);
    t.put(36, body);
    let sum = checksum(&t.0);
    t.put_u8(9, sum);
    t.0
}

/// The root pointer, revision 2 (5.2.5.3).
pub(super) fn rsdp(board: &BoardDescription, xsdt: u64) -> Vec<u8> {
    let mut t = Table::zeroed(36);
    t.put(0, b"RSD PTR ");
    t.put(9, &board.oem_id);
    t.put_u8(15, 2);
    t.put_u32(20, 36);
    t.put_u64(24, xsdt);
    let first = checksum(&t.0[..20]);
    t.put_u8(8, first);
    let all = checksum(&t.0);
    t.put_u8(32, all);
    t.0
}

/// The list of tables (5.2.8).
pub(super) fn xsdt(board: &BoardDescription, tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|t| t.to_le_bytes()).collect();
    table(board, b"XSDT", 1, &body)
}

/// The firmware control structure (5.2.10): version 2, no S4BIOS.
pub(super) fn facs() -> Vec<u8> {
    let mut t = Table::zeroed(64);
    t.put(0, b"FACS");
    t.put_u32(4, 64);
    t.put_u8(32, 2);
    t.0
}

/// A generic address in I/O space (table 5.1): `bits` wide, accessed by `bits`.
fn io_address(port: u16, bits: u8) -> [u8; 12] {
    let access = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    let mut a = [0; 12];
    a[..4].copy_from_slice(&[1, bits, 0, access]);
    a[4..6].copy_from_slice(&port.to_le_bytes());
    a
}

/// The fixed description table (5.2.9), revision 6.3.
pub(super) fn fadt(board: &BoardDescription, facs: u32, dsdt: u64) -> Vec<u8> {
    // Offsets in table 5.33 less the header's 36.
    let mut t = Table::zeroed(276 - 36);
    let (at, p) = (|offset: usize| offset - 36, &board.power);
    t.put_u32(at(36), facs);
    t.put_u32(at(40), u32::try_from(dsdt).unwrap_or(0));
    t.put_u16(at(46), u16::from(p.sci));
    t.put_u32(at(56), u32::from(p.event));
    t.put_u32(at(64), u32::from(p.control));
    t.put_u32(at(76), u32::from(p.timer));
    t.put_u8(at(88), 4); // PM1_EVT_LEN
    t.put_u8(at(89), 2); // PM1_CNT_LEN
    t.put_u8(at(91), 4); // PM_TMR_LEN
    t.put_u16(at(96), 0xfff); // P_LVL2_LAT: above 100, so no C2
    t.put_u16(at(98), 0xfff); // P_LVL3_LAT: above 1000, so no C3
    if board.cmos_clock {
        t.put_u8(at(108), 0x32); // CENTURY
    }
    t.put_u16(at(109), boot_architecture(board));
    t.put_u32(at(112), fixed_features(board));
    if let Some((port, value)) = board.reset {
        t.put(at(116), &io_address(port, 8));
        t.put_u8(at(128), value);
    }
    t.put_u8(at(131), 3); // minor version
    t.put_u64(at(140), dsdt);
    t.put(at(148), &io_address(p.event, 32));
    t.put(at(172), &io_address(p.control, 16));
    t.put(at(208), &io_address(p.timer, 32));
    t.put(at(268), b"Mimeo\0\0\0"); // hypervisor vendor identity
    table(board, b"FACP", 6, &t.0)
}

/// IA-PC boot architecture flags (table 5.35).
fn boot_architecture(board: &BoardDescription) -> u16 {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_CLOCK: u16 = 1 << 5;
    let mut flags = 0;
    if !board.serial.is_empty() || board.keyboard_controller {
        flags |= LEGACY_DEVICES;
    }
    if board.keyboard_controller {
        flags |= KEYBOARD_CONTROLLER;
    }
    if !board.vga {
        flags |= NO_VGA;
    }
    if !board.cmos_clock {
        flags |= NO_CMOS_CLOCK;
    }
    flags
}

/// Fixed feature flags (table 5.34).
fn fixed_features(board: &BoardDescription) -> u32 {
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    /// No fixed sleep button.
    const SLP_BUTTON: u32 = 1 << 5;
    /// No fixed RTC wake-up.
    const FIX_RTC: u32 = 1 << 6;
    const TMR_VAL_EXT: u32 = 1 << 8;
    const RESET_REG_SUP: u32 = 1 << 10;
    let always = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | TMR_VAL_EXT;
    always
        | if board.reset.is_some() {
            RESET_REG_SUP
        } else {
            0
        }
}

/// The interrupt controllers (5.2.12), revision 5.
pub(super) fn madt(board: &BoardDescription) -> Vec<u8> {
    let mut b = Vec::new();
    b.extend(board.local_apic.to_le_bytes());
    b.extend(1u32.to_le_bytes()); // PCAT_COMPAT: a pair of 8259 as well
    let mut x2apic = false;
    for (uid, &id) in board.apic_ids.iter().enumerate() {
        // xAPIC entries have eight bits and 255 means all (5.2.12.2, 5.2.12.12).
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id)) if id != 255 && uid != 255 => b.extend([0, 8, uid, id, 1, 0, 0, 0]),
            _ => {
                x2apic = true;
                b.extend([9, 16, 0, 0]);
                b.extend([id, 1, uid as u32].into_iter().flat_map(u32::to_le_bytes));
            }
        }
    }
    for a in &board.io_apics {
        b.extend([1, 12, a.id, 0]);
        b.extend(a.address.to_le_bytes());
        b.extend(a.gsi_base.to_le_bytes());
    }
    for o in &board.overrides {
        let polarity = if o.active_low { 3 } else { 1 };
        let trigger = if o.level { 3 } else { 1 };
        b.extend([2, 10, 0, o.irq]);
        b.extend(o.gsi.to_le_bytes());
        b.extend([polarity | trigger << 2, 0]);
    }
    // NMI at LINT1 of every processor (5.2.12.7, 5.2.12.13).
    b.extend([4, 6, 0xff, 0, 0, 1]);
    if x2apic {
        b.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table(board, b"APIC", 5, &b)
}

/// PCI Express configuration space.
pub(super) fn mcfg(board: &BoardDescription, pci: &PciRoot) -> Vec<u8> {
    let mut t = Table::zeroed(24);
    t.put_u64(8, u64::from(pci.ecam));
    t.put_u8(19, pci.last_bus);
    table(board, b"MCFG", 1, &t.0)
}
