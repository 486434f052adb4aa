use super::*;
use crate::testing::{Lines, TestClock};

struct Bench {
    r: Rtc,
    clock: Arc<TestClock>,
    lines: Arc<Lines>,
}

/// 2025-12-31 23:59:58, a Wednesday.
const START: i64 = 1_767_225_598;

impl Bench {
    fn new() -> Self {
        let (clock, lines) = (Arc::new(TestClock::default()), Arc::new(Lines::default()));
        let line = IrqLine::new(lines.clone(), 8);
        let r = Rtc::new(clock.clone(), line, START * 1_000_000_000);
        Self { r, clock, lines }
    }

    fn get(&mut self, reg: u32) -> u32 {
        self.r.port_write(0, 1, reg);
        self.r.port_read(1, 1)
    }

    fn set(&mut self, reg: u32, value: u32) {
        self.r.port_write(0, 1, reg);
        self.r.port_write(1, 1, value);
    }

    fn time(&mut self) -> [u32; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|reg| self.get(reg))
    }

    /// Lets time pass to the deadline, which must be `at` nanoseconds.
    fn fire(&mut self, at: u64) {
        assert_eq!(self.r.deadline(), Some(at));
        self.clock.set(at);
        self.r.due(at);
        assert!(self.lines.level(8));
    }
}

#[test]
fn the_hosts_time_rolls_over() {
    let mut b = Bench::new();
    assert_eq!(b.time(), [0x20, 0x25, 0x12, 0x31, 4, 0x23, 0x59, 0x58]);
    b.clock.set(2_000_000_000);
    assert_eq!(b.time(), [0x20, 0x26, 1, 1, 5, 0, 0, 0]);
    assert_eq!(b.get(13), 0x80);
}

#[test]
fn binary_and_twelve_hours() {
    let mut b = Bench::new();
    b.set(11, 6);
    assert_eq!(b.time(), [20, 25, 12, 31, 4, 23, 59, 58]);
    b.set(11, 4);
    assert_eq!(b.get(4), 0x8b);
    b.set(11, 0);
    assert_eq!(b.get(4), 0x91);
    b.clock.set(2_000_000_000);
    assert_eq!(b.get(4), 0x12);
    b.clock.set(2_000_000_000 + 12 * 3_600_000_000_000);
    assert_eq!(b.get(4), 0x92);
}

#[test]
fn setting_the_time() {
    let mut b = Bench::new();
    b.set(11, 0x82);
    b.clock.set(5_000_000_000);
    for (reg, value) in [
        (0, 0x30),
        (2, 0x15),
        (4, 0x08),
        (7, 0x29),
        (8, 2),
        (9, 0x24),
    ] {
        b.set(reg, value);
    }
    b.clock.set(9_000_000_000);
    assert_eq!(b.get(0), 0x30, "it stands while SET");
    assert_eq!(b.get(10) & 0x80, 0);
    b.set(11, 2);
    b.clock.set(11_000_000_000);
    assert_eq!(b.time(), [0x20, 0x24, 2, 0x29, 5, 8, 0x15, 0x32]);
    b.set(2, 0x59);
    assert_eq!(b.get(2), 0x59);
}

#[test]
fn uip_warns_of_the_update() {
    let mut b = Bench::new();
    b.clock.set(1_000_000_000 - 2_228_001);
    assert_eq!(b.get(10), 0x26);
    b.clock.set(1_000_000_000 - 2_228_000);
    assert_eq!(b.get(10), 0xa6);
    b.clock.set(1_000_000_000);
    assert_eq!(b.get(10), 0x26);
}

#[test]
fn periodic_interrupts_until_c_is_read() {
    let mut b = Bench::new();
    b.set(11, 0x42);
    b.fire(976_562);
    assert_eq!(b.r.deadline(), None);
    assert_eq!(b.get(12), 0xc0);
    assert!(!b.lines.level(8));
    b.fire(2 * 976_562);
    b.get(12);
    b.set(10, 0x21);
    assert_eq!(b.r.deadline(), Some(3_906_250));
    b.set(10, 0x2f);
    assert_eq!(b.r.deadline(), Some(500_000_000));
    b.set(10, 0x20);
    assert_eq!(b.r.deadline(), None);
}

#[test]
fn flags_show_without_interrupts() {
    let mut b = Bench::new();
    b.clock.set(1_000_000_001);
    assert_eq!(b.get(12), 0x50);
    assert_eq!(b.get(12), 0);
    assert!(!b.lines.level(8));
}

#[test]
fn update_and_alarm_interrupts() {
    let mut b = Bench::new();
    b.set(10, 0x20);
    b.set(11, 0x12);
    b.fire(1_000_000_000);
    assert_eq!(b.get(12), 0x90);
    // At 00:00:03 of any hour's first minute.
    b.set(1, 3);
    b.set(3, 0);
    b.set(5, 0xff);
    b.set(11, 0x22);
    b.fire(5_000_000_000);
    assert_eq!(b.get(12), 0xb0);
    assert_eq!(b.r.deadline(), Some(3_605_000_000_000), "an hour on");
    b.set(5, 0x23);
    assert_eq!(b.r.deadline(), Some((5 + 23 * 3600) * 1_000_000_000));
    b.set(5, 0);
    assert_eq!(b.r.deadline(), Some((5 + 24 * 3600) * 1_000_000_000));
    b.set(1, 0x75);
    assert_eq!(b.r.deadline(), None, "an impossible second");
}

#[test]
fn memory_and_sizes() {
    let mut b = Bench::new();
    b.r.set_machine(256 << 20, 1 << 30, 4);
    let word = |b: &mut Bench, reg| b.get(reg) | b.get(reg + 1) << 8;
    assert_eq!(word(&mut b, 0x15), 640);
    assert_eq!(word(&mut b, 0x17), 0xffff);
    assert_eq!(word(&mut b, 0x34), 240 << 4);
    assert_eq!((b.get(0x5b), b.get(0x5c), b.get(0x5d)), (0, 0x40, 0));
    assert_eq!(b.get(0x5f), 3);
    b.set(0x8f, 0x0a);
    assert_eq!(b.get(0x0f), 0x0a);
    b.r.reset();
    assert_eq!(b.get(0x0f), 0x0a);
}
