//! ELF kernels: segments, notes, and the file's own entry.
//!
//! Source: System V gABI 4.3 (ELF header, program headers, notes); Xen's public/elfnote.h
//! (XEN_ELFNOTE_PHYS32_ENTRY). Not done: relocatable objects, dynamic linking, section headers.

use crate::fields::{u8_at, u16_at, u32_at, u64_at};
use crate::memory_map::{MemoryMap, Placer};
use crate::options::BootOptions;
use crate::{BootError, RangeKind, Rejection, linux, parts, recognise};
use mimeo_arch_x86::X86State;
use mimeo_memory::GuestMemory;

const EM_386: u16 = 3;
const EM_486: u16 = 6;
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// More loadable segments than any kernel has.
const MAX_SEGMENTS: usize = 256;
const NT_GNU_ABI_TAG: u32 = 1;
const XEN_GUEST_OS: u32 = 6;
const XEN_PHYS32_ENTRY: u32 = 18;

/// A loadable segment, checked to lie inside the file and the address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    offset: usize,
    file_len: usize,
    pub(crate) vaddr: u64,
    pub(crate) paddr: u64,
    pub(crate) mem_len: u64,
}

/// What the loader needs of an ELF file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Elf {
    /// ELFCLASS64 (and so, for a plain entry, long mode).
    pub class64: bool,
    /// `e_entry`, as it stands in the file.
    pub(crate) entry: u64,
    pub(crate) segments: Vec<Segment>,
    /// The PVH entry, if a note gives one.
    pub pvh_entry: Option<u64>,
    /// A note says that this is Linux.
    pub linux: bool,
    /// A note or segment says that this is a program, not a kernel.
    program: bool,
}

pub(crate) fn is_elf(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}

/// Reads the headers.
///
/// # Errors
/// [`Rejection`] for another processor's file, one that is cut off, or nothing to load.
pub(crate) fn parse(data: &[u8]) -> Result<Elf, Rejection> {
    let have = data.len() as u64;
    let short = |what, needed| Rejection::Truncated { what, needed, have };
    let header = || short("ELF header", 64);
    let class64 = match u8_at(data, 4).ok_or_else(header)? {
        1 => false,
        2 => true,
        n => return Err(Rejection::Malformed(format!("its ELF class is {n}"))),
    };
    let big_endian = u8_at(data, 5).ok_or_else(header)? == 2;
    let machine = u16_at(data, 18).ok_or_else(header)?;
    if big_endian {
        return Err(Rejection::OtherArchitecture(recognise::machine_name(
            machine.swap_bytes(),
        )));
    }
    if !matches!(machine, EM_386 | EM_486 | EM_X86_64) {
        return Err(Rejection::OtherArchitecture(recognise::machine_name(
            machine,
        )));
    }
    check_type(u16_at(data, 16).ok_or_else(header)?)?;
    let word = |at32, at64| {
        let value = if class64 {
            u64_at(data, at64)
        } else {
            u32_at(data, at32).map(u64::from)
        };
        value.ok_or_else(header)
    };
    let half = |at32, at64| u16_at(data, if class64 { at64 } else { at32 }).ok_or_else(header);
    let (entry, table) = (word(24, 24)?, word(28, 32)?);
    let (entry_len, count) = (u64::from(half(42, 54)?), u64::from(half(44, 56)?));
    if count > 0 && entry_len < if class64 { 56 } else { 32 } {
        return Err(Rejection::Malformed(format!(
            "its program headers have {entry_len} bytes"
        )));
    }
    let table_end = table.saturating_add(entry_len * count);
    if table_end > have {
        return Err(short("program header table", table_end));
    }
    let mut elf = Elf {
        class64,
        entry,
        ..Elf::default()
    };
    for i in 0..count {
        // Inside the file by the check above.
        let at = (table + i * entry_len) as usize;
        read_program_header(data, at, &mut elf)?;
    }
    if elf.program {
        return Err(Rejection::NotAKernel {
            what: "a program for an operating system",
            remedy: "give --kernel a bzImage, an ELF vmlinux or a Multiboot kernel",
        });
    }
    if elf.segments.is_empty() {
        return Err(Rejection::Malformed(
            "it is an ELF file with nothing to load".into(),
        ));
    }
    Ok(elf)
}

fn check_type(kind: u16) -> Result<(), Rejection> {
    let what = match kind {
        ET_EXEC | ET_DYN => return Ok(()),
        1 => "an object file or kernel module",
        4 => "a core dump",
        _ => "an ELF file of an unknown type",
    };
    let remedy = "give --kernel a linked kernel";
    Err(Rejection::NotAKernel { what, remedy })
}

