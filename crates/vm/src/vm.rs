//! A VM: the control side.

use crate::cpu_thread::{CpuThread, Report};
use crate::gate::Gate;
use crate::life::{BadTransition, Command, Phase};
use crate::outcome::Outcome;
use crate::report::CpuReport;
use mimeo_arch_x86::{Activity, X86State};
use mimeo_machines::machine::{Board, Machine};
use mimeo_machines::spec::OnTripleFault;
use mimeo_machines::{MachineEvent, Signals};
use mimeo_vcpu::{EngineError, Vcpu};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Puts the payload into memory and gives the boot processor's first state. Called before the first
/// start and again after every reset.
pub type Loader = Box<dyn FnMut(&Machine) -> Result<X86State, String> + Send>;

/// A VM cannot be made or moved on.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The engine refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The payload cannot be loaded; the sentence says why.
    #[error("{0}")]
    Load(String),
    /// The log of a deterministic run cannot be used.
    #[error("{0}")]
    Log(String),
    /// The command does not fit the phase.
    #[error(transparent)]
    Life(#[from] BadTransition),
    /// The host gives no thread.
    #[error("cannot start a thread for a vCPU: {0}; lower --cpus or raise the process limit")]
    Thread(std::io::Error),
}

/// What a reset that the guest asks for does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// The machine starts again.
    Restart,
    /// The VM ends ([`Outcome::Reset`]).
    Exit,
}

#[derive(Default)]
struct Inbox {
    reports: Mutex<VecDeque<Report>>,
    stop: Mutex<Option<Outcome>>,
}

/// Ends a VM from any thread, at once or by the guest's own doing.
#[derive(Clone)]
pub struct VmHandle {
    inbox: Arc<Inbox>,
    signals: Arc<Signals>,
    board: Arc<dyn Board>,
}

impl VmHandle {
    /// Presses the power button: an operating system that listens to it shuts down.
    pub fn press_power_button(&self) {
        self.board.press_power_button();
    }

