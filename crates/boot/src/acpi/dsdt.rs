//! The differentiated system description table: what cannot be found by probing, in AML
//! (ACPI 6.3, 5.2.11.1, 6 and 20).

use super::board::{BoardDescription, PciRoot, SerialPort, VirtioMmio};
use super::tables::table;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package,
    PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

/// A part that has been encoded already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn encode(aml: &dyn Aml) -> Encoded {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

/// An ISA interrupt: edge, active high, not shared (IRQNoFlags; 6.4.2.1).
struct IsaInterrupt(u8);

impl Aml for IsaInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

fn name(path: &str, value: &dyn Aml) -> Encoded {
    encode(&Name::new(path.into(), value))
}

/// `Name (_CRS, ResourceTemplate () {...})`.
fn resources(list: Vec<&dyn Aml>) -> Encoded {
    name("_CRS", &ResourceTemplate::new(list))
}

/// A device `path` with the identifier `hid`, number `uid`, and these resources.
fn device(path: &str, hid: &dyn Aml, uid: u32, crs: Vec<&dyn Aml>) -> Encoded {
    let parts = [name("_HID", hid), name("_UID", &uid), resources(crs)];
    encode(&Device::new(
        path.into(),
        parts.iter().map(|p| p as &dyn Aml).collect(),
    ))
}

/// The whole table.
pub(super) fn dsdt(board: &BoardDescription) -> Vec<u8> {
    let mut devices = Vec::new();
    for (i, s) in (0u32..).zip(&board.serial) {
        devices.push(serial(i, s));
    }
    if board.cmos_clock {
        let ports = IO::new(0x70, 0x70, 0, 2);
        devices.push(device(
            "RTC_",
            &EISAName::new("PNP0B00"),
            0,
            vec![&ports, &IsaInterrupt(8)],
        ));
    }
    if board.keyboard_controller {
        let (data, command) = (IO::new(0x60, 0x60, 0, 1), IO::new(0x64, 0x64, 0, 1));
        let crs: Vec<&dyn Aml> = vec![&data, &command, &IsaInterrupt(1)];
        devices.push(device("KBD_", &EISAName::new("PNP0303"), 0, crs));
        devices.push(device(
            "MOU_",
            &EISAName::new("PNP0F13"),
            0,
            vec![&IsaInterrupt(12)],
        ));
    }
    for (i, v) in (0u32..).zip(&board.virtio_mmio) {
        devices.push(virtio_mmio(i, v));
    }
    if let Some(pci) = &board.pci {
        devices.push(pci_root(pci));
        devices.push(ecam(pci));
    }
    let children = devices.iter().map(|d| d as &dyn Aml).collect();
    let mut body = encode(&Scope::new("_SB_".into(), children)).0;
    // SLP_TYP for PM1a and PM1b control (7.4.2.6).
    let s5 = board.power.s5;
    body.extend(name("_S5_", &Package::new(vec![&s5, &s5, &ZERO, &ZERO])).0);
    table(board, b"DSDT", 2, &body)
}

fn serial(i: u32, s: &SerialPort) -> Encoded {
    let (ports, interrupt) = (IO::new(s.port, s.port, 0, 8), IsaInterrupt(s.irq));
    let crs: Vec<&dyn Aml> = vec![&ports, &interrupt];
    device(
        &format!("COM{:X}", (i + 1) & 0xf),
        &EISAName::new("PNP0501"),
        i,
        crs,
    )
}

fn virtio_mmio(i: u32, v: &VirtioMmio) -> Encoded {
    let registers = Memory32Fixed::new(true, v.base, v.len);
    let interrupt = Interrupt::new(true, !v.level, false, false, v.gsi);
    let crs: Vec<&dyn Aml> = vec![&registers, &interrupt];
    device(&format!("VR{:02X}", i & 0xff), &"LNRO0005", i, crs)
}

/// ECAM, reserved as a motherboard resource, which Linux insists on (PCI Firmware 3.3, 4.1.2).
fn ecam(pci: &PciRoot) -> Encoded {
    let len = (u32::from(pci.last_bus) + 1) << 20;
    let area = Memory32Fixed::new(true, pci.ecam, len);
    device("MCFG", &EISAName::new("PNP0C02"), 0, vec![&area])
}

fn pci_root(pci: &PciRoot) -> Encoded {
    let buses = AddressSpace::new_bus_number(0u16, u16::from(pci.last_bus));
    let memory = AddressSpaceCacheable::NotCacheable;
    let low = AddressSpace::new_memory(memory, true, *pci.mmio32.start(), *pci.mmio32.end(), None);
    let high = pci
        .mmio64
        .as_ref()
        .map(|r| AddressSpace::new_memory(memory, true, *r.start(), *r.end(), None));
    let io = pci
        .io
        .as_ref()
        .map(|r| AddressSpace::new_io(*r.start(), *r.end(), None));
    let mut crs: Vec<&dyn Aml> = vec![&buses];
    if let Some(io) = &io {
        crs.push(io);
    }
    crs.push(&low);
    if let Some(high) = &high {
        crs.push(high);
    }
    let parts = [
        name("_HID", &EISAName::new("PNP0A08")),
        name("_CID", &EISAName::new("PNP0A03")),
        name("_SEG", &ZERO),
        name("_BBN", &ZERO),
        name("_UID", &ZERO),
        resources(crs),
        routing(pci),
        osc(),
    ];
    encode(&Device::new(
        "PCI0".into(),
        parts.iter().map(|p| p as &dyn Aml).collect(),
    ))
}

/// `_PRT` (6.2.13): each pin of each device on bus 0, swizzled.
fn routing(pci: &PciRoot) -> Encoded {
    let mut rows = PackageBuilder::new();
    for device in 0..32u32 {
        for pin in 0..4u8 {
            let gsi = pci.interrupts[(device as usize + usize::from(pin)) % 4];
            let address = device << 16 | 0xffff;
            rows.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    name("_PRT", &rows)
}

/// `_OSC` (6.2.11; PCI Firmware 3.3, 4.5): grants the PCI Express capability structure only, since
/// there is no hot plug, error reporting or power management event to hand over.
fn osc() -> Encoded {
    const CAPABILITY_STRUCTURE: u32 = 1 << 4;
    const UNRECOGNISED_UUID: u32 = 1 << 2;
    const UNRECOGNISED_REVISION: u32 = 1 << 3;
    const CAPABILITIES_MASKED: u32 = 1 << 4;
    let path = |p: &str| Path::new(p);
    let (status, control) = (path("CDW1"), path("CDW3"));
    let set = |bits: u32| encode(&Or::new(&path("CDW1"), &path("CDW1"), &bits));
    let (bad_uuid, bad_revision, masked) = (
        set(UNRECOGNISED_UUID),
        set(UNRECOGNISED_REVISION),
        set(CAPABILITIES_MASKED),
    );
    let uuid = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    encode(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &uuid),
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &8u8),
                    &And::new(&Local(0), &control, &CAPABILITY_STRUCTURE),
                    &If::new(&NotEqual::new(&Arg(1), &ONE), vec![&bad_revision]),
                    &If::new(&NotEqual::new(&Local(0), &control), vec![&masked]),
                    &Store::new(&control, &Local(0)),
                ],
            ),
            &Else::new(vec![&bad_uuid]),
            &Return::new(&Arg(3)),
        ],
    ))
}
