use super::*;
use crate::testing::{Lines, TestClock};

struct Bench {
    p: Pit,
    clock: Arc<TestClock>,
    lines: Arc<Lines>,
}

impl Bench {
    fn new() -> Self {
        let (clock, lines) = (Arc::new(TestClock::default()), Arc::new(Lines::default()));
        let p = Pit::new(clock.clone(), IrqLine::new(lines.clone(), 0));
        Self { p, clock, lines }
    }

    fn at(&self, tick: u64) {
        self.clock.set(nanos(tick));
    }

    fn out(&mut self, port: u16, value: u32) {
        self.p.port_write(port, 1, value);
    }

    fn word(&mut self, port: u16) -> u32 {
        let low = self.p.port_read(port, 1);
        low | self.p.port_read(port, 1) << 8
    }

    fn program(&mut self, control: u32, count: u16) {
        self.out(3, control);
        let port = (control >> 6) as u16;
        self.out(port, u32::from(count & 0xff));
        self.out(port, u32::from(count >> 8));
    }

    /// Status byte of counter 2.
    fn status2(&mut self) -> u32 {
        self.out(3, 0xe8);
        self.p.port_read(2, 1)
    }
}

#[test]
fn mode_2_interrupts_at_its_rate_and_catches_up() {
    let mut b = Bench::new();
    b.program(0x34, 1193);
    assert_eq!(b.p.deadline(), Some(nanos(1193)));
    b.lines.edges(0);
    for k in 1..4 {
        b.at(1193 * k);
        b.p.due(nanos(1193 * k));
        assert_eq!(b.lines.edges(0), 1);
        assert_eq!(b.p.deadline(), Some(nanos(1193 * (k + 1))));
    }
    b.p.due(nanos(1193 * 9 + 5));
    assert_eq!(b.lines.edges(0), 1);
    assert_eq!(b.p.deadline(), Some(nanos(1193 * 10)));
}

#[test]
fn a_tiny_period_does_not_flood_the_host() {
    let mut b = Bench::new();
    b.program(0x34, 2);
    let at = b.p.deadline().unwrap();
    b.p.due(at);
    assert_eq!(b.p.deadline(), Some(at + 50_000));
}

#[test]
fn mode_0_rises_once_at_terminal_count() {
    let mut b = Bench::new();
    b.program(0x30, 100);
    assert!(!b.lines.level(0));
    b.at(40);
    b.out(3, 0);
    b.at(50);
    assert_eq!(b.word(0), 60, "latched");
    assert_eq!(b.word(0), 50);
    b.out(0, 10);
    assert_eq!(b.p.deadline(), None, "the first byte stops it");
    b.out(0, 0);
    b.p.due(nanos(60));
    assert!(b.lines.level(0));
    assert_eq!(b.p.deadline(), None);
    b.at(62);
    assert_eq!(b.word(0), 0xfffe, "it counts on");
}

#[test]
fn mode_3_output_counts_by_two_and_new_counts_wait() {
    let mut b = Bench::new();
    b.out(4, 1);
    b.program(0xb6, 10);
    b.at(2);
    assert_eq!(b.word(2), 6);
    assert_eq!(b.status2(), 0xb6);
    b.at(5);
    assert_eq!((b.word(2), b.status2()), (10, 0x36));
    b.out(2, 20);
    b.out(2, 0);
    assert_eq!(b.status2() & 0x40, 0x40, "null count");
    b.at(9);
    assert_eq!(b.word(2), 2);
    b.at(10);
    assert_eq!((b.word(2), b.status2()), (20, 0xb6));
    b.at(19);
    assert_eq!(b.status2() & 0x80, 0x80);
    b.at(20);
    assert_eq!(b.status2() & 0x80, 0);
}

#[test]
fn the_gate_stops_and_restarts_counter_2() {
    let mut b = Bench::new();
    b.program(0xb0, 100);
    b.at(50);
    assert_eq!(b.word(2), 100, "the gate is low");
    b.out(4, 1);
    b.at(80);
    assert_eq!(b.word(2), 70);
    b.out(4, 0);
    b.at(1000);
    assert_eq!(b.word(2), 70);
    b.out(4, 3);
    b.at(1069);
    assert_eq!(b.p.port_read(4, 1) & 0x23, 3);
    b.at(1070);
    assert_eq!(b.p.port_read(4, 1) & 0x23, 0x23);
}

#[test]
fn one_shot_and_strobes() {
    let mut b = Bench::new();
    b.program(0xb2, 10);
    assert_eq!(b.status2(), 0xf2, "high and not loaded until the trigger");
    b.at(100);
    b.out(4, 1);
    assert_eq!(b.status2(), 0x32);
    b.at(110);
    assert_eq!(b.status2(), 0xb2);
    b.out(4, 0);
    b.out(4, 1);
    assert_eq!(b.status2(), 0x32, "triggered again");
    b.program(0xb8, 10);
    b.at(119);
    assert_eq!(b.status2() & 0x80, 0x80);
    b.at(120);
    assert_eq!(b.status2() & 0x80, 0);
    b.at(121);
    assert_eq!(b.status2() & 0x80, 0x80);
    b.program(0xba, 10);
    b.out(4, 0);
    b.at(200);
    b.out(4, 1);
    b.at(210);
    assert_eq!(b.status2() & 0x80, 0);
}

#[test]
fn bcd_and_single_byte_access() {
    let mut b = Bench::new();
    b.program(0x35, 0x1000);
    b.at(1);
    assert_eq!(b.word(0), 0x0999);
    assert_eq!(b.p.deadline(), Some(nanos(1000)));
    b.program(0x35, 0);
    assert_eq!(b.p.deadline(), Some(nanos(10_001)));
    b.out(3, 0x14);
    b.out(0, 0x80);
    b.at(11);
    assert_eq!(b.p.port_read(0, 1), 0x76);
    b.out(3, 0x24);
    b.out(0, 2);
    assert_eq!(b.p.deadline(), Some(nanos(11 + 512)));
}

#[test]
fn read_back_latches_status_before_count() {
    let mut b = Bench::new();
    b.program(0x34, 0x1234);
    b.at(4);
    b.out(3, 0xc2);
    b.at(100);
    b.out(3, 0xc2);
    assert_eq!(b.p.port_read(0, 1), 0xb4);
    assert_eq!(b.word(0), 0x1230, "the second latch is ignored");
    assert_eq!(b.word(0), 0x1234 - 100);
}

#[test]
fn refresh_toggles() {
    let mut b = Bench::new();
    let before = b.p.port_read(4, 1);
    b.clock.set(REFRESH);
    assert_eq!(before ^ b.p.port_read(4, 1), 0x10);
}
