//! One vCPU: the loop between translated code, the interpreter and events.
//!
//! State lives in one of two places. While `run` executes, the general registers, flags, RIP and FP
//! state are the context block's (x87: the host's registers) and everything else is
//! `cpu.state`'s; around each interpreter step the former are copied over (FP only for
//! instructions that use it). Outside `run`, `cpu.state` has everything.
#![expect(
    unsafe_code,
    reason = "calls translated code, under the conditions that tramp::enter names"
)]

use crate::ctx::Ctx;
use crate::decode::Mode;
use crate::index::{AUX_FP, Found, Site, SiteKind};
use crate::mmu::{self, Fill, Mmu};
use crate::peer::Peer;
use crate::shared::{Key, Shared};
use crate::{host, lat, signal, tramp};
use mimeo_arch_x86::{Activity, Cr0, Cr4, Exception, RFlags, Seg, X86State};
use mimeo_engine_interp::{Cpu, Poll, Step};
use mimeo_vcpu::{CpuIo, EngineConfig, EngineError, EventBits, Exit, StopAt, Vcpu, VcpuEvents};
use std::collections::HashMap;
use std::sync::Arc;

/// The bits of RFLAGS that live in `Ctx::status`.
const STATUS: u64 = RFlags::STATUS.bits();
const DF: u64 = RFlags::DF.bits();
const IF: u64 = RFlags::IF.bits();
const AC: u64 = RFlags::AC.bits();

/// Counters of a vCPU.
#[derive(Debug, Default)]
struct Stats {
    enters: u64,
    misses: u64,
    interp: u64,
    links: u64,
    indirect: u64,
    far: u64,
    kicks: u64,
    faults: u64,
    singles: u64,
    /// Interpreter steps from translated code, by form.
    fallbacks: HashMap<u16, u64>,
}

/// A vCPU of the translator.
pub(crate) struct BtVcpu {
    cpu: Cpu,
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    mmu: Mmu,
    mode: Mode,
    /// The state can run translated (computed by [`Self::derive`]).
    translatable: bool,
    stats: Stats,
}

/// What one turn of the loop ended with.
enum Turn {
    Go,
    Exit(Exit),
}

/// Where to go next.
enum Next {
    /// Enter translated code at this cache offset.
    At(u32),
    /// Look RIP up.
    Rip,
    /// Leave `run`.
    Exit(Exit),
}

impl BtVcpu {
    pub(crate) fn new(
        config: &EngineConfig,
        shared: Arc<Shared>,
        index: u32,
        events: Arc<VcpuEvents>,
    ) -> Result<Self, EngineError> {
        let host = |source| EngineError::Host {
            what: "cannot reserve address space for the translator's tables".into(),
            source,
        };
        let mut cpu = Cpu::new(config, index, events.clone());
        cpu.log_mmu(true);
        let views = mmu::reserve().map_err(host)?;
        let peer = Arc::new(Peer::new(index, views.iter().map(|v| v.words()).collect()));
        let mmu = Mmu::new(index, views, &shared, &cpu.state).map_err(host)?;
        shared.add_peer(&peer);
        let kicked = peer.clone();
        events.set_kick(Box::new(move || kicked.kick()));
        Ok(Self {
            cpu,
            shared,
            peer,
            mmu,
            mode: Mode(0),
            translatable: false,
            stats: Stats::default(),
        })
    }

    fn ctx(&self) -> &Ctx {
        self.peer.ctx()
    }

    /// General registers, flags and RIP from the context to the state.
    fn store_regs(&mut self, rip: u64) {
        let c = self.peer.ctx();
        let s = &mut self.cpu.state;
        for (g, slot) in s.gpr.iter_mut().zip(&c.gpr) {
            *g = slot.get();
        }
        s.rflags = flags_of(c);
        s.seg[Seg::Gs as usize].base = c.gs_base.get();
        s.msr.kernel_gs_base = c.kernel_gs.get();
        s.rip = rip;
    }

    /// The reverse, after the interpreter has run.
    fn load_regs(&mut self) {
        let c = self.peer.ctx();
        let s = &self.cpu.state;
        for (g, slot) in s.gpr.iter().zip(&c.gpr) {
            slot.set(*g);
        }
        let flags = s.rflags.bits();
        c.set_status(flags);
        c.sysflags.set(flags & !(STATUS | DF | IF | AC));
        c.df.set((flags & DF) as u32);
        c.iflag.set((flags & IF) as u32);
        c.ac.set((flags & AC) as u32);
        c.kernel_gs.set(s.msr.kernel_gs_base);
        for (seg, word) in s.seg.iter().zip(&c.selectors) {
            word.set(u64::from(seg.selector));
        }
        c.fs_base.set(s.segment(Seg::Fs).base);
        c.gs_base.set(s.segment(Seg::Gs).base);
    }

