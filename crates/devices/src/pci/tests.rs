use super::*;
use crate::testing::Lines;
use mimeo_bus::{IrqLine, MmioDevice, PortDevice};
use std::sync::{Arc, Mutex};

/// A function with a BAR of each kind that remembers what was written.
struct Card {
    config: ConfigSpace,
    last: Arc<Mutex<(usize, u64, u64)>>,
}

impl PciFunction for Card {
    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, bar: usize, offset: u64, _: u8) -> u64 {
        (bar as u64) << 32 | offset
    }
    fn bar_write(&mut self, bar: usize, offset: u64, _: u8, value: u64) {
        *self.last.lock().unwrap() = (bar, offset, value);
    }
    fn reset(&mut self) {
        self.config.reset();
    }
}

type Last = Arc<Mutex<(usize, u64, u64)>>;

fn card() -> (Arc<Mutex<Card>>, Last) {
    let id = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 9,
        class: [1, 2, 3],
        subsystem_vendor: 0xaaaa,
        subsystem: 0xbbbb,
    };
    let mut config = ConfigSpace::new(&id, true);
    let bar = |kind, size| Bar { kind, size };
    config.add_bar(0, bar(BarKind::Memory64, 0x4000));
    config.add_bar(2, bar(BarKind::Memory32, 0x1000));
    config.add_bar(3, bar(BarKind::Io, 0x20));
    assert_eq!(config.add_capability(0x09, &[8, 0, 0, 0, 0, 0], &[]), 0x40);
    assert_eq!(config.add_capability(0x11, &[3, 0], &[0, 0xc0]), 0x48);
    let last = Last::default();
    let card = Card {
        config,
        last: last.clone(),
    };
    (Arc::new(Mutex::new(card)), last)
}

fn host() -> Arc<Mutex<PciHost>> {
    PciHost::new(PciWindows {
        memory32: 0xe000_0000..0xe010_0000,
        memory64: 0x80_0000_0000..0x80_0100_0000,
        io: 0x6000..0x7000,
    })
}

/// A doubleword of slot 1.
fn get(host: &Arc<Mutex<PciHost>>, at: u64) -> u32 {
    Ecam(host.clone()).mmio_read(0x8000 | at, 4) as u32
}

fn set(host: &Arc<Mutex<PciHost>>, at: u64, value: u32) {
    Ecam(host.clone()).mmio_write(0x8000 | at, 4, value.into());
}

#[test]
fn header_and_capabilities() {
    let host = host();
    let (card, _) = card();
    assert_eq!(host.lock().unwrap().add(card), Ok(1));
    assert_eq!(get(&host, 0), 0x5678_1234);
    assert_eq!(get(&host, 8), 0x0102_0309);
    assert_eq!(get(&host, 0x2c), 0xbbbb_aaaa);
    assert_eq!(get(&host, 4), 0x0010_0003);
    assert_eq!(get(&host, 0x34) & 0xff, 0x40);
    assert_eq!(get(&host, 0x40), 0x0008_4809);
    set(&host, 0x48, 0xffff_ffff);
    assert_eq!(get(&host, 0x48), 0xc003_0011);
    set(&host, 0, 0);
    assert_eq!(get(&host, 0), 0x5678_1234);
    assert_eq!(get(&host, 0x3c), 0x0000_0100);
    assert_eq!(get(&host, 0x100), 0, "no extended capabilities");
    let mut ecam = Ecam(host.clone());
    assert_eq!(ecam.mmio_read(0x9000, 4), 0xffff_ffff, "no function 1");
    assert_eq!(ecam.mmio_read(0x1_0000, 2), 0xffff, "no slot 2");
    assert_eq!(ecam.mmio_read(0x10_0000, 1), 0xff, "no bus 1");
    assert_eq!(ecam.mmio_read(0, 4), 0x0008_1b36);
}

#[test]
fn configuration_ports() {
    let host = host();
    host.lock().unwrap().add(card().0).unwrap();
    let mut ports = ConfigPorts(host);
    assert_eq!(ports.port_read(4, 4), u32::MAX);
    ports.port_write(0, 4, 0x8000_0803);
    assert_eq!(ports.port_read(0, 4), 0x8000_0800);
    assert_eq!(
        (ports.port_read(4, 4), ports.port_read(6, 2)),
        (0x5678_1234, 0x5678)
    );
    ports.port_write(0, 4, 0x8000_083c);
    ports.port_write(4, 1, 11);
    assert_eq!(ports.port_read(4, 2), 0x010b);
    ports.port_write(0, 4, 0x083c);
    assert_eq!(ports.port_read(4, 2), u32::MAX);
}

