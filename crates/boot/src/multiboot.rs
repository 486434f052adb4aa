//! Multiboot 1 kernels (Multiboot Specification 0.6.96): ELF files and images with the address
//! fields of the "a.out kludge", modules, command line and memory map.
//!
//! Not done: the video mode request (flag 2 is ignored: there is no screen, and the information
//! says so by not having its flag), symbol tables, drives, APM, and Multiboot 2.

use crate::elf::Elf;
use crate::fields::{Table, u32_at};
use crate::memory_map::Placer;
use crate::{BootError, BootOptions, Rejection, cpu, parts};
use mimeo_arch_x86::{Gpr, X86State};
use mimeo_memory::GuestMemory;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const HEADER2_MAGIC: u32 = 0xe852_50d6;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header lies in the first 8192 bytes (3.1).
const SEARCH: usize = 8192;
const ADDRESSES_VALID: u32 = 1 << 16;
/// Requirements that we know: page-aligned modules, memory information, video mode (3.1.2).
const KNOWN: u32 = 0b111;
const INFO_LEN: usize = 88;
/// Sanity bound on modules, so that their list fits base memory.
const MAX_MODULES: usize = 1024;

/// How the kernel is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// By its ELF headers.
    Elf(Elf),
    /// By the Multiboot header's address fields.
    Flat(Flat),
}

/// An image described by address fields (3.1.3), checked against the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flat {
    offset: usize,
    len: usize,
    load: u32,
    end: u32,
    entry: u32,
}

/// A Multiboot kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Multiboot {
    layout: Layout,
}

/// The offset of the header: aligned to four, magic, flags and checksum adding up to zero (3.1.1).
pub(crate) fn find_header(data: &[u8]) -> Option<usize> {
    (0..SEARCH.min(data.len())).step_by(4).find(|&at| {
        let [magic, flags, sum] = [0, 4, 8].map(|o| u32_at(data, at + o).unwrap_or(0));
        magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(sum) == 0
    })
}

/// Whether there is a Multiboot 2 header (aligned to eight, in the first 32 KB, summing to zero).
pub(crate) fn has_header2(data: &[u8]) -> bool {
    (0..data.len().min(32768)).step_by(8).any(|at| {
        let words = [0, 4, 8, 12].map(|o| u32_at(data, at + o).unwrap_or(0));
        words[0] == HEADER2_MAGIC && words.iter().fold(0u32, |s, w| s.wrapping_add(*w)) == 0
    })
}

/// Reads the header at `at`; `elf` is the file's ELF reading, if it is one.
///
/// # Errors
/// [`Rejection`] for requirements that are not met and for address fields that make no sense.
pub(crate) fn parse(
    data: &[u8],
    at: usize,
    elf: Option<Result<Elf, Rejection>>,
) -> Result<Multiboot, Rejection> {
    let field = |i: usize| {
        u32_at(data, at + i * 4).ok_or(Rejection::Truncated {
            what: "Multiboot header",
            needed: at as u64 + 32,
            have: data.len() as u64,
        })
    };
    let flags = field(1)?;
    if flags & 0xffff & !KNOWN != 0 {
        return Err(Rejection::Unsupported {
            what: format!("its Multiboot header requires unknown features ({flags:#x})"),
            remedy: "build it for Multiboot 0.6.96",
        });
    }
    let layout = if flags & ADDRESSES_VALID != 0 {
        let fields = [field(3)?, field(4)?, field(5)?, field(6)?, field(7)?];
        Layout::Flat(flat(data.len(), at, fields)?)
    } else {
        match elf {
            Some(elf) => Layout::Elf(elf?),
            None => {
                return Err(Rejection::Unsupported {
                    what: "its Multiboot header has no addresses and it is no ELF file".into(),
                    remedy: "link it as ELF or set bit 16 of the header's flags",
                });
            }
        }
    };
    Ok(Multiboot { layout })
}

