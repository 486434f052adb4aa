//! A vCPU's views: which table and branch cache serve which mode, how they are filled from the
//! guest's page tables and flushed by its TLB maintenance.
//!
//! Views 0 and 1 serve CPL 0 to 2 with RFLAGS.AC clear and set (SMAP, SDM vol. 3, 5.6.1); they
//! share a branch cache and hold entries of one PCID at a time beside global ones. The others serve
//! CPL 3, each for one PCID. Rights are those of the view's own privilege, always.

use crate::ibtc::Ibtc;
use crate::lat::{self, View};
use crate::shared::Shared;
use mimeo_arch_x86::paging::{
    Access, AccessKind, PagingContext, PhysMem, Rights, Translation, walk,
};
use mimeo_arch_x86::{Cr0, Cr4, Efer, X86State};
use mimeo_engine_interp::MmuEvent;
use mimeo_memory::{GuestMemory, PageInfo};
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{Ordering, fence};

/// Views for CPL 3.
const USERS: usize = 4;
const SUPERVISOR: usize = 0;
const SUPERVISOR_AC: usize = 1;
const FIRST_USER: usize = 2;
const EXEC_ENTRIES: usize = 512;

/// Guest memory as the page walk wants it.
struct Phys<'a>(&'a GuestMemory);

impl PhysMem for Phys<'_> {
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        self.0.read_u32(gpa)
    }
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        self.0.read_u64(gpa)
    }
    fn cas_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool> {
        self.0.cas_u32(gpa, old, new)
    }
    fn cas_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool> {
        self.0.cas_u64(gpa, old, new)
    }
}

/// Registers that rights depend on: a change flushes everything.
type RightsKey = (Cr0, Cr4, Efer, u32);

/// Where a page of code is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exec {
    tag: u64,
    /// Physical page index.
    pub(crate) page: u32,
    /// In a large page whose 2 MB are one translation.
    pub(crate) large: bool,
    /// Global.
    pub(crate) global: bool,
}

const NO_EXEC: Exec = Exec {
    tag: u64::MAX,
    page: 0,
    large: false,
    global: false,
};

/// Counters.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MmuStats {
    pub(crate) fills: u64,
    pub(crate) flushes: u64,
    pub(crate) page_flushes: u64,
    pub(crate) switches: u64,
    pub(crate) view_evictions: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mmu {
    vcpu: u32,
    views: Vec<View>,
    /// The branch cache of each view.
    caches: Vec<Ibtc>,
    /// PCID and time of last use of each user view.
    tags: [(Option<u16>, u64); USERS],
    clock: u64,
    exec: Box<[Exec; EXEC_ENTRIES]>,
    large: HashSet<u64>,
    huge: HashSet<u64>,
    paging: PagingContext,
    paging_for: (Cr0, u64, Cr4, Efer, u32),
    rights_for: RightsKey,
    /// The view in use.
    pub(crate) view: usize,
    pub(crate) stats: MmuStats,
}

/// What became of a table miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// The entry is there: retry.
    Done,
    /// Not for the tables: the interpreter makes the access (or raises its fault).
    Interp,
}

fn rights_key(s: &X86State) -> RightsKey {
    (
        s.cr0 & (Cr0::WP | Cr0::PG),
        s.cr4 & (Cr4::SMAP | Cr4::SMEP | Cr4::PKE | Cr4::PGE | Cr4::PCIDE | Cr4::LA57 | Cr4::PAE),
        s.efer & (Efer::NXE | Efer::LMA),
        s.pkru,
    )
}

/// Address space that the tables of one vCPU take, in terabytes.
pub(crate) const TERABYTES: u64 = (FIRST_USER + USERS) as u64;

/// Reserves the tables of one vCPU.
pub(crate) fn reserve() -> io::Result<Vec<View>> {
    (0..FIRST_USER + USERS).map(|_| View::new()).collect()
}

impl Mmu {
    /// The MMU of a vCPU in state `s`.
    pub(crate) fn new(
        vcpu: u32,
        views: Vec<View>,
        shared: &Shared,
        s: &X86State,
    ) -> io::Result<Self> {
        let miss = shared.miss_address();
        Ok(Self {
            vcpu,
            caches: views.iter().map(|v| Ibtc::new(v.words(), miss)).collect(),
            views,
            tags: [(None, 0); USERS],
            clock: 0,
            exec: Box::new([NO_EXEC; EXEC_ENTRIES]),
            large: HashSet::new(),
            huge: HashSet::new(),
            paging: PagingContext::new(s, &shared.cpu),
            paging_for: (s.cr0, s.cr3, s.cr4, s.efer, s.pkru),
            rights_for: rights_key(s),
            view: SUPERVISOR,
            stats: MmuStats::default(),
        })
    }

