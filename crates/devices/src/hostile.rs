//! A guest that writes anything anywhere at any time: no device panics, overflows or hangs, and
//! after each storm its saved state is one that it accepts itself.

use crate::pci::{ConfigPorts, Ecam, MsiSink, PciHost, PciMmio, PciWindows};
use crate::testing::{Lines, NoTimers, TestClock};
use crate::virtio::block::VirtioBlock;
use crate::virtio::console::VirtioConsole;
use crate::virtio::rng::VirtioRng;
use crate::virtio::testing::{Bench, Buffer};
use crate::virtio::vsock::VirtioVsock;
use crate::virtio::{VirtioDevice, VirtioPci};
use crate::{apic, i8042, ioapic, kvmclock, pic, pit, power, rtc, testdev, uart};
use mimeo_bus::{
    BlockBackend, BlockRequest, IrqLine, LineModel, MmioDevice, NullStream, PortDevice,
    SaveRestore, StreamModel, TimedModel, VsockDevice, VsockHeader, VsockHost,
};
use mimeo_memory::GuestMemory;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Accesses in one storm.
const STORM: u32 = 60_000;

/// A xorshift generator: the same storm each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Numbers that are often at an edge.
    fn value(&mut self) -> u64 {
        let v = self.next();
        match self.below(4) {
            0 => v,
            1 => v & 0xff,
            2 => 1 << (v & 63),
            _ => [0, u64::MAX, 0xffff_ffff, 0x8000_0000, 0xffff][(v % 5) as usize],
        }
    }

    fn size(&mut self) -> u8 {
        1 << self.below(3)
    }
}

/// Time that goes on by steps of all sizes.
fn pass(clock: &TestClock, r: &mut Random, now: &mut u64) {
    *now = now.saturating_add(1 << r.below(34));
    clock.set(*now);
}

fn line() -> IrqLine {
    IrqLine::new(Arc::new(Lines::default()), 0)
}

/// A storm on ports `0..ports`; `also` is done now and then.
fn ports<D: PortDevice + SaveRestore>(
    device: &mut D,
    ports: u64,
    mut also: impl FnMut(&mut D, &mut Random),
) {
    let mut r = Random(0x1234_5678_9abc_def1);
    for _ in 0..STORM {
        let (port, size) = (r.below(ports) as u16, r.size());
        match r.below(8) {
            0..=3 => device.port_write(port, size, r.value() as u32),
            4..=6 => {
                device.port_read(port, size);
            }
            _ => also(device, &mut r),
        }
    }
    let saved = device.save();
    device.restore(&saved).unwrap();
    assert_eq!(device.save(), saved);
}

/// The same for a device with deadlines.
fn timed<D: PortDevice + SaveRestore + TimedModel>(
    n: u64,
    make: impl Fn(Arc<TestClock>) -> D,
    also: impl Fn(&mut D, &mut Random),
) {
    let clock = Arc::new(TestClock::default());
    let mut now = 0;
    let mut device = make(clock.clone());
    ports(&mut device, n, |d, r| {
        pass(&clock, r, &mut now);
        if d.deadline().is_some_and(|at| at <= now) {
            d.due(now);
            assert!(d.deadline().is_none_or(|at| at > now), "it does not spin");
        }
        also(d, r);
    });
}

#[test]
fn chips_on_ports() {
    timed(8, |c| pit::Pit::new(c, line()), |_, _| {});
    timed(2, |c| rtc::Rtc::new(c, line(), 1 << 60), |_, _| {});
    timed(
        8,
        |c| uart::Uart16550::new(c, line(), Arc::new(NullStream)),
        |u, r| {
            let bytes = [0; 20];
            assert!(u.input(&bytes[..r.below(21) as usize]) <= 16);
        },
    );
    timed(
        16,
        |c| power::AcpiPm::new(c, line(), Arc::new(|_| {}), 5),
        |pm, _| pm.press_power_button(),
    );
    ports(&mut pic::PicPair::new(line()), 8, |p, r| {
        p.set_line(r.below(20) as u32, r.below(2) == 0);
        p.acknowledge();
    });
    ports(
        &mut i8042::I8042::new(line(), line(), Arc::new(|_| {})),
        8,
        |_, _| {},
    );
    ports(
        &mut testdev::TestDevice::new(vec![line(); 24], Arc::new(NullStream)),
        0x200,
        |t, r| {
            t.mmio_write(r.value(), 8, r.value());
            t.mmio_read(r.value(), 8);
        },
    );
}