fn read_program_header(data: &[u8], at: usize, elf: &mut Elf) -> Result<(), Rejection> {
    let have = data.len() as u64;
    let end = || Rejection::Truncated {
        what: "program header table",
        needed: at as u64 + 56,
        have,
    };
    let kind = u32_at(data, at).ok_or_else(end)?;
    // (offset, vaddr, paddr, filesz, memsz): gABI, "Program Header".
    let fields = if elf.class64 {
        [8, 16, 24, 32, 40].map(|o| u64_at(data, at + o))
    } else {
        [4, 8, 12, 16, 20].map(|o| u32_at(data, at + o).map(u64::from))
    };
    let [
        Some(offset),
        Some(vaddr),
        Some(paddr),
        Some(file_len),
        Some(mem_len),
    ] = fields
    else {
        return Err(end());
    };
    if !matches!(kind, PT_LOAD | PT_INTERP | PT_NOTE) {
        return Ok(());
    }
    let needed = offset.saturating_add(file_len);
    if needed > have {
        return Err(Rejection::Truncated {
            what: "segments",
            needed,
            have,
        });
    }
    // Both are at most the file's length.
    let (offset, file_len) = (offset as usize, file_len as usize);
    match kind {
        PT_INTERP => elf.program = true,
        PT_NOTE => read_notes(&data[offset..offset + file_len], elf),
        _ if mem_len == 0 => {}
        _ => {
            let sane = mem_len >= file_len as u64 && paddr.checked_add(mem_len).is_some();
            if !sane || elf.segments.len() >= MAX_SEGMENTS {
                let at = format!("its segment at {paddr:#x} makes no sense");
                return Err(Rejection::Malformed(at));
            }
            elf.segments.push(Segment {
                offset,
                file_len,
                vaddr,
                paddr,
                mem_len,
            });
        }
    }
    Ok(())
}

/// Notes: name length, descriptor length, type, then both padded to four bytes (gABI, "Note
/// Section"). Damaged notes end the search; they are no reason to refuse a kernel.
fn read_notes(mut notes: &[u8], elf: &mut Elf) {
    while let (Some(name_len), Some(desc_len), Some(kind)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let name_end = 12usize.checked_add(name_len as usize);
        let Some(desc_start) = name_end.and_then(|e| e.checked_next_multiple_of(4)) else {
            return;
        };
        let desc_end = desc_start.checked_add(desc_len as usize);
        let (Some(name), Some(desc)) = (
            name_end.and_then(|e| notes.get(12..e)),
            desc_end.and_then(|e| notes.get(desc_start..e)),
        ) else {
            return;
        };
        match (name, kind) {
            (b"Xen\0", XEN_PHYS32_ENTRY) => {
                elf.pvh_entry = u64_at(desc, 0).or_else(|| u32_at(desc, 0).map(u64::from));
            }
            (b"Xen\0", XEN_GUEST_OS) => elf.linux |= desc == b"linux\0",
            (b"Linux\0", _) => elf.linux = true,
            (b"GNU\0", NT_GNU_ABI_TAG) => elf.program = true,
            _ => {}
        }
        let next = desc_start.saturating_add(desc.len().next_multiple_of(4));
        notes = notes.get(next..).unwrap_or_default();
    }
}

impl Elf {
    /// Where the entry is in physical memory: the address as it stands when it lies in a segment's
    /// physical range, else the segment's whose virtual range holds it.
    pub(crate) fn physical_entry(&self) -> Option<u64> {
        let e = self.entry;
        let holds = |start: u64, s: &Segment| e >= start && e - start < s.mem_len;
        let direct = self.segments.iter().any(|s| holds(s.paddr, s)).then_some(e);
        direct.or_else(|| {
            let s = self.segments.iter().find(|s| holds(s.vaddr, s))?;
            Some(s.paddr + (e - s.vaddr))
        })
    }

    /// One past the highest physical address of any segment.
    pub(crate) fn end(&self) -> u64 {
        let ends = self.segments.iter().map(|s| s.paddr + s.mem_len);
        ends.max().unwrap_or(0)
    }

    /// Copies the segments to their physical addresses, zeroes the rest of each, and takes the
    /// memory.
    pub(crate) fn place(
        &self,
        mem: &GuestMemory,
        at: &mut Placer,
        name: &str,
        data: &[u8],
        opts: &BootOptions,
    ) -> Result<(), BootError> {
        // Segments may share pages or even overlap: claim their union.
        let mut union = MemoryMap::new();
        for s in &self.segments {
            union.set(s.paddr, s.mem_len, RangeKind::Ram);
        }
        for r in union.ranges() {
            if !at.claim(r.start, r.len) {
                return Err(opts.too_small(name, r.start, r.start + r.len));
            }
        }
        for s in &self.segments {
            let bytes = data
                .get(s.offset..s.offset + s.file_len)
                .unwrap_or_default();
            mem.write(s.paddr, bytes)?;
            parts::put_zeros(mem, s.paddr + bytes.len() as u64, s.paddr + s.mem_len)?;
        }
        Ok(())
    }

