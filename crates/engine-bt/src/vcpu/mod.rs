//! One vCPU: the loop between translated code, the interpreter and events.
//!
//! State lives in one of two places. While `run` executes, the general registers, flags, RIP and FP
//! state are the context block's (x87: the host's registers) and everything else is
//! `cpu.state`'s; around each interpreter step the former are copied over (FP only for
//! instructions that use it). Outside `run`, `cpu.state` has everything.

mod exits;
mod ops;
mod state;
mod stats;
mod system;

use crate::ctx::Ctx;
use crate::decode::Mode;
use crate::lat::View;
use crate::mmu::{self, Mmu};
use crate::peer::Peer;
use crate::shared::{Key, Shared};
use crate::{host, lat, signal};
use mimeo_arch_x86::{Activity, Exception, X86State};
use mimeo_engine_interp::{Cpu, Poll, Step};
use mimeo_vcpu::{CpuIo, EngineConfig, EngineError, EventBits, Exit, StopAt, Vcpu, VcpuEvents};
use ops::OpCache;
use stats::Stats;
use std::sync::Arc;

/// A vCPU of the translator.
pub(crate) struct BtVcpu {
    cpu: Cpu,
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    mmu: Mmu,
    mode: Mode,
    /// The state can run translated (computed by [`Self::derive`]).
    translatable: bool,
    ops: OpCache,
    /// Turns left of [`StopAt::turns`].
    turns: Option<u32>,
    /// What is added to the host's time-stamp counter, without IA32_TSC_ADJUST; `None` where the
    /// guest's does not follow the host's.
    tsc_offset: Option<u64>,
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
        views: Vec<View>,
        index: u32,
        events: Arc<VcpuEvents>,
    ) -> Result<Self, EngineError> {
        let host = |source| EngineError::Host {
            what: "cannot reserve address space for the translator's branch caches".into(),
            source,
        };
        let mut cpu = Cpu::new(config, index, events.clone());
        cpu.log_mmu(true);
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
            ops: OpCache::new(),
            turns: None,
            tsc_offset: None,
            stats: Stats::default(),
        })
    }

    fn ctx(&self) -> &Ctx {
        self.peer.ctx()
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
        let step = self.interpret(rip, None, true, io)?;
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
            if !self.shared.options.unchained {
                let host = self.shared.address(at);
                self.mmu.ibtc().fill(rip, host, exec.page, exec.global);
            }
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
        let Some(first) = self.mmu.exec(&self.shared, &self.cpu.state, key.rip) else {
            return Ok(None);
        };
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
        if !self.shared.options.unchained {
            let host = self.shared.address(at);
            let ibtc = self.mmu.ibtc();
            ibtc.fill(key.rip, host, key.page, first.global);
            ibtc.also(key.rip, second.page, second.global);
        }
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

    fn run_translated(&mut self, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        self.tsc_offset = io.tsc_offset();
        self.load_regs();
        self.ctx().rip.set(self.cpu.state.rip);
        self.derive();
        loop {
            if let Turn::Exit(exit) = self.turn(io)? {
                return Ok(exit);
            }
            if self.turns == Some(0) || self.spend() {
                return Ok(Exit::InstructionLimit);
            }
        }
    }

    /// One turn is over; whether it was the last.
    pub(super) fn spend(&mut self) -> bool {
        self.turns.as_mut().is_some_and(|n| {
            *n = n.saturating_sub(1);
            *n == 0
        })
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

impl Vcpu for BtVcpu {
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        if self.cpu.state.activity == Activity::Shutdown {
            return Ok(Exit::TripleFault);
        }
        let _inside = self.cpu.seat.enter();
        if let Some(limit) = stop.retired {
            return self.run_counted(limit, io);
        }
        self.turns = stop.turns.filter(|n| *n != 0);
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

    fn state(&self) -> &X86State {
        &self.cpu.state
    }

    fn restore(&mut self, state: X86State) {
        self.cpu.set_state(state);
        self.mmu.flush_everything();
    }

    fn retired(&self) -> u64 {
        self.cpu.retired
    }

    fn stats(&self) -> Vec<(String, u64)> {
        self.counters()
    }

    fn explain(&self, rip: u64) -> Option<String> {
        self.shared.explain(rip, self.ctx().traced.get())
    }

    fn recent_exceptions(&self) -> Vec<(u64, Exception)> {
        self.cpu.recent_exceptions()
    }
}
