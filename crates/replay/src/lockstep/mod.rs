//! Lockstep verification: two engines execute the same guest, each in a memory of its own.
//!
//! The first engine runs a few turns ([`StopAt::turns`]) against the machine, which answers as always;
//! the answers, changes of event words and device writes are written down. The second, whose turns are
//! single instructions, is given them back and steps until it stands where the first stopped: same
//! registers, same bytes in every page that either has written since they last agreed. If it gets
//! nowhere, the run ends with both states, the instructions that the second executed and the code of the
//! first.
//!
//! Neither engine counts for the other: where the first stopped is found by comparing states, so that
//! asynchronous stops, exceptions and chained blocks need no bookkeeping. What may differ:
//!
//! - status flags that an instruction since the last agreement leaves undefined (isa-x86's table);
//! - the x87's last instruction and operand pointers, which a translator does not keep exact;
//! - after a stop from outside, accessed flags in page tables: the first may have fetched code that it
//!   then did not execute (SDM vol. 3, 5.8).
//!
//! All are carried over to the second engine. Interrupts are expected at the earliest boundary in both.
//! One vCPU runs at a time: the driver is the one of deterministic runs.

mod compare;
mod report;

use crate::player::{apply_dma, set_events};
use crate::{DmaRecorder, LogReader, LogWriter, Recorder, Replayer, SharedLog};
use compare::Path;
use mimeo_arch_x86::X86State;
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_memory::{GuestMemory, MemoryError, PAGE_SIZE, RegionSpec};
use mimeo_vcpu::{
    CpuIo, Engine, EngineCaps, EngineError, EventBits, Exit, StopAt, Vcpu, VcpuEvents,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Instructions that a turn of the first engine may stand for.
const STEPS_PER_TURN: u64 = 8192;
/// Instructions that the first engine may execute before the ticker stops it.
const STEPS_PER_TICK: u64 = 200_000_000;

/// How far the first engine runs between two comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stride {
    /// So many of its turns: with an unchained translator, blocks.
    Turns(u32),
    /// Until a thread stops it, after about this time: its fast paths as they are, at the price of runs
    /// that are not repeatable.
    Time(Duration),
}

/// What both engines' vCPUs share.
struct Pair {
    memory: Arc<GuestMemory>,
    copy: Arc<GuestMemory>,
    model: Arc<CpuModel>,
    log: SharedLog,
    stride: Stride,
    lead_events: Vec<OnceLock<Arc<VcpuEvents>>>,
    check_events: Vec<Arc<VcpuEvents>>,
    begun: Mutex<bool>,
    /// The vCPU that runs, plus one; for the ticker.
    running: AtomicUsize,
}

/// Two engines in lockstep, as one engine.
pub struct Lockstep {
    lead: Box<dyn Engine>,
    check: Box<dyn Engine>,
    pair: Arc<Pair>,
}

impl std::fmt::Debug for Lockstep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lockstep({}, {})", self.lead.name(), self.check.name())
    }
}

/// Memory of the same regions as `memory`, zeroed: for the second engine.
///
/// # Errors
/// What the host says.
pub fn twin(memory: &GuestMemory) -> Result<Arc<GuestMemory>, MemoryError> {
    let regions: Vec<RegionSpec> = memory
        .regions()
        .map(|(gpa, len, kind)| RegionSpec { gpa, len, kind })
        .collect();
    GuestMemory::new(&regions).map(Arc::new)
}

