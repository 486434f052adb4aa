use super::*;
use crate::testing::{NoTimers, TestClock};
use mimeo_bus::{Clock, IrqSink, SaveRestore, TimedModel};
use mimeo_vcpu::{EventBits, MsrError, VcpuEvents};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

struct Bench {
    bus: Arc<ApicBus>,
    cpus: Vec<CpuApic>,
    events: Vec<Arc<VcpuEvents>>,
    clock: Arc<TestClock>,
}

impl Bench {
    fn new(n: u32) -> Self {
        let clock = Arc::new(TestClock::default());
        let events: Vec<_> = (0..n).map(|_| Arc::new(VcpuEvents::default())).collect();
        let clocks = ApicClocks {
            clock: clock.clone(),
            tsc: clock.clone(),
            timer_hz: 1_000_000_000,
        };
        let bus = ApicBus::new(
            (0..n).zip(events.clone()).collect(),
            ApicFeatures::default(),
            &clocks,
            &NoTimers(clock.clone()),
        );
        let cpus = (0..n as usize).map(|i| bus.cpu(i).unwrap()).collect();
        Self {
            bus,
            cpus,
            events,
            clock,
        }
    }

    /// All APICs in x2APIC mode and software-enabled.
    fn x2apic(n: u32) -> Self {
        let b = Self::new(n);
        for cpu in &b.cpus {
            let base = cpu.msr_read(0x1b).unwrap();
            cpu.msr_write(0x1b, base | 0xc00).unwrap();
            cpu.msr_write(0x80f, 0x1ff).unwrap();
        }
        b
    }

    fn xapic(n: u32) -> Self {
        let b = Self::new(n);
        for cpu in &b.cpus {
            cpu.mmio_write(0xf0, 4, 0x1ff);
        }
        b
    }

    fn pending(&self, cpu: usize, bit: EventBits) -> bool {
        self.events[cpu].pending().any(bit)
    }

    fn intr(&self, cpu: usize) -> bool {
        self.pending(cpu, EventBits::INTR)
    }

    /// Lets time pass up to `now`, running the timer of CPU 0.
    fn run_to(&self, now: u64) {
        self.clock.set(now);
        self.bus.apic(0).unwrap().due(now);
    }
}

const SELF_IPI: u32 = 0x83f;

#[test]
fn reset_values() {
    let b = Bench::new(2);
    let [bsp, ap] = [&b.cpus[0], &b.cpus[1]];
    assert_eq!(bsp.msr_read(0x1b), Ok(0xfee0_0900));
    assert_eq!(ap.msr_read(0x1b), Ok(0xfee0_0800));
    assert_eq!(bsp.window(), Some(0xfee0_0000));
    let values = [
        (0x20, 0),
        (0x30, 0x0105_0015),
        (0x80, 0),
        (0xd0, 0),
        (0xe0, 0xffff_ffff),
        (0xf0, 0xff),
        (0x100, 0),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
    ];
    for (offset, value) in values {
        assert_eq!(bsp.mmio_read(offset, 4), value, "{offset:#x}");
    }
    assert_eq!(ap.mmio_read(0x20, 4), 1 << 24);
    assert_eq!(ap.mmio_read(0x23, 1), 1);
    assert_eq!(ap.mmio_read(0x24, 4), 0);
}

#[test]
fn priorities_acknowledge_and_eoi() {
    let b = Bench::x2apic(1);
    let c = &b.cpus[0];
    c.msr_write(SELF_IPI, 0x31).unwrap();
    c.msr_write(SELF_IPI, 0x52).unwrap();
    assert!(b.intr(0));
    assert_eq!(c.ack(), Some(0x52));
    assert_eq!(c.msr_read(0x80a), Ok(0x50));
    assert!(!b.intr(0), "31h is below the interrupt in service");
    c.msr_write(SELF_IPI, 0x5f).unwrap();
    assert_eq!(c.ack(), None, "the same class does not interrupt");
    c.msr_write(SELF_IPI, 0x60).unwrap();
    assert_eq!(c.ack(), Some(0x60));
    c.msr_write(0x80b, 0).unwrap();
    c.msr_write(0x80b, 0).unwrap();
    assert_eq!(c.ack(), Some(0x5f));
    c.msr_write(0x80b, 0).unwrap();
    c.set_cr8(3);
    assert!(!b.intr(0));
    assert_eq!((c.cr8(), c.msr_read(0x808), c.ack()), (3, Ok(0x30), None));
    c.set_cr8(2);
    assert!(b.intr(0));
    assert_eq!(c.ack(), Some(0x31));
    assert_eq!(c.msr_read(0x811), Ok(1 << 0x11));
    c.msr_write(0x80b, 0).unwrap();
    c.msr_write(0x80b, 0).unwrap();
    assert!(!b.intr(0));
}