    /// Makes [`Vm::run`] return [`Outcome::Stopped`] soon.
    pub fn stop(&self) {
        lock(&self.inbox.stop).get_or_insert(Outcome::Stopped);
        self.signals.nudge();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads the payload: the boot processor gets its state, the others wait for a SIPI.
pub(crate) fn boot_states(
    machine: &Machine,
    loader: &mut Loader,
) -> Result<Vec<X86State>, VmError> {
    let boot = loader(machine).map_err(VmError::Load)?;
    let mut waiting = X86State::reset(machine.cpu.signature());
    waiting.activity = Activity::WaitForSipi;
    mimeo_boot::firmware_msrs(&mut waiting.msr);
    let mut states = vec![waiting; machine.events.len()];
    if let Some(first) = states.first_mut() {
        *first = boot;
    }
    Ok(states)
}

/// A machine with its vCPU threads. All methods are for one control thread; [`VmHandle`] is for the
/// others.
pub struct Vm {
    machine: Arc<Machine>,
    vcpus: Vec<Arc<Mutex<Box<dyn Vcpu>>>>,
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
    inbox: Arc<Inbox>,
    loader: Loader,
    phase: Phase,
    on_reset: OnReset,
}

impl Vm {
    /// Creates the vCPUs and their threads and loads the payload; no instruction runs yet, and no
    /// thread is started later (so the process can be jailed between this and [`Self::start`]).
    ///
    /// # Errors
    /// [`VmError`] where the engine, the payload or the host refuses.
    pub fn new(machine: Machine, loader: Loader, on_reset: OnReset) -> Result<Self, VmError> {
        let machine = Arc::new(machine);
        let mut vcpus = Vec::new();
        for (index, events) in (0..).zip(&machine.events) {
            let vcpu = machine.engine.create_vcpu(index, events.clone())?;
            vcpus.push(Arc::new(Mutex::new(vcpu)));
        }
        let mut vm = Self {
            gate: Arc::new(Gate::new(machine.events.clone())),
            inbox: Arc::default(),
            threads: Vec::new(),
            vcpus,
            machine,
            loader,
            phase: Phase::Created,
            on_reset,
        };
        vm.load()?;
        vm.machine.board.set_paused(true);
        vm.spawn()?;
        Ok(vm)
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Where the VM is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        VmHandle {
            inbox: self.inbox.clone(),
            signals: self.machine.signals.clone(),
            board: self.machine.board.clone(),
        }
    }

    fn load(&mut self) -> Result<(), VmError> {
        let states = boot_states(&self.machine, &mut self.loader)?;
        for (vcpu, state) in self.vcpus.iter().zip(states) {
            lock(vcpu).restore(state);
        }
        Ok(())
    }

    fn move_on(&mut self, command: Command) -> Result<(), BadTransition> {
        self.phase = self.phase.after(command)?;
        Ok(())
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// [`VmError::Life`] unless the VM is new.
    pub fn start(&mut self) -> Result<(), VmError> {
        self.move_on(Command::Start)?;
        self.machine.board.set_paused(false);
        self.gate.open();
        Ok(())
    }

    fn spawn(&mut self) -> Result<(), VmError> {
        for index in 0..self.vcpus.len() {
            let thread = self.cpu_thread(index)?;
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || thread.main())
                .map_err(VmError::Thread)?;
            self.threads.push(thread);
        }
        Ok(())
    }

    fn cpu_thread(&self, index: usize) -> Result<CpuThread, VmError> {
        let (inbox, signals) = (self.inbox.clone(), self.machine.signals.clone());
        let io = self.machine.board.io(index as u32).ok_or_else(|| {
            EngineError::Internal(format!("the board has no place for vCPU {index}"))
        })?;
        Ok(CpuThread {
            index: index as u32,
            vcpu: self.vcpus[index].clone(),
            events: self.machine.events[index].clone(),
            io,
            gate: self.gate.clone(),
            model: self.machine.cpu.clone(),
            memory: self.machine.memory.clone(),
            report: Box::new(move |r| {
                lock(&inbox.reports).push_back(r);
                signals.nudge();
            }),
        })
    }

    /// Stops time and all vCPUs at instruction boundaries.
    ///
    /// # Errors
    /// [`VmError::Life`] unless the VM runs.
    pub fn pause(&mut self) -> Result<(), VmError> {
        self.move_on(Command::Pause)?;
        self.gate.close();
        self.machine.board.set_paused(true);
        Ok(())
    }

    /// Goes on after [`Self::pause`].
    ///
    /// # Errors
    /// [`VmError::Life`] unless the VM is paused.
    pub fn resume(&mut self) -> Result<(), VmError> {
        self.move_on(Command::Resume)?;
        self.machine.board.set_paused(false);
        self.gate.open();
        Ok(())
    }

    /// Resets the machine and starts the payload again.
    ///
    /// # Errors
    /// [`VmError::Life`] in the wrong phase, [`VmError::Load`] when the payload cannot be loaded
    /// again.
    pub fn reset(&mut self) -> Result<(), VmError> {
        self.move_on(Command::Reset)?;
        self.gate.close();
        self.machine.board.set_paused(true);
        self.machine.board.reset();
        // Whatever the old life of the machine still wished for died with it.
        let _ = self.machine.signals.take();
        lock(&self.inbox.reports).retain(|r| matches!(r, Report::Failed(_)));
        self.load()?;
        self.move_on(Command::ResetDone)?;
        self.machine.board.set_paused(false);
        self.gate.open();
        Ok(())
    }

    /// Carries out what the guest and other threads ask for until the VM ends or `deadline`
    /// passes. The VM is stopped when this returns.
    pub fn run(&mut self, deadline: Option<Instant>) -> Outcome {
        let outcome = loop {
            let event = self.machine.signals.wait(deadline);
            match self.decide(event) {
                Ok(None) => {}
                Ok(Some(outcome)) => break outcome,
                Err(e) => break Outcome::HostError(e.to_string()),
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                break Outcome::Timeout;
            }
        };
        self.stop();
        outcome
    }

    fn decide(&mut self, event: Option<MachineEvent>) -> Result<Option<Outcome>, VmError> {
        if let Some(outcome) = lock(&self.inbox.stop).take() {
            return Ok(Some(outcome));
        }
        // One at a time: a reset makes the reports of the others wait for the next turn.
        let report = lock(&self.inbox.reports).pop_front();
        if let Some(report) = report {
            match report {
                Report::Failed(text) => return Ok(Some(Outcome::HostError(text))),
                Report::TripleFault(report) => match self.machine.spec.on_triple_fault {
                    OnTripleFault::Exit => return Ok(Some(Outcome::TripleFault(report))),
                    OnTripleFault::Reset => return self.guest_reset("triple fault"),
                },
            }
        }
        match event {
            None => Ok(None),
            Some(MachineEvent::PowerOff) => Ok(Some(Outcome::PowerOff)),
            Some(MachineEvent::DebugExit(status)) => Ok(Some(Outcome::DebugExit(status))),
            Some(MachineEvent::Reset(how)) => self.guest_reset(how),
        }
    }

    fn guest_reset(&mut self, how: &'static str) -> Result<Option<Outcome>, VmError> {
        match self.on_reset {
            OnReset::Exit => Ok(Some(Outcome::Reset(how))),
            OnReset::Restart => self.reset().map(|()| None),
        }
    }

    /// Ends the VM: no vCPU runs when this returns. Idempotent.
    pub fn stop(&mut self) {
        if self.move_on(Command::Stop).is_ok() {
            self.gate.finish();
            self.machine.board.set_paused(true);
            for thread in self.threads.drain(..) {
                // A panic inside was contained and reported by the thread itself.
                let _ = thread.join();
            }
        }
    }

    /// The state of every vCPU. Only while none runs.
    ///
    /// # Errors
    /// [`VmError::Life`] while the VM runs.
    pub fn cpu_states(&self) -> Result<Vec<X86State>, VmError> {
        if self.phase == Phase::Running {
            return Err(BadTransition(self.phase, Command::Pause).into());
        }
        Ok(self.vcpus.iter().map(|v| lock(v).save()).collect())
    }

    /// Counters of every vCPU: (vCPU, name, value). Only after [`Self::stop`] or [`Self::pause`].
    #[must_use]
    pub fn stats(&self) -> Vec<(usize, String, u64)> {
        let mut all = Vec::new();
        for (i, vcpu) in self.vcpus.iter().enumerate() {
            let vcpu = lock(vcpu);
            all.push((i, "instructions".into(), vcpu.retired()));
            all.extend(vcpu.stats().into_iter().map(|(n, v)| (i, n, v)));
        }
        all
    }

    /// How each vCPU's engine executes the guest code at `rip`: (vCPU, text). Only after [`Self::stop`]
    /// or [`Self::pause`].
    #[must_use]
    pub fn explain(&self, rip: u64) -> Vec<(usize, String)> {
        let all = self.vcpus.iter().enumerate();
        all.filter_map(|(i, vcpu)| Some((i, lock(vcpu).explain(rip)?)))
            .collect()
    }

    /// vCPU `index` as it stands. Only after [`Self::stop`] or [`Self::pause`].
    #[must_use]
    pub fn describe(&self, index: usize) -> Option<CpuReport> {
        let vcpu = lock(self.vcpus.get(index)?);
        Some(CpuReport::new(
            index as u32,
            &**vcpu,
            &self.machine.cpu,
            &self.machine.memory,
        ))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}