/// Checks header_addr, load_addr, load_end_addr, bss_end_addr and entry_addr.
fn flat(
    file_len: usize,
    header: usize,
    [header_addr, load, load_end, bss_end, entry]: [u32; 5],
) -> Result<Flat, Rejection> {
    let bad =
        || Rejection::Malformed("its Multiboot header's addresses contradict each other".into());
    let before = header_addr.checked_sub(load).ok_or_else(bad)?;
    let offset = header.checked_sub(before as usize).ok_or_else(bad)?;
    let len = match load_end {
        0 => file_len - offset,
        end => end.checked_sub(load).ok_or_else(bad)? as usize,
    };
    let needed = offset as u64 + len as u64;
    if needed > file_len as u64 {
        let have = file_len as u64;
        return Err(Rejection::Truncated {
            what: "kernel",
            needed,
            have,
        });
    }
    let loaded = u32::try_from(len)
        .ok()
        .and_then(|l| load.checked_add(l))
        .ok_or_else(bad)?;
    let end = if bss_end == 0 { loaded } else { bss_end };
    if end < loaded || !(load..end).contains(&entry) {
        return Err(bad());
    }
    Ok(Flat {
        offset,
        len,
        load,
        end,
        entry,
    })
}

impl Multiboot {
    /// Loads the kernel, its modules and the information structure; EAX and EBX as 3.2 wants them.
    pub(crate) fn load(
        &self,
        mem: &GuestMemory,
        name: &str,
        data: &[u8],
        opts: &BootOptions,
    ) -> Result<X86State, BootError> {
        let mut at = Placer::new(&opts.memory_map);
        let (entry, end) = match &self.layout {
            Layout::Elf(elf) => {
                elf.place(mem, &mut at, name, data, opts)?;
                (elf_entry(elf, name)?, elf.end())
            }
            Layout::Flat(f) => {
                let len = u64::from(f.end - f.load);
                if !at.claim(u64::from(f.load), len) {
                    return Err(opts.too_small(name, f.load.into(), f.end.into()));
                }
                let code = data.get(f.offset..f.offset + f.len).unwrap_or_default();
                mem.write(f.load.into(), code)?;
                parts::put_zeros(mem, u64::from(f.load) + code.len() as u64, f.end.into())?;
                (f.entry, f.end.into())
            }
        };
        let info = put_info(mem, &mut at, name, end, opts)?;
        let mut s = cpu::protected_mode(mem, &mut at, entry)?;
        s.gpr[Gpr::Rax as usize] = LOADER_MAGIC;
        s.gpr[Gpr::Rbx as usize] = info;
        Ok(s)
    }
}

/// The entry is a 32-bit physical address, whatever the ELF file's class.
fn elf_entry(elf: &Elf, name: &str) -> Result<u32, BootError> {
    let entry = elf.physical_entry().and_then(|e| u32::try_from(e).ok());
    entry.ok_or_else(|| BootError::Payload {
        name: name.to_owned(),
        reason: Rejection::Malformed("its entry is in no segment below 4 GB".into()),
    })
}

