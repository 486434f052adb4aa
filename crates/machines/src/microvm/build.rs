//! Assembling the board: memory, chipset, lines, then cards.

use super::irq::Wires;
use super::layout::{self, isa_line};
use super::{Chips, Microvm};
use crate::machine::{BuildError, Machine, MachineHost};
use crate::spec::{MachineSpec, OptionalDevice};
use crate::time::MachineTime;
use crate::{MachineEvent, Signals, engine, host_cpu};
use mimeo_arch_x86::cpuid::{APIC_TIMER_HZ, CpuModel, Feature};
use mimeo_bus::{AddressMap, BusError, MmioDevice, PortDevice, Timed, TimedBinding};
use mimeo_devices::apic::{ApicBus, ApicClocks, ApicFeatures};
use mimeo_devices::debug_exit::DebugExit;
use mimeo_devices::ioapic::Ioapic;
use mimeo_devices::uart::Uart16550;
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{EngineConfig, VcpuEvents};
use std::sync::{Arc, Mutex};

/// Builds a `microvm`.
///
/// # Errors
/// [`BuildError`] says what the specification or the host lacks.
pub fn build(spec: MachineSpec, host: MachineHost) -> Result<Machine, BuildError> {
    spec.validate()?;
    let (mut cpu, mut notes) = CpuModel::build(&spec.cpu, &host_cpu::host_cpu())?;
    let khz = host.time.tsc_clock().hz() / 1000;
    cpu.set_tsc_khz(u32::try_from(khz).unwrap_or(u32::MAX));
    let cpu = Arc::new(cpu);
    let memory = Arc::new(GuestMemory::new(&layout::ram(spec.memory))?);
    let events: Vec<Arc<VcpuEvents>> = (0..spec.cpus).map(|_| Arc::default()).collect();
    let signals = Arc::new(Signals::new(events.clone()));

    let apics = apics(&events, &cpu, &*host.time);
    let ioapic = Arc::new(Mutex::new(Ioapic::new(apics.clone())));
    let wires = Arc::new(Wires {
        ioapic: ioapic.clone(),
        pic: None,
    });
    let mut ports: AddressMap<dyn PortDevice> = AddressMap::default();
    let mut mmio: AddressMap<dyn MmioDevice> = AddressMap::default();
    mmio.insert("ioapic", layout::IOAPIC, layout::IOAPIC_LEN, ioapic.clone())?;
    let com1 = Timed::new(
        Uart16550::new(
            host.time.clock(),
            wires.isa(isa_line::COM1),
            host.serial.clone(),
        ),
        &*host.time.timers(),
    );
    host.serial.connect(com1.clone());
    let binding = Arc::new(Mutex::new(TimedBinding(com1.clone())));
    ports.insert("com1 16550a", u64::from(layout::COM1), 8, binding)?;
    optional_devices(&spec, &signals, &mut ports)?;

    let config = EngineConfig {
        memory: memory.clone(),
        cpu: cpu.clone(),
        cpus: spec.cpus,
    };
    let (engine, note) = engine::create(spec.engine, config)?;
    notes.extend(note);
    let chips = Arc::new(Chips {
        ports,
        mmio,
        apics,
        ioapic,
        com1,
    });
    Ok(Machine {
        board: Arc::new(Microvm {
            chips,
            time: host.time,
            memory: memory.clone(),
            lines: vec![(isa_line::COM1, "com1")],
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

/// One local APIC for each CPU; the APIC ID is the CPU's index.
fn apics(events: &[Arc<VcpuEvents>], cpu: &CpuModel, time: &dyn MachineTime) -> Arc<ApicBus> {
    let clocks = ApicClocks {
        clock: time.clock(),
        tsc: time.tsc_clock(),
        timer_hz: u64::from(APIC_TIMER_HZ),
    };
    let features = ApicFeatures {
        x2apic: cpu.has(Feature::X2apic),
        tsc_deadline: cpu.has(Feature::TscDeadlineTimer),
        // 36 to 52 by the CPU model's own rules.
        physical_bits: cpu.physical_bits() as u8,
    };
    let cpus = (0..).zip(events.iter().cloned()).collect();
    ApicBus::new(cpus, features, &clocks, &*time.timers())
}

fn optional_devices(
    spec: &MachineSpec,
    signals: &Arc<Signals>,
    ports: &mut AddressMap<dyn PortDevice>,
) -> Result<(), BusError> {
    if spec.has(OptionalDevice::DebugExit) {
        let signals = signals.clone();
        // The status of a process has eight bits.
        let exit = move |status: u32| signals.raise(MachineEvent::DebugExit(status as u8));
        let device = Arc::new(Mutex::new(DebugExit::new(Box::new(exit))));
        ports.insert("debug-exit", u64::from(layout::DEBUG_EXIT), 4, device)?;
    }
    Ok(())
}
