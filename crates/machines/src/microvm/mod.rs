//! The `microvm` board: what a kernel needs and nothing else (docs/reference/microvm.md).
//!
//! Like a PC, so that stock kernels find their way: COM1, 8259A pair, 8254, CMOS clock, i8042 for
//! the reset, ACPI. No firmware runs: the payload is loaded by the monitor, which leaves what
//! firmware would have left. No screen, no disk controller of old.

mod bind;
mod cards;
mod chips;
mod firmware;
mod io;
mod irq;
pub mod layout;
mod state;

pub use state::MicrovmV1;

use crate::machine::{Board, BoardState, BuildError, FirmwareTables, Machine, MachineHost};
use crate::manifest::{Manifest, Range};
use crate::time::MachineTime;
use crate::{MachineSpec, Signals, engine};
use chips::{Chips, Plan};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_memory::{GuestMemory, RegionKind};
use mimeo_vcpu::{CpuIo, EngineConfig, VcpuEvents};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Builds a `microvm`.
///
/// # Errors
/// [`BuildError`] says what the specification or the host lacks.
pub fn build(spec: MachineSpec, mut host: MachineHost) -> Result<Machine, BuildError> {
    spec.validate()?;
    let (mut cpu, mut notes) = CpuModel::build(&spec.cpu, &host.cpu)?;
    let khz = host.time.tsc_clock().hz() / 1000;
    cpu.set_tsc_khz(u32::try_from(khz).unwrap_or(u32::MAX));
    let cpu = Arc::new(cpu);
    let memory = Arc::new(GuestMemory::new(&layout::ram(spec.memory))?);
    let events: Vec<Arc<VcpuEvents>> = (0..spec.cpus).map(|_| Arc::default()).collect();
    let signals = Arc::new(Signals::new(events.clone()));
    let cards = std::mem::take(&mut host.cards);
    let chips = Chips::assemble(
        &Plan {
            spec: &spec,
            host: &host,
            cpu: &cpu,
            memory: &memory,
            events: &events,
            signals: &signals,
        },
        cards,
    )?;
    let config = EngineConfig {
        memory: memory.clone(),
        cpu: cpu.clone(),
        cpus: spec.cpus,
    };
    let (engine, note) = engine::create(spec.engine, config, &host.tuning)?;
    notes.extend(note);
    Ok(Machine {
        board: Arc::new(Microvm {
            chips: Arc::new(chips),
            time: host.time,
            memory: memory.clone(),
        }),
        spec,
        memory,
        cpu,
        events,
        signals,
        engine,
        notes,
    })
}

/// A built board.
struct Microvm {
    chips: Arc<Chips>,
    time: Arc<dyn MachineTime>,
    memory: Arc<GuestMemory>,
}

impl Board for Microvm {
    fn io(&self, cpu: u32) -> Option<Box<dyn CpuIo + Send>> {
        Some(Box::new(io::CpuView {
            index: cpu,
            apic: self.chips.apics.cpu(cpu as usize)?,
            chips: self.chips.clone(),
            time: self.time.clone(),
        }))
    }

    fn firmware(&self) -> Result<FirmwareTables, String> {
        firmware::install(&self.chips, &self.memory)
    }

    fn reset(&self) {
        self.chips.reset();
    }

    fn press_power_button(&self) {
        self.chips.acpi_pm.lock().press_power_button();
    }

    fn set_paused(&self, paused: bool) {
        self.time.set_paused(paused);
        self.chips.cards.set_paused(paused);
        if !paused {
            // The guest's watchdogs are told that they were stopped with everything else.
            lock(&self.chips.kvm_clock).refresh(true);
        }
    }

    fn manifest(&self) -> Manifest {
        let chips = &self.chips;
        let range = |(base, len, name): (u64, u64, &str)| Range {
            base,
            len,
            name: name.into(),
        };
        let mut memory: Vec<Range> = self
            .memory
            .regions()
            .map(|(base, len, kind)| match kind {
                RegionKind::Ram => range((base, len, "ram")),
                RegionKind::Rom => range((base, len, "rom")),
            })
            .chain(chips.mmio.iter().map(range))
            .collect();
        let apic = "local apic (each CPU's own)";
        memory.push(range((layout::LOCAL_APIC, 0x1000, apic)));
        memory.sort_by_key(|r| r.base);
        let line = |&(isa, name): &(u8, &str)| (layout::gsi(isa), Some(isa), name.to_owned());
        Manifest {
            board: "microvm".into(),
            memory,
            ports: chips.ports.iter().map(range).collect(),
            lines: chips.lines.iter().map(line).collect(),
            components: MicrovmV1::COMPONENTS.to_vec(),
        }
    }

    fn save(&self) -> BoardState {
        BoardState::MicrovmV1(Box::new(state::save(&self.chips, &*self.time)))
    }

    fn restore(&self, state: &BoardState) -> Result<(), String> {
        let BoardState::MicrovmV1(state) = state;
        state::restore(&self.chips, &*self.time, state).map_err(|e| e.to_string())
    }
}
