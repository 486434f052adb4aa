//! Linux's boot protocols: the zero page, the command line, setup_data, and the two entries.
//!
//! Source: Documentation/arch/x86/{boot,zero-page}.rst. The zero page's other fields (video, APM,
//! EDD, EFI) stay zero: there is no such firmware. Everything that the kernel is handed stands in
//! RAM of the map; Linux reserves or copies it before it allocates.

use crate::bzimage::{self, BzImage};
use crate::fields::Table;
use crate::memory_map::Placer;
use crate::options::BootOptions;
use crate::parts::{self, Limits};
use crate::{BootError, cpu};
use mimeo_arch_x86::{Gpr, X86State};
use mimeo_memory::GuestMemory;

const PAGE: u64 = 4096;
const FOUR_GB: u64 = 1 << 32;
/// Entries of the E820 table in the zero page.
const E820_MAX: usize = 128;
/// A boot loader without a number of its own (boot.rst, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;
const SETUP_RNG_SEED: u32 = 9;

/// Those of a vmlinux, which carries no setup header: what every 64-bit kernel can do.
pub(crate) const VMLINUX: Limits = Limits {
    initrd_max: 0x7fff_ffff,
    above_4g: false,
    cmdline_max: 2047,
};

/// Loads a bzImage and its initial RAM disks.
pub(crate) fn load_bzimage(
    mem: &GuestMemory,
    name: &str,
    data: &[u8],
    kernel: &BzImage,
    opts: &BootOptions,
) -> Result<X86State, BootError> {
    let code = data.get(kernel.code.clone()).unwrap_or_default();
    let mut at = Placer::new(&opts.memory_map);
    let start = kernel.pref_address;
    let end = start.saturating_add(kernel.init_size);
    let fits = end <= FOUR_GB && code.len() as u64 <= kernel.init_size;
    if !fits || !at.claim(start, kernel.init_size) {
        return Err(opts.too_small(name, start, end));
    }
    mem.write(start, code)?;
    let limits = Limits {
        initrd_max: kernel.initrd_max,
        above_4g: kernel.above_4g,
        cmdline_max: kernel.cmdline_max,
    };
    let zero_page = zero_page(mem, &mut at, name, &kernel.header, &limits, opts)?;
    if kernel.entry64 {
        enter_64(mem, &mut at, start + 0x200, zero_page)
    } else {
        enter_32(mem, &mut at, start as u32, zero_page)
    }
}

/// The 64-bit entry: RSI points to the zero page (boot.rst, "64-bit boot protocol"). RDI has it
/// too, so that a kernel of one's own can take it as its first argument.
pub(crate) fn enter_64(
    mem: &GuestMemory,
    at: &mut Placer,
    entry: u64,
    zero_page: u64,
) -> Result<X86State, BootError> {
    let mut s = cpu::long_mode(mem, at, entry)?;
    s.gpr[Gpr::Rsi as usize] = zero_page;
    s.gpr[Gpr::Rdi as usize] = zero_page;
    Ok(s)
}

/// The 32-bit entry: ESI points to the zero page; EBX, EBP and EDI are zero.
pub(crate) fn enter_32(
    mem: &GuestMemory,
    at: &mut Placer,
    entry: u32,
    zero_page: u64,
) -> Result<X86State, BootError> {
    let mut s = cpu::protected_mode(mem, at, entry)?;
    s.gpr[Gpr::Rsi as usize] = zero_page;
    Ok(s)
}

/// Builds the zero page around a setup header (which may be empty), with everything it points to,
/// and gives its address.
pub(crate) fn zero_page(
    mem: &GuestMemory,
    at: &mut Placer,
    name: &str,
    header: &[u8],
    limits: &Limits,
    opts: &BootOptions,
) -> Result<u64, BootError> {
    let page = at
        .low(PAGE, PAGE, cpu::LOW)
        .ok_or(BootError::NoRoom("the zero page"))?;
    let mut t = Table::zeroed(PAGE as usize);
    t.put(bzimage::HEADER, header);
    if header.is_empty() {
        t.put(0x1fe, &[0x55, 0xaa]);
        t.put(0x202, b"HdrS");
        t.put_u16(0x206, 0x20c);
        t.put_u8(0x211, 1);
    }
    t.put_u16(0x1fa, 0xffff); // vid_mode: normal
    t.put_u8(0x210, LOADER_UNDEFINED);

    let cmdline = parts::put_cmdline(mem, at, name, limits.cmdline_max, opts)?;
    t.put_u32(0x228, cmdline as u32);
    if let Some(initrd) = parts::put_initrds(mem, at, limits, opts)? {
        let size = initrd.end - initrd.start;
        t.put_u32(0x218, initrd.start as u32);
        t.put_u32(0x21c, size as u32);
        t.put_u32(0x0c0, (initrd.start >> 32) as u32); // ext_ramdisk_image
        t.put_u32(0x0c4, (size >> 32) as u32); // ext_ramdisk_size
    }
    if let Some(seed) = opts.rng_seed {
        t.put_u64(0x250, put_seed(mem, at, &seed)?);
    }
    t.put_u64(0x070, opts.acpi_rsdp.unwrap_or(0));
    put_memory_map(&mut t, opts)?;
    mem.write(page, &t.0)?;
    Ok(page)
}

/// E820 and its two predecessors (zero-page.rst: 0x002, 0x1e0, 0x1e8, 0x2d0).
fn put_memory_map(t: &mut Table, opts: &BootOptions) -> Result<(), BootError> {
    let ranges = opts.memory_map.ranges();
    if ranges.len() > E820_MAX {
        return Err(BootError::NoRoom("more than 128 ranges"));
    }
    t.put_u8(0x1e8, ranges.len() as u8);
    for (i, r) in ranges.iter().enumerate() {
        let entry = 0x2d0 + i * 20;
        t.put_u64(entry, r.start);
        t.put_u64(entry + 8, r.len);
        t.put_u32(entry + 16, r.kind as u32);
    }
    let kb = opts.memory_map.ram_above_1mb() >> 10;
    t.put_u16(0x002, kb.min(0xffff) as u16);
    t.put_u32(0x1e0, kb.min(0xffff_ffff) as u32);
    Ok(())
}

/// A `setup_data` node with 32 random bytes for the kernel's generator.
fn put_seed(mem: &GuestMemory, at: &mut Placer, seed: &[u8; 32]) -> Result<u64, BootError> {
    let mut t = Table::zeroed(48);
    t.put_u32(8, SETUP_RNG_SEED);
    t.put_u32(12, 32);
    t.put(16, seed);
    let gpa = at
        .low(48, 16, cpu::LOW)
        .ok_or(BootError::NoRoom("setup_data"))?;
    mem.write(gpa, &t.0)?;
    Ok(gpa)
}
