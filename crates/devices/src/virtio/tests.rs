//! The rings, the status machine and both transports, with a device that answers every chain.

use super::testing::{Bench, Buffer, SIZE, rings};
use super::*;
use crate::pci::{Ecam, MsiSink, PciHost, PciMmio, PciWindows};
use crate::testing::Lines;
use mimeo_bus::{IrqLine, MmioDevice, SaveRestore};
use mimeo_memory::{GuestMemory, RegionKind, RegionSpec};
use std::sync::Mutex;

/// Gives every chain back with the number of its writable bytes.
#[derive(Default)]
struct Sink {
    driver: Option<Driver>,
    written: Vec<u8>,
}

impl Sink {
    fn run(&mut self, index: usize) -> Result<(), Broken> {
        let Some(driver) = &mut self.driver else {
            return Ok(());
        };
        let Some(queue) = driver.queues[index].as_mut() else {
            return Ok(());
        };
        loop {
            while let Some(chain) = queue.pop()? {
                queue.push(chain.head, chain.writable.len() as u32)?;
            }
            if queue.wants_interrupt()? {
                driver.interrupts.used(index);
            }
            if !queue.want_notification()? {
                return Ok(());
            }
        }
    }
}

impl VirtioDevice for Sink {
    fn id(&self) -> u16 {
        42
    }
    fn class(&self) -> [u8; 3] {
        [0xff, 0, 0]
    }
    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3]
    }
    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        self.written = bytes.to_vec();
        self.written.push(offset as u8);
    }
    fn activate(&mut self, driver: Driver) {
        self.driver = Some(driver);
    }
    fn notify(&mut self, queue: u16) {
        if self.run(queue.into()).is_err()
            && let Some(driver) = &self.driver
        {
            driver.interrupts.needs_reset();
        }
    }
    fn reset(&mut self) {
        self.driver = None;
    }
    fn positions(&self) -> Vec<(u16, u16)> {
        let queues = self.driver.iter().flat_map(|d| &d.queues);
        queues
            .map(|q| q.as_ref().map_or((0, 0), VirtQueue::position))
            .collect()
    }
}

fn bench() -> Bench {
    Bench::new(Box::new(Sink::default()))
}

#[test]
fn identity_features_and_configuration_over_mmio() {
    let mut b = bench();
    assert_eq!((b.get(0), b.get(4), b.get(8)), (0x7472_6976, 2, 42));
    b.set(0x14, 1);
    assert_eq!(b.get(0x10), 1);
    b.set(0x14, 2);
    assert_eq!(b.get(0x10), 0);
    assert_eq!(
        (b.config(0, 4), b.config(2, 1), b.config(3, 8)),
        (0x0003_0201, 3, 0)
    );
    assert_eq!(b.config(u64::MAX - 0x100, 8), 0);
    b.set(0x30, 1);
    assert_eq!(b.get(0x34), 64);
    b.set(0x30, 2);
    assert_eq!((b.get(0x34), b.get(0x44)), (0, 0));
    assert_eq!(b.mmio.mmio_read(0, 1), 0);
}

#[test]
fn features_must_be_offered_and_version_1() {
    let mut b = bench();
    for (low, high) in [(0, 0), (1 << 3 | 1, 1), (1 << 3, 3)] {
        b.set(0x70, 0);
        b.set(0x70, 3);
        b.set(0x24, 0);
        b.set(0x20, low);
        b.set(0x24, 1);
        b.set(0x20, high);
        b.set(0x70, 11);
        assert_eq!(b.status(), 3, "{low:#x} {high:#x}");
        b.set(0x70, 15);
        assert_eq!(b.status(), 3, "no DRIVER_OK without FEATURES_OK");
    }
    b.ready();
    b.set(0x70, 1);
    assert_eq!(b.status(), 15, "only a reset clears bits");
    b.set(0x70, 0);
    assert_eq!(b.status(), 0);
}

#[test]
fn chains_come_back_and_interrupts_obey_the_flag() {
    let mut b = bench();
    b.ready();
    let first = b.offer(0, &[Buffer::read(0x8000, 4), Buffer::write(0x9000, 7)]);
    let second = b.offer(0, &[Buffer::write(0x9000, 1)]);
    b.notify(0);
    assert_eq!(b.used(0), [(first, 7), (second, 1)]);
    assert!(b.take_interrupt());
    let [_, available, _] = rings(0);
    b.poke(available, &[1, 0]);
    b.offer(0, &[Buffer::read(0x8000, 1)]);
    b.notify(0);
    assert_eq!(b.used(0).len(), 1);
    assert!(!b.take_interrupt());
    b.offer(1, &[Buffer::read(0x8000, 1)]);
    b.notify(1);
    assert_eq!(b.used(1).len(), 1);
    for _ in 0..70_000 {
        b.offer(0, &[Buffer::read(0x8000, 1)]);
        b.notify(0);
    }
    assert_eq!(b.used(0).len(), 70_000 % 65536);
}

