use super::*;
use crate::testing::{Lines, TestClock};
use std::sync::Mutex;

#[derive(Default)]
struct Host {
    out: Mutex<Vec<u8>>,
    room: Mutex<Option<usize>>,
    wanted: Mutex<u32>,
}

impl StreamHost for Host {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock().unwrap();
        let n = room.unwrap_or(usize::MAX).min(bytes.len());
        if let Some(r) = room.as_mut() {
            *r -= n;
        }
        self.out.lock().unwrap().extend(&bytes[..n]);
        n
    }
    fn input_wanted(&self) {
        *self.wanted.lock().unwrap() += 1;
    }
    fn connect(&self, _: Arc<dyn mimeo_bus::StreamDevice>) {}
}

struct Bench {
    u: Uart16550,
    host: Arc<Host>,
    lines: Arc<Lines>,
    clock: Arc<TestClock>,
}

fn bench() -> Bench {
    let (host, lines, clock) = (
        Arc::new(Host::default()),
        Arc::new(Lines::default()),
        Arc::new(TestClock::default()),
    );
    let mut u = Uart16550::new(clock.clone(), IrqLine::new(lines.clone(), 4), host.clone());
    u.write(4, 0x0b);
    Bench {
        u,
        host,
        lines,
        clock,
    }
}

#[test]
fn divisor_scratch_and_identity() {
    let Bench { mut u, .. } = bench();
    u.write(3, 0x83);
    u.port_write(0, 2, 0x1234);
    assert_eq!(u.port_read(0, 2), 0x1234);
    u.write(3, 3);
    u.write(7, 0xa5);
    assert_eq!((u.read(7), u.read(3), u.read(1)), (0xa5, 3, 0));
    assert_eq!(u.read(2), 1);
    u.write(2, 0x41);
    assert_eq!(u.read(2), 0xc1);
    u.write(2, 0xc0);
    assert_eq!(u.read(2), 1, "without the enable bit the FIFOs are off");
}

#[test]
fn transmit_interrupt_comes_with_enable_and_goes_with_iir() {
    let Bench {
        mut u, host, lines, ..
    } = bench();
    u.write(0, b'x');
    assert_eq!(*host.out.lock().unwrap(), b"x");
    assert_eq!(u.read(5), 0x60);
    assert!(!lines.level(4));
    u.write(1, 2);
    assert!(lines.level(4));
    assert_eq!(u.read(2), 2);
    assert!(!lines.level(4));
    assert_eq!(u.read(2), 1);
    u.write(0, b'y');
    assert!(lines.level(4));
    u.write(4, 0);
    assert!(!lines.level(4), "OUT2 gates the line");
}

#[test]
fn output_that_the_host_refuses_holds_thre_back() {
    let Bench {
        mut u, host, lines, ..
    } = bench();
    u.write(2, 1);
    u.write(1, 2);
    *host.room.lock().unwrap() = Some(1);
    u.write(0, b'a');
    u.read(2);
    u.write(0, b'b');
    u.write(0, b'c');
    assert_eq!(u.read(5) & 0x60, 0);
    assert!(!lines.level(4));
    *host.room.lock().unwrap() = None;
    u.output_ready();
    assert_eq!(*host.out.lock().unwrap(), b"abc");
    assert_eq!(u.read(5) & 0x60, 0x60);
    assert!(lines.level(4));
}

#[test]
fn trigger_level_and_character_timeout() {
    let Bench {
        mut u,
        lines,
        clock,
        ..
    } = bench();
    u.write(3, 3);
    u.write(2, 0x81);
    u.write(1, 1);
    assert_eq!(u.input(b"1234567"), 7);
    assert!(!lines.level(4));
    // Four characters of ten bits at 115200 baud.
    let at = u.deadline().unwrap();
    assert_eq!(at, 347_222);
    u.due(at - 1);
    assert!(!lines.level(4));
    clock.set(at);
    u.due(at);
    assert!(lines.level(4));
    assert_eq!(u.read(2), 0xcc);
    assert_eq!(u.read(0), b'1');
    assert!(!lines.level(4), "reading ends the timeout");
    assert_eq!(u.deadline(), Some(2 * at));
    u.input(b"89");
    assert_eq!(u.read(2), 0xc4);
    for want in b"23456789" {
        assert_eq!(u.read(5) & 1, 1);
        assert_eq!(u.read(0), *want);
    }
    assert_eq!((u.read(5) & 1, u.deadline(), u.read(2)), (0, None, 0xc1));
}

#[test]
fn input_waits_for_room() {
    let Bench { mut u, host, .. } = bench();
    assert_eq!(u.input(b"ab"), 1);
    assert_eq!(u.input(b"b"), 0);
    assert_eq!(*host.wanted.lock().unwrap(), 0);
    assert_eq!(u.read(0), b'a');
    assert_eq!(*host.wanted.lock().unwrap(), 1);
    u.write(4, 0x09);
    assert_eq!(u.input(b"c"), 0, "RTS is not asserted");
    u.write(4, 0x1b);
    assert_eq!((u.input(b"c"), *host.wanted.lock().unwrap()), (0, 1));
    u.write(4, 0x0b);
    assert_eq!(*host.wanted.lock().unwrap(), 2);
    u.write(2, 1);
    assert_eq!(u.input(&[7; 20]), 16);
    u.write(2, 3);
    assert_eq!(*host.wanted.lock().unwrap(), 3);
    assert_eq!(u.read(5) & 0x83, 0);
}

#[test]
fn loopback_modem_lines_and_deltas() {
    let Bench { mut u, lines, .. } = bench();
    assert_eq!(u.read(6), 0xb0);
    u.write(4, 0x10);
    assert_eq!(u.read(6), 0x0b);
    assert_eq!(u.read(6), 0);
    u.write(4, 0x1f);
    assert_eq!(u.read(6), 0xfb);
    u.write(1, 8);
    u.write(4, 0x1b);
    assert_eq!(u.read(2), 0);
    assert!(!lines.level(4), "OUT2 is inactive in loopback");
    assert_eq!(u.read(6), 0xb4, "RI shows its trailing edge only");
    assert_eq!(u.read(2), 1);
}

#[test]
fn loopback_data_overrun_and_break() {
    let Bench { mut u, host, .. } = bench();
    u.write(4, 0x1b);
    u.write(3, 2);
    u.write(0, 0xff);
    assert_eq!(u.read(0), 0x7f, "seven data bits");
    u.write(3, 3);
    u.write(0, 1);
    u.write(0, 2);
    u.write(1, 4);
    assert_eq!(u.read(2), 6);
    assert_eq!(u.read(5), 0x63);
    assert_eq!((u.read(5), u.read(2), u.read(0)), (0x61, 1, 2));
    u.write(2, 1);
    u.write(0, 9);
    u.write(3, 0x43);
    assert_eq!(u.read(5), 0xe1, "the break is behind the 9");
    assert_eq!(u.read(0), 9);
    assert_eq!(u.read(5), 0xf9);
    assert_eq!(u.read(5), 0x61);
    assert!(host.out.lock().unwrap().is_empty());
    assert_eq!(u.input(b"z"), 0);
}

#[test]
fn impossible_states_are_refused() {
    let Bench { mut u, .. } = bench();
    let good = u.save();
    let mut bad = good.clone();
    bad.received = vec![(0, 0); 2];
    assert!(u.restore(&bad).is_err());
    assert_eq!(u.save(), good);
}