    /// FP state from the context and the host's x87 to the state.
    fn store_fp(&mut self) {
        let c = self.peer.ctx();
        let fp = &mut self.cpu.state.fp;
        fp.ymm = c.ymm.get();
        fp.mxcsr = c.mxcsr.get();
        let fip = host::store_x87(fp);
        let range = self.shared.range();
        if range.contains(&fip)
            && let Some(f) = self.shared.index.find((fip - range.start) as u32)
        {
            fp.fip = f.rip;
            fp.fdp = 0;
        }
    }

    fn load_fp(&mut self) {
        let c = self.peer.ctx();
        let fp = &self.cpu.state.fp;
        c.ymm.set(fp.ymm);
        c.mxcsr.set(fp.mxcsr);
        host::load_x87(fp);
    }

    /// Recomputes mode and view from the state, after anything may have changed it.
    fn derive(&mut self) {
        if self.cpu.mmu_log_pending() {
            for e in self.cpu.take_mmu_log() {
                self.mmu.event(e);
            }
        }
        let s = &self.cpu.state;
        let singled = RFlags::TF | RFlags::RF;
        self.translatable = s.code64()
            && s.cr0.contains(Cr0::PG)
            && !s.cr4.contains(Cr4::LA57)
            && s.activity == Activity::Running
            && !s.rflags.intersects(singled)
            && !s.sti_shadow
            && !s.mov_ss_shadow
            && s.dr7 & 0xff == 0
            && self.cpu.pending_debug == 0
            && !(s.cpl == 3 && s.cr0.contains(Cr0::AM) && s.rflags.contains(RFlags::AC));
        if !self.translatable {
            return;
        }
        self.mode = mode_of(s);
        self.mmu.select(&self.shared, s);
        let (sup, ac) = self.mmu.supervisor_bases();
        let rl = self.mmu.base(self.mmu.view);
        let ibtc = self.mmu.ibtc().address();
        let c = self.peer.ctx();
        let smap = s.cr4.contains(Cr4::SMAP);
        c.view_sup.set(if smap { sup } else { ac });
        c.view_ac.set(ac);
        c.rl.set(rl);
        c.ibtc.set(ibtc);
    }

    /// One interpreter step of the instruction at `rip`. The context is stored before and loaded
    /// afterwards.
    fn interpret(&mut self, rip: u64, fp: bool, io: &mut dyn CpuIo) -> Result<Step, EngineError> {
        self.stats.interp += 1;
        self.store_regs(rip);
        if fp {
            self.store_fp();
        }
        self.cpu.refresh();
        let step = self.cpu.step(io);
        if fp {
            self.load_fp();
        }
        self.load_regs();
        self.derive();
        step
    }

    /// Looks at the event word; what `run` has to return, if anything. The state is current.
    fn attend(&mut self, io: &mut dyn CpuIo) -> Result<Option<Exit>, EngineError> {
        if self.cpu.events.pending().any(EventBits::STOP) {
            self.cpu.events.take(EventBits::STOP);
            return Ok(Some(Exit::Stopped));
        }
        self.store_regs(self.ctx().rip.get());
        let poll = self.cpu.poll_events(io);
        self.load_regs();
        self.ctx().rip.set(self.cpu.state.rip);
        self.derive();
        Ok(match poll? {
            Poll::Run => None,
            Poll::Idle => Some(Exit::Halted),
            Poll::TripleFault => Some(Exit::TripleFault),
        })
    }

    fn serve_requests(&mut self) {
        let bits = self.peer.take_requests();
        if bits & Peer::DROP != 0 {
            self.mmu.purge_all();
        }
        if bits & Peer::PURGE != 0 {
            for page in self.peer.take_purge() {
                self.mmu.purge(page);
            }
        }
        if bits & Peer::FLUSH_WRITES != 0 {
            self.mmu.revoke_writes();
        }
    }

    /// Requests and events are looked at; then RIP (in the context) is executed until something
    /// leaves.
    fn turn(&mut self, io: &mut dyn CpuIo) -> Result<Turn, EngineError> {
        self.peer.clear_kick();
        if self.peer.requested() {
            self.serve_requests();
        }
        let idle = self.cpu.state.activity != Activity::Running;
        if (idle || self.cpu.events_pending())
            && let Some(exit) = self.attend(io)?
        {
            return Ok(Turn::Exit(exit));
        }
        let rip = self.ctx().rip.get();
        if !self.translatable {
            return self.single(rip, io);
        }
        let Some(mut at) = self.find(rip)? else {
            return self.single(rip, io);
        };
        loop {
            match self.execute(at, io)? {
                Next::At(next) => at = next,
                Next::Rip => return Ok(Turn::Go),
                Next::Exit(e) => return Ok(Turn::Exit(e)),
            }
        }
    }

