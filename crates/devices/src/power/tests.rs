use super::*;
use crate::testing::{Lines, TestClock};
use mimeo_bus::{IrqLine, PortDevice, TimedModel};
use std::sync::{Arc, Mutex};

type Log = Arc<Mutex<Vec<PowerRequest>>>;

fn sink() -> (PowerSink, Log) {
    let log = Log::default();
    let to = log.clone();
    (Arc::new(move |r| to.lock().unwrap().push(r)), log)
}

fn acpi() -> (AcpiPm, Log, Arc<Lines>, Arc<TestClock>) {
    let (clock, lines) = (Arc::new(TestClock::default()), Arc::new(Lines::default()));
    let (sink, log) = sink();
    let pm = AcpiPm::new(clock.clone(), IrqLine::new(lines.clone(), 9), sink, 5);
    (pm, log, lines, clock)
}

#[test]
fn soft_off_needs_the_type_and_the_enable() {
    let (mut pm, log, ..) = acpi();
    assert_eq!(pm.port_read(4, 2), 1, "always in ACPI mode");
    pm.port_write(4, 2, 5 << 10);
    pm.port_write(4, 2, 1 << 13 | 1 << 10);
    assert!(log.lock().unwrap().is_empty());
    pm.port_write(4, 2, 1 << 13 | 5 << 10 | 1);
    assert_eq!(*log.lock().unwrap(), [PowerRequest::Off]);
    assert_eq!(pm.port_read(4, 2), 5 << 10 | 1, "SLP_EN reads as zero");
}

#[test]
fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
    let (mut pm, _, lines, _) = acpi();
    pm.press_power_button();
    assert!(!lines.level(9));
    pm.port_write(2, 2, 0xffff);
    assert_eq!(pm.port_read(2, 2), 0x521);
    assert!(lines.level(9));
    assert_eq!(pm.port_read(0, 4), 0x0521_0100);
    pm.port_write(0, 2, 1);
    assert!(lines.level(9));
    pm.port_write(1, 1, 1);
    assert!(!lines.level(9));
}

#[test]
fn the_timer_counts_and_its_top_bit_interrupts() {
    let (mut pm, _, lines, clock) = acpi();
    clock.set(1_000_000_000);
    assert_eq!(pm.port_read(8, 4), 3_579_545);
    assert_eq!(pm.port_read(9, 1), 3_579_545 >> 8 & 0xff);
    assert_eq!(pm.deadline(), None);
    pm.port_write(2, 2, 1);
    let at = pm.deadline().unwrap();
    assert_eq!(
        at,
        (1u128 << 31)
            .pow(1)
            .saturating_mul(1_000_000_000)
            .div_ceil(3_579_545) as u64
    );
    pm.due(at - 1);
    assert!(!lines.level(9));
    clock.set(at);
    pm.due(at);
    assert!(lines.level(9));
    assert_eq!((pm.port_read(0, 2), pm.port_read(8, 4)), (1, 0x8000_0000));
    pm.port_write(0, 2, 1);
    assert!(!lines.level(9));
    assert!(pm.deadline().unwrap() > at);
}

#[test]
fn reset_registers() {
    let (s, log) = sink();
    let mut cf9 = ResetControl::new(s.clone());
    cf9.port_write(0, 1, 2);
    assert_eq!(cf9.port_read(0, 1), 2);
    assert!(log.lock().unwrap().is_empty());
    cf9.port_write(0, 1, 6);
    assert_eq!(*log.lock().unwrap(), [PowerRequest::Reset("port cf9h")]);
    let mut p92 = Port92::new(s);
    assert_eq!(p92.port_read(0, 1), 2);
    p92.port_write(0, 1, 0);
    p92.port_write(0, 1, 1);
    p92.port_write(0, 1, 3);
    assert_eq!(log.lock().unwrap().len(), 2, "only the rising bit resets");
}
