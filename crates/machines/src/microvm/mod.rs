//! The `microvm` board: what a kernel needs and nothing else (docs/reference/microvm.md).
//!
//! Like a PC, so that stock kernels find their way: COM1, 8259A pair, 8254, CMOS clock, i8042 for
//! the reset, ACPI. No firmware runs: the payload is loaded by the monitor. No screen, no disk
//! controller of old.

mod build;
mod firmware;
mod io;
mod irq;
pub mod layout;
mod state;

pub use build::build;
pub use state::MicrovmV1;

use crate::machine::{Board, BoardState, FirmwareTables};
use crate::manifest::{Manifest, Range};
use crate::time::MachineTime;
use mimeo_boot::{MemoryMap, acpi};
use mimeo_bus::{AddressMap, MmioDevice, PortDevice, Timed};
use mimeo_devices::apic::ApicBus;
use mimeo_devices::ioapic::Ioapic;
use mimeo_devices::uart::Uart16550;
use mimeo_memory::{GuestMemory, RegionKind};
use mimeo_vcpu::{CpuIo, MsrError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All chips of the board and the maps that lead to them.
///
/// Lock order: a port's or MMIO range's device, then the interrupt controllers in the order PIC,
/// I/O APIC, APIC, then timers and event words.
struct Chips {
    ports: AddressMap<dyn PortDevice>,
    mmio: AddressMap<dyn MmioDevice>,
    apics: Arc<ApicBus>,
    ioapic: Arc<Mutex<Ioapic>>,
    com1: Arc<Timed<Uart16550>>,
}

impl Chips {
    fn pv_msr_read(&self, _cpu: u32, _msr: u32) -> Result<u64, MsrError> {
        Err(MsrError)
    }

    fn pv_msr_write(&self, _cpu: u32, _msr: u32, _value: u64) -> Result<(), MsrError> {
        Err(MsrError)
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A built board.
struct Microvm {
    chips: Arc<Chips>,
    time: Arc<dyn MachineTime>,
    memory: Arc<GuestMemory>,
    lines: Vec<(u8, &'static str)>,
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

    fn firmware_tables(&self, memory: &GuestMemory) -> Result<FirmwareTables, String> {
        let description = firmware::description(self.chips.apics.len() as u32);
        let rsdp = acpi::install(memory, &description).map_err(|e| e.to_string())?;
        Ok(FirmwareTables {
            memory_map: MemoryMap::pc(memory),
            acpi_rsdp: Some(rsdp),
        })
    }

    fn reset(&self) {
        self.chips.com1.lock().reset();
        lock(&self.chips.ioapic).reset();
        self.chips.apics.reset();
    }

    fn set_paused(&self, paused: bool) {
        self.time.set_paused(paused);
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
        memory.push(range((
            layout::LOCAL_APIC,
            0x1000,
            "local apic (each CPU's own)",
        )));
        memory.sort_by_key(|r| r.base);
        Manifest {
            board: "microvm".into(),
            memory,
            ports: chips.ports.iter().map(range).collect(),
            lines: self
                .lines
                .iter()
                .map(|&(isa, name)| (layout::gsi(isa), Some(isa), name.into()))
                .collect(),
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
