//! The board's chips: made, wired, bound; reset and paused together.

use super::bind::bind;
use super::cards::{Backplane, Cards};
use super::irq::{PicOutput, Wires};
use super::layout::{self, isa_line};
use super::lock;
use crate::machine::{BuildError, MachineHost};
use crate::spec::{MachineSpec, OptionalDevice, Transport};
use crate::time::MachineTime;
use crate::{MachineEvent, Signals};
use mimeo_arch_x86::cpuid::{APIC_TIMER_HZ, CpuModel, Feature};
use mimeo_bus::{AddressMap, BusError, IrqLine, MmioDevice, PortDevice, Timed, TimedBinding};
use mimeo_devices::apic::{ApicBus, ApicClocks, ApicFeatures, EoiSink, ExtIntSource};
use mimeo_devices::debug_exit::DebugExit;
use mimeo_devices::i8042::I8042;
use mimeo_devices::ioapic::Ioapic;
use mimeo_devices::kvmclock::KvmClock;
use mimeo_devices::pci::{ConfigPorts, Ecam, PciHost, PciIo, PciMmio, PciWindows};
use mimeo_devices::pic::PicPair;
use mimeo_devices::pit::Pit;
use mimeo_devices::power::{AcpiPm, Port92, PowerRequest, PowerSink, ResetControl};
use mimeo_devices::rtc::Rtc;
use mimeo_devices::testdev::TestDevice;
use mimeo_devices::uart::Uart16550;
use mimeo_devices::virtio::VirtioDevice;
use mimeo_memory::GuestMemory;
use mimeo_vcpu::VcpuEvents;
use std::sync::{Arc, Mutex};

/// All chips of the board and the maps that lead to them.
///
/// Lock order: a port's or MMIO range's device, then the interrupt controllers in the order PIC,
/// I/O APIC, APIC, then timers and event words.
pub(super) struct Chips {
    pub(super) ports: AddressMap<dyn PortDevice>,
    pub(super) mmio: AddressMap<dyn MmioDevice>,
    pub(super) apics: Arc<ApicBus>,
    pub(super) ioapic: Arc<Mutex<Ioapic>>,
    pub(super) pic: Arc<Mutex<PicPair>>,
    pub(super) pit: Arc<Timed<Pit>>,
    pub(super) rtc: Arc<Timed<Rtc>>,
    pub(super) com1: Arc<Timed<Uart16550>>,
    pub(super) i8042: Arc<Mutex<I8042>>,
    pub(super) port92: Arc<Mutex<Port92>>,
    pub(super) reset_control: Arc<Mutex<ResetControl>>,
    pub(super) acpi_pm: Arc<Timed<AcpiPm>>,
    pub(super) kvm_clock: Mutex<KvmClock>,
    pub(super) testdev: Option<Arc<Mutex<TestDevice>>>,
    pub(super) cards: Cards,
    /// (ISA line, device), for the manifest.
    pub(super) lines: Vec<(u8, &'static str)>,
}

/// What chips are made from.
pub(super) struct Plan<'a> {
    pub(super) spec: &'a MachineSpec,
    pub(super) host: &'a MachineHost,
    pub(super) cpu: &'a CpuModel,
    pub(super) memory: &'a Arc<GuestMemory>,
    pub(super) events: &'a [Arc<VcpuEvents>],
    pub(super) signals: &'a Arc<Signals>,
}

type Ports = AddressMap<dyn PortDevice>;

