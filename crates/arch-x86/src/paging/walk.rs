//! The walk.

use super::{Access, AccessKind, PagingContext, PagingMode, PfCode, Rights};

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const XD: u64 = 1 << 63;
/// Address bits of an 8-byte entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits 62:52, reserved with PAE paging and ignored (or a protection key) in long mode.
const PAE_RESERVED: u64 = 0x7ff0_0000_0000_0000;

/// Guest-physical memory as the walk sees it. All addresses are naturally aligned.
pub trait PhysMem {
    /// Reads four bytes; `None` where there is no RAM or ROM.
    fn read_u32(&self, gpa: u64) -> Option<u32>;
    /// Reads eight bytes in one access; `None` where there is no RAM or ROM.
    fn read_u64(&self, gpa: u64) -> Option<u64>;
    /// Replaces `old` by `new` atomically. `Some(false)`: another value was there; `None`: not RAM,
    /// nothing was written.
    fn cas_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool>;
    /// As [`Self::cas_u32`], eight bytes.
    fn cas_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool>;
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address of the byte asked for.
    pub gpa: u64,
    /// Log2 of the page's size: 12, 21, 22 (32-bit paging) or 30.
    pub page_shift: u8,
    /// The page's combined rights.
    pub rights: Rights,
    /// Protection key, 0 to 15 (0 outside long mode).
    pub pkey: u8,
    /// Index into IA32_PAT: PAT * 4 + PCD * 2 + PWT of the last entry (SDM vol. 3, 5.9.2).
    pub pat_index: u8,
}

/// One entry that a walk used, as it was read.
#[derive(Clone, Copy, Default)]
struct Used {
    gpa: u64,
    entry: u64,
}

/// A finished walk whose flags are not yet set.
struct Found {
    translation: Translation,
    used: [Used; 5],
    len: usize,
}

/// Walks the tables for `access` to `linear`, sets the accessed flags and, for a write, the dirty
/// flag.
///
/// `linear` is canonical in long mode (the caller has checked); elsewhere its upper half is ignored.
///
/// # Errors
/// The error code of the page fault that the access raises.
#[inline]
pub fn walk<M: PhysMem>(
    mem: &M,
    context: &PagingContext,
    linear: u64,
    access: Access,
) -> Result<Translation, PfCode> {
    // Each restart means that another CPU's store to an entry succeeded, so somebody makes progress.
    loop {
        let mut found = find(mem, context, linear).map_err(|e| access.code(context) | e)?;
        let t = &mut found.translation;
        context.check(t.rights, t.pkey, access)?;
        if access.kind == AccessKind::Write {
            t.rights |= Rights::DIRTY;
        }
        if set_flags(mem, context, &found, access.kind == AccessKind::Write) {
            return Ok(found.translation);
        }
    }
}

/// Walks the tables without checking rights and without setting flags: for debuggers and for
/// looking ahead. `None`: not mapped.
#[must_use]
pub fn probe<M: PhysMem>(mem: &M, context: &PagingContext, linear: u64) -> Option<Translation> {
    find(mem, context, linear).ok().map(|f| f.translation)
}

/// Reads and checks the four PDPTEs of PAE paging, as MOV to CR3 does (SDM vol. 3, 5.4.1).
///
/// `None`: a present one has a reserved bit set, and the load raises #GP(0).
#[must_use]
pub fn load_pdptes<M: PhysMem>(mem: &M, cr3: u64, physical_bits: u32) -> Option<[u64; 4]> {
    let reserved = 0x1e6 | PAE_RESERVED | XD | super::context::high_reserved(physical_bits);
    let mut pdptr = [0; 4];
    for (i, entry) in pdptr.iter_mut().enumerate() {
        *entry = mem
            .read_u64((cr3 & 0xffff_ffe0) + i as u64 * 8)
            .unwrap_or(u64::MAX);
        if *entry & P != 0 && *entry & reserved != 0 {
            return None;
        }
    }
    Some(pdptr)
}

#[inline]
fn find<M: PhysMem>(mem: &M, context: &PagingContext, linear: u64) -> Result<Found, PfCode> {
    match context.mode {
        PagingMode::None => Ok(identity(linear)),
        PagingMode::Bits32 => find_32(mem, context, linear & 0xffff_ffff),
        PagingMode::Pae => {
            let linear = linear & 0xffff_ffff;
            let pdpte = context.pdptr[(linear >> 30) as usize];
            if pdpte & P == 0 {
                return Err(PfCode::empty());
            }
            find_64(mem, context, linear, pdpte & ADDRESS, 2)
        }
        PagingMode::Level4 => find_64(mem, context, linear, context.cr3 & ADDRESS, 4),
        PagingMode::Level5 => find_64(mem, context, linear, context.cr3 & ADDRESS, 5),
    }
}

fn identity(linear: u64) -> Found {
    Found {
        translation: Translation {
            gpa: linear & 0xffff_ffff,
            page_shift: 12,
            rights: Rights::USER | Rights::WRITABLE | Rights::DIRTY,
            pkey: 0,
            pat_index: 0,
        },
        used: [Used::default(); 5],
        len: 0,
    }
}