#[test]
fn apic_base_transitions() {
    let b = Bench::new(1);
    let c = &b.cpus[0];
    let set = |bits: u64| c.msr_write(0x1b, 0xfee0_0100 | bits);
    let (off, xapic, invalid, x2) = (0, 0x800, 0x400, 0xc00);
    assert_eq!(c.msr_read(0x802), Err(MsrError));
    assert_eq!(set(invalid), Err(MsrError));
    assert_eq!(set(1), Err(MsrError));
    assert_eq!(set(xapic | 1 << 46), Err(MsrError));
    assert_eq!(set(x2), Ok(()));
    assert_eq!(c.window(), None);
    assert_eq!(set(xapic), Err(MsrError));
    assert_eq!(set(invalid), Err(MsrError));
    assert_eq!(c.msr_write(0x80f, 0x1ff), Ok(()));
    assert_eq!(set(off), Ok(()));
    assert_eq!(set(x2), Err(MsrError));
    assert_eq!(set(xapic), Ok(()));
    assert_eq!(c.mmio_read(0xf0, 4), 0xff, "as after power-up");
    c.msr_write(0x1b, 0xfed0_0900).unwrap();
    assert_eq!(c.window(), Some(0xfed0_0000));
}

#[test]
fn x2apic_reserved_bits_and_registers_fault() {
    let b = Bench::x2apic(1);
    let c = &b.cpus[0];
    let faulting_writes = [
        (0x802, 0),
        (0x803, 0),
        (0x80a, 0),
        (0x80d, 0),
        (0x80e, 0),
        (0x810, 0),
        (0x831, 0),
        (0x839, 0),
        (0x83d, 0),
        (0x8ff, 0),
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x828, 1),
        (0x830, 1 << 20),
        (0x830, 1 << 13),
        (0x832, 1 << 19),
        (0x832, 0x100),
        (0x835, 1 << 17),
        (0x837, 0x700),
        (0x838, 1 << 32),
        (0x83e, 4),
        (SELF_IPI, 0x100),
    ];
    for (msr, value) in faulting_writes {
        assert_eq!(
            c.msr_write(msr, value),
            Err(MsrError),
            "{msr:#x} {value:#x}"
        );
    }
    for msr in [0x800, 0x80b, 0x80e, 0x82f, 0x831, SELF_IPI, 0x840] {
        assert_eq!(c.msr_read(msr), Err(MsrError), "{msr:#x}");
    }
    c.msr_write(0x835, 0x1_f7ff).unwrap();
    assert_eq!(
        c.msr_read(0x835),
        Ok(0x1_a7ff),
        "status and remote IRR are read-only"
    );
    assert_eq!(c.msr_read(0x80d), Ok(1));
}

#[test]
fn physical_ipis_and_shorthands_x2apic() {
    let b = Bench::x2apic(4);
    let c = &b.cpus[1];
    c.msr_write(0x830, 2 << 32 | 0x41).unwrap();
    let hit = |v: u8| -> Vec<usize> { (0..4).filter(|&i| b.cpus[i].ack() == Some(v)).collect() };
    assert_eq!(hit(0x41), [2]);
    c.msr_write(0x830, 0xffff_ffff << 32 | 0x61).unwrap();
    assert_eq!(hit(0x61), [0, 1, 2, 3]);
    c.msr_write(0x830, 0xc_0071).unwrap();
    assert_eq!(hit(0x71), [0, 2, 3]);
    c.msr_write(0x830, 0x8_0081).unwrap();
    assert_eq!(hit(0x81), [0, 1, 2, 3]);
    c.msr_write(0x830, 0x4_0091).unwrap();
    assert_eq!(hit(0x91), [1]);
    c.msr_write(0x830, 0xff << 32 | 0xa1).unwrap();
    assert!(hit(0xa1).is_empty());
    assert_eq!(c.msr_read(0x830), Ok(0xff << 32 | 0xa1));
}