#[test]
fn the_event_index_suppresses_interrupts() {
    let mut b = bench();
    b.ready_without(0);
    let [_, available, used] = rings(0);
    let used_event = available + 4 + 2 * u64::from(SIZE);
    b.poke(used_event, &[1, 0]);
    b.offer(0, &[Buffer::read(0x8000, 1)]);
    b.notify(0);
    assert!(!b.take_interrupt());
    b.offer(0, &[Buffer::read(0x8000, 1)]);
    b.notify(0);
    assert!(b.take_interrupt());
    let avail_event = used + 4 + 8 * u64::from(SIZE);
    assert_eq!(b.bytes(avail_event, 2), [2, 0]);
}

#[test]
fn indirect_descriptors() {
    let mut b = bench();
    b.ready();
    let [table, ..] = rings(0);
    b.descriptor(
        0x8000,
        0,
        Buffer {
            flags: 1,
            ..Buffer::read(0x9000, 3)
        },
        1,
    );
    b.descriptor(0x8000, 1, Buffer::write(0x9800, 5), 0);
    b.descriptor(
        table,
        3,
        Buffer {
            flags: 4,
            ..Buffer::read(0x8000, 32)
        },
        0,
    );
    b.offer_head(0, 3);
    b.notify(0);
    assert_eq!(b.used(0), [(3, 5)]);
}

/// What a hostile driver can put into a ring; each must end in a device that asks for a reset.
#[test]
fn broken_rings_ask_for_a_reset() {
    type Break = fn(&mut Bench);
    let ways: &[(&str, Break)] = &[
        ("a head that does not exist", |b| b.offer_head(0, SIZE)),
        ("more available than there is room", |b| {
            let [_, available, _] = rings(0);
            b.poke(available + 2, &[SIZE as u8 + 1, 0]);
        }),
        ("a loop", |b| {
            let [table, ..] = rings(0);
            b.descriptor(
                table,
                0,
                Buffer {
                    flags: 1,
                    ..Buffer::read(0x8000, 1)
                },
                0,
            );
            b.offer_head(0, 0);
        }),
        ("a next that does not exist", |b| {
            let [table, ..] = rings(0);
            b.descriptor(
                table,
                0,
                Buffer {
                    flags: 1,
                    ..Buffer::read(0x8000, 1)
                },
                200,
            );
            b.offer_head(0, 0);
        }),
        ("a buffer beyond memory", |b| {
            b.offer(0, &[Buffer::write(0x3_fff0, 32)]);
        }),
        ("a buffer that wraps", |b| {
            b.offer(0, &[Buffer::read(u64::MAX - 3, 8)]);
        }),
        ("an empty buffer", |b| {
            b.offer(0, &[Buffer::read(0x8000, 0)]);
        }),
        ("what is read behind what is written", |b| {
            b.offer(0, &[Buffer::write(0x8000, 1), Buffer::read(0x9000, 1)]);
        }),
        ("an indirect table of odd length", |b| {
            b.offer(
                0,
                &[Buffer {
                    flags: 4,
                    ..Buffer::read(0x8000, 17)
                }],
            );
        }),
        ("an empty indirect table", |b| {
            b.offer(
                0,
                &[Buffer {
                    flags: 4,
                    ..Buffer::read(0x8000, 0)
                }],
            );
        }),
        ("an indirect table beyond memory", |b| {
            b.offer(
                0,
                &[Buffer {
                    flags: 4,
                    ..Buffer::read(1 << 40, 16)
                }],
            );
        }),
        ("an indirect table in an indirect table", |b| {
            b.descriptor(
                0x8000,
                0,
                Buffer {
                    flags: 4,
                    ..Buffer::read(0x8000, 16)
                },
                0,
            );
            b.offer(
                0,
                &[Buffer {
                    flags: 4,
                    ..Buffer::read(0x8000, 16)
                }],
            );
        }),
        ("an indirect table that loops for long", |b| {
            for i in 0..0x700 {
                let d = Buffer {
                    flags: 1,
                    ..Buffer::read(0x8000, 1)
                };
                b.descriptor(0x1_0000, i, d, (i + 1) % 0x700);
            }
            b.offer(
                0,
                &[Buffer {
                    flags: 4,
                    ..Buffer::read(0x1_0000, 0x7000)
                }],
            );
        }),
        ("more than 4 GB", |b| {
            let [table, ..] = rings(0);
            for i in 0..2 {
                let d = Buffer {
                    flags: 1,
                    ..Buffer::read(0, u32::MAX)
                };
                b.descriptor(table, i, d, i + 1);
            }
            b.offer_head(0, 0);
        }),
    ];
    let mut b = bench();
    for (why, break_it) in ways {
        b.ready();
        break_it(&mut b);
        b.notify(0);
        b.assert_broken(why);
        b.notify(0);
        assert!(!b.take_interrupt(), "{why}: it is silent from then on");
    }
    b.ready();
    b.offer(0, &[Buffer::read(0x8000, 1)]);
    b.notify(0);
    assert_eq!(b.used(0).len(), 1);
}