    fn single(&mut self, rip: u64, io: &mut dyn CpuIo) -> Result<Turn, EngineError> {
        self.stats.singles += 1;
        let step = self.interpret(rip, true, io)?;
        self.ctx().rip.set(self.cpu.state.rip);
        Ok(match step {
            Step::TripleFault => Turn::Exit(Exit::TripleFault),
            _ => Turn::Go,
        })
    }

    /// The translation of `rip`, entered into the branch cache.
    fn find(&mut self, rip: u64) -> Result<Option<u32>, EngineError> {
        let Some(exec) = self.mmu.exec(&self.shared, &self.cpu.state, rip) else {
            return Ok(None);
        };
        let key = self.key(rip, exec);
        if let Some(at) = self.shared.block(key, &self.peer)? {
            let host = self.shared.address(at);
            self.mmu.ibtc().fill(rip, host, exec.page, exec.global);
            return Ok(Some(at));
        }
        self.find_spanning(key)
    }

    /// The translation of an instruction that spans two pages.
    fn find_spanning(&mut self, key: Key) -> Result<Option<u32>, EngineError> {
        let next = (key.rip | 4095).wrapping_add(1);
        if key.rip & 4095 <= 4096 - 15 {
            return Ok(None);
        }
        let Some(second) = self.mmu.exec(&self.shared, &self.cpu.state, next) else {
            return Ok(None);
        };
        let key = Key {
            second: second.page,
            ..key
        };
        let Some(at) = self.shared.block(key, &self.peer)? else {
            return Ok(None);
        };
        let host = self.shared.address(at);
        let ibtc = self.mmu.ibtc();
        ibtc.fill(key.rip, host, key.page, false);
        ibtc.also(key.rip, second.page);
        Ok(Some(at))
    }

    fn key(&self, rip: u64, exec: mmu::Exec) -> Key {
        Key {
            page: exec.page,
            second: Key::ONE_PAGE,
            rip,
            mode: Mode(self.mode.0 | if exec.large { Mode::LARGE } else { 0 }),
        }
    }