#[test]
fn logical_destinations() {
    let b = Bench::x2apic(18);
    b.cpus[0]
        .msr_write(0x830, 1 << 48 | 3 << 32 | 0x841)
        .unwrap();
    let hit = |v: u8| -> Vec<usize> {
        (0..b.cpus.len())
            .filter(|&i| b.cpus[i].ack() == Some(v))
            .collect()
    };
    assert_eq!(hit(0x41), [16, 17]);
    let b = Bench::xapic(3);
    let hit = |v: u8| -> Vec<usize> {
        (0..b.cpus.len())
            .filter(|&i| b.cpus[i].ack() == Some(v))
            .collect()
    };
    let send = |dest: u64, low: u64| {
        b.cpus[0].mmio_write(0x310, 4, dest << 24);
        b.cpus[0].mmio_write(0x300, 4, low);
    };
    for (i, cpu) in b.cpus.iter().enumerate() {
        cpu.mmio_write(0xd0, 4, 1 << (24 + i));
    }
    send(5, 0x851);
    assert_eq!(hit(0x51), [0, 2]);
    send(0xff, 0x61);
    assert_eq!(hit(0x61), [0, 1, 2]);
    // Cluster model: cluster 1, members 0 and 1; cluster 2, member 0.
    for (cpu, ldr) in b.cpus.iter().zip([0x11, 0x12, 0x21]) {
        cpu.mmio_write(0xe0, 4, 0x0fff_ffff);
        cpu.mmio_write(0xd0, 4, ldr << 24);
    }
    send(0x13, 0x871);
    assert_eq!(hit(0x71), [0, 1]);
    send(0x21, 0x881);
    assert_eq!(hit(0x81), [2]);
    send(0xff, 0x891);
    assert_eq!(hit(0x91), [0, 1, 2]);
}

#[test]
fn lowest_priority_goes_to_one_and_takes_turns() {
    let b = Bench::xapic(2);
    for (i, cpu) in b.cpus.iter().enumerate() {
        cpu.mmio_write(0xd0, 4, 1 << (24 + i));
    }
    let send = || assert!(b.bus.send_msi(0xfee0_3004, 0x141));
    let taken = || b.cpus.iter().position(|c| c.ack().is_some()).unwrap();
    b.cpus[0].set_cr8(5);
    send();
    assert_eq!(taken(), 1);
    assert!(!b.intr(0) && !b.intr(1));
    b.cpus[1].mmio_write(0xb0, 4, 0);
    b.cpus[0].set_cr8(0);
    let mut seen = [0; 2];
    for _ in 0..4 {
        send();
        let cpu = taken();
        b.cpus[cpu].mmio_write(0xb0, 4, 0);
        seen[cpu] += 1;
    }
    assert_eq!(seen, [2, 2]);
}

#[test]
fn nmi_init_and_sipi_reach_the_event_word() {
    let b = Bench::x2apic(2);
    let send = |low: u64| b.cpus[0].msr_write(0x830, 1 << 32 | low).unwrap();
    send(0x4400);
    assert!(b.pending(1, EventBits::NMI));
    b.cpus[1].msr_write(0x832, 0x30).unwrap();
    send(0x8500);
    assert!(
        !b.pending(1, EventBits::INIT),
        "the level de-assert does nothing"
    );
    send(0xc500);
    assert!(b.pending(1, EventBits::INIT));
    assert_eq!(b.cpus[1].msr_read(0x832), Ok(0x1_0000));
    assert_eq!(
        b.cpus[1].msr_read(0x1b),
        Ok(0xfee0_0c00),
        "INIT keeps the mode"
    );
    send(0x4608);
    let taken = b.events[1].take(EventBits::SIPI);
    assert_eq!(taken.0 >> 8 & 0xff, 8);
    assert!(taken.any(EventBits::SIPI));
}