    /// Table base and branch cache of a view.
    pub(crate) fn base(&self, view: usize) -> u64 {
        self.views[view].address() + crate::ctx::RL_BIAS
    }

    /// rL of the two supervisor views.
    pub(crate) fn supervisor_bases(&self) -> (u64, u64) {
        (self.base(SUPERVISOR), self.base(SUPERVISOR_AC))
    }

    /// rL for CPL 3 in the address space of `s`.
    pub(crate) fn user_base(&mut self, s: &X86State) -> u64 {
        let n = self.user_view(s);
        self.base(FIRST_USER + n)
    }

    /// The branch cache of the view in use.
    pub(crate) fn ibtc(&mut self) -> &mut Ibtc {
        &mut self.caches[self.view]
    }

    /// Chooses the view for the state's mode.
    pub(crate) fn select(&mut self, shared: &Shared, s: &X86State) {
        let now = (s.cr0, s.cr3, s.cr4, s.efer, s.pkru);
        if self.paging_for != now {
            self.paging_for = now;
            self.paging = PagingContext::new(s, &shared.cpu);
            let key = rights_key(s);
            if key != self.rights_for {
                self.rights_for = key;
                self.flush_everything();
            }
        }
        self.view = if s.cpl == 3 {
            FIRST_USER + self.user_view(s)
        } else if s.cr4.contains(Cr4::SMAP) && !s.rflags.contains(mimeo_arch_x86::RFlags::AC) {
            SUPERVISOR
        } else {
            SUPERVISOR_AC
        };
    }

    fn user_view(&mut self, s: &X86State) -> usize {
        let pcid = if s.cr4.contains(Cr4::PCIDE) {
            (s.cr3 & 0xfff) as u16
        } else {
            0
        };
        self.clock += 1;
        let n = match self.tags.iter().position(|t| t.0 == Some(pcid)) {
            Some(n) => n,
            None => {
                let n = (0..USERS)
                    .min_by_key(|n| self.tags[*n].1)
                    .unwrap_or_default();
                self.views[FIRST_USER + n].flush_all();
                self.caches[FIRST_USER + n].flush(false);
                self.tags[n].0 = Some(pcid);
                self.stats.view_evictions += 1;
                n
            }
        };
        self.tags[n].1 = self.clock;
        n
    }

    /// Forgets everything.
    pub(crate) fn flush_everything(&mut self) {
        self.stats.flushes += 1;
        for v in &mut self.views {
            v.flush_all();
        }
        for u in &mut self.caches {
            u.flush(false);
        }
        self.exec.fill(NO_EXEC);
        self.large.clear();
        self.huge.clear();
    }

    fn flush_supervisor(&mut self) {
        self.views[SUPERVISOR].flush_local();
        self.views[SUPERVISOR_AC].flush_local();
        self.caches[SUPERVISOR].flush(true);
        self.caches[SUPERVISOR_AC].flush(true);
        self.exec.fill(NO_EXEC);
    }

    fn flush_user(&mut self, n: usize) {
        self.views[FIRST_USER + n].flush_local();
        self.caches[FIRST_USER + n].flush(true);
    }

    fn flush_page(&mut self, linear: u64) {
        self.stats.page_flushes += 1;
        if self.huge.contains(&(linear >> 30)) {
            return self.flush_everything();
        }
        let large = self.large.contains(&(linear >> 21));
        for v in &mut self.views {
            if large {
                v.flush_2m(linear);
            } else {
                v.flush_page(linear);
            }
        }
        if large {
            self.large.remove(&(linear >> 21));
        }
        for u in &mut self.caches {
            if large {
                for n in 0..512 {
                    u.flush_page((linear & !0x1f_ffff) + n * 4096);
                }
            } else {
                u.flush_page(linear);
            }
        }
        self.exec.fill(NO_EXEC);
    }

    /// Follows the guest's TLB maintenance.
    pub(crate) fn event(&mut self, e: MmuEvent) {
        match e {
            MmuEvent::All => self.flush_everything(),
            MmuEvent::NonGlobal => {
                self.stats.switches += 1;
                self.flush_supervisor();
                for n in 0..USERS {
                    self.flush_user(n);
                }
            }
            MmuEvent::Pcid(pcid) => {
                self.stats.switches += 1;
                self.flush_supervisor();
                if let Some(n) = self.tags.iter().position(|t| t.0 == Some(pcid)) {
                    self.flush_user(n);
                }
            }
            MmuEvent::Page { linear } | MmuEvent::PcidPage { linear, .. } => {
                self.flush_page(linear);
            }
            MmuEvent::Switch => {
                self.stats.switches += 1;
                self.flush_supervisor();
            }
            MmuEvent::ModeChange => {}
        }
    }

