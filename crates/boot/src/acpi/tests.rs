//! The tables' structure, and what ACPICA's own disassembler makes of them where it is installed.

use super::*;
use std::process::Command;

fn board() -> BoardDescription {
    BoardDescription {
        oem_id: *b"MIMEO ",
        oem_table_id: *b"TESTPC  ",
        apic_ids: vec![0, 1, 2, 300],
        local_apic: 0xfee0_0000,
        io_apics: vec![IoApic {
            id: 0,
            address: 0xfec0_0000,
            gsi_base: 0,
        }],
        overrides: vec![
            InterruptOverride {
                irq: 0,
                gsi: 2,
                level: false,
                active_low: false,
            },
            InterruptOverride {
                irq: 9,
                gsi: 9,
                level: true,
                active_low: false,
            },
        ],
        power: PowerRegisters {
            event: 0x600,
            control: 0x604,
            timer: 0x608,
            sci: 9,
            s5: 5,
        },
        reset: Some((0xcf9, 6)),
        keyboard_controller: true,
        vga: false,
        cmos_clock: true,
        serial: vec![SerialPort {
            port: 0x3f8,
            irq: 4,
        }],
        virtio_mmio: vec![VirtioMmio {
            base: 0xd000_0000,
            len: 0x1000,
            gsi: 16,
            level: true,
        }],
        pci: Some(PciRoot {
            ecam: 0xe000_0000,
            last_bus: 255,
            io: Some(0xc000..=0xffff),
            mmio32: 0xc000_0000..=0xcfff_ffff,
            mmio64: Some(0x10_0000_0000..=0x1f_ffff_ffff),
            interrupts: [20, 21, 22, 23],
        }),
    }
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

/// Follows the pointers as an operating system does, checking every sum, and gives the tables.
fn walk(t: &AcpiTables) -> Vec<(String, Vec<u8>)> {
    let sum = |b: &[u8]| b.iter().fold(0u8, |s, x| s.wrapping_add(*x));
    let at = |address: u64| {
        let b = &t.bytes[(address - t.base) as usize..];
        b[..word(b, 4) as usize].to_vec()
    };
    let rsdp = &t.bytes[..36];
    assert_eq!(
        (&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)),
        (&b"RSD PTR "[..], 0, 0)
    );
    let xsdt = at(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
    let mut found = Vec::new();
    let mut pointers: Vec<u64> = xsdt[36..]
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect();
    let fadt = at(pointers[0]);
    pointers.push(u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
    assert_eq!(word(&fadt, 40), *pointers.last().unwrap() as u32);
    assert_eq!(at(u64::from(word(&fadt, 36)))[..4], *b"FACS");
    for p in pointers {
        let table = at(p);
        assert_eq!(sum(&table), 0);
        found.push((String::from_utf8(table[..4].to_vec()).unwrap(), table));
    }
    assert_eq!(sum(&xsdt), 0);
    found
}

#[test]
fn every_table_is_found_and_sums_to_zero() {
    let tables = walk(&build(&board(), 0xe_0000));
    let names: Vec<_> = tables.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT"]);
    let fadt = &tables[0].1;
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 3));
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0, 6]);
    assert_eq!(word(fadt, 112), 0x565);
    let madt = &tables[1].1;
    let mut kinds = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        kinds.push(madt[at]);
        at += usize::from(madt[at + 1]);
    }
    assert_eq!((at, kinds), (madt.len(), vec![0, 0, 0, 9, 1, 2, 2, 4, 10]));
}

#[test]
fn install_puts_them_where_they_are_looked_for() {
    let mem = mimeo_memory::GuestMemory::ram(2 << 20).unwrap();
    let rsdp = install(&mem, &board()).unwrap();
    let mut b = [0; 8];
    mem.read(rsdp, &mut b).unwrap();
    assert_eq!((&b, rsdp % 16), (b"RSD PTR ", 0));
    let mut large = board();
    large.apic_ids = (0..20_000).collect();
    assert!(matches!(install(&mem, &large), Err(BootError::NoRoom(_))));
}

#[test]
fn acpica_reads_them_without_complaint() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("skipped: iasl (acpica-tools) is not installed");
        return;
    }
    let dir = std::env::temp_dir().join(format!("mimeo-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in walk(&build(&board(), 0xe_0000)) {
        let file = dir.join(format!("{name}.dat"));
        std::fs::write(&file, bytes).unwrap();
        let run = |args: &[&str], file: &std::path::Path| {
            let out = Command::new("iasl").args(args).arg(file).output().unwrap();
            let text = [out.stdout, out.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(out.status.success(), "{name}: {text}");
            text
        };
        let text = run(&["-d"], &file);
        for bad in ["Error", "Warning", "Invalid", "**** "] {
            assert!(!text.contains(bad), "{name}: {text}");
        }
        let source = file.with_extension("dsl");
        let dsl = std::fs::read_to_string(&source).unwrap();
        assert!(
            !dsl.contains("Incorrect") && !dsl.contains("Invalid"),
            "{dsl}"
        );
        let text = run(&["-we"], &source);
        assert!(text.contains("0 Errors, 0 Warnings"), "{name}: {text}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