#[test]
fn a_software_disabled_apic_takes_nmis_only_and_masks_its_lvt() {
    let b = Bench::x2apic(2);
    b.cpus[1].msr_write(0x837, 0x33).unwrap();
    b.cpus[1].msr_write(0x80f, 0xff).unwrap();
    assert_eq!(b.cpus[1].msr_read(0x837), Ok(0x1_0033));
    b.cpus[1].msr_write(0x837, 0x33).unwrap();
    assert_eq!(b.cpus[1].msr_read(0x837), Ok(0x1_0033));
    b.cpus[0].msr_write(0x830, 1 << 32 | 0x41).unwrap();
    assert!(!b.intr(1));
    b.cpus[0].msr_write(0x830, 1 << 32 | 0x400).unwrap();
    assert!(b.pending(1, EventBits::NMI));
}

#[test]
fn errors_are_latched_and_interrupt() {
    let b = Bench::x2apic(2);
    let c = &b.cpus[0];
    c.msr_write(0x837, 0xfe).unwrap();
    c.msr_write(SELF_IPI, 5).unwrap();
    assert_eq!(c.ack(), Some(0xfe));
    assert_eq!(c.msr_read(0x828), Ok(0));
    c.msr_write(0x828, 0).unwrap();
    assert_eq!(c.msr_read(0x828), Ok(0x20));
    c.msr_write(0x828, 0).unwrap();
    assert_eq!(c.msr_read(0x828), Ok(0));
    assert!(!b.bus.send_msi(0xfee0_1000, 3));
    b.cpus[1].msr_write(0x828, 0).unwrap();
    assert_eq!(b.cpus[1].msr_read(0x828), Ok(0x40));
    let b = Bench::xapic(1);
    b.cpus[0].mmio_read(0x40, 4);
    b.cpus[0].mmio_write(0x280, 4, 0);
    assert_eq!(b.cpus[0].mmio_read(0x280, 4), 0x80);
}

#[test]
fn one_shot_timer_counts_down_and_fires_once() {
    let b = Bench::x2apic(1);
    let c = &b.cpus[0];
    c.msr_write(0x832, 0x40).unwrap();
    c.msr_write(0x83e, 0xb).unwrap();
    c.msr_write(0x838, 1000).unwrap();
    b.clock.set(400);
    assert_eq!(c.msr_read(0x839), Ok(600));
    // Half as fast from here on.
    c.msr_write(0x83e, 0).unwrap();
    b.clock.set(1598);
    assert_eq!(c.msr_read(0x839), Ok(1));
    b.run_to(1599);
    assert!(!b.intr(0));
    assert_eq!(b.bus.apic(0).unwrap().deadline(), Some(1600));
    b.run_to(1600);
    assert_eq!(c.ack(), Some(0x40));
    assert_eq!((c.msr_read(0x839), c.msr_read(0x838)), (Ok(0), Ok(1000)));
    assert_eq!(b.bus.apic(0).unwrap().deadline(), None);
    c.msr_write(0x838, 10).unwrap();
    c.msr_write(0x838, 0).unwrap();
    assert_eq!(b.bus.apic(0).unwrap().deadline(), None);
}

#[test]
fn periodic_timer_keeps_its_phase_and_bounds_its_rate() {
    let b = Bench::x2apic(1);
    let c = &b.cpus[0];
    c.msr_write(0x832, 0x2_0040).unwrap();
    c.msr_write(0x83e, 0xb).unwrap();
    c.msr_write(0x838, 100_000).unwrap();
    b.run_to(100_000);
    assert_eq!(c.ack(), Some(0x40));
    assert_eq!(b.bus.apic(0).unwrap().deadline(), Some(200_000));
    // Two periods and a half late.
    b.run_to(450_000);
    assert_eq!(b.bus.apic(0).unwrap().deadline(), Some(500_000));
    assert_eq!(c.msr_read(0x839), Ok(50_000));
    c.msr_write(0x838, 1).unwrap();
    b.run_to(450_001);
    assert!(b.bus.apic(0).unwrap().deadline().unwrap() >= 450_001 + 50_000);
}

