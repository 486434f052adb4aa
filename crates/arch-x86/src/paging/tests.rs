//! The walk against hand-built tables: every mode, page size, right, reserved bit and flag.

use super::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const XD: u64 = 1 << 63;
const ALL: u64 = P | RW | US;
const CR3: u64 = 0x1000;

/// Sparse memory of eight-byte words; `race` changes a word just before a CAS of it, once.
#[derive(Default)]
struct Toy {
    words: RefCell<BTreeMap<u64, u64>>,
    race: Cell<Option<(u64, u64)>>,
    rom: bool,
}

impl Toy {
    fn with(entries: &[(u64, u64)]) -> Self {
        let toy = Self::default();
        entries.iter().for_each(|(a, v)| toy.set(*a, *v));
        toy
    }

    fn set(&self, gpa: u64, value: u64) {
        self.words.borrow_mut().insert(gpa, value);
    }

    fn set32(&self, gpa: u64, value: u32) {
        let old = self.read_u64(gpa & !7).unwrap();
        let shift = (gpa & 4) * 8;
        let new = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
        self.set(gpa & !7, new);
    }
}

impl PhysMem for Toy {
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        assert_eq!(gpa % 4, 0);
        Some((self.read_u64(gpa & !7)? >> ((gpa & 4) * 8)) as u32)
    }

    fn read_u64(&self, gpa: u64) -> Option<u64> {
        assert_eq!(gpa % 8, 0);
        (gpa < 1 << 40).then(|| self.words.borrow().get(&gpa).copied().unwrap_or(0))
    }

    fn cas_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool> {
        if let Some((_, value)) = self.race.take_if(|(a, _)| *a == gpa) {
            self.set32(gpa, value as u32);
        }
        let same = self.read_u32(gpa)? == old;
        if same && !self.rom {
            self.set32(gpa, new);
        }
        (!self.rom).then_some(same)
    }

    fn cas_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool> {
        if let Some((_, value)) = self.race.take_if(|(a, _)| *a == gpa) {
            self.set(gpa, value);
        }
        let same = self.read_u64(gpa)? == old;
        if same && !self.rom {
            self.set(gpa, new);
        }
        (!self.rom).then_some(same)
    }
}

trait TakeIf<T> {
    fn take_if(&self, f: impl Fn(&T) -> bool) -> Option<T>;
}

impl<T: Copy> TakeIf<T> for Cell<Option<T>> {
    fn take_if(&self, f: impl Fn(&T) -> bool) -> Option<T> {
        let value = self.get().filter(|v| f(v))?;
        self.set(None);
        Some(value)
    }
}

fn context(mode: PagingMode) -> PagingContext {
    PagingContext {
        mode,
        cr3: CR3,
        pdptr: [0; 4],
        high_reserved: super::context::high_reserved(46),
        pse_reserved: super::context::pse_reserved(46, true),
        wp: true,
        pse: true,
        pge: true,
        smep: false,
        smap: false,
        nxe: true,
        pke: false,
        pkru: 0,
        gbpages: true,
        top_bit8_reserved: false,
    }
}

fn access(kind: AccessKind, user: bool) -> Access {
    Access {
        kind,
        user,
        smap_override: false,
    }
}

const READ: Access = Access::implicit(AccessKind::Read);
const WRITE: Access = Access::implicit(AccessKind::Write);