impl Chips {
    /// Chipset, lines, then cards.
    pub(super) fn assemble(
        plan: &Plan<'_>,
        cards: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<Self, BuildError> {
        let time = &*plan.host.time;
        let (clock, timers) = (time.clock(), time.timers());
        let mut ports = Ports::default();
        let mut mmio: AddressMap<dyn MmioDevice> = AddressMap::default();

        let apics = apics(plan.events, plan.cpu, time);
        let ioapic = Arc::new(Mutex::new(Ioapic::new(apics.clone())));
        mmio.insert("ioapic", layout::IOAPIC, layout::IOAPIC_LEN, ioapic.clone())?;
        let intr = PicOutput {
            apics: apics.clone(),
            cpus: plan.spec.cpus,
        };
        let pic = Arc::new(Mutex::new(PicPair::new(IrqLine::new(Arc::new(intr), 0))));
        bind(&mut ports, "8259a pair", &pic, layout::PIC)?;
        let eoi: Arc<dyn EoiSink> = ioapic.clone();
        let ext_int: Arc<dyn ExtIntSource> = pic.clone();
        apics.connect(vec![Arc::downgrade(&eoi)], Arc::downgrade(&ext_int));
        let wires = Arc::new(Wires {
            ioapic: ioapic.clone(),
            pic: pic.clone(),
        });

        let pit = Timed::new(Pit::new(clock.clone(), wires.isa(isa_line::PIT)), &*timers);
        bind_timed(&mut ports, "8254", &pit, layout::PIT)?;
        let rtc = rtc(plan, &wires);
        bind_timed(&mut ports, "mc146818", &rtc, &[(layout::RTC, 2, 0)])?;
        let com1 = com1(plan, &wires);
        bind_timed(&mut ports, "com1 16550a", &com1, &[(layout::COM1, 8, 0)])?;

        let sink = power_sink(plan.signals);
        let sci = wires.isa(isa_line::SCI);
        let acpi_pm = AcpiPm::new(clock, sci, sink.clone(), layout::PM_S5);
        let acpi_pm = Timed::new(acpi_pm, &*timers);
        let pm = [(layout::PM_EVENT, layout::PM_LEN, 0)];
        bind_timed(&mut ports, "acpi pm", &acpi_pm, &pm)?;
        let (keyboard, aux) = (wires.isa(isa_line::KEYBOARD), wires.isa(isa_line::AUX));
        let i8042 = Arc::new(Mutex::new(I8042::new(keyboard, aux, sink.clone())));
        bind(&mut ports, "i8042", &i8042, layout::I8042)?;
        let port92 = Arc::new(Mutex::new(Port92::new(sink.clone())));
        bind(&mut ports, "port 92h", &port92, &[(layout::PORT92, 1, 0)])?;
        let reset_control = Arc::new(Mutex::new(ResetControl::new(sink)));
        let at = [(layout::RESET, 1, 0)];
        bind(&mut ports, "reset control", &reset_control, &at)?;

        let pci = pci(&mut ports, &mut mmio)?;
        let testdev = optional_devices(plan, &wires, &mut ports, &mut mmio)?;
        let board = Backplane {
            host: &pci,
            memory: plan.memory,
            wires: &wires,
            apics: &apics,
        };
        let cards = match plan.spec.transport {
            Transport::Pci => Cards::on_pci(&board, cards)?,
            Transport::Mmio => Cards::on_mmio(&board, cards, &mut mmio)?,
        };
        Ok(Self {
            ports,
            mmio,
            kvm_clock: Mutex::new(kvm_clock(plan)),
            apics,
            ioapic,
            pic,
            pit,
            rtc,
            com1,
            i8042,
            port92,
            reset_control,
            acpi_pm,
            testdev,
            cards,
            lines: vec![
                (isa_line::PIT, "8254 counter 0"),
                (isa_line::KEYBOARD, "i8042 keyboard"),
                (isa_line::COM1, "com1"),
                (isa_line::RTC, "mc146818"),
                (isa_line::SCI, "acpi sci (level)"),
                (isa_line::AUX, "i8042 auxiliary"),
            ],
        })
    }

    /// All chips to their power-on state. The order matters: who drives a line comes before who
    /// sees it.
    pub(super) fn reset(&self) {
        if let Some(testdev) = &self.testdev {
            lock(testdev).reset();
        }
        self.cards.reset();
        self.com1.lock().reset();
        self.rtc.lock().reset();
        self.pit.lock().reset();
        self.acpi_pm.lock().reset();
        lock(&self.i8042).reset();
        lock(&self.port92).reset();
        lock(&self.reset_control).reset();
        lock(&self.kvm_clock).reset();
        lock(&self.pic).reset();
        lock(&self.ioapic).reset();
        self.apics.reset();
    }
}

fn bind_timed<D: mimeo_bus::TimedModel + PortDevice + 'static>(
    ports: &mut Ports,
    name: &str,
    chip: &Arc<Timed<D>>,
    places: &[(u16, u16, u16)],
) -> Result<(), BusError> {
    let binding = Arc::new(Mutex::new(TimedBinding(chip.clone())));
    bind(ports, name, &binding, places)
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

fn rtc(plan: &Plan<'_>, wires: &Arc<Wires>) -> Arc<Timed<Rtc>> {
    let time = &*plan.host.time;
    let mut rtc = Rtc::new(time.clock(), wires.isa(isa_line::RTC), time.unix_at_zero());
    let low = plan.spec.memory.min(layout::LOW_RAM_END);
    rtc.set_machine(low, plan.spec.memory - low, plan.spec.cpus);
    Timed::new(rtc, &*time.timers())
}

fn com1(plan: &Plan<'_>, wires: &Arc<Wires>) -> Arc<Timed<Uart16550>> {
    let (time, serial) = (&*plan.host.time, &plan.host.serial);
    let uart = Uart16550::new(time.clock(), wires.isa(isa_line::COM1), serial.clone());
    let uart = Timed::new(uart, &*time.timers());
    serial.connect(uart.clone());
    uart
}

fn kvm_clock(plan: &Plan<'_>) -> KvmClock {
    let time = &*plan.host.time;
    KvmClock::new(
        plan.events.len(),
        plan.memory.clone(),
        time.clock(),
        time.tsc_clock(),
        time.unix_at_zero(),
    )
}

/// The host bridge with its windows.
fn pci(
    ports: &mut Ports,
    mmio: &mut AddressMap<dyn MmioDevice>,
) -> Result<Arc<Mutex<PciHost>>, BusError> {
    let (memory, memory_len) = (layout::PCI_MEMORY, layout::PCI_MEMORY_LEN);
    let (io, io_len) = (u64::from(layout::PCI_IO), u64::from(layout::PCI_IO_LEN));
    let host = PciHost::new(PciWindows {
        memory32: memory..memory + memory_len,
        memory64: 0..0,
        io: io..io + io_len,
    });
    let window = PciMmio {
        host: host.clone(),
        base: memory,
    };
    let window = Arc::new(Mutex::new(window));
    mmio.insert("pci memory", memory, memory_len, window)?;
    let ecam = Arc::new(Mutex::new(Ecam(host.clone())));
    mmio.insert("pci ecam", layout::PCI_ECAM, layout::PCI_ECAM_LEN, ecam)?;
    let config = Arc::new(Mutex::new(ConfigPorts(host.clone())));
    bind(ports, "pci configuration", &config, layout::PCI_CONFIG)?;
    let window = PciIo {
        host: host.clone(),
        base: layout::PCI_IO,
    };
    let window = Arc::new(Mutex::new(window));
    ports.insert("pci ports", io, io_len, window)?;
    Ok(host)
}

fn power_sink(signals: &Arc<Signals>) -> PowerSink {
    let signals = signals.clone();
    Arc::new(move |request| {
        signals.raise(match request {
            PowerRequest::Off => MachineEvent::PowerOff,
            PowerRequest::Reset(how) => MachineEvent::Reset(how),
        });
    })
}

fn optional_devices(
    plan: &Plan<'_>,
    wires: &Arc<Wires>,
    ports: &mut Ports,
    mmio: &mut AddressMap<dyn MmioDevice>,
) -> Result<Option<Arc<Mutex<TestDevice>>>, BusError> {
    if plan.spec.has(OptionalDevice::DebugExit) {
        let signals = plan.signals.clone();
        // The status of a process has eight bits.
        let exit = move |status: u32| signals.raise(MachineEvent::DebugExit(status as u8));
        let device = Arc::new(Mutex::new(DebugExit::new(Box::new(exit))));
        bind(ports, "debug-exit", &device, &[(layout::DEBUG_EXIT, 4, 0)])?;
    }
    if !plan.spec.has(OptionalDevice::Testdev) {
        return Ok(None);
    }
    let lines = (0..layout::GSIS)
        .map(|pin| IrqLine::new(wires.clone(), pin))
        .collect();
    let device = TestDevice::new(lines, plan.host.serial.clone());
    let device = Arc::new(Mutex::new(device));
    bind(ports, "testdev", &device, layout::TESTDEV)?;
    let (at, len) = (layout::TESTDEV_MMIO, layout::TESTDEV_MMIO_LEN);
    mmio.insert("testdev", at, len, device.clone())?;
    Ok(Some(device))
}