#[test]
fn bars_are_placed_sized_moved_and_closed() {
    let host = host();
    let (card, last) = card();
    host.lock().unwrap().add(card).unwrap();
    assert_eq!((get(&host, 0x10), get(&host, 0x14)), (4, 0x80));
    assert_eq!((get(&host, 0x18), get(&host, 0x1c)), (0xe000_0000, 0x6001));
    let window = |base| PciMmio {
        host: host.clone(),
        base,
    };
    let (mut low, mut high) = (window(0xe000_0000), window(0x80_0000_0000));
    assert_eq!(low.mmio_read(0xffc, 4), 2 << 32 | 0xffc);
    assert_eq!(low.mmio_read(0x1000, 4), u64::MAX);
    high.mmio_write(0x3000, 2, 7);
    assert_eq!(*last.lock().unwrap(), (0, 0x3000, 7));
    let mut io = PciIo {
        host: host.clone(),
        base: 0x6000,
    };
    assert_eq!(
        (io.port_read(0x1f, 1), io.port_read(0x20, 1)),
        (0x1f, u32::MAX)
    );
    for at in [0x10, 0x14, 0x18, 0x1c, 0x20] {
        set(&host, at, u32::MAX);
    }
    let sizes = [0x10, 0x14, 0x18, 0x1c, 0x20].map(|at| get(&host, at));
    assert_eq!(sizes, [0xffff_c004, u32::MAX, 0xffff_f000, 0xffff_ffe1, 0]);
    assert_eq!(low.mmio_read(0, 4), u64::MAX);
    set(&host, 0x18, 0xe008_0000);
    assert_eq!(low.mmio_read(0x8_0010, 4), 2 << 32 | 0x10);
    set(&host, 4, 0);
    assert_eq!(low.mmio_read(0x8_0010, 4), u64::MAX);
    host.lock().unwrap().reset();
    assert_eq!(get(&host, 0x18), 0xe000_0000);
    assert_eq!(low.mmio_read(0, 4), 2 << 32);
}

#[test]
fn overlapping_bars_and_full_windows() {
    let host = host();
    let (second, last) = card();
    host.lock().unwrap().add(card().0).unwrap();
    host.lock().unwrap().add(second).unwrap();
    let mut ecam = Ecam(host.clone());
    ecam.mmio_write(0x1_0018, 4, 0xe000_0000);
    let mut low = PciMmio {
        host: host.clone(),
        base: 0xe000_0000,
    };
    low.mmio_write(0, 4, 1);
    assert_eq!(*last.lock().unwrap(), (0, 0, 0), "the lower slot answers");
    let tiny = PciHost::new(PciWindows {
        memory32: 0xe000_0000..0xe000_1000,
        memory64: 0..0,
        io: 0x6000..0x7000,
    });
    let refused = tiny.lock().unwrap().add(card().0);
    assert_eq!(refused, Err(SlotError::NoRoom(0x4000)));
    for _ in 0..29 {
        host.lock().unwrap().add(card().0).unwrap();
    }
    assert_eq!(host.lock().unwrap().add(card().0), Err(SlotError::Full));
}

#[test]
fn intx_lines_are_shared() {
    let lines = Arc::new(Lines::default());
    let router = IntxRouter::new([0, 1, 2, 3].map(|n| IrqLine::new(lines.clone(), 16 + n)));
    let (a, b) = (router.pin(1).0, router.pin(5).0);
    a.set(true);
    b.set(true);
    a.set(false);
    assert!(lines.level(17));
    b.set(false);
    assert!(!lines.level(17));
    router.pin(31).0.set(true);
    assert!(lines.level(19));
}

#[derive(Default)]
struct Messages(Mutex<Vec<(u64, u32)>>);

impl MsiSink for Messages {
    fn message(&self, address: u64, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }
}

#[test]
fn msix_masks_keep_messages_pending() {
    let sink = Arc::new(Messages::default());
    let m = Msix::new(3, sink.clone());
    let sent = || std::mem::take(&mut *sink.0.lock().unwrap());
    assert_eq!(m.capability(2), ([2, 0, 2, 0, 0, 0, 2, 8, 0, 0], [0, 0xc0]));
    m.bar_write(0x10, 8, 0xfee0_1003);
    m.bar_write(0x18, 4, 0x41);
    assert_eq!(m.bar_read(0x10, 8), 0xfee0_1000);
    m.trigger(1);
    assert_eq!(m.bar_read(0x800, 8), 0, "disabled");
    m.set_control(0x8000);
    m.trigger(1);
    assert!(sent().is_empty());
    assert_eq!(m.bar_read(0x800, 4), 2);
    m.set_control(0xc000);
    m.bar_write(0x1c, 4, 0);
    assert!(sent().is_empty());
    m.set_control(0x8000);
    assert_eq!(sent(), [(0xfee0_1000, 0x41)]);
    m.trigger(1);
    assert_eq!(sent(), [(0xfee0_1000, 0x41)]);
    m.trigger(0xffff);
    m.trigger(3);
    m.bar_write(0x800, 8, u64::MAX);
    m.bar_write(0x30, 4, 1);
    assert_eq!(
        (
            m.bar_read(0x800, 8),
            m.bar_read(0x30, 4),
            m.bar_read(0x13, 4)
        ),
        (0, 0, 0)
    );
    let saved = m.save();
    m.reset();
    assert_ne!(m.save(), saved);
    m.restore(&saved).unwrap();
    assert_eq!(m.save(), saved);
    let mut bad = saved.clone();
    bad.pending = 8;
    assert!(m.restore(&bad).is_err());
}