/// A chain of tables at 0x1000, 0x2000, ... for `linear`, ending at level `last` with `leaf`.
fn chain(levels: u32, last: u32, linear: u64, leaf: u64) -> Toy {
    let toy = Toy::default();
    let mut table = CR3;
    for level in (last..=levels).rev() {
        let gpa = table + ((linear >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
        toy.set(
            gpa,
            if level == last {
                leaf
            } else {
                (table + 0x1000) | ALL
            },
        );
        table += 0x1000;
    }
    toy
}

#[test]
fn every_page_size_in_long_mode() {
    let linear = 0xffff_9234_5678_9abc;
    for (mode, levels) in [(PagingMode::Level4, 4), (PagingMode::Level5, 5)] {
        for (last, shift) in [(1, 12), (2, 21), (3, 30)] {
            let ps = if last == 1 { 0 } else { PS };
            let base = 0x0123_4000_0000u64;
            let toy = chain(levels, last, linear, base | ALL | ps | G);
            let t = walk(&toy, &context(mode), linear, WRITE).unwrap();
            assert_eq!(t.gpa, base | (linear & ((1 << shift) - 1)));
            assert_eq!(u32::from(t.page_shift), shift);
            let rights = Rights::USER | Rights::WRITABLE | Rights::GLOBAL | Rights::DIRTY;
            assert_eq!(t.rights, rights);
            // A in every entry, D in the last alone.
            let words = toy.words.borrow();
            assert_eq!(words.len() as u32, levels - last + 1);
            assert_eq!(words.values().filter(|v| *v & A != 0).count(), words.len());
            assert_eq!(words.values().filter(|v| *v & D != 0).count(), 1);
        }
    }
}

#[test]
fn pae_uses_the_registers() {
    let mut c = context(PagingMode::Pae);
    c.pdptr[3] = 0x2000 | P;
    let toy = Toy::with(&[(0x2000 + 0x1ff * 8, 0x8000_0000 | ALL | PS | XD)]);
    let t = walk(&toy, &c, 0xffff_ffff, READ).unwrap();
    assert_eq!((t.gpa, t.page_shift), (0x801f_ffff, 21));
    assert!(t.rights.contains(Rights::NX));
    // The upper half of the address is ignored.
    assert_eq!(walk(&toy, &c, 0xdead_0000_ffff_ffff, READ), Ok(t));
    // PDPTE not present; bits 62:52 are reserved below.
    assert_eq!(walk(&toy, &c, 0x4000_0000, READ), Err(PfCode::empty()));
    toy.set(0x2000 + 0x1ff * 8, 1 << 55 | ALL | PS);
    let reserved = PfCode::P | PfCode::RSVD;
    assert_eq!(walk(&toy, &c, 0xffff_ffff, READ), Err(reserved));
    let pdptes = |e: u64| load_pdptes(&Toy::with(&[(0x4008, e)]), 0x4000, 46);
    assert_eq!(pdptes(0x5019), Some([0, 0x5019, 0, 0]));
    for bad in [1u64 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 46, 1 << 55, XD] {
        assert_eq!(pdptes(0x5001 | bad), None, "{bad:#x}");
        assert_eq!(
            pdptes(bad),
            Some([0, bad, 0, 0]),
            "not present: not checked"
        );
    }
}

#[test]
fn legacy_32_bit() {
    let c = context(PagingMode::Bits32);
    let toy = Toy::default();
    toy.set32(CR3 + 4, 0x2000 | ALL as u32);
    toy.set32(0x2000 + 3 * 4, 0x7000 | (P | US | 0x98) as u32);
    let t = walk(&toy, &c, 0x0040_3456, READ).unwrap();
    assert_eq!((t.gpa, t.page_shift, t.pat_index), (0x7456, 12, 7));
    assert_eq!(t.rights, Rights::USER);
    assert_eq!(
        toy.read_u32(0x200c),
        Some(0x7000 | (P | US | A | 0x98) as u32)
    );
    // PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved.
    toy.set32(CR3 + 8, 0x0080_0000 | 0xab << 13 | (ALL | PS) as u32);
    let t = walk(&toy, &c, 0x00bf_ffff, WRITE).unwrap();
    assert_eq!((t.gpa, t.page_shift), (0xab_00bf_ffff, 22));
    toy.set32(CR3 + 8, 0x00a0_0000 | (ALL | PS) as u32);
    let reserved = PfCode::P | PfCode::RSVD;
    assert_eq!(walk(&toy, &c, 0x0080_0000, READ), Err(reserved));
    let narrow = PagingContext {
        pse_reserved: super::context::pse_reserved(36, true),
        ..c
    };
    toy.set32(CR3 + 8, 1 << 17 | (ALL | PS) as u32);
    assert_eq!(walk(&toy, &narrow, 0x0080_0000, READ), Err(reserved));
    // Without CR4.PSE the bit is ignored.
    let no_pse = PagingContext { pse: false, ..c };
    toy.set32(CR3 + 8, 0x2000 | (ALL | PS) as u32);
    assert_eq!(walk(&toy, &no_pse, 0x0080_3000, READ).unwrap().gpa, 0x7000);
}

#[test]
fn reserved_bits_of_every_level() {
    let linear = 0x1234_5678_9000;
    let err = |c: &PagingContext, last: u32, entry: u64| {
        walk(&chain(4, last, linear, entry), c, linear, READ).err()
    };
    let c = context(PagingMode::Level4);
    let reserved = Some(PfCode::P | PfCode::RSVD);
    for last in 1..=4 {
        assert_eq!(err(&c, last, ALL | 1 << 46), reserved, "level {last}");
        assert_eq!(err(&c, last, ALL | 1 << 51), reserved, "level {last}");
        let no_nx = PagingContext { nxe: false, ..c };
        assert_eq!(err(&no_nx, last, ALL | XD), reserved, "level {last}");
        // Not present: nothing else is looked at.
        assert_eq!(err(&c, last, 1 << 51 | RW), Some(PfCode::empty()));
    }
    assert_eq!(err(&c, 4, ALL | PS), reserved);
    assert_eq!(err(&c, 3, ALL | PS | 1 << 13), reserved);
    assert_eq!(err(&c, 3, ALL | PS | 1 << 29), reserved);
    assert_eq!(err(&c, 3, ALL | PS | 1 << 12), None, "the PAT bit");
    assert_eq!(err(&c, 2, ALL | PS | 1 << 20), reserved);
    assert_eq!(err(&c, 1, ALL | 1 << 52), None, "ignored bit");
    let no_1gb = PagingContext {
        gbpages: false,
        ..c
    };
    assert_eq!(err(&no_1gb, 3, ALL | PS), reserved);
    let amd = PagingContext {
        top_bit8_reserved: true,
        ..c
    };
    assert_eq!(err(&amd, 4, ALL | G), reserved);
    let empty = Some(PfCode::empty());
    assert_eq!(err(&c, 4, ALL | G | 0x8000), empty, "G is ignored above");
}

/// The rules of SDM vol. 3, 5.6.1 and 5.6.2 in their own words, for one page.
fn permitted(c: &PagingContext, user_page: bool, rw: bool, xd: bool, key: u32, a: Access) -> bool {
    let data = a.kind != AccessKind::Execute;
    let write = a.kind == AccessKind::Write;
    let ad = c.pke && user_page && data && c.pkru >> (2 * key) & 1 != 0;
    let wd = c.pke && user_page && write && c.pkru >> (2 * key + 1) & 1 != 0;
    if a.user {
        // User-mode accesses.
        return user_page && !ad && !wd && (!write || rw) && (data || !xd);
    }
    match (data, user_page) {
        (true, true) => {
            let smap = c.smap && !a.smap_override;
            !smap && !ad && (!write || !c.wp || (rw && !wd))
        }
        (true, false) => !write || !c.wp || rw,
        (false, true) => !c.smep && !xd,
        (false, false) => !xd,
    }
}

#[test]
fn all_rights_and_error_codes() {
    let linear = 0x7f00_0000_1000;
    let key = 5;
    for bits in 0..1u32 << 12 {
        let bit = |n: u32| bits >> n & 1 != 0;
        let (us, rw, xd) = (bit(0), bit(1), bit(2));
        let mut c = context(PagingMode::Level4);
        (c.wp, c.smep, c.smap, c.nxe, c.pke) = (bit(3), bit(4), bit(5), bit(6), bit(7));
        c.pkru = (bits >> 8 & 3) << (2 * key);
        if xd && !c.nxe {
            continue;
        }
        for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Execute] {
            let a = Access {
                kind,
                user: bit(10),
                smap_override: bit(11),
            };
            let mut leaf = 0x9000 | P | u64::from(key) << 59;
            for (on, flag) in [(us, US), (rw, RW), (xd, XD)] {
                leaf |= if on { flag } else { 0 };
            }
            let toy = chain(4, 1, linear, leaf);
            let got = walk(&toy, &c, linear, a);
            assert_eq!(
                got.is_ok(),
                permitted(&c, us, rw, xd, key, a),
                "{c:?} {a:?}"
            );
            let touched = toy.words.borrow().values().any(|v| v & (A | D) != 0);
            assert_eq!(touched, got.is_ok(), "a fault sets no flag");
            if let Err(code) = got {
                assert!(code.contains(PfCode::P) && !code.contains(PfCode::RSVD));
                assert_eq!(code.contains(PfCode::W), kind == AccessKind::Write);
                assert_eq!(code.contains(PfCode::U), a.user);
                let fetch = kind == AccessKind::Execute;
                assert_eq!(code.contains(PfCode::ID), fetch && (c.nxe || c.smep));
                let open = PagingContext { pkru: 0, ..c };
                let by_key = c.check(
                    Rights::USER | Rights::WRITABLE,
                    key as u8,
                    Access {
                        smap_override: true,
                        ..a
                    },
                );
                let key_alone = us
                    && by_key.is_err()
                    && open
                        .check(
                            Rights::USER | Rights::WRITABLE,
                            0,
                            Access {
                                smap_override: true,
                                ..a
                            },
                        )
                        .is_ok();
                assert_eq!(code.contains(PfCode::PK), key_alone, "{c:?} {a:?}");
            }
        }
    }
}

#[test]
fn rights_combine_over_levels() {
    let linear = 0x1000;
    for level in 0..4u64 {
        for (clear, rights) in [(US, Rights::WRITABLE), (RW, Rights::USER)] {
            let toy = chain(4, 1, linear, 0x9000 | ALL);
            let gpa = *toy.words.borrow().keys().nth(level as usize).unwrap();
            toy.set(gpa, toy.read_u64(gpa).unwrap() & !clear);
            let t = probe(&toy, &context(PagingMode::Level4), linear).unwrap();
            assert_eq!(t.rights, rights);
            toy.set(gpa, toy.read_u64(gpa).unwrap() | XD);
            let t = probe(&toy, &context(PagingMode::Level4), linear).unwrap();
            assert_eq!(t.rights, rights | Rights::NX);
        }
    }
}

#[test]
fn a_changed_entry_restarts_the_walk() {
    // While the walk is about to set flags, another CPU points the leaf elsewhere.
    let linear = 0x5000;
    let toy = chain(4, 1, linear, 0x9000 | ALL);
    let leaf = 0x4000 + 5 * 8;
    toy.race.set(Some((leaf, 0xa000 | ALL)));
    let t = walk(&toy, &context(PagingMode::Level4), linear, WRITE).unwrap();
    assert_eq!(t.gpa, 0xa000);
    assert_eq!(toy.read_u64(leaf), Some(0xa000 | ALL | A | D));
    // It takes the right to write away: the write faults and D stays clear.
    let toy = chain(4, 1, linear, 0x9000 | ALL);
    toy.race.set(Some((leaf, 0x9000 | P)));
    let write = access(AccessKind::Write, false);
    let fault = walk(&toy, &context(PagingMode::Level4), linear, write);
    assert_eq!(fault, Err(PfCode::P | PfCode::W));
    assert_eq!(toy.read_u64(leaf), Some(0x9000 | P));
    // The same in 32-bit tables.
    let toy = Toy::default();
    toy.set32(CR3, 0x2000 | ALL as u32);
    toy.set32(0x2014, 0x9000 | ALL as u32);
    toy.race.set(Some((0x2014, 0)));
    let read = access(AccessKind::Read, true);
    let fault = walk(&toy, &context(PagingMode::Bits32), linear, read);
    assert_eq!(fault, Err(PfCode::U));
}

#[test]
fn tables_outside_ram() {
    // All ones: a reserved bit in long mode.
    let mut c = context(PagingMode::Level4);
    c.cr3 = 1 << 45;
    assert_eq!(
        walk(&Toy::default(), &c, 0, READ),
        Err(PfCode::P | PfCode::RSVD)
    );
    // In ROM the flags are dropped, and the walk ends.
    let rom = Toy {
        rom: true,
        ..chain(4, 1, 0, 0x9000 | ALL)
    };
    let t = walk(&rom, &context(PagingMode::Level4), 0, WRITE).unwrap();
    assert_eq!(t.gpa, 0x9000);
    assert!(rom.words.borrow().values().all(|v| v & (A | D) == 0));
}

#[test]
fn without_paging_everything_is_itself() {
    let t = walk(
        &Toy::default(),
        &context(PagingMode::None),
        0x1_2345_6789,
        WRITE,
    )
    .unwrap();
    assert_eq!(t.gpa, 0x2345_6789);
    assert!(
        context(PagingMode::None)
            .check(Rights::empty(), 0, access(AccessKind::Write, true))
            .is_ok()
    );
}