#[test]
fn impossible_queues_ask_for_a_reset_at_driver_ok() {
    let mut b = bench();
    // Descriptor table, available ring, used ring.
    for (at, address) in [
        (0x80, 0x2_0001u64),
        (0x80, 0x3_ff80),
        (0x80, u64::MAX - 15),
        (0x90, 0x2_0401),
        (0x90, 0),
        (0xa0, 0x2_0802),
        (0xa0, 1 << 40),
    ] {
        b.set(0x70, 0);
        b.set(0x70, 3);
        b.set(0x24, 1);
        b.set(0x20, 1);
        b.set(0x70, 11);
        b.set(0x38, 16);
        for (ring, reg) in rings(0).into_iter().zip([0x80, 0x90, 0xa0]) {
            b.set(reg, ring as u32);
            b.set(reg + 4, 0);
        }
        b.set(at, address as u32);
        b.set(at + 4, (address >> 32) as u32);
        b.set(0x44, 1);
        b.set(0x70, 15);
        b.assert_broken(&format!("{at:#x} {address:#x}"));
    }
}

#[test]
fn queue_registers_are_closed_once_it_is_ready() {
    let mut b = bench();
    b.set(0x38, 3);
    b.set(0x38, 512);
    b.set(0x44, 1);
    b.set(0x38, 8);
    b.set(0x80, 0x1000);
    b.set(0x44, 0);
    b.ready();
    b.set(0x30, 0);
    b.set(0x44, 0);
    assert_eq!(b.get(0x44), 1);
}

#[test]
fn devices_do_not_write_rom() {
    let region = |gpa, kind| RegionSpec {
        gpa,
        len: 0x1000,
        kind,
    };
    let m = GuestMemory::new(&[
        region(0, RegionKind::Ram),
        region(0x1000, RegionKind::Rom),
        region(0x2000, RegionKind::Ram),
    ])
    .unwrap();
    assert!(queue::is_memory(&m, 0xff0, 0x1020, false));
    assert!(!queue::is_memory(&m, 0xff0, 0x20, true));
    assert!(queue::is_memory(&m, 0xff0, 0x10, true));
    assert!(!queue::is_memory(&m, 0x2ff0, 0x11, false));
    assert!(!queue::is_memory(&m, 0x2ff0, 0, false));
}

#[test]
fn spans_are_cut_and_copied() {
    let m = GuestMemory::ram(0x1000).unwrap();
    m.write(0, b"abcdefgh").unwrap();
    let mut b = bench();
    b.ready();
    b.offer(0, &[Buffer::read(0x8000, 3), Buffer::read(0x9000, 4)]);
    b.poke(0x8000, b"abc");
    b.poke(0x9000, b"defg");
    let setup = queue::Setup {
        size: SIZE,
        descriptors: rings(0)[0],
        available: rings(0)[1],
        used: rings(0)[2],
        event_index: false,
        position: (0, 0),
    };
    let mut q = VirtQueue::new(&setup, &b.memory).unwrap();
    let mut span = q.pop().unwrap().unwrap().readable;
    let mut buffer = [0; 5];
    let front = span.take_front(2).unwrap();
    let back = span.take_back(1).unwrap();
    assert_eq!(
        (front.read(&b.memory, &mut buffer), &buffer[..2]),
        (2, &b"ab"[..])
    );
    assert_eq!(
        (back.read(&b.memory, &mut buffer), &buffer[..1]),
        (1, &b"g"[..])
    );
    assert_eq!(
        (span.read(&b.memory, &mut buffer), &buffer[..4]),
        (4, &b"cdef"[..])
    );
    assert!(span.take_front(5).is_none() && span.len() == 4);
    assert_eq!(span.write(&b.memory, b"WXYZ+"), 4);
    assert_eq!(
        (b.bytes(0x8002, 1), b.bytes(0x9000, 4)),
        (b"W".to_vec(), b"XYZg".to_vec())
    );
}

