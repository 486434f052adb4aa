use super::*;
use crate::testing::Lines;
use std::sync::Arc;

fn pair() -> (PicPair, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    let mut p = PicPair::new(IrqLine::new(lines.clone(), 0));
    init(&mut p, 1);
    (p, lines)
}

fn out(p: &mut PicPair, offset: u16, value: u32) {
    p.port_write(offset, 1, value);
}

fn init(p: &mut PicPair, icw4: u32) {
    for (base, vector, cascade) in [(0, 0x20, 4), (2, 0x28, 2)] {
        out(p, base, 0x11);
        out(p, base + 1, vector);
        out(p, base + 1, cascade);
        out(p, base + 1, icw4);
    }
}

fn isr(p: &mut PicPair, base: u16) -> u32 {
    out(p, base, 0x0b);
    p.port_read(base, 1)
}

#[test]
fn fully_nested_priorities_and_cascade() {
    let (mut p, lines) = pair();
    p.set_line(4, true);
    assert!(lines.level(0));
    assert_eq!(p.acknowledge(), 0x24);
    assert!(!lines.level(0));
    p.set_line(5, true);
    assert!(!lines.level(0), "a lower priority waits");
    p.set_line(9, true);
    assert!(lines.level(0), "the slave is at 2");
    assert_eq!(p.acknowledge(), 0x29);
    assert_eq!((isr(&mut p, 0), isr(&mut p, 2)), (0x14, 0x02));
    p.set_line(8, true);
    assert!(!lines.level(0), "the master's input 2 is in service");
    out(&mut p, 0, 0x20);
    assert_eq!(p.acknowledge(), 0x28, "a new edge on input 2");
    for base in [2, 2, 0, 0] {
        out(&mut p, base, 0x20);
    }
    assert_eq!((isr(&mut p, 0), isr(&mut p, 2)), (0, 0));
    assert_eq!(p.acknowledge(), 0x25);
}

#[test]
fn special_fully_nested_lets_the_slave_interrupt_itself() {
    let (mut p, _) = pair();
    init(&mut p, 0x11);
    p.set_line(9, true);
    assert_eq!(p.acknowledge(), 0x29);
    p.set_line(8, true);
    assert_eq!(p.acknowledge(), 0x28);
}

#[test]
fn a_request_that_goes_away_gives_the_default_interrupt() {
    let (mut p, lines) = pair();
    p.set_line(3, true);
    p.set_line(3, false);
    assert!(!lines.level(0));
    assert_eq!(p.acknowledge(), 0x27);
    assert_eq!(isr(&mut p, 0), 0, "not in service");
}

#[test]
fn masks_and_level_triggering() {
    let (mut p, lines) = pair();
    out(&mut p, 1, 0x20);
    p.set_line(5, true);
    assert!(!lines.level(0));
    out(&mut p, 1, 0);
    assert!(lines.level(0));
    p.acknowledge();
    out(&mut p, 0, 0x20);
    assert!(!lines.level(0), "an edge interrupts once");
    p.port_write(4, 1, 0xff);
    assert_eq!(p.port_read(4, 1), 0xf8);
    assert!(lines.level(0), "as a level it requests still");
    p.acknowledge();
    out(&mut p, 0, 0x65);
    assert!(lines.level(0));
    p.set_line(5, false);
    assert!(!lines.level(0));
    p.port_write(5, 1, 0xff);
    assert_eq!(p.port_read(5, 1), 0xde);
}

#[test]
fn rotation_and_specific_eoi() {
    let (mut p, _) = pair();
    p.set_line(3, true);
    p.acknowledge();
    out(&mut p, 0, 0xa0);
    p.set_line(3, false);
    for i in [0, 3, 4] {
        p.set_line(i, true);
    }
    assert_eq!(p.acknowledge(), 0x24, "3 has the lowest priority now");
    out(&mut p, 0, 0x64);
    assert_eq!(p.acknowledge(), 0x20);
    out(&mut p, 0, 0xe0);
    assert_eq!(p.acknowledge(), 0x23);
    out(&mut p, 0, 0xc7);
    out(&mut p, 0, 0x63);
    p.set_line(7, true);
    p.set_line(6, true);
    assert_eq!(p.acknowledge(), 0x26);
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let (mut p, lines) = pair();
    p.set_line(1, true);
    p.acknowledge();
    p.set_line(6, true);
    assert!(!lines.level(0));
    out(&mut p, 0, 0x68);
    out(&mut p, 1, 2);
    assert_eq!(p.acknowledge(), 0x26);
    out(&mut p, 0, 0x20);
    assert_eq!(isr(&mut p, 0), 2, "the masked one is not cleared");
    out(&mut p, 0, 0x48);
    out(&mut p, 0, 0x20);
    assert_eq!(isr(&mut p, 0), 0);
}

#[test]
fn automatic_eoi_and_poll() {
    let (mut p, _) = pair();
    init(&mut p, 3);
    p.set_line(1, true);
    assert_eq!(p.acknowledge(), 0x21);
    assert_eq!(isr(&mut p, 0), 0);
    out(&mut p, 0, 0x80);
    p.set_line(0, true);
    p.acknowledge();
    p.set_line(0, false);
    p.set_line(0, true);
    p.set_line(7, true);
    assert_eq!(p.acknowledge(), 0x27, "0 went to the back");
    init(&mut p, 1);
    p.set_line(6, true);
    out(&mut p, 0, 0x0c);
    assert_eq!(p.port_read(0, 1), 0x86);
    assert_eq!(isr(&mut p, 0), 0x40);
    out(&mut p, 0, 0x0c);
    assert_eq!(p.port_read(1, 1), 0);
}

#[test]
fn initialisation_needs_a_new_edge_and_requests_nothing_before_its_end() {
    let (mut p, lines) = pair();
    p.set_line(4, true);
    out(&mut p, 0, 0x11);
    assert!(!lines.level(0));
    for icw in [0x40, 4, 1] {
        out(&mut p, 1, icw);
    }
    assert!(!lines.level(0));
    out(&mut p, 0, 0x0a);
    assert_eq!(p.port_read(0, 1), 0);
    p.set_line(4, false);
    p.set_line(4, true);
    assert_eq!(p.acknowledge(), 0x44);
}
