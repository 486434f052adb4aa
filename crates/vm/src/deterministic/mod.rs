//! Deterministic runs: one thread, virtual time, everything from outside written down.
//!
//! The vCPUs take turns in slices of an exact number of instructions (crate `replay` has the driver
//! and the log). A guest's reset ends such a run. Output that the host refuses for a while and takes
//! later is not covered: a deterministic run's serial port should lead where output never blocks
//! for long.

mod input;

pub use input::HeldInput;

use crate::outcome::Outcome;
use crate::report::CpuReport;
use crate::vm::{Loader, VmError, boot_states};
use mimeo_bus::Nanos;
use mimeo_machines::MachineEvent;
use mimeo_machines::machine::Machine;
use mimeo_machines::virtual_time::VirtualTime;
use mimeo_replay::{
    DmaRecorder, Ended, LogError, LogReader, LogWriter, Pump, RecordedCpu, SharedLog,
};
use mimeo_vcpu::{CpuIo, EngineError, Vcpu};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Instructions of one turn at most.
const SLICE: u64 = 100_000;

/// The same in lockstep with several vCPUs: short, because guests that wait for each other spin away
/// whole turns.
const SHORT_SLICE: u64 = 200;

/// Asks a deterministic run to end, from any thread.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Ends the run at its next boundary.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How a deterministic run ended, and the hash of CPUs and memory when it did (where there is one).
#[derive(Debug)]
pub struct Finished {
    /// (vCPU, counter, value), as for an ordinary run.
    pub stats: Vec<(usize, String, u64)>,
    /// As for an ordinary run.
    pub outcome: Outcome,
    /// The state's hash.
    pub hash: Option<u64>,
}

struct Machinery<'a> {
    machine: &'a Machine,
    time: &'a VirtualTime,
    input: &'a HeldInput,
    stop: &'a StopFlag,
    deadline: Option<Instant>,
    outcome: Option<Outcome>,
}

impl Machinery<'_> {
    fn ended(&self) -> Option<Outcome> {
        if self.stop.0.load(Ordering::Acquire) {
            return Some(Outcome::Stopped);
        }
        if self.deadline.is_some_and(|d| Instant::now() >= d) {
            return Some(Outcome::Timeout);
        }
        Some(match self.machine.signals.take()? {
            MachineEvent::PowerOff => Outcome::PowerOff,
            MachineEvent::DebugExit(status) => Outcome::DebugExit(status),
            MachineEvent::Reset(how) => Outcome::Reset(how),
        })
    }
}

impl Pump for Machinery<'_> {
    fn pump(&mut self, now: Nanos) -> Result<Option<Nanos>, ()> {
        self.outcome = self.ended();
        if self.outcome.is_some() {
            return Err(());
        }
        self.input.hand_over();
        Ok(self.time.run_timers(now))
    }

    fn idle(&mut self) -> bool {
        loop {
            if self.input.wait(Duration::from_millis(50)) {
                return true;
            }
            // `pump` is the one that ends the run.
            if self.stop.0.load(Ordering::Acquire)
                || self.deadline.is_some_and(|d| Instant::now() >= d)
                || self.machine.signals.pending()
            {
                return true;
            }
        }
    }
}