#[test]
fn a_saved_device_goes_on() {
    let mut b = bench();
    b.ready();
    b.offer(0, &[Buffer::read(0x8000, 1)]);
    b.notify(0);
    let saved = b.mmio.save();
    assert_eq!((saved.queues[0].next_available, saved.isr), (1, 1));
    let text = serde_json::to_string(&saved).unwrap();
    let back = serde_json::from_str(&text).unwrap();
    let line = IrqLine::new(Arc::new(Lines::default()), 0);
    let mut other = VirtioMmio::new(Box::new(Sink::default()), b.memory.clone(), line);
    other.restore(&back).unwrap();
    assert_eq!(other.save(), saved);
    std::mem::swap(&mut b.mmio, &mut other);
    b.used(0);
    b.offer(0, &[Buffer::write(0x8000, 9)]);
    b.notify(0);
    assert_eq!(b.used(0), [(1, 9)]);
    let mut bad = saved.clone();
    bad.queues[0].size = 3;
    assert!(b.mmio.restore(&bad).is_err());
    bad = saved.clone();
    bad.features |= 1;
    assert!(b.mmio.restore(&bad).is_err());
}

#[derive(Default)]
struct Messages(Mutex<Vec<u32>>);

impl MsiSink for Messages {
    fn message(&self, _: u64, data: u32) {
        self.0.lock().unwrap().push(data);
    }
}

/// A device over PCI, reached through the bus.
struct Pci {
    ecam: Ecam,
    window: PciMmio,
    bar: [u64; 2],
    lines: Arc<Lines>,
    messages: Arc<Messages>,
    memory: Arc<GuestMemory>,
}

impl Pci {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::ram(0x4_0000).unwrap());
        let (lines, messages) = (Arc::new(Lines::default()), Arc::new(Messages::default()));
        let host = PciHost::new(PciWindows {
            memory32: 0xe000_0000..0xe100_0000,
            memory64: 0..0,
            io: 0..0,
        });
        let function = VirtioPci::new(
            Box::new(Sink::default()),
            memory.clone(),
            IrqLine::new(lines.clone(), 11),
            messages.clone(),
        );
        host.lock()
            .unwrap()
            .add(Arc::new(Mutex::new(function)))
            .unwrap();
        let mut ecam = Ecam(host.clone());
        // Bus mastering, as a driver enables it.
        ecam.mmio_write(0x8004, 2, 7);
        let bar = [0x8010, 0x8018].map(|at| ecam.mmio_read(at, 4) & !0xf);
        Self {
            ecam,
            window: PciMmio { host, base: 0 },
            bar,
            lines,
            messages,
            memory,
        }
    }

    fn get(&mut self, offset: u64, size: u8) -> u64 {
        self.window.mmio_read(self.bar[0] + offset, size)
    }

    fn set(&mut self, offset: u64, size: u8, value: u64) {
        self.window.mmio_write(self.bar[0] + offset, size, value);
    }

    fn config(&mut self, at: u64, size: u8) -> u64 {
        self.ecam.mmio_read(0x8000 + at, size)
    }

    /// Brings queue 0 up and puts one chain into it.
    fn ready(&mut self) {
        self.set(0x14, 1, 3);
        self.set(0x08, 4, 1);
        self.set(0x0c, 4, 1);
        self.set(0x14, 1, 11);
        self.set(0x16, 2, 0);
        self.set(0x18, 2, 16);
        self.set(0x1a, 2, 1);
        for (ring, at) in rings(0).into_iter().zip([0x20, 0x28, 0x30]) {
            self.set(at, 8, ring);
        }
        self.set(0x1c, 2, 1);
        self.set(0x14, 1, 15);
        assert_eq!(self.get(0x14, 1), 15);
    }

    /// Makes descriptor 0, 4 bytes for the device to write, available once more.
    fn offer(&mut self, index: u16) {
        let [table, available, _] = rings(0);
        self.memory
            .write(table, &[0, 0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0])
            .unwrap();
        self.memory
            .write(available + 2, &index.to_le_bytes())
            .unwrap();
    }
}

