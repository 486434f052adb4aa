//! The loops that run a deterministic VM: slices of exact length, one vCPU at a time.

use crate::player::{apply_dma, set_events};
use crate::recorder::Recorder;
use crate::{
    Entry, LogError, LogReader, NANOS_PER_INSTRUCTION_SHIFT, Replayer, SharedLog, VirtualClock,
    state_hash,
};
use mimeo_bus::{Clock, Nanos};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{CpuIo, EngineError, EventBits, Exit, StopAt, Vcpu, VcpuEvents};
use std::sync::Arc;

/// How a deterministic run ended.
#[derive(Debug)]
pub enum Ended {
    /// The pump said so (power-off, a limit).
    Stopped {
        /// The hash that closes the log.
        hash: u64,
    },
    /// A vCPU shut down.
    TripleFault {
        /// Which vCPU.
        cpu: usize,
    },
    /// The engine failed.
    Engine(EngineError),
    /// The log failed, or the replay left it.
    Log(LogError),
    /// Every vCPU waits and no timer is armed.
    Deadlock,
}

/// What the machine does between slices, at virtual time `now`: run due timers, hand over input.
pub trait Pump {
    /// Called at every boundary. Gives the next timer deadline, if any; `Err(())` ends the run.
    ///
    /// # Errors
    /// `Err(())` when the VM is to end here.
    #[expect(clippy::result_unit_err, reason = "the only way to end is to end")]
    fn pump(&mut self, now: Nanos) -> Result<Option<Nanos>, ()>;

    /// Every vCPU waits and no timer is armed: waits for something from outside (input, a request to
    /// end) and says whether there will be any. `false` ends the run as a deadlock.
    fn idle(&mut self) -> bool {
        false
    }
}

/// A vCPU and its machine.
pub struct RecordedCpu<'a> {
    /// The vCPU.
    pub vcpu: &'a mut dyn Vcpu,
    /// What answers it.
    pub io: &'a mut dyn CpuIo,
}

impl std::fmt::Debug for RecordedCpu<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordedCpu({})", self.vcpu.retired())
    }
}

/// A vCPU of a replay: no machine.
pub type ReplayedCpu<'a> = &'a mut dyn Vcpu;

/// Events that end HLT.
const WAKE: EventBits =
    EventBits(EventBits::INTR.0 | EventBits::NMI.0 | EventBits::INIT.0 | EventBits::SIPI.0);

fn log_events(log: &SharedLog, events: &[Arc<VcpuEvents>], seen: &mut [EventBits]) {
    for (cpu, (events, seen)) in events.iter().zip(seen.iter_mut()).enumerate() {
        let now = events.pending();
        if now != *seen {
            *seen = now;
            let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
            log.push(&Entry::Events { cpu, bits: now.0 });
        }
    }
}

