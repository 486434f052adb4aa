//! Loading, end to end, into small guest memories.

use crate::bzimage::tests::synthetic;
use crate::{BootError, BootOptions, MemoryMap, Module, Payload, Protocol, load};
use mimeo_arch_x86::{Gpr, X86State};
use mimeo_memory::GuestMemory;

fn opts(mem: &GuestMemory, cmdline: &str) -> BootOptions {
    BootOptions {
        cmdline: cmdline.into(),
        memory_map: MemoryMap::pc(mem),
        acpi_rsdp: Some(0xe_0000),
        rng_seed: Some([7; 32]),
        ..BootOptions::default()
    }
}

fn bytes(mem: &GuestMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut b = vec![0; len];
    mem.read(gpa, &mut b).unwrap();
    b
}

fn boot(
    mb: u64,
    kernel: Vec<u8>,
    initrds: Vec<Module>,
) -> Result<(GuestMemory, X86State), BootError> {
    let mem = GuestMemory::ram(mb << 20).unwrap();
    let mut o = opts(&mem, "console=ttyS0 quiet");
    o.initrds = initrds;
    let state = load(&mem, &Payload::from_bytes("vmlinuz", kernel)?, &o)?;
    Ok((mem, state))
}

#[test]
fn bzimage_with_two_initrds() {
    let initrds = vec![
        Module::from_bytes("a", b"AAAAA".to_vec()),
        Module::from_bytes("b", b"BBB".to_vec()),
    ];
    let (mem, s) = boot(64, synthetic(1000), initrds).unwrap();
    assert!(s.code64());
    assert_eq!(s.rip, 0x100_0200);
    let zero = s.reg(Gpr::Rsi);
    let field = |at| mem.read_u32(zero + at).unwrap();
    let cmdline = u64::from(field(0x228));
    assert_eq!(bytes(&mem, cmdline, 20), b"console=ttyS0 quiet\0");
    assert_eq!(field(0x21c), 11);
    let initrd = u64::from(field(0x218));
    assert_eq!(initrd, (64 << 20) - 4096);
    assert_eq!(bytes(&mem, initrd, 11), b"AAAAA\0\0\0BBB");
    assert_eq!(mem.read_u64(zero + 0x70), Some(0xe_0000));
    assert_eq!(bytes(&mem, zero + 0x1e8, 1), [4]);
    assert_eq!(mem.read_u64(zero + 0x2d0 + 3 * 20), Some(0x10_0000));
    let seed = mem.read_u64(zero + 0x250).unwrap();
    assert_eq!(mem.read_u64(seed + 8), Some(9 | 32 << 32));
    assert_eq!(bytes(&mem, seed + 16, 32), [7; 32]);
    assert_eq!(bytes(&mem, 0x100_0000, 1000), vec![0x90; 1000]);
    // The header came along, and the loader said who it is.
    assert_eq!(bytes(&mem, zero + 0x202, 4), b"HdrS");
    assert_eq!(bytes(&mem, zero + 0x210, 1), [0xff]);
}

#[test]
fn a_32_bit_bzimage_enters_in_protected_mode() {
    let mut k = synthetic(1000);
    k[0x236] = 0;
    let (mem, s) = boot(64, k, vec![]).unwrap();
    assert!(!s.long_mode());
    assert_eq!(s.rip, 0x100_0000);
    assert_eq!(mem.read_u32(s.reg(Gpr::Rsi) + 0x21c), Some(0));
}

#[test]
fn every_error_names_the_thing_and_the_remedy() {
    let say = |r: Result<(GuestMemory, X86State), BootError>| r.unwrap_err().to_string();
    let e = say(boot(8, synthetic(1000), vec![]));
    assert!(
        e.contains("vmlinuz needs at least 20 MB") && e.contains("-m 20M"),
        "{e}"
    );
    let big = || vec![Module::from_bytes("root.cpio", vec![0; 60 << 20])];
    let e = say(boot(64, synthetic(1000), big()));
    assert!(
        e.contains("root.cpio (60 MB)") && e.contains("-m 184M"),
        "{e}"
    );
    let e = say(boot(8, synthetic(1000), big()));
    assert!(e.contains("-m 80M"), "{e}");
    let e = say(boot(64, b"just text".to_vec(), vec![]));
    assert!(e.contains("vmlinuz is not a kernel but a text file"), "{e}");
    let mem = GuestMemory::ram(64 << 20).unwrap();
    let kernel = Payload::from_bytes("vmlinuz", synthetic(1000)).unwrap();
    let e = load(&mem, &kernel, &opts(&mem, &"x".repeat(2048))).unwrap_err();
    assert!(e.to_string().contains("2048 bytes"), "{e}");
    let e = load(&mem, &kernel, &opts(&mem, "a\0b")).unwrap_err();
    assert!(matches!(e, BootError::CommandLineNul));
    let mut o = opts(&mem, "");
    o.protocol = Some(Protocol::Pvh);
    let e = load(&mem, &kernel, &o).unwrap_err().to_string();
    assert!(e.contains("no PVH entry"), "{e}");
    let e = Payload::open("/nonexistent/vmlinuz".as_ref())
        .unwrap_err()
        .to_string();
    assert!(e.contains("/nonexistent/vmlinuz: No such file"), "{e}");
    let e = Payload::open("/".as_ref()).unwrap_err().to_string();
    assert!(e.contains("directory"), "{e}");
}

#[test]
fn a_file_is_copied_piecewise() {
    let path = std::env::temp_dir().join(format!("mimeo-boot-{}", std::process::id()));
    let contents: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    std::fs::write(&path, &contents).unwrap();
    let module = Module::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (mem, s) = boot(64, synthetic(1000), vec![module]).unwrap();
    let start = mem.read_u32(s.reg(Gpr::Rsi) + 0x218).unwrap();
    assert!(bytes(&mem, u64::from(start), contents.len()) == contents);
}
