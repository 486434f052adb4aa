//! Loading, end to end, into small guest memories.

use crate::bzimage::tests::synthetic;
use crate::elf::tests::{note, synthetic as elf};
use crate::multiboot::tests::{flat_kernel, header};
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

fn modules() -> Vec<Module> {
    vec![
        Module::from_bytes("a", b"AAAAA".to_vec()).with_cmdline("x=1"),
        Module::from_bytes("b", b"BBB".to_vec()),
    ]
}

fn string(mem: &GuestMemory, gpa: u64) -> String {
    let bytes = bytes(mem, gpa, 64);
    let end = bytes.iter().position(|&b| b == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

#[test]
fn plain_elf_in_long_mode() {
    let (mem, s) = boot(4, elf(&[0x90; 100], &[]), vec![]).unwrap();
    assert!(s.code64());
    assert_eq!(s.rip, 0x10_0010);
    assert_eq!(bytes(&mem, 0x10_0000, 101)[99..], [0x90, 0]);
    let zero = s.reg(Gpr::Rdi);
    assert_eq!(zero, s.reg(Gpr::Rsi));
    assert_eq!(bytes(&mem, zero + 0x202, 4), b"HdrS");
}

#[test]
fn pvh_with_modules() {
    let pvh = note(b"Xen\0", 18, &0x10_0020u64.to_le_bytes());
    let (mem, s) = boot(4, elf(&[0x90; 100], &pvh), modules()).unwrap();
    assert!(!s.long_mode() && s.segment(mimeo_arch_x86::Seg::Cs).db());
    assert_eq!((s.rip, s.cr0.bits(), s.cr4.bits()), (0x10_0020, 0x11, 0));
    let info = s.reg(Gpr::Rbx);
    let field = |at| mem.read_u64(info + at).unwrap();
    assert_eq!((field(0), field(8) >> 32), (0x336e_c578 | 1 << 32, 2));
    assert_eq!(string(&mem, field(24)), "console=ttyS0 quiet");
    assert_eq!((field(32), field(48)), (0xe_0000, 4));
    assert_eq!(mem.read_u64(field(40) + 3 * 24), Some(0x10_0000));
    let list = field(16);
    let first = mem.read_u64(list).unwrap();
    assert_eq!((first % 4096, mem.read_u64(list + 8)), (0, Some(5)));
    assert!(first >= 0x10_00c8);
    assert_eq!(string(&mem, mem.read_u64(list + 16).unwrap()), "x=1");
    assert_eq!(bytes(&mem, mem.read_u64(list + 32).unwrap(), 3), b"BBB");
    // Linux gets one module.
    let linux = [pvh, note(b"Linux\0", 0x100, &[])].concat();
    let (mem, s) = boot(4, elf(&[0x90; 100], &linux), modules()).unwrap();
    let info = s.reg(Gpr::Rbx);
    assert_eq!(mem.read_u32(info + 12), Some(1));
    let list = mem.read_u64(info + 16).unwrap();
    assert_eq!(mem.read_u64(list + 8), Some(11));
}

#[test]
fn multiboot_with_modules() {
    let (mem, s) = boot(4, flat_kernel(), modules()).unwrap();
    assert_eq!((s.rip, s.reg(Gpr::Rax)), (0x10_0040, 0x2bad_b002));
    assert_eq!(bytes(&mem, 0x10_00ff, 2), [0x90, 0]);
    let info = s.reg(Gpr::Rbx);
    let field = |at| u64::from(mem.read_u32(info + at).unwrap());
    assert_eq!(field(0), 0x24d);
    assert_eq!((field(4), field(8)), (639, 3 << 10));
    assert_eq!(string(&mem, field(16)), "vmlinuz console=ttyS0 quiet");
    assert_eq!((field(20), field(44)), (2, 4 * 24));
    let module = |at| u64::from(mem.read_u32(field(24) + at).unwrap());
    assert_eq!((module(0), module(4)), (0x10_1000, 0x10_1005));
    assert_eq!(string(&mem, module(8)), "a x=1");
    assert_eq!(string(&mem, module(24)), "b");
    assert_eq!(mem.read_u32(field(48)), Some(20));
    assert_eq!(string(&mem, field(64)), "mimeo");
}

#[test]
fn multiboot_elf_and_multiboot_2() {
    let mut code = header(3, [0; 5]);
    code.resize(100, 0x90);
    let (_, s) = boot(4, elf(&code, &[]), vec![]).unwrap();
    assert_eq!(
        (s.rip, s.reg(Gpr::Rax), s.long_mode()),
        (0x10_0010, 0x2bad_b002, false)
    );
    let words = [0xe852_50d6u32, 0, 16, 0u32.wrapping_sub(0xe852_50e6)];
    let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let e = boot(4, elf(&code, &[]), vec![]).unwrap_err().to_string();
    assert!(e.contains("Multiboot 2"), "{e}");
}

#[test]
fn elf_where_no_ram_is() {
    let mut k = elf(&[0x90; 100], &[]);
    k[64 + 24..64 + 32].copy_from_slice(&0xa_0000u64.to_le_bytes());
    k[24..32].copy_from_slice(&0xa_0000u64.to_le_bytes());
    let e = boot(4, k.clone(), vec![]).unwrap_err().to_string();
    assert!(e.contains("0xa0000 to 0xa00c8"), "{e}");
    k[64 + 24..64 + 32].copy_from_slice(&0x800_0000u64.to_le_bytes());
    k[24..32].copy_from_slice(&0x800_0000u64.to_le_bytes());
    let e = boot(4, k, vec![]).unwrap_err().to_string();
    assert!(e.contains("-m 129M"), "{e}");
}

/// Whatever bytes are changed, loading ends with a state or an error.
#[test]
fn damaged_kernels_do_no_harm() {
    let pvh = note(b"Xen\0", 18, &0x10_0020u64.to_le_bytes());
    let seeds = [
        synthetic(1000),
        elf(&[0x90; 100], &pvh),
        elf(&[0x90; 100], &[]),
        flat_kernel(),
    ];
    let mem = GuestMemory::ram(20 << 20).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let (mut loaded, mut refused) = (0, 0);
    for i in 0..8000 {
        let mut k = seeds[i % seeds.len()].clone();
        for _ in 0..1 + next() % 4 {
            // Headers are at the beginning.
            let at = next() % k.len().min(0x300);
            let value = [0, 0xff, 0x80, 0x7f, 1, next() as u8][next() % 6];
            k[at] = value;
        }
        if next() % 8 == 0 {
            k.truncate(next() % k.len());
        }
        let result = Payload::from_bytes("k", k).and_then(|p| {
            let mut o = opts(&mem, "x");
            o.initrds = modules();
            load(&mem, &p, &o)
        });
        match result {
            Ok(_) => loaded += 1,
            Err(e) => {
                assert!(e.to_string().contains('k'), "{e}");
                refused += 1;
            }
        }
    }
    assert!(loaded > 100 && refused > 100, "{loaded} {refused}");
}