fn vcpus(machine: &Machine, loader: &mut Loader) -> Result<Vec<Box<dyn Vcpu>>, VmError> {
    let states = boot_states(machine, loader)?;
    let mut vcpus = Vec::new();
    for ((index, events), state) in (0..).zip(&machine.events).zip(states) {
        let mut vcpu = machine.engine.create_vcpu(index, events.clone())?;
        vcpu.restore(state);
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn log_failed(error: &LogError) -> VmError {
    VmError::Log(error.to_string())
}

/// Runs a machine whose time is `time` and whose input comes through `input`; writes the log to
/// `file`.
///
/// # Errors
/// [`VmError`] before the first instruction.
pub fn record(
    machine: &Machine,
    mut loader: Loader,
    time: &VirtualTime,
    input: &HeldInput,
    file: File,
    stop: &StopFlag,
    deadline: Option<Instant>,
) -> Result<Finished, VmError> {
    let writer = LogWriter::new(Box::new(BufWriter::with_capacity(1 << 20, file)));
    let log = SharedLog::new(writer.map_err(|e| log_failed(&e))?);
    let vcpus = vcpus(machine, &mut loader)?;
    let dma = Arc::new(DmaRecorder::new(&machine.memory, log.clone()));
    let tracker = machine.memory.tracker();
    if tracker.set_device_write_observer(dma).is_err() {
        return Err(VmError::Log(
            "device writes are being observed by somebody else".into(),
        ));
    }
    let from = Outside { time, input, stop };
    drive(machine, vcpus, &from, &log, SLICE, deadline)
}

/// Runs a machine whose engine is a [`mimeo_replay::lockstep::Lockstep`] as [`record`] does, without
/// a log: a difference between the engines ends it with [`Outcome::HostError`].
///
/// # Errors
/// [`VmError`] before the first instruction.
pub fn verify(
    machine: &Machine,
    mut loader: Loader,
    time: &VirtualTime,
    input: &HeldInput,
    stop: &StopFlag,
    deadline: Option<Instant>,
) -> Result<Finished, VmError> {
    let writer = LogWriter::new(Box::new(std::io::sink()));
    let log = SharedLog::new(writer.map_err(|e| log_failed(&e))?);
    let vcpus = vcpus(machine, &mut loader)?;
    let slice = if vcpus.len() > 1 { SHORT_SLICE } else { SLICE };
    let from = Outside { time, input, stop };
    drive(machine, vcpus, &from, &log, slice, deadline)
}

/// What moves a deterministic run from outside.
struct Outside<'a> {
    time: &'a VirtualTime,
    input: &'a HeldInput,
    stop: &'a StopFlag,
}

/// The recording driver with this machine's parts.
fn drive(
    machine: &Machine,
    mut vcpus: Vec<Box<dyn Vcpu>>,
    from: &Outside<'_>,
    log: &SharedLog,
    slice: u64,
    deadline: Option<Instant>,
) -> Result<Finished, VmError> {
    let mut ios: Vec<Box<dyn CpuIo + Send>> = Vec::new();
    for index in 0..machine.spec.cpus {
        ios.push(machine.board.io(index).ok_or_else(|| {
            EngineError::Internal(format!("the board has no place for vCPU {index}"))
        })?);
    }
    let mut pump = Machinery {
        machine,
        time: from.time,
        input: from.input,
        stop: from.stop,
        deadline,
        outcome: None,
    };
    let mut cpus: Vec<RecordedCpu<'_>> = vcpus
        .iter_mut()
        .zip(&mut ios)
        .map(|(vcpu, io)| RecordedCpu {
            vcpu: &mut **vcpu,
            io: &mut **io,
        })
        .collect();
    let ended = mimeo_replay::record(
        &mut cpus,
        &machine.events,
        &machine.memory,
        from.time.virtual_clock(),
        log,
        slice,
        &mut pump,
    );
    let outcome = pump.outcome.take();
    drop(cpus);
    Ok(finish(ended, outcome, &vcpus, machine))
}

/// Runs the vCPUs of a machine from a log, without its devices. The payload must be loaded as it was
/// for the recording.
///
/// # Errors
/// [`VmError`] before the first instruction.
pub fn replay(machine: &Machine, mut loader: Loader, file: File) -> Result<Finished, VmError> {
    let mut vcpus = vcpus(machine, &mut loader)?;
    let mut log = LogReader::new(Box::new(BufReader::new(file))).map_err(|e| log_failed(&e))?;
    let mut cpus: Vec<&mut dyn Vcpu> = vcpus.iter_mut().map(|v| &mut **v as _).collect();
    let ended = mimeo_replay::replay(&mut cpus, &machine.events, &machine.memory, &mut log);
    Ok(finish(ended, Some(Outcome::Replayed), &vcpus, machine))
}

fn finish(
    ended: Ended,
    outcome: Option<Outcome>,
    vcpus: &[Box<dyn Vcpu>],
    machine: &Machine,
) -> Finished {
    let hash = match ended {
        Ended::Stopped { hash } => Some(hash),
        _ => None,
    };
    let stats = vcpus
        .iter()
        .enumerate()
        .flat_map(|(n, v)| {
            v.stats()
                .into_iter()
                .map(move |(name, value)| (n, name, value))
        })
        .collect();
    let outcome = match ended {
        Ended::Stopped { .. } => outcome.unwrap_or(Outcome::Stopped),
        Ended::TripleFault { cpu } => match vcpus.get(cpu) {
            Some(vcpu) => Outcome::TripleFault(Box::new(CpuReport::new(
                cpu as u32,
                &**vcpu,
                &machine.cpu,
                &machine.memory,
            ))),
            None => Outcome::HostError(format!("there is no vCPU {cpu}")),
        },
        Ended::Engine(error) => Outcome::HostError(error.to_string()),
        Ended::Log(error) => Outcome::HostError(error.to_string()),
        Ended::Deadlock => Outcome::HostError(
            "every CPU of the guest waits and nothing is left that could wake one".into(),
        ),
    };
    Finished {
        stats,
        outcome,
        hash,
    }
}
