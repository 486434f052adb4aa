//! Why translated code left, and what becomes of it.

#![expect(
    unsafe_code,
    reason = "calls translated code, under the conditions that tramp::enter names"
)]

use super::state::{IF, flags_of};
use super::{BtVcpu, Next};
use crate::index::{AUX_FP, Found, Site, SiteKind};
use crate::mmu::Fill;
use crate::tramp;
use mimeo_engine_interp::Step;
use mimeo_vcpu::{CpuIo, EngineError, EventBits, Exit};

impl BtVcpu {
    /// Enters translated code at cache offset `at` and serves its exit.
    pub(super) fn execute(&mut self, at: u32, io: &mut dyn CpuIo) -> Result<Next, EngineError> {
        if self.peer.requested() {
            return Ok(self.at_boundary(at));
        }
        let c = self.peer.ctx();
        c.target.set(self.shared.address(at));
        let waiting = self.cpu.events.pending().any(EventBits::INTR);
        c.pending.set(if waiting { IF as u32 } else { 0 });
        self.stats.enters += 1;
        // SAFETY: `at` is a boundary of a live block for this mode (found or chained after the last
        // look at the requests; a later request sets `kick`, which refuses the entry); `derive` has
        // set the view and the branch cache; `run` has set the GS base.
        unsafe { tramp::enter(c) };
        // Until `left` the code cache cannot be dropped, so that numbers and offsets mean what they did.
        let (number, pc) = (c.site.get(), c.fault_pc.get());
        let site = self.shared.index.site(number);
        let faulted = (number == tramp::SITE_FAULT).then(|| self.shared.index.find(pc));
        let generation = self.shared.generation();
        self.peer.left();
        // Inline CLI, STI, STAC and their like have changed flags, and with AC the view; SYSCALL, SYSRET
        // and IRET the privilege level.
        self.cpu.state.rflags = flags_of(self.peer.ctx());
        if self.sync_world() {
            self.load_system();
            self.derive();
        } else if self.ctx().rl.get() != self.mmu.base(self.mmu.view) {
            self.mmu.select(&self.shared, &self.cpu.state);
        }
        match number {
            tramp::SITE_ABORT => return Ok(self.at_boundary(at)),
            tramp::SITE_KICK => {
                self.stats.kicks += 1;
                return Ok(Next::Rip);
            }
            tramp::SITE_NO_TARGET => {
                let c = self.ctx();
                c.rip.set(c.t.get());
                return Ok(Next::Rip);
            }
            _ => {}
        }
        if let Some(found) = faulted {
            return self.fault(found, pc, io);
        }
        let site = site.ok_or_else(|| EngineError::Internal("an unknown exit site".into()))?;
        match site.kind {
            SiteKind::Read | SiteKind::Write => {
                self.stats.misses += 1;
                let write = site.kind == SiteKind::Write;
                let ea = self.ctx().ea.get();
                if self.mmu.fill(&self.shared, &self.cpu.state, ea, write) == Fill::Done {
                    self.ctx().rip.set(site.rip);
                    return Ok(match site.host {
                        0 => Next::Rip,
                        host => Next::At(host),
                    });
                }
                self.step(number, Site { host: 0, ..site }, io)
            }
            SiteKind::Interp => self.step(number, site, io),
            SiteKind::Link => {
                self.stats.links += 1;
                self.ctx().rip.set(site.rip);
                self.link(site.rip, site.host, generation)
            }
            SiteKind::Indirect => {
                self.stats.indirect += 1;
                let c = self.ctx();
                let target = c.t.get();
                if (target as i64) << 16 >> 16 != target as i64 {
                    return self.undo_branch(number, site, io);
                }
                c.rip.set(target);
                self.go(target)
            }
            SiteKind::Far => {
                self.stats.far += 1;
                self.ctx().rip.set(site.rip);
                self.go(site.rip)
            }
            SiteKind::Misaligned => {
                self.ctx().rip.set(site.rip);
                self.shared.misaligned(site.host, generation);
                Ok(Next::Rip)
            }
        }
    }

    /// A jump or plain return has a target that is not canonical: #GP is the branch's own, with the state
    /// before it. (Calls, and returns that release more, have been looked at before they did anything.)
    fn undo_branch(
        &mut self,
        number: u32,
        site: Site,
        io: &mut dyn CpuIo,
    ) -> Result<Next, EngineError> {
        if site.code == iced_x86::Code::Retnq as u16 {
            let rsp = &self.ctx().gpr[4];
            rsp.set(rsp.get().wrapping_sub(8));
        }
        self.step(number, Site { host: 0, ..site }, io)
    }

    /// The entry at `at` was refused; RIP is in the context. If the boundary follows an inline STI, no
    /// interrupt may come before the next instruction.
    fn at_boundary(&mut self, at: u32) -> Next {
        let rip = self.ctx().rip.get();
        if self
            .shared
            .index
            .find(at)
            .is_some_and(|f| f.shadow && f.rip == rip)
        {
            self.cpu.state.sti_shadow = true;
            self.translatable = false;
        }
        Next::Rip
    }

    /// A branch left: straight on, unless an event waits.
    fn go(&mut self, rip: u64) -> Result<Next, EngineError> {
        if self.spend() || self.peer.requested() || self.cpu.events_pending() {
            return Ok(Next::Rip);
        }
        Ok(self.find(rip)?.map_or(Next::Rip, Next::At))
    }

    fn link(&mut self, rip: u64, at: u32, generation: u64) -> Result<Next, EngineError> {
        if self.spend() || self.peer.requested() {
            return Ok(Next::Rip);
        }
        let Some(exec) = self.mmu.exec(&self.shared, &self.cpu.state, rip) else {
            return Ok(Next::Rip);
        };
        let key = self.key(rip, exec);
        let at = match self.shared.link(at, generation, key, &self.peer)? {
            Some(at) => Some(at),
            None => self.find_spanning(key)?,
        };
        Ok(at.map_or(Next::Rip, Next::At))
    }

    /// The interpreter executes the instruction of site `number`; then on at `site.host` if that is
    /// where it leads.
    fn step(&mut self, number: u32, site: Site, io: &mut dyn CpuIo) -> Result<Next, EngineError> {
        *self.stats.fallbacks.entry(site.code).or_default() += 1;
        let (mode, view) = (self.mode, self.mmu.view);
        let fp = site.aux & AUX_FP != 0;
        let step = self.interpret(site.rip, Some(number), fp, io)?;
        let now = self.cpu.state.rip;
        self.ctx().rip.set(now);
        if step == Step::TripleFault {
            return Ok(Next::Exit(Exit::TripleFault));
        }
        let straight = step == Step::Retired
            && site.host != 0
            && now == site.rip.wrapping_add(u64::from(site.aux & 15))
            && self.translatable
            && (self.mode, self.mmu.view) == (mode, view)
            && !self.peer.requested()
            && !self.cpu.events_pending();
        Ok(if straight {
            Next::At(site.host)
        } else {
            Next::Rip
        })
    }

    /// The host faulted in translated code: the interpreter executes the instruction.
    fn fault(
        &mut self,
        found: Option<Found>,
        pc: u32,
        io: &mut dyn CpuIo,
    ) -> Result<Next, EngineError> {
        self.stats.faults += 1;
        let Some(found) = found else {
            return Err(EngineError::Internal(format!(
                "the host faulted at code cache offset {pc:#x}, outside every block"
            )));
        };
        let site = Site {
            kind: SiteKind::Interp,
            rip: found.rip,
            host: 0,
            aux: AUX_FP,
            code: 0,
        };
        self.step(u32::MAX, site, io)
    }
}