/// The information structure (3.3): memory, command line, modules, memory map, loader's name.
fn put_info(
    mem: &GuestMemory,
    at: &mut Placer,
    name: &str,
    kernel_end: u64,
    opts: &BootOptions,
) -> Result<u64, BootError> {
    const MEMORY: u32 = 1 << 0;
    const CMDLINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MMAP: u32 = 1 << 6;
    const LOADER: u32 = 1 << 9;
    let map = &opts.memory_map;
    let mut t = Table::zeroed(INFO_LEN);
    t.put_u32(0, MEMORY | CMDLINE | MODULES | MMAP | LOADER);
    t.put_u32(4, (map.ram_below_1mb() >> 10).min(640) as u32);
    t.put_u32(8, (map.ram_above_1mb() >> 10).min(0xffff_ffff) as u32);
    // As QEMU has it, the command line begins with the kernel's file name.
    let cmdline = format!("{name} {}", opts.cmdline);
    t.put_u32(
        16,
        parts::put_string(mem, at, cmdline.trim_end().as_bytes())? as u32,
    );

    if opts.initrds.len() > MAX_MODULES {
        return Err(BootError::NoRoom("more than 1024 modules"));
    }
    let places = parts::put_modules(mem, at, kernel_end, opts)?;
    let mut list = Table::zeroed(0);
    for (i, (place, module)) in places.iter().zip(&opts.initrds).enumerate() {
        let text = parts::put_string(mem, at, module.string().as_bytes())?;
        list.put_u32(i * 16, place.start as u32);
        list.put_u32(i * 16 + 4, place.end as u32);
        list.put_u32(i * 16 + 8, text as u32);
        list.put_u32(i * 16 + 12, 0);
    }
    t.put_u32(20, places.len() as u32);
    t.put_u32(
        24,
        parts::put_table(mem, at, &list, "the module list")? as u32,
    );

    let mut mmap = Table::zeroed(0);
    for (i, r) in map.ranges().iter().enumerate() {
        mmap.put_u32(i * 24, 20); // size of the rest
        mmap.put_u64(i * 24 + 4, r.start);
        mmap.put_u64(i * 24 + 12, r.len);
        mmap.put_u32(i * 24 + 20, r.kind as u32);
    }
    t.put_u32(44, mmap.0.len() as u32);
    t.put_u32(
        48,
        parts::put_table(mem, at, &mmap, "the memory map")? as u32,
    );
    t.put_u32(64, parts::put_string(mem, at, b"mimeo")? as u32);
    parts::put_table(mem, at, &t, "the Multiboot information")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A Multiboot header with the given flags and address fields.
    pub(crate) fn header(flags: u32, addresses: [u32; 5]) -> Vec<u8> {
        let sum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let words = [HEADER_MAGIC, flags, sum].into_iter().chain(addresses);
        words.flat_map(u32::to_le_bytes).collect()
    }

    /// A flat kernel: 16 bytes, the header, code up to 256 bytes, 256 bytes of bss, at 1 MB.
    pub(crate) fn flat_kernel() -> Vec<u8> {
        let mut d = vec![0xcc; 16];
        d.extend(header(
            0x1_0003,
            [0x10_0010, 0x10_0000, 0, 0x10_0200, 0x10_0040],
        ));
        d.resize(256, 0x90);
        d
    }

    #[test]
    fn header_is_found_only_aligned_and_with_its_checksum() {
        let d = flat_kernel();
        assert_eq!(find_header(&d), Some(16));
        assert_eq!(find_header(&d[1..]), None);
        let mut bad = d.clone();
        bad[24] ^= 1;
        assert_eq!(find_header(&bad), None);
        let mut late = vec![0; SEARCH];
        late.extend(&d);
        assert_eq!(find_header(&late), None);
    }

    #[test]
    fn address_fields_are_checked() {
        let try_fields = |f: [u32; 5]| flat(256, 16, f);
        assert!(try_fields([0x10_0010, 0x10_0000, 0x10_0100, 0, 0x10_0000]).is_ok());
        for bad in [
            [0x10_0010, 0x10_0011, 0, 0, 0x10_0040], // loads after the header
            [0x10_0020, 0x10_0000, 0, 0, 0x10_0040], // begins before the file
            [0x10_0010, 0x10_0000, 0x10_0000 - 1, 0, 0x10_0040],
            [0x10_0010, 0x10_0000, 0, 0x10_0080, 0x10_0040], // bss ends before the data
            [0x10_0010, 0x10_0000, 0, 0, 0x10_0100],         // entry outside
            [0xffff_fff0, 0xffff_ffe0, 0, 0, 0xffff_fff0],   // wraps
        ] {
            assert!(
                matches!(try_fields(bad), Err(Rejection::Malformed(_))),
                "{bad:x?}"
            );
        }
        let cut = try_fields([0x10_0010, 0x10_0000, 0x10_0101, 0, 0x10_0040]);
        assert!(matches!(cut, Err(Rejection::Truncated { .. })));
    }

    #[test]
    fn unknown_requirements_are_refused() {
        let d = header(0x8, [0; 5]);
        let e = parse(&d, 0, None).unwrap_err().to_string();
        assert!(e.contains("unknown features"), "{e}");
        let e = parse(&header(0x3, [0; 5]), 0, None)
            .unwrap_err()
            .to_string();
        assert!(e.contains("no ELF file"), "{e}");
    }
}