/// 32-bit paging (SDM vol. 3, 5.3).
fn find_32<M: PhysMem>(mem: &M, context: &PagingContext, linear: u64) -> Result<Found, PfCode> {
    let mut used = [Used::default(); 5];
    let pde_gpa = (context.cr3 & 0xffff_f000) + (linear >> 22) * 4;
    let pde = u64::from(mem.read_u32(pde_gpa).unwrap_or(u32::MAX));
    used[0] = Used {
        gpa: pde_gpa,
        entry: pde,
    };
    if pde & P == 0 {
        return Err(PfCode::empty());
    }
    if pde & PS != 0 && context.pse {
        if pde & u64::from(context.pse_reserved) != 0 {
            return Err(PfCode::P | PfCode::RSVD);
        }
        let base = (pde & 0xffc0_0000) | ((pde >> 13) & 0xff) << 32;
        let translation = leaf(context, pde, base | (linear & 0x3f_ffff), 22, pde);
        return Ok(Found {
            translation,
            used,
            len: 1,
        });
    }
    let pte_gpa = (pde & 0xffff_f000) + ((linear >> 12) & 0x3ff) * 4;
    let pte = u64::from(mem.read_u32(pte_gpa).unwrap_or(u32::MAX));
    used[1] = Used {
        gpa: pte_gpa,
        entry: pte,
    };
    if pte & P == 0 {
        return Err(PfCode::empty());
    }
    let gpa = (pte & 0xffff_f000) | (linear & 0xfff);
    Ok(Found {
        translation: leaf(context, pte, gpa, 12, pde & pte),
        used,
        len: 2,
    })
}

/// PAE (two levels below the PDPTE registers), 4-level and 5-level paging (SDM vol. 3, 5.4, 5.5).
fn find_64<M: PhysMem>(
    mem: &M,
    context: &PagingContext,
    linear: u64,
    mut table: u64,
    levels: u32,
) -> Result<Found, PfCode> {
    let mut reserved = context.high_reserved;
    if levels == 2 {
        reserved |= PAE_RESERVED;
    }
    if !context.nxe {
        reserved |= XD;
    }
    let mut used = [Used::default(); 5];
    let mut len = 0;
    // R/W and U/S are combined by AND, XD by OR.
    let (mut all, mut any) = (u64::MAX, 0);
    let mut level = levels;
    loop {
        let shift = 12 + 9 * (level - 1);
        let gpa = table + ((linear >> shift) & 0x1ff) * 8;
        let entry = mem.read_u64(gpa).unwrap_or(u64::MAX);
        if entry & P == 0 {
            return Err(PfCode::empty());
        }
        used[len] = Used { gpa, entry };
        len += 1;
        let last = level == 1 || (entry & PS != 0 && level <= 3);
        let bad = reserved
            | match level {
                4 | 5 if context.top_bit8_reserved => PS | GLOBAL,
                4 | 5 => PS,
                3 if last && !context.gbpages => PS,
                2 | 3 if last => ((1 << shift) - 1) & !0x1fff,
                _ => 0,
            };
        if entry & bad != 0 {
            return Err(PfCode::P | PfCode::RSVD);
        }
        all &= entry;
        any |= entry;
        if last {
            let offset = (1u64 << shift) - 1;
            let gpa = (entry & ADDRESS & !offset) | (linear & offset);
            let combined = (all & !XD) | (any & XD);
            let mut translation = leaf(context, entry, gpa, shift as u8, combined);
            if levels > 2 {
                translation.pkey = ((entry >> 59) & 15) as u8;
            }
            return Ok(Found {
                translation,
                used,
                len,
            });
        }
        table = entry & ADDRESS;
        level -= 1;
    }
}

/// The translation that the last entry gives; `combined` holds the combined R/W, U/S and XD.
#[inline]
fn leaf(context: &PagingContext, entry: u64, gpa: u64, shift: u8, combined: u64) -> Translation {
    let mut rights = Rights::empty();
    rights.set(Rights::USER, combined & US != 0);
    rights.set(Rights::WRITABLE, combined & RW != 0);
    rights.set(Rights::NX, combined & XD != 0);
    rights.set(Rights::GLOBAL, entry & GLOBAL != 0 && context.pge);
    rights.set(Rights::DIRTY, entry & DIRTY != 0);
    let pat = (entry >> if shift == 12 { 7 } else { 12 }) & 1;
    Translation {
        gpa,
        page_shift: shift,
        rights,
        pkey: 0,
        pat_index: (pat << 2 | ((entry >> 3) & 3)) as u8,
    }
}

/// Sets accessed and dirty flags; `false` when an entry has changed since it was read.
#[inline]
fn set_flags<M: PhysMem>(mem: &M, context: &PagingContext, found: &Found, write: bool) -> bool {
    let narrow = context.mode == PagingMode::Bits32;
    for (i, used) in found.used[..found.len].iter().enumerate() {
        let last = i + 1 == found.len;
        let flags = ACCESSED | if last && write { DIRTY } else { 0 };
        if used.entry & flags == flags {
            continue;
        }
        let new = used.entry | flags;
        let done = if narrow {
            mem.cas_u32(used.gpa, used.entry as u32, new as u32)
        } else {
            mem.cas_u64(used.gpa, used.entry, new)
        };
        if done == Some(false) {
            return false;
        }
    }
    true
}
