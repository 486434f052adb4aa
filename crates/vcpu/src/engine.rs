//! Engine, Vcpu and Exit.

use crate::{CpuIo, VcpuEvents};
use mimeo_arch_x86::X86State;
use mimeo_memory::GuestMemory;
use std::sync::Arc;

/// Why `run` returned. Bus traffic is never an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// [`crate::EventBits::STOP`] was raised (the engine has cleared it).
    Stopped,
    /// A limit of [`StopAt`] was reached.
    InstructionLimit,
    /// The vCPU is in HLT, MWAIT or wait-for-SIPI: call `run` again when an event is pending.
    Halted,
    /// Triple fault: the state is as it was when the third fault was raised, RIP at the instruction
    /// that began it.
    TripleFault,
    /// A breakpoint of the monitor's own was reached (gdb stub).
    Debug,
}

/// When `run` has to give up by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct StopAt {
    /// Stop when the vCPU's count of retired instructions (as of [`Vcpu::retired`]) reaches this
    /// value exactly. `None`: run until an event.
    pub retired: Option<u64>,
    /// Stop after this many turns of the engine's own loop, whatever a turn is: at least one instruction
    /// or one delivery of an event, in an engine with exact counts at most one. For lockstep. `None`
    /// or zero: as many as it takes.
    pub turns: Option<u32>,
}

/// The host failed, not the guest.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host lacks something that the engine needs.
    #[error("the {engine} engine cannot run here: {reason}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// What is missing and what to do about it.
        reason: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Host {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An internal contradiction (a lockstep difference, a rejected block).
    #[error("{0}")]
    Internal(String),
}

/// What an engine can do on this host.
#[derive(Debug, Clone, Copy)]
pub struct EngineCaps {
    /// Several vCPUs may run in parallel.
    pub smp: bool,
    /// [`StopAt::retired`] is honoured to the instruction.
    pub exact_count: bool,
}

/// What every vCPU of a VM shares at creation.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Guest RAM and ROM.
    pub memory: Arc<GuestMemory>,
    /// The CPU model: what CPUID says, and so what exists.
    pub cpu: Arc<mimeo_arch_x86::cpuid::CpuModel>,
    /// Number of vCPUs of the VM.
    pub cpus: u32,
}

/// A way of executing guest instructions: one per VM.
pub trait Engine: Send + Sync {
    /// The engine's name as on the command line (`interp`, `bt`).
    fn name(&self) -> &'static str;

    /// Capabilities.
    fn caps(&self) -> EngineCaps;

    /// Creates vCPU `index`, in the reset state of an application or boot processor.
    ///
    /// # Errors
    /// Where the host refuses what the vCPU needs.
    fn create_vcpu(
        &self,
        index: u32,
        events: Arc<VcpuEvents>,
    ) -> Result<Box<dyn Vcpu>, EngineError>;
}

/// One virtual CPU. Lives on one host thread at a time.
pub trait Vcpu: Send {
    /// Executes guest instructions until there is something to decide.
    ///
    /// # Errors
    /// Only for failures of the host or of the engine; whatever the guest does is an [`Exit`] or
    /// an exception inside the guest.
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError>;

    /// The architectural state at the current instruction boundary.
    fn state(&self) -> &X86State;

    /// A copy of the architectural state at the current instruction boundary.
    fn save(&self) -> X86State {
        self.state().clone()
    }

    /// Replaces the architectural state.
    fn restore(&mut self, state: X86State);

    /// Instructions retired since creation (an iteration of a `rep` string counts as one when the
    /// instruction is interrupted; the whole instruction counts as one when it is not).
    fn retired(&self) -> u64;

    /// Human-readable counters for `--stats`: (name, value).
    fn stats(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// How the engine executes the guest code at `rip`, for people: disassembly of guest and host. `None`
    /// when it has nothing to show.
    fn explain(&self, _rip: u64) -> Option<String> {
        None
    }

    /// The last exceptions delivered, newest last, for the triple-fault report.
    fn recent_exceptions(&self) -> Vec<(u64, mimeo_arch_x86::Exception)> {
        Vec::new()
    }
}