#[test]
fn capabilities_lead_to_the_registers() {
    let mut p = Pci::new();
    assert_eq!(
        (p.config(0, 4), p.config(8, 1), p.config(0x2e, 2)),
        (0x106a_1af4, 1, 0x6a)
    );
    let (mut at, mut kinds) = (p.config(0x34, 1), Vec::new());
    while at != 0 {
        let header = p.config(at, 4);
        if header as u8 == 9 {
            kinds.push((header >> 24, p.config(at + 4, 1), p.config(at + 8, 4)));
        }
        at = header >> 8 & 0xff;
    }
    let expected = [
        (1, 0, 0),
        (3, 0, 0x1000),
        (4, 0, 0x2000),
        (2, 0, 0x3000),
        (5, 0, 0),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(
        (p.get(0x12, 2), p.get(0x18, 2), p.get(0x2000, 4)),
        (2, 256, 0x0003_0201)
    );
    p.set(0x16, 2, 9);
    assert_eq!((p.get(0x18, 2), p.get(0x1a, 2)), (0, 0xffff));
    p.set(0, 4, 1);
    assert_eq!(p.get(4, 4), 1);
}

#[test]
fn intx_until_the_isr_is_read() {
    let mut p = Pci::new();
    p.ready();
    p.offer(1);
    p.set(0x3000, 2, 0);
    assert!(p.lines.level(11));
    assert_eq!(p.config(6, 1) & 8, 8);
    // The command register can hold it back.
    p.ecam.mmio_write(0x8004, 2, 0x407);
    assert!(!p.lines.level(11));
    p.ecam.mmio_write(0x8004, 2, 7);
    assert_eq!(p.get(0x1000, 1), 1);
    assert!(!p.lines.level(11));
    assert_eq!(p.get(0x1000, 1), 0);
    p.ecam.mmio_write(0x8004, 2, 3);
    p.offer(2);
    p.set(0x3000, 2, 0);
    assert!(!p.lines.level(11), "without bus mastering nothing is done");
}

#[test]
fn msix_vectors() {
    let mut p = Pci::new();
    let msix = p.config(0x34, 1);
    assert_eq!(p.config(msix, 1), 0x11);
    p.ecam.mmio_write(0x8000 + msix + 2, 2, 0x8000);
    for vector in 0..3 {
        let entry = p.bar[1] + 16 * vector;
        p.window.mmio_write(entry, 8, 0xfee0_0000);
        p.window.mmio_write(entry + 8, 8, 0x40 + vector);
    }
    p.set(0x10, 2, 0);
    p.set(0x10, 2, 3);
    assert_eq!(
        p.get(0x10, 2),
        0xffff,
        "a vector that does not exist is none"
    );
    p.set(0x10, 2, 2);
    p.ready();
    p.offer(1);
    p.set(0x3000, 2, 0);
    assert_eq!(*p.messages.0.lock().unwrap(), [0x41]);
    assert!(!p.lines.level(11));
    p.offer(100);
    p.set(0x3000, 2, 0);
    assert_eq!(*p.messages.0.lock().unwrap(), [0x41, 0x42]);
    assert_eq!(p.get(0x14, 1), 15 | 64);
    p.set(0x14, 1, 0);
    assert_eq!((p.get(0x14, 1), p.get(0x10, 2)), (0, 0xffff));
}

#[test]
fn the_window_in_configuration_space() {
    let mut p = Pci::new();
    let mut at = p.config(0x34, 1);
    while p.config(at, 4) >> 24 != 5 || p.config(at, 1) != 9 {
        at = p.config(at + 1, 1);
    }
    let set = |p: &mut Pci, offset: u64, size: u8, value: u64| {
        p.ecam.mmio_write(0x8000 + at + offset, size, value);
    };
    set(&mut p, 8, 4, 0x2000);
    set(&mut p, 12, 4, 2);
    assert_eq!(p.config(at + 16, 4), 0x0201);
    set(&mut p, 8, 4, 0x14);
    set(&mut p, 12, 4, 1);
    set(&mut p, 16, 4, 3);
    assert_eq!(p.get(0x14, 1), 3);
    for (bar, offset, size) in [(0, 0xffff_fff0u64, 4), (0, 1, 4), (0, 0, 3), (2, 0, 4)] {
        set(&mut p, 4, 1, bar);
        set(&mut p, 8, 4, offset);
        set(&mut p, 12, 4, size);
        set(&mut p, 16, 4, 0);
    }
    assert_eq!(p.get(0x14, 1), 3);
}