#[test]
fn interrupt_controllers() {
    let clock = Arc::new(TestClock::default());
    let clocks = apic::ApicClocks {
        clock: clock.clone(),
        tsc: clock.clone(),
        timer_hz: 1_000_000_000,
    };
    let events: Vec<_> = (0..3).map(|i| (i, Arc::default())).collect();
    let features = apic::ApicFeatures::default();
    let bus = apic::ApicBus::new(events, features, &clocks, &NoTimers(clock.clone()));
    let ioapic = Arc::new(Mutex::new(ioapic::Ioapic::new(bus.clone())));
    let sink: Arc<dyn apic::EoiSink> = ioapic.clone();
    let pic = Arc::new(Mutex::new(pic::PicPair::new(IrqLine::new(bus.clone(), 0))));
    let source: Arc<dyn apic::ExtIntSource> = pic.clone();
    bus.connect(vec![Arc::downgrade(&sink)], Arc::downgrade(&source));
    let cpus: Vec<_> = (0..3).map(|i| bus.cpu(i).unwrap()).collect();
    let (mut r, mut now) = (Random(77), 0);
    for _ in 0..STORM * 2 {
        let cpu = &cpus[r.below(3) as usize];
        match r.below(10) {
            0 | 1 => cpu.mmio_write(r.below(0x40) << 4, 4, r.value()),
            2 => {
                cpu.mmio_read(r.below(0x1000), r.size());
            }
            3 | 4 => {
                let msr = [0x1b, 0x6e0, 0x800 + r.below(0x40) as u32][r.below(3) as usize];
                let value = if msr == 0x1b {
                    r.below(4) << 10
                } else {
                    r.value()
                };
                let _ = cpu.msr_write(msr, value);
                let _ = cpu.msr_read(msr);
            }
            5 => {
                cpu.set_cr8(r.below(16) as u8);
                let _ = cpu.ack();
            }
            6 => {
                let mut io = ioapic.lock().unwrap();
                io.mmio_write(0, 4, r.below(0x50));
                io.mmio_write(0x10, 4, r.value());
                io.mmio_write(0x40, 4, r.value());
            }
            7 => ioapic
                .lock()
                .unwrap()
                .set_line(r.below(32) as u32, r.below(2) == 0),
            8 => {
                bus.send_msi(0xfee0_0000 | r.value() & 0xf_ffff, r.value() as u32);
                pic.lock()
                    .unwrap()
                    .set_line(r.below(16) as u32, r.below(2) == 0);
            }
            _ => {
                pass(&clock, &mut r, &mut now);
                let mut apic = bus.apic(r.below(3) as usize).unwrap();
                if apic.deadline().is_some_and(|at| at <= now) {
                    apic.due(now);
                    assert!(
                        apic.deadline().is_none_or(|at| at > now),
                        "it does not spin"
                    );
                }
            }
        }
    }
    for i in 0..3 {
        let mut apic = bus.apic(i).unwrap();
        let saved = apic.save();
        apic.restore(&saved).unwrap();
    }
    let saved = ioapic.lock().unwrap().save();
    ioapic.lock().unwrap().restore(&saved).unwrap();
}

#[test]
fn kvm_clock_addresses() {
    let memory = Arc::new(GuestMemory::ram(8192).unwrap());
    let clock = Arc::new(TestClock::default());
    let mut k = kvmclock::KvmClock::new(2, memory, clock.clone(), clock, i64::MIN);
    let mut r = Random(3);
    for _ in 0..STORM {
        let msr = kvmclock::MSR_WALL_CLOCK + r.below(3) as u32;
        let _ = k.msr_write(r.below(3) as usize, msr, r.value());
        let _ = k.msr_read(r.below(3) as usize, msr);
    }
    k.refresh(true);
}