    /// Starts the file at its own entry. 64-bit files: long mode with the first 4 GB mapped one to
    /// one; 32-bit files: flat protected mode. RSI and RDI (ESI) point to Linux's zero page, which
    /// makes this the boot protocol of a vmlinux and does no other kernel harm.
    pub(crate) fn load_plain(
        &self,
        mem: &GuestMemory,
        name: &str,
        data: &[u8],
        opts: &BootOptions,
    ) -> Result<X86State, BootError> {
        let entry = self.physical_entry().and_then(|e| u32::try_from(e).ok());
        let entry = entry.ok_or_else(|| BootError::Payload {
            name: name.to_owned(),
            reason: Rejection::Unsupported {
                what: format!("its entry {:#x} is in no segment below 4 GB", self.entry),
                remedy: "link it to physical addresses below 4 GB",
            },
        })?;
        let mut at = Placer::new(&opts.memory_map);
        self.place(mem, &mut at, name, data, opts)?;
        let zero_page = linux::zero_page(mem, &mut at, name, &[], &linux::VMLINUX, opts)?;
        if self.class64 {
            linux::enter_64(mem, &mut at, u64::from(entry), zero_page)
        } else {
            linux::enter_32(mem, &mut at, entry, zero_page)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A 64-bit x86 ELF file: one segment of `code` at 0x10_0000 (virtual -2 GB + 1 MB), twice as
    /// long in memory, and one segment of notes.
    pub(crate) fn synthetic(code: &[u8], notes: &[u8]) -> Vec<u8> {
        let mut d = b"\x7fELF\x02\x01\x01".to_vec();
        d.resize(16, 0);
        d.extend(2u16.to_le_bytes());
        d.extend(62u16.to_le_bytes());
        d.extend(1u32.to_le_bytes());
        d.extend(0x10_0010u64.to_le_bytes()); // entry
        d.extend(64u64.to_le_bytes()); // phoff
        d.extend([0; 12]); // shoff, flags
        d.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let (start, len) = (176 + notes.len() as u64, code.len() as u64);
        for (kind, offset, addr, file, mem) in [
            (1u32, start, 0x10_0000u64, len, len * 2),
            (4, 176, 0, notes.len() as u64, notes.len() as u64),
        ] {
            d.extend(kind.to_le_bytes());
            d.extend(7u32.to_le_bytes());
            for v in [offset, addr.wrapping_sub(0x8000_0000), addr, file, mem, 4] {
                d.extend(v.to_le_bytes());
            }
        }
        d.extend(notes);
        d.extend(code);
        d
    }

    /// One note.
    pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut n = Vec::new();
        for v in [name.len() as u32, desc.len() as u32, kind] {
            n.extend(v.to_le_bytes());
        }
        n.extend(name);
        n.resize(n.len().next_multiple_of(4), 0);
        n.extend(desc);
        n.resize(n.len().next_multiple_of(4), 0);
        n
    }

    #[test]
    fn notes_and_segments() {
        let mut notes = note(b"GNU\0", 3, &[1; 20]);
        notes.extend(note(b"Linux\0", 0x100, &[]));
        notes.extend(note(b"Xen\0", 18, &0x10_0020u64.to_le_bytes()));
        let e = parse(&synthetic(&[0x90; 100], &notes)).unwrap();
        assert_eq!(
            (e.pvh_entry, e.linux, e.class64),
            (Some(0x10_0020), true, true)
        );
        assert_eq!((e.end(), e.physical_entry()), (0x10_00c8, Some(0x10_0010)));
        let program = note(b"GNU\0", 1, &[0; 16]);
        let e = parse(&synthetic(&[0x90; 100], &program)).unwrap_err();
        assert!(e.to_string().contains("a program for an operating system"));
        // A note that claims to be longer than its segment is passed over.
        let mut bad = note(b"Xen\0", 18, &[0; 8]);
        bad[4] = 0xff;
        assert_eq!(parse(&synthetic(&[0x90], &bad)).unwrap().pvh_entry, None);
    }

    #[test]
    fn a_virtual_entry_is_translated() {
        let mut d = synthetic(&[0x90; 100], &[]);
        d[24..32].copy_from_slice(&0xffff_ffff_8010_0004u64.to_le_bytes());
        assert_eq!(parse(&d).unwrap().physical_entry(), Some(0x10_0004));
        d[24..32].copy_from_slice(&0x1234u64.to_le_bytes());
        assert_eq!(parse(&d).unwrap().physical_entry(), None);
    }

    #[test]
    fn cut_anywhere_it_is_refused() {
        let whole = synthetic(&[0x90; 100], &note(b"Linux\0", 1, &[]));
        for len in 4..whole.len() {
            let e = parse(&whole[..len]).unwrap_err();
            assert!(matches!(e, Rejection::Truncated { .. }), "{len}: {e}");
        }
    }

    #[test]
    fn others_are_named() {
        let mut d = synthetic(&[0x90; 100], &[]);
        d[18] = 183;
        assert!(parse(&d).unwrap_err().to_string().contains("aarch64"));
        (d[5], d[18], d[19]) = (2, 0, 22);
        assert!(parse(&d).unwrap_err().to_string().contains("s390"));
        (d[5], d[18], d[19], d[16]) = (1, 62, 0, 1);
        assert!(parse(&d).unwrap_err().to_string().contains("object file"));
        d[16] = 2;
        d[64 + 24..64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(parse(&d), Err(Rejection::Malformed(_))));
    }
}
