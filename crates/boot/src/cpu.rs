//! The boot processor's registers at a kernel's entry, and the tables they point to.

use crate::memory_map::Placer;
use crate::{BootError, fields::Table};
use mimeo_arch_x86::state::Msrs;
use mimeo_arch_x86::{Cr0, Cr4, DescriptorTable, Efer, Gpr, RFlags, Seg, Segment, X86State};
use mimeo_memory::GuestMemory;
use std::ops::Range;

/// Where the loader's tables go: base memory without the BIOS's first page.
pub(crate) const LOW: Range<u64> = 0x1000..0xa_0000;

/// The code and data selectors that Linux's boot protocol names (`__BOOT_CS`, `__BOOT_DS`:
/// Documentation/arch/x86/boot.rst, "32-bit" and "64-bit boot protocol").
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// A task state segment, which PVH wants loaded.
const TASK: u16 = 0x20;

/// Flat 64-bit code: present, DPL 0, code readable accessed, L, G.
const ATTR_CODE64: u32 = 0xa09b;
/// Flat 32-bit code: as above with D instead of L.
const ATTR_CODE32: u32 = 0xc09b;
/// Flat data: present, DPL 0, writable accessed, B, G.
const ATTR_DATA: u32 = 0xc093;
/// A busy 32-bit (in long mode: 64-bit) TSS.
const ATTR_TSS: u32 = 0x008b;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;

/// A descriptor (SDM vol. 3, 3.4.5) with base 0 of the given attributes as in [`Segment::attr`].
fn descriptor(attr: u32, limit: u32) -> u64 {
    let limit = if attr & 0x8000 != 0 {
        limit >> 12
    } else {
        limit
    };
    u64::from(limit & 0xffff)
        | u64::from(attr & 0xff) << 40
        | u64::from(limit >> 16 & 0xf) << 48
        | u64::from(attr >> 12 & 0xf) << 52
}

fn flat(selector: u16, attr: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr,
    }
}

/// Protected mode or long mode with flat segments, interrupts off, all other registers as after
/// RESET save the memory types, which are set as firmware leaves them ([`firmware_msrs`]).
fn flat_state(mem: &GuestMemory, at: &mut Placer, code: u32) -> Result<X86State, BootError> {
    let gdt = at
        .low(40, 16, LOW)
        .ok_or(BootError::NoRoom("a descriptor table"))?;
    let mut table = Table::zeroed(40);
    table.put_u64(usize::from(CODE), descriptor(code, u32::MAX));
    table.put_u64(usize::from(DATA), descriptor(ATTR_DATA, u32::MAX));
    table.put_u64(usize::from(TASK), descriptor(ATTR_TSS, 0x67));
    mem.write(gdt, &table.0)?;

    let mut s = X86State::reset(0);
    s.gpr = [0; 16];
    s.seg = [flat(DATA, ATTR_DATA); 6];
    s.seg[Seg::Cs as usize] = flat(CODE, code);
    s.tr = Segment {
        selector: TASK,
        base: 0,
        limit: 0x67,
        attr: ATTR_TSS,
    };
    s.gdtr = DescriptorTable {
        base: gdt,
        limit: 39,
    };
    s.idtr = DescriptorTable { base: 0, limit: 0 };
    s.cr0 = Cr0::PE | Cr0::ET;
    s.rflags = RFlags::FIXED1;
    firmware_msrs(&mut s.msr);
    Ok(s)
}

/// 32-bit protected mode, paging off.
pub(crate) fn protected_mode(
    mem: &GuestMemory,
    at: &mut Placer,
    entry: u32,
) -> Result<X86State, BootError> {
    let mut s = flat_state(mem, at, ATTR_CODE32)?;
    s.rip = u64::from(entry);
    Ok(s)
}

/// 64-bit mode, the first 4 GB identity-mapped with 2 MB pages, a stack of 4 KB.
pub(crate) fn long_mode(
    mem: &GuestMemory,
    at: &mut Placer,
    entry: u64,
) -> Result<X86State, BootError> {
    let tables = at
        .low(6 * 4096, 4096, LOW)
        .ok_or(BootError::NoRoom("page tables"))?;
    let stack = at
        .low(4096, 4096, LOW)
        .ok_or(BootError::NoRoom("a stack"))?;
    let (pdpt, pds) = (tables + 0x1000, tables + 0x2000);
    let mut t = Table::zeroed(6 * 4096);
    t.put_u64(0, pdpt | PAGE_PRESENT_WRITABLE);
    for i in 0..4u64 {
        let pd = pds + i * 4096;
        t.put_u64(0x1000 + i as usize * 8, pd | PAGE_PRESENT_WRITABLE);
    }
    for i in 0..2048u64 {
        let page = i << 21;
        t.put_u64(
            0x2000 + i as usize * 8,
            page | PAGE_LARGE | PAGE_PRESENT_WRITABLE,
        );
    }
    mem.write(tables, &t.0)?;

    let mut s = flat_state(mem, at, ATTR_CODE64)?;
    s.cr3 = tables;
    s.cr4 = Cr4::PAE;
    s.efer = Efer::LME | Efer::LMA;
    s.cr0 |= Cr0::PG;
    s.rip = entry;
    s.gpr[Gpr::Rsp as usize] = stack + 4096;
    Ok(s)
}

/// Sets the memory types as firmware leaves them: MTRRs on, write-back by default, video memory
/// (0xa0000 to 0xbffff) uncached (SDM vol. 3, 12.11). A board gives every processor the same.
pub fn firmware_msrs(msr: &mut Msrs) {
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    const ENABLED_FIXED_WRITE_BACK: u64 = 1 << 11 | 1 << 10 | 6;
    msr.mtrr_fixed = [WRITE_BACK; 11];
    // IA32_MTRR_FIX16K_A0000.
    msr.mtrr_fixed[2] = 0;
    msr.mtrr_def_type = ENABLED_FIXED_WRITE_BACK;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryMap;

    #[test]
    fn descriptors_are_the_protocols() {
        assert_eq!(descriptor(ATTR_CODE64, u32::MAX), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(ATTR_CODE32, u32::MAX), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(ATTR_DATA, u32::MAX), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(ATTR_TSS, 0x67), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn long_mode_maps_four_gigabytes_one_to_one() {
        let mem = GuestMemory::ram(4 << 20).unwrap();
        let mut at = Placer::new(&MemoryMap::pc(&mem));
        let s = long_mode(&mem, &mut at, 0x10_0200).unwrap();
        assert!(s.code64());
        for address in [0u64, 0x20_0000, 0x7fff_ffff, 0xffff_ffff] {
            let pml4e = mem.read_u64(s.cr3).unwrap();
            let pdpte = mem
                .read_u64((pml4e & !0xfff) + (address >> 30) * 8)
                .unwrap();
            let pde = mem
                .read_u64((pdpte & !0xfff) + (address >> 21 & 0x1ff) * 8)
                .unwrap();
            assert_eq!(pde & 0x83, 0x83);
            assert_eq!(pde & !0x1f_ffff, address & !0x1f_ffff);
        }
        assert_eq!(
            mem.read_u64(s.gdtr.base + 0x10),
            Some(0x00af_9b00_0000_ffff)
        );
    }
}