#[test]
fn tsc_deadline_timer() {
    let b = Bench::x2apic(1);
    let c = &b.cpus[0];
    b.clock.set(1000);
    c.msr_write(0x6e0, 2000).unwrap();
    assert_eq!(c.msr_read(0x6e0), Ok(0), "another mode");
    c.msr_write(0x832, 0x4_0040).unwrap();
    c.msr_write(0x838, 5).unwrap();
    assert_eq!(c.msr_read(0x838), Ok(0), "ignored in this mode");
    c.msr_write(0x6e0, 2000).unwrap();
    assert_eq!(c.msr_read(0x6e0), Ok(2000));
    assert_eq!(b.bus.apic(0).unwrap().deadline(), Some(2000));
    b.run_to(1999);
    assert!(!b.intr(0));
    b.run_to(2000);
    assert_eq!((c.ack(), c.msr_read(0x6e0)), (Some(0x40), Ok(0)));
    c.msr_write(0x80b, 0).unwrap();
    c.msr_write(0x6e0, 1).unwrap();
    assert_eq!(c.ack(), Some(0x40), "the past fires at once");
    c.msr_write(0x6e0, 9000).unwrap();
    c.msr_write(0x6e0, 0).unwrap();
    assert_eq!(b.bus.apic(0).unwrap().deadline(), None);
    c.msr_write(0x6e0, 9000).unwrap();
    c.msr_write(0x832, 0x40).unwrap();
    assert_eq!(
        b.bus.apic(0).unwrap().deadline(),
        None,
        "leaving the mode disarms"
    );
}

#[test]
fn a_tsc_behind_the_host_timer_is_waited_for() {
    struct Slow(Arc<TestClock>);
    impl mimeo_bus::TscClock for Slow {
        fn tsc(&self) -> u64 {
            self.0.now() / 2
        }
        fn hz(&self) -> u64 {
            1_000_000_000
        }
    }
    let clock = Arc::new(TestClock::default());
    let clocks = ApicClocks {
        clock: clock.clone(),
        tsc: Arc::new(Slow(clock.clone())),
        timer_hz: 1_000_000_000,
    };
    let events = Arc::new(VcpuEvents::default());
    let cpus = vec![(0, events.clone())];
    let bus = ApicBus::new(
        cpus,
        ApicFeatures::default(),
        &clocks,
        &NoTimers(clock.clone()),
    );
    let c = bus.cpu(0).unwrap();
    c.mmio_write(0xf0, 4, 0x1ff);
    c.mmio_write(0x320, 4, 0x4_0040);
    c.msr_write(0x6e0, 1000).unwrap();
    clock.set(1000);
    bus.apic(0).unwrap().due(1000);
    assert!(!events.pending().any(EventBits::INTR));
    assert_eq!(bus.apic(0).unwrap().deadline(), Some(1500));
    clock.set(2000);
    bus.apic(0).unwrap().due(2000);
    assert!(events.pending().any(EventBits::INTR));
}

struct Pic(AtomicU32, Mutex<Option<Arc<ApicBus>>>);

impl ExtIntSource for Pic {
    fn acknowledge(&self) -> u8 {
        self.0.fetch_add(1, Ordering::SeqCst);
        // As a PIC does: its output falls within the acknowledge.
        if let Some(bus) = self.1.lock().unwrap().as_ref() {
            bus.set_level(0, false);
        }
        0x21
    }
}

#[derive(Default)]
struct Ended(Mutex<Vec<u8>>);

impl EoiSink for Ended {
    fn end_of_interrupt(&self, vector: u8) {
        self.0.lock().unwrap().push(vector);
    }
}

