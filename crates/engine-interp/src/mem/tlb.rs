//! The software TLB, and the one place through which it is maintained.
//!
//! Direct-mapped; an entry holds a tag for reads, one for writes and one for fetches, each valid
//! only for the rights it was checked under. A tag is the page address with a key in its low 12
//! bits: bit 0 user access, bit 1 filled by a supervisor access that needed RFLAGS.AC (SMAP), bits
//! 2 to 11 the address-space number: a PCID's low 10 bits. When PCIDs with equal numbers meet, the
//! older one's entries go. An entry of a global page is renamed to the address space that uses it.

use super::raw::HostPage;
use crate::Cpu;
use mimeo_arch_x86::{Cr0, Cr4, RFlags};

const ENTRIES: usize = 1024;
const FETCH_ENTRIES: usize = 256;
const INVALID: u64 = u64::MAX;
/// The key bit of user accesses.
pub(super) const KEY_USER: u64 = 1;
/// The key bit of entries that a supervisor access may use only while RFLAGS.AC is set.
pub(super) const KEY_AC: u64 = 2;
const ASN_SHIFT: u64 = 2;
const ASN_MASK: u64 = 1023 << ASN_SHIFT;
/// Set in the current key to make every fast lookup miss (data breakpoints, alignment checks).
pub(super) const KEY_SLOW: u64 = 1 << 62;

/// Something that made translations stale, for another engine's own tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MmuEvent {
    /// Everything, global pages included.
    All,
    /// Everything but global pages.
    NonGlobal,
    /// The non-global entries of one PCID.
    Pcid(u16),
    /// One linear page (and the large page around it) in the current PCID, global ones included.
    Page {
        /// Any linear address in it.
        linear: u64,
    },
    /// One linear page of a PCID (INVPCID type 0), global ones excluded.
    PcidPage {
        /// Any linear address in it.
        linear: u64,
        /// The PCID.
        pcid: u16,
    },
    /// The current address space changed without a flush (CR3 write with bit 63 set).
    Switch,
    /// CPL, RFLAGS.AC or another part of what rights depend on changed; no translation did.
    ModeChange,
}

#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) read: u64,
    pub(super) write: u64,
    pub(super) host: HostPage,
    /// Page index for the tracker.
    pub(super) page: u32,
    /// 12: 4 KB page; larger: part of a large page (INVLPG must drop all of it).
    pub(super) shift: u8,
    /// Valid in every address space.
    pub(super) global: bool,
}

impl Entry {
    /// An entry whose tags [`Tlb::fill`] sets.
    pub(super) fn new(host: HostPage, page: u32, shift: u8, global: bool) -> Self {
        Self {
            read: INVALID,
            write: INVALID,
            host,
            page,
            shift,
            global,
        }
    }
}

#[derive(Clone, Copy)]
struct FetchEntry {
    tag: u64,
    gpa: u64,
    shift: u8,
    global: bool,
}

/// A vCPU's software TLB.
pub(crate) struct Tlb {
    entries: Box<[Option<Entry>]>,
    fetch: Box<[FetchEntry]>,
    /// Large pages were cached since the last full flush.
    large: bool,
    /// The key of the current mode and address space.
    pub(super) key: u64,
    /// The full PCID that last used each address-space number.
    owner: Box<[u16]>,
    /// Changes whenever a fetch translation may have become stale.
    pub(crate) generation: u32,
    /// Events for another engine, when it asked for them.
    log: Option<Vec<MmuEvent>>,
    /// Number of flushes and fills, for the statistics.
    pub(crate) flushes: u64,
    pub(crate) fills: u64,
}

/// The key of an implicit supervisor access in the address space of `key`.
pub(super) fn supervisor_key(key: u64) -> u64 {
    key & ASN_MASK | key & KEY_SLOW
}

