//! The engine: runs a [`Cpu`] from predecoded blocks.

use crate::cache::{BlockCache, Next};
use crate::cpu::Poll;
use crate::{Cpu, Op, Prefix, Step, Trap};
use mimeo_arch_x86::{Activity, Exception, RFlags, X86State};
use mimeo_vcpu::{
    CpuIo, Engine, EngineCaps, EngineConfig, EngineError, EventBits, Exit, StopAt, Vcpu, VcpuEvents,
};
use std::sync::Arc;

/// The interpreter as an engine.
#[derive(Debug)]
pub struct InterpEngine {
    config: EngineConfig,
}

impl InterpEngine {
    /// An engine for one VM.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        Self { config }
    }
}

impl Engine for InterpEngine {
    fn name(&self) -> &'static str {
        "interp"
    }

    fn caps(&self) -> EngineCaps {
        EngineCaps {
            smp: true,
            exact_count: true,
        }
    }

    fn create_vcpu(
        &self,
        index: u32,
        events: Arc<VcpuEvents>,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(InterpVcpu {
            cpu: Cpu::new(&self.config, index, events),
            cache: BlockCache::new(self.config.cpus),
            singles: 0,
        }))
    }
}

struct InterpVcpu {
    cpu: Cpu,
    cache: BlockCache,
    /// Instructions executed outside blocks.
    singles: u64,
}

/// What one turn of the loop ended with.
enum Turn {
    Go,
    Exit(Exit),
}

impl InterpVcpu {
    /// Anything that needs instruction-by-instruction execution: shadows, TF, RF, breakpoints.
    #[inline(always)]
    fn single_mode(&self) -> bool {
        let s = &self.cpu.state;
        s.rflags.intersects(RFlags::TF.union(RFlags::RF))
            | s.sti_shadow
            | s.mov_ss_shadow
            | (s.dr7 & 0xff != 0)
    }

    #[inline(always)]
    fn turn(&mut self, limit: u64, io: &mut dyn CpuIo) -> Result<Turn, EngineError> {
        if (self.cpu.events_pending() || self.cpu.state.activity != Activity::Running)
            && let Some(exit) = self.attend(io)?
        {
            return Ok(Turn::Exit(exit));
        }
        if self.cpu.retired >= limit {
            return Ok(Turn::Exit(Exit::InstructionLimit));
        }
        if self.single_mode() {
            return self.single(io);
        }
        let left = limit - self.cpu.retired;
        let result = match self.cache.next(&mut self.cpu) {
            Ok(Next::Block(block, ops)) => {
                let n = ops.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if n < ops.len() && ops[n - 1].prefix.has(Prefix::STALE) {
                    // Who stops here sees the flags.
                    return self.single(io);
                }
                if self.cpu.code64 {
                    run_ops::<true>(&mut self.cpu, &ops[..n], io)
                } else if crate::decode::limit_left(&self.cpu)
                    .is_ok_and(|n| n >= u64::from(block.bytes))
                {
                    run_ops::<false>(&mut self.cpu, &ops[..n], io)
                } else {
                    return self.single(io);
                }
            }
            Ok(Next::Single) => return self.single(io),
            Err(trap) => Err(trap),
        };
        match result {
            Ok(()) => Ok(Turn::Go),
            Err(trap) => {
                let step = self.cpu.finish_fault(trap, 0, io)?;
                Ok(after(step))
            }
        }
    }

    #[cold]
    fn single(&mut self, io: &mut dyn CpuIo) -> Result<Turn, EngineError> {
        self.singles += 1;
        Ok(after(self.cpu.step(io)?))
    }

    /// Looks at the event word; what `run` has to return, if anything.
    #[cold]
    fn attend(&mut self, io: &mut dyn CpuIo) -> Result<Option<Exit>, EngineError> {
        if self.cpu.events.pending().any(EventBits::STOP) {
            self.cpu.events.take(EventBits::STOP);
            return Ok(Some(Exit::Stopped));
        }
        Ok(match self.cpu.poll_events(io)? {
            Poll::Run => None,
            Poll::Idle => Some(Exit::Halted),
            Poll::TripleFault => Some(Exit::TripleFault),
        })
    }
}

fn after(step: Step) -> Turn {
    match step {
        Step::TripleFault => Turn::Exit(Exit::TripleFault),
        // HLT: the next turn looks at the events first.
        Step::Halted | Step::Retired | Step::Exception(_) | Step::Interrupted => Turn::Go,
    }
}

/// Executes ops in order until the last, a fault, or a reason to leave.
#[inline(always)]
fn run_ops<const LONG: bool>(cpu: &mut Cpu, ops: &[Op], io: &mut dyn CpuIo) -> Result<(), Trap> {
    cpu.leave_block = false;
    let mut rip = cpu.state.rip;
    for op in ops {
        let before = rip;
        rip = rip.wrapping_add(u64::from(op.len));
        if !LONG {
            rip &= 0xffff_ffff;
        }
        cpu.state.rip = rip;
        if let Err(trap) = (op.run)(cpu, op, io) {
            cpu.state.rip = before;
            cpu.retired += u64::from(op.pos);
            return Err(trap);
        }
        if cpu.leave_block {
            cpu.retired += u64::from(op.pos) + 1;
            return Ok(());
        }
    }
    cpu.retired += ops.len() as u64;
    Ok(())
}

impl Vcpu for InterpVcpu {
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        if self.cpu.state.activity == Activity::Shutdown {
            return Ok(Exit::TripleFault);
        }
        let limit = stop.retired.unwrap_or(u64::MAX);
        let _inside = self.cpu.seat.enter();
        let mut turns = stop.turns.filter(|n| *n != 0);
        loop {
            let next = match turns {
                None => limit,
                Some(_) => limit.min(self.cpu.retired + 1),
            };
            if let Turn::Exit(exit) = self.turn(next, io)? {
                return Ok(exit);
            }
            if let Some(left) = &mut turns {
                *left -= 1;
                if *left == 0 {
                    return Ok(Exit::InstructionLimit);
                }
            }
        }
    }

    fn state(&self) -> &X86State {
        &self.cpu.state
    }

    fn restore(&mut self, state: X86State) {
        self.cpu.set_state(state);
    }

    fn retired(&self) -> u64 {
        self.cpu.retired
    }

    fn stats(&self) -> Vec<(String, u64)> {
        let c = &self.cpu;
        [
            ("instructions", c.retired),
            ("instructions outside blocks", self.singles),
            ("instructions decoded", self.cache.decoded),
            ("block cache flushes", self.cache.flushes),
            ("tlb fills", c.tlb.fills),
            ("tlb flushes", c.tlb.flushes),
            ("exceptions and interrupts", c.delivered),
        ]
        .map(|(name, n)| (name.to_owned(), n))
        .to_vec()
    }

    fn recent_exceptions(&self) -> Vec<(u64, Exception)> {
        self.cpu.recent_exceptions()
    }
}
