//! From linear addresses to pages: TLB misses, rights, fills.

use super::access::Place;
use super::raw::HostPage;
use super::tlb::Entry;
use super::{Access, Width};
use crate::{Cpu, Trap};
use mimeo_arch_x86::paging::{self, AccessKind, PagingContext, PagingMode, PhysMem, Rights};
use mimeo_arch_x86::{Exception, RFlags};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::CpuIo;

/// Guest memory as the page walk reads it.
pub(crate) struct Phys<'a>(pub(crate) &'a GuestMemory);

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

impl From<Access> for AccessKind {
    fn from(a: Access) -> Self {
        match a {
            Access::Read => Self::Read,
            Access::Write => Self::Write,
            Access::Fetch => Self::Execute,
        }
    }
}

impl Cpu {
    fn paging_access(&self, access: Access) -> paging::Access {
        if self.implicit {
            paging::Access::implicit(access.into())
        } else {
            paging::Access::explicit(access.into(), self.state.cpl, self.state.rflags)
        }
    }

    fn walk(&self, linear: u64, access: Access) -> Result<paging::Translation, Trap> {
        paging::walk(
            &Phys(&self.memory),
            &self.paging,
            linear,
            self.paging_access(access),
        )
        .map_err(|code| code.at(linear).into())
    }

    /// Translates a canonical linear address, checking rights and setting A and D as the access
    /// itself would.
    ///
    /// # Errors
    /// #PF.
    pub fn translate(&mut self, linear: u64, access: Access) -> Result<u64, Trap> {
        if self.paging.mode == PagingMode::None {
            return Ok(linear & 0xffff_ffff);
        }
        Ok(self.walk(linear, access)?.gpa)
    }

    /// The physical address to fetch code at `linear` from.
    ///
    /// # Errors
    /// #PF; #GP(0) where the address is not canonical.
    pub fn translate_fetch(&mut self, linear: u64) -> Result<u64, Trap> {
        if let Some(gpa) = self.tlb.fetch(linear) {
            return Ok(gpa);
        }
        if self.long_mode && !self.is_canonical(linear) {
            return Err(Exception::gp(0).into());
        }
        if self.paging.mode == PagingMode::None {
            return Ok(linear & 0xffff_ffff);
        }
        let t = self.walk(linear, Access::Fetch)?;
        let global = t.rights.contains(Rights::GLOBAL);
        self.tlb.fill_fetch(linear, t.gpa, global, t.page_shift);
        Ok(t.gpa)
    }

    /// Where a data access to one page leads; fills the TLB.
    pub(super) fn place(&mut self, linear: u64, access: Access) -> Result<Place, Trap> {
        let write = access == Access::Write;
        let ac = !self.implicit && self.state.rflags.contains(RFlags::AC);
        if let Some(e) = self.tlb.second_chance(linear, write, ac) {
            return Ok(Place::Memory(e.host, e.page));
        }
        if self.paging.mode == PagingMode::None {
            let gpa = linear & 0xffff_ffff;
            return Ok(self.place_physical(gpa, write, |cpu, host, page, ram| {
                let entry = Entry::new(host, page, 12, false);
                cpu.tlb.fill(linear, entry, true, ram, false);
            }));
        }
        let t = self.walk(linear, access)?;
        Ok(self.place_physical(t.gpa, write, |cpu, host, page, ram| {
            cpu.fill(linear, &t, host, page, ram);
        }))
    }

    fn place_physical(
        &mut self,
        gpa: u64,
        write: bool,
        fill: impl FnOnce(&mut Self, HostPage, u32, bool),
    ) -> Place {
        let Some(info) = self.memory.page(gpa) else {
            return Place::Device(gpa);
        };
        let (host, page) = (HostPage(info.ptr), info.index as u32);
        fill(self, host, page, info.writable);
        if write && !info.writable {
            return Place::Device(gpa);
        }
        Place::Memory(host, page)
    }

    fn fill(&mut self, linear: u64, t: &paging::Translation, host: HostPage, page: u32, ram: bool) {
        let may = |kind| {
            let access = paging::Access {
                kind,
                user: !self.implicit && self.state.cpl == 3,
                smap_override: self.paging_access(Access::Read).smap_override,
            };
            self.paging.check(t.rights, t.pkey, access).is_ok()
        };
        let read = may(AccessKind::Read);
        let write = ram && t.rights.contains(Rights::DIRTY) && may(AccessKind::Write);
        let supervisor = self.implicit || self.state.cpl != 3;
        let ac = supervisor && self.paging.smap && t.rights.contains(Rights::USER);
        let global = t.rights.contains(Rights::GLOBAL);
        let entry = Entry::new(host, page, t.page_shift, global);
        self.tlb.fill(linear, entry, read, write, ac);
    }

    /// Runs `f` with the rights of an implicit supervisor access (SDM vol. 3, 5.6): descriptor
    /// tables, TSS, the stack that an interrupt switches to.
    pub fn as_system<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let key = self.tlb.key;
        let (implicit, aligned) = (self.implicit, self.check_alignment);
        self.tlb.key = super::tlb::supervisor_key(key);
        self.implicit = true;
        self.check_alignment = false;
        let r = f(self);
        self.implicit = implicit;
        self.check_alignment = aligned;
        self.tlb.key = key;
        r
    }

    /// Loads from a linear address as an implicit supervisor access.
    ///
    /// # Errors
    /// #GP(0) where it is not canonical, #PF.
    pub fn read_system<T: Width>(&mut self, linear: u64, io: &mut dyn CpuIo) -> Result<T, Trap> {
        self.as_system(|cpu| cpu.read(super::SYSTEM, linear, io))
    }

    /// Stores to a linear address as an implicit supervisor access.
    ///
    /// # Errors
    /// #GP(0) where it is not canonical, #PF.
    pub fn write_system<T: Width>(
        &mut self,
        linear: u64,
        v: T,
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        self.as_system(|cpu| cpu.write(super::SYSTEM, linear, v, io))
    }

    /// Recomputes the paging context if a register it depends on has changed.
    pub(super) fn refresh_paging(&mut self) {
        let s = &self.state;
        let now = (s.cr0, s.cr3, s.cr4, s.efer, s.pkru, s.pdptr);
        if self.paging_for != now {
            self.paging_for = now;
            self.paging = PagingContext::new(&self.state, &self.model);
        }
    }
}