/// Ends requests later, from elsewhere.
#[derive(Default)]
struct Disk(Mutex<Vec<BlockRequest>>, AtomicUsize);

impl BlockBackend for Disk {
    fn capacity(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn submit(&self, request: BlockRequest) {
        for &(gpa, len) in &request.data {
            // What the device hands on is memory.
            let mut bytes = vec![0; len as usize];
            request.memory.read(gpa, &mut bytes).unwrap();
        }
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().push(request);
    }
}

struct NoMessages;

impl MsiSink for NoMessages {
    fn message(&self, _: u64, _: u32) {}
}

/// Fills rings and tables with plausible and implausible numbers.
fn scribble(memory: &GuestMemory, r: &mut Random) {
    let at = r.below(0x4_0000 - 16);
    let mut descriptor = [0; 16];
    let address = if r.below(3) == 0 {
        r.value()
    } else {
        r.below(0x4_0000)
    };
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    let len = [1, 16, 512, r.value() as u32][r.below(4) as usize];
    descriptor[8..12].copy_from_slice(&len.to_le_bytes());
    descriptor[12] = r.below(8) as u8;
    descriptor[14] = r.below(20) as u8;
    let _ = memory.write(at & !15, &descriptor);
    // Ring indices move on.
    let ring = 0x2_0000 + 0x1000 * r.below(2) + 0x402;
    let _ = memory.write(ring, &(r.below(24) as u16).to_le_bytes());
    let _ = memory.write(
        ring + 2 + 2 * r.below(16),
        &(r.below(18) as u16).to_le_bytes(),
    );
}

/// Gives back every packet, a few at a time.
#[derive(Default)]
struct Echo(Mutex<Vec<(VsockHeader, Vec<u8>)>>);

impl VsockHost for Echo {
    fn has_room(&self) -> bool {
        self.0.lock().unwrap().len() < 4
    }
    fn guest_sent(&self, header: &VsockHeader, payload: Vec<u8>) {
        assert_eq!(header.len as usize, payload.len());
        self.0.lock().unwrap().push((*header, payload));
    }
    fn has_packet(&self) -> bool {
        !self.0.lock().unwrap().is_empty()
    }
    fn next_packet(&self, most: usize) -> Option<(VsockHeader, Vec<u8>)> {
        let (header, mut payload) = self.0.lock().unwrap().pop()?;
        payload.truncate(most);
        Some((header, payload))
    }
    fn driver(&self, _present: bool) {
        self.0.lock().unwrap().clear();
    }
    fn connect(&self, _device: Arc<dyn VsockDevice>) {}
}

fn virtio_devices(disk: &Arc<Disk>) -> Vec<Box<dyn VirtioDevice>> {
    vec![
        Box::new(VirtioBlock::new(disk.clone(), "storm", 2)),
        Box::new(VirtioRng::new(Box::new(|b| b.fill(7)))),
        Box::new(VirtioConsole::new(Arc::new(NullStream))),
        Box::new(VirtioVsock::new(3, Arc::new(Echo::default()))),
    ]
}

/// A chain that is nearly a request, for the block device or any other.
fn nearly(b: &mut Bench, r: &mut Random) -> Vec<Buffer> {
    let kinds = [0, 1, 4, 8, 11, 13, r.value() as u32];
    let kind = kinds[r.below(7) as usize];
    let sector = if r.below(8) == 0 {
        r.value()
    } else {
        r.below(2048)
    };
    b.poke(0x8000, &kind.to_le_bytes());
    b.poke(0x8008, &sector.to_le_bytes());
    // Ranges for discard and write-zeroes.
    b.poke(0x9000, &r.below(2000).to_le_bytes());
    b.poke(0x9008, &(r.below(100) | r.below(3) << 32).to_le_bytes());
    let mut chain = vec![Buffer::read(0x8000, 16)];
    for _ in 0..r.below(3) {
        let len = [512, 1024, 16, r.value() as u32][r.below(4) as usize];
        let (gpa, len) = (0x9000 + r.below(8) * 512, len & 0x1fff);
        chain.push(if matches!(kind, 0 | 8) {
            Buffer::write(gpa, len)
        } else {
            Buffer::read(gpa, len)
        });
    }
    chain.push(Buffer::write(0xf000, 1));
    if r.below(8) == 0 {
        let i = r.below(chain.len() as u64) as usize;
        match r.below(3) {
            0 => chain[i].gpa = r.value(),
            1 => chain[i].len = r.value() as u32,
            _ => chain[i].flags = r.below(8) as u16,
        }
    }
    chain
}

#[test]
fn virtio_over_mmio() {
    let disk = Arc::new(Disk::default());
    for device in virtio_devices(&disk) {
        let mut r = Random(99);
        let queues = device.queue_sizes().len() as u64;
        let mut b = Bench::new(device);
        for i in 0..STORM / 2 {
            if i % 100 == 0 || b.status() != 15 {
                disk.0.lock().unwrap().clear();
                b.ready_without(r.next() & 3 << 28);
            }
            let queue = r.below(queues);
            match r.below(64) {
                0 => scribble(&b.memory, &mut r),
                1 => b.mmio.mmio_write(r.below(0x50) * 4, 4, r.value()),
                2 => {
                    b.mmio.mmio_read(r.below(0x300), 4);
                }
                3..20 => drop(disk.0.lock().unwrap().pop()),
                _ => {
                    let chain = nearly(&mut b, &mut r);
                    b.offer(queue as usize, &chain);
                    b.notify(queue as u32);
                }
            }
        }
        disk.0.lock().unwrap().clear();
        let saved = b.mmio.save();
        b.mmio.restore(&saved).unwrap();
    }
    let requests = disk.1.load(Ordering::Relaxed);
    assert!(
        requests > 1000,
        "the storm reached the disk {requests} times only"
    );
}

#[test]
fn virtio_over_pci() {
    let disk = Arc::new(Disk::default());
    let memory = Arc::new(GuestMemory::ram(0x4_0000).unwrap());
    let host = PciHost::new(PciWindows {
        memory32: 0xe000_0000..0xe010_0000,
        memory64: 0..0,
        io: 0..0,
    });
    for device in virtio_devices(&disk) {
        let f = VirtioPci::new(device, memory.clone(), line(), Arc::new(NoMessages));
        host.lock().unwrap().add(Arc::new(Mutex::new(f))).unwrap();
    }
    let (mut ecam, mut ports) = (Ecam(host.clone()), ConfigPorts(host.clone()));
    let mut window = PciMmio {
        host: host.clone(),
        base: 0xe000_0000,
    };
    let mut r = Random(5);
    for i in 0..STORM * 2 {
        if i % 5000 == 0 {
            disk.0.lock().unwrap().clear();
            host.lock().unwrap().reset();
        }
        scribble(&memory, &mut r);
        let slot = r.below(5) << 15;
        match r.below(8) {
            0 => ecam.mmio_write(slot | r.below(0x100), r.size(), r.value()),
            1 => {
                ecam.mmio_read(slot | r.below(0x1000), 1 << r.below(4));
            }
            2 => {
                ports.port_write(0, 4, 0x8000_0000 | (slot >> 4) as u32 | r.below(256) as u32);
                ports.port_write(4 + r.below(4) as u16, r.size(), r.value() as u32);
                ports.port_read(4 + r.below(4) as u16, r.size());
            }
            3 => {
                window.mmio_read(r.below(0x2_0000), 1 << r.below(4));
            }
            // Status and queue set-up are where it hurts most.
            4 => {
                let function = r.below(3) * 0x8000;
                window.mmio_write(function + r.below(0x38), r.size(), r.value());
            }
            _ => window.mmio_write(r.below(0x2_0000), 1 << r.below(4), r.value()),
        }
    }
    disk.0.lock().unwrap().clear();
}