#[test]
fn extint_through_lint0_and_as_a_message() {
    let b = Bench::new(1);
    let pic = Arc::new(Pic(AtomicU32::new(0), Mutex::new(Some(b.bus.clone()))));
    let weak: Weak<dyn ExtIntSource> = Arc::downgrade(&(pic.clone() as Arc<dyn ExtIntSource>));
    b.bus.connect(Vec::new(), weak);
    b.bus.set_level(0, true);
    assert!(!b.intr(0), "LINT0 is masked after reset");
    b.bus.apic(0).unwrap().virtual_wire();
    assert!(b.intr(0));
    b.cpus[0].set_cr8(15);
    assert_eq!(
        b.cpus[0].ack(),
        Some(0x21),
        "not subject to the task priority"
    );
    assert!(!b.intr(0));
    assert!(b.bus.send_msi(0xfee0_0000, 0x700));
    assert_eq!(b.cpus[0].ack(), Some(0x21));
    assert_eq!(pic.0.load(Ordering::SeqCst), 2);
    b.bus.set_level(1, true);
    assert!(b.pending(0, EventBits::NMI));
    // Without an APIC the pins are the processor's own.
    b.cpus[0].msr_write(0x1b, 0xfee0_0100).unwrap();
    b.bus.set_level(0, true);
    assert_eq!(b.cpus[0].ack(), Some(0x21));
    *pic.1.lock().unwrap() = None;
}

#[test]
fn eoi_of_a_level_interrupt_is_broadcast_unless_suppressed() {
    let b = Bench::x2apic(1);
    let ended = Arc::new(Ended::default());
    let sink: Arc<dyn EoiSink> = ended.clone();
    let none: Weak<Pic> = Weak::new();
    b.bus.connect(vec![Arc::downgrade(&sink)], none);
    let c = &b.cpus[0];
    let run = |data| {
        assert!(b.bus.send_msi(0xfee0_0000, data));
        c.ack().unwrap();
        c.msr_write(0x80b, 0).unwrap();
        std::mem::take(&mut *ended.0.lock().unwrap())
    };
    assert_eq!(run(0x8041), [0x41]);
    assert!(run(0x41).is_empty());
    c.msr_write(0x80f, 0x11ff).unwrap();
    assert!(run(0x8041).is_empty());
}

#[test]
fn a_level_triggered_lint_repeats_after_eoi() {
    let b = Bench::xapic(1);
    let c = &b.cpus[0];
    c.mmio_write(0x350, 4, 0x8045);
    b.bus.set_level(0, true);
    assert_eq!(c.mmio_read(0x350, 4), 0xc045);
    assert_eq!(c.ack(), Some(0x45));
    c.mmio_write(0xb0, 4, 0);
    assert_eq!(c.ack(), Some(0x45));
    b.bus.set_level(0, false);
    c.mmio_write(0xb0, 4, 0);
    assert_eq!((c.ack(), c.mmio_read(0x350, 4)), (None, 0x8045));
}

#[test]
fn msis_outside_the_window_and_reserved_modes_are_dropped() {
    let b = Bench::xapic(1);
    assert!(!b.bus.send_msi(0xfed0_0000, 0x41));
    assert!(!b.bus.send_msi(0xfee0_0000, 0x341));
    assert!(!b.bus.send_msi(0xfee0_0000, 0x641));
    assert!(!b.bus.send_msi(0xfee0_5000, 0x41));
    assert!(b.bus.send_msi(0xfeef_f000, 0x41), "FFh is everybody");
}

#[test]
fn restoring_checks_the_state_and_raises_what_is_pending() {
    let b = Bench::x2apic(1);
    b.cpus[0].msr_write(SELF_IPI, 0x44).unwrap();
    let saved = b.bus.apic(0).unwrap().save();
    let fresh = Bench::new(1);
    let mut bad = saved.clone();
    bad.apic_base = 0xfee0_0400;
    assert!(fresh.bus.apic(0).unwrap().restore(&bad).is_err());
    bad = saved.clone();
    bad.id = 3;
    assert!(fresh.bus.apic(0).unwrap().restore(&bad).is_err());
    fresh.bus.apic(0).unwrap().restore(&saved).unwrap();
    assert!(fresh.intr(0));
    assert_eq!(fresh.cpus[0].window(), None);
    assert_eq!(fresh.cpus[0].ack(), Some(0x44));
}