fn asn(pcid: u16) -> u64 {
    (u64::from(pcid) & 1023) << ASN_SHIFT
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    let page = linear >> 12;
    // A sum, not an exclusive or: neighbouring pages must never share a slot (the fast path compares
    // the entry of an access's first page with the tag of its last).
    (page + (page >> 10)) as usize % ENTRIES
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let none = FetchEntry {
            tag: INVALID,
            gpa: 0,
            shift: 12,
            global: false,
        };
        Self {
            entries: vec![None; ENTRIES].into_boxed_slice(),
            fetch: vec![none; FETCH_ENTRIES].into_boxed_slice(),
            large: false,
            key: 0,
            owner: vec![0; 1024].into_boxed_slice(),
            generation: 1,
            log: None,
            flushes: 0,
            fills: 0,
        }
    }

    /// The entry that may hold `linear`.
    #[inline(always)]
    pub(super) fn entry(&self, linear: u64) -> Option<&Entry> {
        self.entries[slot(linear)].as_ref()
    }

    /// Looks up a fetch.
    #[inline]
    pub(super) fn fetch(&self, linear: u64) -> Option<u64> {
        let e = &self.fetch[(linear >> 12) as usize % FETCH_ENTRIES];
        let differs = e.tag ^ ((linear & !0xfff) | (self.key & 0xfff));
        (differs == 0 || (e.global && differs & !ASN_MASK == 0)).then_some(e.gpa | (linear & 0xfff))
    }

    pub(super) fn fill_fetch(&mut self, linear: u64, gpa: u64, global: bool, shift: u8) {
        self.large |= shift > 12;
        self.fetch[(linear >> 12) as usize % FETCH_ENTRIES] = FetchEntry {
            tag: (linear & !0xfff) | (self.key & 0xfff),
            gpa: gpa & !0xfff,
            shift,
            global,
        };
    }

    /// After a miss of the plain comparison: entries of global pages, and of user pages while the
    /// supervisor has RFLAGS.AC set.
    pub(super) fn second_chance(&mut self, linear: u64, write: bool, ac: bool) -> Option<Entry> {
        let key = self.key & 0xfff;
        let e = self.entries[slot(linear)].as_mut()?;
        let tag = if write { e.write } else { e.read };
        if tag == INVALID {
            return None;
        }
        let differs = tag ^ ((linear & !0xfff) | key);
        if e.global && differs & ASN_MASK != 0 && differs & !ASN_MASK & !KEY_AC == 0 {
            for tag in [&mut e.read, &mut e.write] {
                if *tag != INVALID {
                    *tag = (*tag & !ASN_MASK) | (key & ASN_MASK);
                }
            }
        } else if differs & !KEY_AC != 0 {
            return None;
        }
        (differs & KEY_AC == 0 || ac).then_some(*e)
    }

    /// Adds an entry. `ac`: usable by the supervisor only while RFLAGS.AC is set.
    pub(super) fn fill(
        &mut self,
        linear: u64,
        mut entry: Entry,
        read: bool,
        write: bool,
        ac: bool,
    ) {
        let tag = (linear & !0xfff) | (self.key & 0xfff) | if ac { KEY_AC } else { 0 };
        self.large |= entry.shift > 12;
        self.fills += 1;
        entry.read = if read { tag } else { INVALID };
        entry.write = if write { tag } else { INVALID };
        self.entries[slot(linear)] = Some(entry);
    }

    fn note(&mut self, event: MmuEvent) {
        if let Some(log) = &mut self.log {
            // A full log says the same as "everything".
            if log.len() >= 1024 {
                log.clear();
                log.push(MmuEvent::All);
            } else {
                log.push(event);
            }
        }
    }

    fn drop_where(&mut self, mut stale: impl FnMut(u64, u8, bool) -> bool) {
        for e in &mut self.entries {
            if e.is_some_and(|e| {
                let tag = if e.read == INVALID { e.write } else { e.read };
                stale(tag, e.shift, e.global)
            }) {
                *e = None;
            }
        }
        for e in &mut self.fetch {
            if e.tag != INVALID && stale(e.tag, e.shift, e.global) {
                e.tag = INVALID;
            }
        }
        self.generation = self.generation.wrapping_add(1);
        self.flushes += 1;
    }

    fn flush(&mut self, event: MmuEvent) {
        self.note(event);
        match event {
            MmuEvent::All => {
                self.drop_where(|_, _, _| true);
                self.large = false;
            }
            MmuEvent::NonGlobal => self.drop_where(|_, _, global| !global),
            MmuEvent::Pcid(pcid) => {
                let n = asn(pcid);
                self.drop_where(|tag, _, global| tag & ASN_MASK == n && !global);
            }
            MmuEvent::Page { linear } => {
                // The entry's own page size decides; entries of a large page are 4 KB pieces of it.
                if self.large {
                    self.drop_where(|tag, shift, _| (tag ^ linear) >> shift == 0);
                } else {
                    self.drop_page(linear);
                }
            }
            MmuEvent::PcidPage { linear, pcid } => {
                let n = asn(pcid);
                self.drop_where(|tag, shift, global| {
                    tag & ASN_MASK == n && !global && (tag ^ linear) >> shift == 0
                });
            }
            MmuEvent::Switch | MmuEvent::ModeChange => {}
        }
    }

    fn drop_page(&mut self, linear: u64) {
        let e = &mut self.entries[slot(linear)];
        if e.is_some_and(|e| (e.read ^ linear) >> 12 == 0 || (e.write ^ linear) >> 12 == 0) {
            *e = None;
        }
        let f = &mut self.fetch[(linear >> 12) as usize % FETCH_ENTRIES];
        if (f.tag ^ linear) >> 12 == 0 {
            f.tag = INVALID;
        }
        self.generation = self.generation.wrapping_add(1);
        self.flushes += 1;
    }
}