/// Runs `cpus` in turns of at most `slice` instructions and records everything.
pub fn record(
    cpus: &mut [RecordedCpu<'_>],
    events: &[Arc<VcpuEvents>],
    memory: &GuestMemory,
    clock: &VirtualClock,
    log: &SharedLog,
    slice: u64,
    pump: &mut dyn Pump,
) -> Ended {
    let mut halted = vec![false; cpus.len()];
    let states: Vec<_> = cpus.iter().map(|c| c.vcpu.save()).collect();
    let hash = state_hash(states.iter(), memory);
    log.push(&Entry::Begin { hash });
    loop {
        let mut seen: Vec<_> = events.iter().map(|e| e.pending()).collect();
        let now = clock.now();
        let Ok(deadline) = pump.pump(now) else {
            let states: Vec<_> = cpus.iter().map(|c| c.vcpu.save()).collect();
            let hash = state_hash(states.iter(), memory);
            log.push(&Entry::End { hash });
            return match log.check() {
                Ok(()) => Ended::Stopped { hash },
                Err(error) => Ended::Log(error),
            };
        };
        log_events(log, events, &mut seen);
        let idle = |i: usize, halted: &[bool]| halted[i] && !events[i].pending().any(WAKE);
        if (0..cpus.len()).all(|i| idle(i, &halted)) {
            let Some(deadline) = deadline else {
                if pump.idle() {
                    continue;
                }
                return Ended::Deadlock;
            };
            clock.advance_to(deadline.max(now + 1));
            log.push(&Entry::Time(clock.now()));
            continue;
        }
        let left = deadline.map_or(u64::MAX, |d| {
            d.saturating_sub(now) >> NANOS_PER_INSTRUCTION_SHIFT
        });
        let length = slice.min(left).max(1);
        // An engine that does not stop to the instruction takes the time that it takes.
        let mut longest = length;
        for i in 0..cpus.len() {
            if idle(i, &halted) {
                continue;
            }
            let start = cpus[i].vcpu.retired();
            let until = start + length;
            log.begin_slice();
            let cpu = &mut cpus[i];
            let mut io = Recorder::new(cpu.io, log, clock, events, start);
            let stop = StopAt {
                retired: Some(until),
                ..StopAt::default()
            };
            let exit = cpu.vcpu.run(stop, &mut io);
            let retired = cpu.vcpu.retired();
            longest = longest.max(retired.saturating_sub(start));
            let mut limit = until;
            match exit {
                Ok(exit) => {
                    halted[i] = exit == Exit::Halted;
                    if exit == Exit::Stopped {
                        // Nobody raises STOP in a replay: there this is where the slice ends.
                        limit = retired;
                    }
                }
                Err(error) => return Ended::Engine(error),
            }
            let cpu = u32::try_from(i).unwrap_or(u32::MAX);
            let halted = halted[i];
            log.end_slice(
                &Entry::Run { cpu, until: limit },
                &Entry::Ran { retired, halted },
            );
            if matches!(exit, Ok(Exit::TripleFault)) {
                return match log.check() {
                    Ok(()) => Ended::TripleFault { cpu: i },
                    Err(error) => Ended::Log(error),
                };
            }
        }
        clock.advance_to(now + (longest << NANOS_PER_INSTRUCTION_SHIFT));
        log.push(&Entry::Time(clock.now()));
    }
}

/// Runs vCPUs from a log. They and `memory` must be in the state in which recording began. On
/// success the final hash has been compared with the recorded one.
pub fn replay(
    cpus: &mut [ReplayedCpu<'_>],
    events: &[Arc<VcpuEvents>],
    memory: &GuestMemory,
    log: &mut LogReader,
) -> Ended {
    match replay_inner(cpus, events, memory, log) {
        Ok(ended) => ended,
        Err(error) => Ended::Log(error),
    }
}

fn replay_inner(
    cpus: &mut [ReplayedCpu<'_>],
    events: &[Arc<VcpuEvents>],
    memory: &GuestMemory,
    log: &mut LogReader,
) -> Result<Ended, LogError> {
    loop {
        let entry = log.next_entry()?;
        match &entry {
            Entry::Dma { .. } => apply_dma(memory, &entry),
            Entry::Time(_) => {}
            &Entry::Begin { hash } => {
                let states: Vec<_> = cpus.iter().map(|c| c.save()).collect();
                if state_hash(states.iter(), memory) != hash {
                    return Err(LogError::OtherMachine);
                }
            }
            &Entry::Events { cpu, bits } => {
                if let Some(events) = events.get(cpu as usize) {
                    set_events(events, bits);
                }
            }
            &Entry::Run { cpu, until } => {
                let i = cpu as usize;
                let Some(vcpu) = cpus.get_mut(i) else {
                    return Err(log.diverged(&entry, "a VM with fewer vCPUs"));
                };
                let mut io = Replayer::new(log, events, memory, i);
                let stop = StopAt {
                    retired: Some(until),
                    ..StopAt::default()
                };
                let exit = vcpu.run(stop, &mut io);
                io.finish()?;
                let now = match exit {
                    Err(error) => return Ok(Ended::Engine(error)),
                    Ok(Exit::TripleFault) => return Ok(Ended::TripleFault { cpu: i }),
                    Ok(exit) => Entry::Ran {
                        retired: vcpu.retired(),
                        halted: exit == Exit::Halted,
                    },
                };
                let recorded = log.next_entry()?;
                if recorded != now {
                    return Err(log.diverged(&recorded, &format!("{now:x?}")));
                }
            }
            &Entry::End { hash } => {
                let states: Vec<_> = cpus.iter().map(|c| c.save()).collect();
                let now = state_hash(states.iter(), memory);
                if now != hash {
                    return Err(log.diverged(&entry, &format!("hash {now:x}")));
                }
                return Ok(Ended::Stopped { hash });
            }
            _ => return Err(log.diverged(&entry, "nothing: no vCPU was running")),
        }
    }
}
