//! A built machine, whatever the board.

use crate::manifest::Manifest;
use crate::microvm::MicrovmV1;
use crate::spec::{BoardKind, SpecError};
use crate::time::MachineTime;
use crate::{EngineTuning, MachineSpec, Signals, microvm};
use mimeo_arch_x86::cpuid::{CpuModel, CpuModelError, HostCpu};
use mimeo_bus::{BusError, StreamHost};
use mimeo_devices::pci::SlotError;
use mimeo_devices::virtio::VirtioDevice;
use mimeo_memory::{GuestMemory, MemoryError};
use mimeo_vcpu::{CpuIo, Engine, EngineError, VcpuEvents};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a machine gets from the host.
pub struct MachineHost {
    /// The host's CPU ([`crate::host_cpu`]).
    pub cpu: HostCpu,
    /// What is wanted of the engine beside speed.
    pub tuning: EngineTuning,
    /// Clock, time-stamp counter and timers.
    pub time: Arc<dyn MachineTime>,
    /// The other end of the first serial port.
    pub serial: Arc<dyn StreamHost>,
    /// The virtio devices, each with its end at the host, in the order in which the guest finds
    /// them. Which ones a specification means, and what stands behind them, is the caller's affair.
    pub cards: Vec<Box<dyn VirtioDevice>>,
}

/// A machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The specification is impossible.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The CPU model does not exist.
    #[error(transparent)]
    Cpu(#[from] CpuModelError),
    /// The host has not got the memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine cannot run here.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Two devices want the same addresses: a mistake of the board's.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// More devices than the PCI bus takes.
    #[error(transparent)]
    Pci(#[from] SlotError),
    /// More devices than there are places for over MMIO.
    #[error("{0} virtio devices do not fit: over MMIO there is room for {most}; remove some", most = microvm::layout::VIRTIO_MMIO_PLACES)]
    Places(usize),
}

/// What a board offers to the life of a VM. Everything is callable from any thread; `reset`,
/// `save` and `restore` only while no vCPU runs.
pub trait Board: Send + Sync {
    /// The machine as vCPU `cpu` sees it; `None` when there is no such vCPU. One call for each.
    fn io(&self, cpu: u32) -> Option<Box<dyn CpuIo + Send>>;

    /// Leaves what firmware would have left: ACPI tables in memory, chips set up. After power-on and
    /// after each reset, before the payload is loaded.
    ///
    /// # Errors
    /// A sentence.
    fn firmware(&self) -> Result<FirmwareTables, String>;

    /// All chips to their power-on state, interrupts withdrawn.
    fn reset(&self);

    /// The person presses the power button: the guest's system is asked to shut down.
    fn press_power_button(&self);

    /// Time stops for the guest (or goes on): the clock, its timers and the TSC.
    fn set_paused(&self, paused: bool);

    /// Address map, ports, lines, components.
    fn manifest(&self) -> Manifest;

    /// The state of every chip.
    fn save(&self) -> BoardState;

    /// Puts the state of every chip back.
    ///
    /// # Errors
    /// A sentence that says which part is not a state of this board.
    fn restore(&self, state: &BoardState) -> Result<(), String>;
}

/// What firmware leaves for an operating system.
#[derive(Debug, Clone)]
pub struct FirmwareTables {
    /// The memory map, tables and other reservations included.
    pub memory_map: mimeo_boot::MemoryMap,
    /// Where ACPI's root pointer is.
    pub acpi_rsdp: Option<u64>,
}

/// The saved state of all chips of a board, one variant a board and version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BoardState {
    /// The `microvm` board, version 1.
    MicrovmV1(Box<MicrovmV1>),
}

/// A machine: memory, CPUs' shared parts, a board and the engine that will run it.
pub struct Machine {
    /// What was asked for.
    pub spec: MachineSpec,
    /// Guest RAM and ROM.
    pub memory: Arc<GuestMemory>,
    /// The CPU model in force.
    pub cpu: Arc<CpuModel>,
    /// One event word for each vCPU.
    pub events: Vec<Arc<VcpuEvents>>,
    /// The chips and how they are wired.
    pub board: Arc<dyn Board>,
    /// What devices ask of the machine.
    pub signals: Arc<Signals>,
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Sentences for the person: what was asked for and is different on this host.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("spec", &self.spec).finish()
    }
}

/// Builds the board that `spec` names.
///
/// # Errors
/// [`BuildError`] says what the specification or the host lacks.
pub fn build(spec: MachineSpec, host: MachineHost) -> Result<Machine, BuildError> {
    match spec.machine {
        BoardKind::Microvm => microvm::build(spec, host),
    }
}