impl Lockstep {
    /// `lead` executes the guest in `memory`, `check` in `copy`, which [`twin`] has made.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] if `check` does not count instructions exactly.
    pub fn new(
        (lead, memory): (Box<dyn Engine>, Arc<GuestMemory>),
        (check, copy): (Box<dyn Engine>, Arc<GuestMemory>),
        model: Arc<CpuModel>,
        cpus: u32,
        stride: Stride,
    ) -> Result<Self, EngineError> {
        if !check.caps().exact_count {
            return Err(EngineError::Unsupported {
                engine: check.name(),
                reason: "it does not stop at single instructions".into(),
            });
        }
        let sink = LogWriter::new(Box::new(std::io::sink()))
            .map_err(|e| EngineError::Internal(e.to_string()))?;
        let log = SharedLog::new(sink);
        log.begin_slice();
        let pair = Arc::new(Pair {
            memory,
            copy,
            model,
            log,
            stride,
            lead_events: (0..cpus).map(|_| OnceLock::new()).collect(),
            check_events: (0..cpus).map(|_| Arc::default()).collect(),
            begun: Mutex::new(false),
            running: AtomicUsize::new(0),
        });
        if let Stride::Time(period) = stride {
            let pair = Arc::downgrade(&pair);
            std::thread::Builder::new()
                .name("lockstep".into())
                .spawn(move || tick(&pair, period))
                .map_err(|source| EngineError::Host {
                    what: "cannot start the thread that stops the translator".into(),
                    source,
                })?;
        }
        Ok(Self { lead, check, pair })
    }
}

/// Stops the running vCPU again and again, until the VM has gone.
fn tick(pair: &Weak<Pair>, period: Duration) {
    while let Some(pair) = pair.upgrade() {
        let running = pair.running.load(Ordering::SeqCst).checked_sub(1);
        let events = running.and_then(|n| pair.lead_events.get(n)?.get());
        if let Some(events) = events {
            events.raise(EventBits::STOP);
        }
        drop(pair);
        std::thread::sleep(period);
    }
}

impl Engine for Lockstep {
    fn name(&self) -> &'static str {
        "lockstep"
    }

    fn caps(&self) -> EngineCaps {
        EngineCaps {
            smp: false,
            exact_count: false,
        }
    }

    fn create_vcpu(
        &self,
        index: u32,
        events: Arc<VcpuEvents>,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let n = index as usize;
        let place = self.pair.lead_events.get(n);
        let other = self.pair.check_events.get(n);
        let (Some(place), Some(other)) = (place, other) else {
            return Err(EngineError::Internal(format!("no place for vCPU {index}")));
        };
        let _ = place.set(events.clone());
        Ok(Box::new(LockstepVcpu {
            index: n,
            lead: self.lead.create_vcpu(index, events)?,
            check: self.check.create_vcpu(index, other.clone())?,
            pair: self.pair.clone(),
            path: Path::default(),
            pages: Vec::new(),
            closest: None,
            nears: 0,
            stopped: false,
            slices: 0,
            carried: 0,
        }))
    }
}

impl Pair {
    /// Before the first instruction: the second memory becomes a copy of the first, and what devices
    /// write from now on is written down.
    fn begin(&self) -> Result<(), EngineError> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if *begun {
            return Ok(());
        }
        let failed = |e: MemoryError| EngineError::Internal(e.to_string());
        let mut page = [0; PAGE_SIZE as usize];
        for (gpa, len, _) in self.memory.regions() {
            for at in (gpa..gpa + len).step_by(PAGE_SIZE as usize) {
                self.memory.read(at, &mut page).map_err(failed)?;
                if page.iter().any(|&b| b != 0) {
                    self.copy.write(at, &page).map_err(failed)?;
                }
            }
        }
        let dma = Arc::new(DmaRecorder::new(&self.memory, self.log.clone()));
        let tracker = self.memory.tracker();
        if tracker.set_device_write_observer(dma).is_err() {
            return Err(EngineError::Internal(
                "device writes are being observed by somebody else".into(),
            ));
        }
        tracker.start_dirty_log();
        self.copy.tracker().start_dirty_log();
        *begun = true;
        Ok(())
    }

    fn lead_events(&self) -> Vec<Arc<VcpuEvents>> {
        let all = self.lead_events.iter();
        all.map(|e| e.get().cloned().unwrap_or_default()).collect()
    }
}

struct LockstepVcpu {
    index: usize,
    lead: Box<dyn Vcpu>,
    check: Box<dyn Vcpu>,
    pair: Arc<Pair>,
    /// Where the second engine has been since the last agreement.
    path: Path,
    /// Pages that either has written since then.
    pages: Vec<usize>,
    /// For the report: how far they were apart when they were nearest, and how they stood.
    closest: Option<(usize, String)>,
    nears: u32,
    /// The first engine was stopped from outside: it may have looked at code that it did not execute.
    stopped: bool,
    slices: u64,
    /// Slices after which something that may differ was carried over.
    carried: u64,
}