    /// Blocks of physical page `page` are gone.
    pub(crate) fn purge(&mut self, page: u32) {
        for u in &mut self.caches {
            u.flush_phys(page);
        }
    }

    /// All blocks are gone.
    pub(crate) fn purge_all(&mut self) {
        for u in &mut self.caches {
            u.flush(false);
        }
    }

    /// Clears every write word.
    pub(crate) fn revoke_writes(&self) {
        for v in &self.views {
            v.revoke_writes();
        }
    }

    /// Pages of table memory in use.
    pub(crate) fn table_pages(&self) -> u64 {
        self.views.iter().map(View::pages).sum()
    }

    fn remember_size(&mut self, linear: u64, t: &Translation) {
        if t.page_shift >= 30 {
            self.huge.insert(linear >> 30);
        } else if t.page_shift > 12 {
            self.large.insert(linear >> 21);
        }
    }

    /// Serves a table miss at canonical or non-canonical `linear`.
    pub(crate) fn fill(&mut self, shared: &Shared, s: &X86State, linear: u64, write: bool) -> Fill {
        if (linear as i64) << 16 >> 16 != linear as i64 {
            return Fill::Interp;
        }
        let kind = if write {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let access = Access::explicit(kind, s.cpl, s.rflags);
        let Ok(t) = walk(&Phys(&shared.memory), &self.paging, linear, access) else {
            return Fill::Interp;
        };
        let Some(page) = shared.memory.page(t.gpa) else {
            return Fill::Interp;
        };
        if write && !page.writable {
            return Fill::Interp;
        }
        self.stats.fills += 1;
        self.remember_size(linear, &t);
        self.fill_page(shared, s, linear, &t, &page, write)
    }

    fn fill_page(
        &mut self,
        shared: &Shared,
        s: &X86State,
        linear: u64,
        t: &Translation,
        page: &PageInfo,
        write: bool,
    ) -> Fill {
        let may = |kind| {
            let access = Access::explicit(kind, s.cpl, s.rflags);
            self.paging.check(t.rights, t.pkey, access).is_ok()
        };
        let readable = may(AccessKind::Read);
        let tracker = shared.memory.tracker();
        let writable = page.writable
            && t.rights.contains(Rights::DIRTY)
            && may(AccessKind::Write)
            // A read gives no right that the dirty log would have to hear of.
            && (write || !tracker.logged(page.index))
            && tracker.grant(page.index);
        if !readable || (write && !writable) {
            return Fill::Interp;
        }
        let smap = s.cr4.contains(Cr4::SMAP);
        let (first, second) = if s.cpl == 3 {
            (self.view, None)
        } else if t.rights.contains(Rights::USER) && smap {
            (SUPERVISOR_AC, None)
        } else {
            (SUPERVISOR_AC, Some(SUPERVISOR))
        };
        let index = lat::index(linear);
        if writable {
            let view = if s.cpl == 3 { first } else { SUPERVISOR };
            shared.note_writer(page.index, self.vcpu, view as u8, index);
        }
        let addend = (page.ptr.as_ptr() as u64).wrapping_sub(linear & !4095);
        let global = t.rights.contains(Rights::GLOBAL);
        for v in [Some(first), second].into_iter().flatten() {
            self.views[v].fill(linear, addend, writable, global);
        }
        if writable {
            // Whoever marks the page as code marks first and revokes then: one of us sees the other.
            fence(Ordering::SeqCst);
            if tracker.watched(page.index) {
                for v in [Some(first), second].into_iter().flatten() {
                    self.views[v].revoke_write(index);
                }
                if write {
                    return Fill::Interp;
                }
            }
        }
        Fill::Done
    }

    /// Where the code at `rip` is; `None`: fetching it faults, or it is not RAM or ROM.
    pub(crate) fn exec(&mut self, shared: &Shared, s: &X86State, rip: u64) -> Option<Exec> {
        if (rip as i64) << 16 >> 16 != rip as i64 {
            return None;
        }
        // The view is part of the tag: user and supervisor fetch rights differ.
        let tag = (rip & !4095) | self.view as u64;
        let n = (rip >> 12) as usize % EXEC_ENTRIES;
        if self.exec[n].tag == tag {
            return Some(self.exec[n]);
        }
        let access = Access::explicit(AccessKind::Execute, s.cpl, s.rflags);
        let t = walk(&Phys(&shared.memory), &self.paging, rip, access).ok()?;
        let page = shared.memory.page(t.gpa)?;
        self.remember_size(rip, &t);
        let e = Exec {
            tag,
            page: page.index as u32,
            large: t.page_shift >= 21,
            global: t.rights.contains(Rights::GLOBAL),
        };
        self.exec[n] = e;
        Some(e)
    }
}