    /// Enters translated code at cache offset `at` and serves its exit.
    fn execute(&mut self, at: u32, io: &mut dyn CpuIo) -> Result<Next, EngineError> {
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
        let c = self.peer.ctx();
        // Inline CLI, STI, STAC and their like have changed flags, and with AC the view.
        self.cpu.state.rflags = flags_of(c);
        if c.rl.get() != self.mmu.base(self.mmu.view) {
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
                    return Ok(Next::At(site.host));
                }
                self.step(Site { host: 0, ..site }, io)
            }
            SiteKind::Interp => self.step(site, io),
            SiteKind::Link => {
                self.stats.links += 1;
                self.ctx().rip.set(site.rip);
                self.link(site.rip, site.host, generation)
            }
            SiteKind::Indirect => {
                self.stats.indirect += 1;
                let c = self.ctx();
                let target = c.t.get();
                c.rip.set(target);
                self.go(target)
            }
            SiteKind::Far => {
                self.stats.far += 1;
                self.ctx().rip.set(site.rip);
                self.go(site.rip)
            }
        }
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
        if self.peer.requested() || self.cpu.events_pending() {
            return Ok(Next::Rip);
        }
        Ok(self.find(rip)?.map_or(Next::Rip, Next::At))
    }

    fn link(&mut self, rip: u64, at: u32, generation: u64) -> Result<Next, EngineError> {
        if self.peer.requested() {
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

    /// The interpreter executes the site's instruction; then on at `site.host` if that is where it
    /// leads.
    fn step(&mut self, site: Site, io: &mut dyn CpuIo) -> Result<Next, EngineError> {
        *self.stats.fallbacks.entry(site.code).or_default() += 1;
        let (mode, view) = (self.mode, self.mmu.view);
        let step = self.interpret(site.rip, site.aux & AUX_FP != 0, io)?;
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
        self.step(site, io)
    }

    /// The forms most often left to the interpreter.
    fn fallbacks(&self) -> Vec<(String, u64)> {
        let mut list: Vec<_> = self.stats.fallbacks.iter().collect();
        list.sort_by_key(|(code, n)| (std::cmp::Reverse(**n), **code));
        list.iter()
            .take(24)
            .filter_map(|(code, n)| {
                let code = iced_x86::Code::try_from(usize::from(**code)).ok()?;
                Some((format!("fallback {code:?}"), **n))
            })
            .collect()
    }

    fn run_translated(&mut self, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        self.load_regs();
        self.ctx().rip.set(self.cpu.state.rip);
        self.derive();
        loop {
            if let Turn::Exit(exit) = self.turn(io)? {
                return Ok(exit);
            }
        }
    }

    /// To the instruction: the interpreter alone.
    fn run_counted(&mut self, limit: u64, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        loop {
            if self.cpu.events_pending() || self.cpu.state.activity != Activity::Running {
                if self.cpu.events.pending().any(EventBits::STOP) {
                    self.cpu.events.take(EventBits::STOP);
                    return Ok(Exit::Stopped);
                }
                match self.cpu.poll_events(io)? {
                    Poll::Run => {}
                    Poll::Idle => return Ok(Exit::Halted),
                    Poll::TripleFault => return Ok(Exit::TripleFault),
                }
            }
            if self.cpu.retired >= limit {
                return Ok(Exit::InstructionLimit);
            }
            if self.cpu.step(io)? == Step::TripleFault {
                return Ok(Exit::TripleFault);
            }
        }
    }
}

/// RFLAGS, put together from the context's pieces.
fn flags_of(c: &Ctx) -> RFlags {
    let pieces = c.df.get() | c.iflag.get() | c.ac.get();
    RFlags::from_bits_retain(c.sysflags.get() | u64::from(pieces) | c.status_flags())
}

/// The translation mode of a state in 64-bit code.
fn mode_of(s: &X86State) -> Mode {
    let mut m = 0;
    if s.cpl == 3 {
        m |= Mode::USER;
    } else if s.cpl == 0 {
        m |= Mode::KERNEL;
    }
    let blocked = s.cr0.intersects(Cr0::EM | Cr0::TS);
    if !blocked {
        m |= Mode::X87;
        if s.cr4.contains(Cr4::OSFXSR) {
            m |= Mode::SSE;
        }
        if s.cr4.contains(Cr4::OSXSAVE) && s.xcr0 & 6 == 6 {
            m |= Mode::AVX;
        }
    }
    Mode(m)
}

impl Vcpu for BtVcpu {
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        if self.cpu.state.activity == Activity::Shutdown {
            return Ok(Exit::TripleFault);
        }
        if let Some(limit) = stop.retired {
            return self.run_counted(limit, io);
        }
        let peer = self.peer.clone();
        let shared = self.shared.clone();
        let guard = signal::enter(shared.range(), peer.ctx(), &shared.index);
        let gs = host::gs_base();
        host::set_gs_base(lat::WRITE_DISTANCE);
        peer.begin();
        self.load_fp();
        let result = self.run_translated(io);
        self.store_fp();
        host::reset_x87();
        let rip = self.ctx().rip.get();
        self.store_regs(rip);
        self.cpu.refresh();
        peer.end();
        host::set_gs_base(gs);
        drop(guard);
        result
    }

    fn save(&self) -> X86State {
        self.cpu.state.clone()
    }

    fn restore(&mut self, state: X86State) {
        self.cpu.set_state(state);
        self.mmu.flush_everything();
    }

    fn retired(&self) -> u64 {
        self.cpu.retired
    }

    fn stats(&self) -> Vec<(String, u64)> {
        let (v, m, t) = (&self.stats, &self.mmu.stats, self.shared.stats());
        let (blocks, insns, sites) = self.shared.index.counts();
        [
            ("blocks translated", t.blocks),
            ("guest instructions translated", t.insns),
            ("guest bytes translated", t.guest_bytes),
            ("host bytes, hot", t.host_bytes),
            ("host bytes, cold", t.cold_bytes),
            ("instructions left to the interpreter", t.interp_insns),
            ("blocks in the cache", blocks),
            ("instructions in the cache", insns),
            ("exit sites", sites),
            ("branches chained", t.links),
            ("page invalidations", t.invalidations),
            ("code cache drops", t.drops),
            ("entries into translated code", v.enters),
            ("exits: table miss", v.misses),
            ("exits: unchained branch", v.links),
            ("exits: indirect branch", v.indirect),
            ("exits: far branch", v.far),
            ("exits: kicked", v.kicks),
            ("exits: host fault", v.faults),
            ("interpreter steps", v.interp),
            ("of these outside blocks", v.singles),
            ("table fills", m.fills),
            ("table flushes", m.flushes),
            ("page flushes", m.page_flushes),
            ("address space switches", m.switches),
            ("view evictions", m.view_evictions),
            ("table memory, KB", self.mmu.table_pages() * 4),
        ]
        .map(|(name, n)| (name.to_owned(), n))
        .into_iter()
        .chain(self.fallbacks())
        .collect()
    }

    fn recent_exceptions(&self) -> Vec<(u64, Exception)> {
        self.cpu.recent_exceptions()
    }
}