impl LockstepVcpu {
    /// The first engine runs a stride, the second follows.
    fn slice(&mut self, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        self.slices += 1;
        let pair = self.pair.clone();
        for entry in pair.log.take_slice() {
            apply_dma(&pair.copy, &entry);
        }
        let events = pair.lead_events();
        set_events(
            &pair.check_events[self.index],
            events[self.index].pending().0,
        );
        let shift = self.check.retired().wrapping_sub(self.lead.retired());
        let mut recorder = Recorder::passing(io, &pair.log, &events, shift);
        let turns = match pair.stride {
            Stride::Turns(n) => Some(n.max(1)),
            Stride::Time(_) => None,
        };
        let stop = StopAt {
            turns,
            ..StopAt::default()
        };
        pair.running.store(self.index + 1, Ordering::SeqCst);
        let exit = self.lead.run(stop, &mut recorder);
        pair.running.store(0, Ordering::SeqCst);
        self.follow(exit?, &mut LogReader::of(pair.log.take_slice()))
    }

    fn follow(&mut self, exit: Exit, log: &mut LogReader) -> Result<Exit, EngineError> {
        let pair = self.pair.clone();
        self.path.clear();
        self.pages.clear();
        self.nears = 0;
        self.stopped = exit == Exit::Stopped;
        let tracker = pair.memory.tracker();
        tracker.collect_dirty(|page| self.pages.push(page));
        // These two may mean that nothing was executed; every other stop means that something was.
        let nothing = matches!(exit, Exit::Stopped | Exit::Halted);
        let limit = match pair.stride {
            Stride::Turns(n) => STEPS_PER_TURN * u64::from(n.max(1)),
            Stride::Time(_) => STEPS_PER_TICK,
        };
        let mut ended = None;
        for step in 0..limit {
            let both = (exit == Exit::TripleFault) == (ended == Some(Exit::TripleFault));
            if (step > 0 || nothing) && both && log.exhausted() {
                if self.agree() {
                    return Ok(exit);
                }
                if self.lead.state().rip == self.check.state().rip {
                    self.near();
                }
            }
            if matches!(ended, Some(Exit::TripleFault))
                || (ended == Some(Exit::Halted) && self.path.stands())
            {
                break;
            }
            self.path.push(self.check.state());
            let mut replayer = Replayer::new(log, &pair.check_events, &pair.copy, self.index);
            let one = StopAt {
                turns: Some(1),
                ..StopAt::default()
            };
            let result = self.check.run(one, &mut replayer);
            if let Err(e) = replayer.finish() {
                return Err(
                    self.difference(&format!("they ask the machine for different things: {e}"))
                );
            }
            ended = Some(result?);
        }
        Err(self.difference(&format!(
            "the second does not come to where the first stopped ({exit:?})"
        )))
    }
}

impl Vcpu for LockstepVcpu {
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        self.pair.begin()?;
        let limit = stop.retired.unwrap_or(u64::MAX);
        loop {
            let exit = self.slice(io)?;
            if exit != Exit::InstructionLimit || self.check.retired() >= limit {
                return Ok(exit);
            }
        }
    }

    fn state(&self) -> &X86State {
        self.lead.state()
    }

    fn restore(&mut self, state: X86State) {
        self.check.restore(state.clone());
        self.lead.restore(state);
    }

    /// As the second engine counts; the first may have no count.
    fn retired(&self) -> u64 {
        self.check.retired()
    }

    fn stats(&self) -> Vec<(String, u64)> {
        let own = [
            ("lockstep: comparisons", self.slices),
            ("lockstep: instructions", self.check.retired()),
            (
                "lockstep: with undefined results carried over",
                self.carried,
            ),
        ];
        own.map(|(name, n)| (name.to_owned(), n))
            .into_iter()
            .chain(self.lead.stats())
            .collect()
    }

    fn explain(&self, rip: u64) -> Option<String> {
        self.lead.explain(rip)
    }

    fn recent_exceptions(&self) -> Vec<(u64, mimeo_arch_x86::Exception)> {
        self.check.recent_exceptions()
    }
}