impl Cpu {
    /// The one way to make translations stale: drops them here and tells the log.
    pub fn flush_tlb(&mut self, event: MmuEvent) {
        self.tlb.flush(event);
    }

    /// Starts (or ends) the log of TLB maintenance for another engine.
    pub fn log_mmu(&mut self, on: bool) {
        self.tlb.log = on.then(Vec::new);
    }

    /// Takes what the log holds.
    pub fn take_mmu_log(&mut self) -> Vec<MmuEvent> {
        self.tlb
            .log
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Whether the log holds something: cheap, for a check after each instruction.
    #[inline]
    #[must_use]
    pub fn mmu_log_pending(&self) -> bool {
        self.tlb.log.as_ref().is_some_and(|l| !l.is_empty())
    }

    /// The current PCID, 0 when CR4.PCIDE is clear.
    #[must_use]
    pub fn pcid(&self) -> u16 {
        if self.state.cr4.contains(Cr4::PCIDE) {
            (self.state.cr3 & 0xfff) as u16
        } else {
            0
        }
    }

    /// Recomputes what is derived from CPL, code segment, control registers, RFLAGS.AC and DR7:
    /// the lookup key and the execution mode. To be called after changing any of them.
    pub fn refresh(&mut self) {
        self.refresh_mode();
        self.refresh_paging();
        let s = &self.state;
        let user = s.cpl == 3;
        let pcid = self.pcid();
        let number = asn(pcid);
        let mut key = number | (u64::from(user) * KEY_USER);
        let aligned = user && s.cr0.contains(Cr0::AM) && s.rflags.contains(RFlags::AC);
        // DR7: an enabled breakpoint (L or G) whose R/W field is not "execute".
        let watched = (0..4).any(|n| s.dr7 >> (2 * n) & 3 != 0 && s.dr7 >> (16 + 4 * n) & 3 != 0);
        if aligned || watched {
            key |= KEY_SLOW;
        }
        self.check_alignment = aligned;
        self.watch_data = watched;
        let owner = &mut self.tlb.owner[(number >> ASN_SHIFT) as usize];
        if *owner != pcid {
            let old = std::mem::replace(owner, pcid);
            self.tlb
                .drop_where(|tag, _, global| tag & ASN_MASK == asn(old) && !global);
        }
        if self.tlb.key != key {
            self.tlb.key = key;
            self.tlb.note(MmuEvent::ModeChange);
        }
    }
}

impl Cpu {
    /// What a fetch's validity depends on besides its linear address and the TLB's generation.
    #[inline(always)]
    pub(crate) fn fetch_key(&self) -> u64 {
        self.tlb.key & 0xfff | u64::from(self.bits) << 12
    }
}
