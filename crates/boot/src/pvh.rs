//! The PVH entry: 32-bit protected mode, EBX points to a `hvm_start_info`.
//!
//! Source: Xen's docs/misc/pvh.pandoc ("x86/HVM direct boot ABI") and
//! public/arch-x86/hvm/start_info.h, version 1 (with memory map).

use crate::elf::Elf;
use crate::fields::Table;
use crate::memory_map::Placer;
use crate::{BootError, BootOptions, Rejection, cpu, linux, parts};
use mimeo_arch_x86::{Gpr, X86State};
use mimeo_memory::GuestMemory;

const MAGIC: u32 = 0x336e_c578;
const INFO_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const RANGE_LEN: usize = 24;

/// Loads an ELF kernel and enters it at its PVH note's address. Linux is given all initial RAM
/// disks joined into one module, since it looks at the first only; others get one module each.
pub(crate) fn load(
    mem: &GuestMemory,
    name: &str,
    data: &[u8],
    elf: &Elf,
    entry: u64,
    opts: &BootOptions,
) -> Result<X86State, BootError> {
    let Ok(entry) = u32::try_from(entry) else {
        let what = format!("its PVH entry {entry:#x} is above 4 GB");
        let remedy = "link it to physical addresses below 4 GB";
        let (name, reason) = (name.to_owned(), Rejection::Unsupported { what, remedy });
        return Err(BootError::Payload { name, reason });
    };
    let mut at = Placer::new(&opts.memory_map);
    elf.place(mem, &mut at, name, data, opts)?;
    let info = at.low(INFO_LEN as u64, 16, cpu::LOW);
    let info = info.ok_or(BootError::NoRoom("a start_info"))?;
    let mut t = Table::zeroed(INFO_LEN);
    t.put_u32(0, MAGIC);
    t.put_u32(4, 1);
    let modules = put_module_list(mem, &mut at, elf, opts)?;
    t.put_u32(12, modules.1);
    t.put_u64(16, modules.0);
    let max = linux::VMLINUX.cmdline_max;
    t.put_u64(24, parts::put_cmdline(mem, &mut at, name, max, opts)?);
    t.put_u64(32, opts.acpi_rsdp.unwrap_or(0));
    t.put_u64(40, put_memory_map(mem, &mut at, opts)?);
    t.put_u32(48, opts.memory_map.ranges().len() as u32);
    mem.write(info, &t.0)?;
    let mut s = cpu::protected_mode(mem, &mut at, entry)?;
    s.gpr[Gpr::Rbx as usize] = info;
    Ok(s)
}

/// The module list's address and length (0, 0 without modules).
fn put_module_list(
    mem: &GuestMemory,
    at: &mut Placer,
    elf: &Elf,
    opts: &BootOptions,
) -> Result<(u64, u32), BootError> {
    let mut list = Table::zeroed(0);
    if elf.linux {
        if let Some(r) = parts::put_initrds(mem, at, &linux::VMLINUX, opts)? {
            list.put_u64(0, r.start);
            list.put_u64(8, r.end - r.start);
            list.put_u64(16, 0);
            list.put_u64(24, 0);
        }
    } else {
        let places = parts::put_modules(mem, at, elf.end(), opts)?;
        for (i, (place, module)) in places.iter().zip(&opts.initrds).enumerate() {
            let text = match module.cmdline() {
                Some(c) => parts::put_string(mem, at, c.as_bytes())?,
                None => 0,
            };
            list.put_u64(i * MODULE_LEN, place.start);
            list.put_u64(i * MODULE_LEN + 8, place.end - place.start);
            list.put_u64(i * MODULE_LEN + 16, text);
            list.put_u64(i * MODULE_LEN + 24, 0);
        }
    }
    if list.0.is_empty() {
        return Ok((0, 0));
    }
    let gpa = parts::put_table(mem, at, &list, "the module list")?;
    Ok((gpa, (list.0.len() / MODULE_LEN) as u32))
}

fn put_memory_map(
    mem: &GuestMemory,
    at: &mut Placer,
    opts: &BootOptions,
) -> Result<u64, BootError> {
    let mut map = Table::zeroed(0);
    for (i, r) in opts.memory_map.ranges().iter().enumerate() {
        map.put_u64(i * RANGE_LEN, r.start);
        map.put_u64(i * RANGE_LEN + 8, r.len);
        map.put_u64(i * RANGE_LEN + 16, r.kind as u64);
    }
    parts::put_table(mem, at, &map, "the memory map")
}
