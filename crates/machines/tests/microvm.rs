//! The `microvm` board as a whole: its manifest, its resets, its saved state.

use mimeo_bus::{HostClock, NullStream};
use mimeo_machines::machine::{BoardState, Machine, MachineHost, build};
use mimeo_machines::spec::{EngineKind, OptionalDevice};
use mimeo_machines::virtual_time::VirtualTime;
use mimeo_machines::{MachineEvent, MachineSpec};
use mimeo_vcpu::{EventBits, MsrError};
use std::sync::Arc;

fn machine(cpus: u32) -> Machine {
    let spec = MachineSpec {
        cpus,
        engine: EngineKind::Interp,
        memory: 4 << 30,
        devices: vec![OptionalDevice::DebugExit, OptionalDevice::Testdev],
        ..MachineSpec::default()
    };
    let host = MachineHost {
        cpu: mimeo_machines::host_cpu(),
        tuning: mimeo_machines::EngineTuning::default(),
        time: Arc::new(VirtualTime::default()),
        serial: Arc::new(NullStream),
        cards: Vec::new(),
    };
    build(spec, host).unwrap()
}

/// The address map is a contract with guests: a change of it is seen in review.
/// `MIMEO_BLESS=1 cargo test -p mimeo-machines` writes the file anew.
#[test]
fn the_manifest_is_the_golden_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/microvm.manifest");
    let now = machine(2).board.manifest().to_string();
    if std::env::var_os("MIMEO_BLESS").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    assert_eq!(now, std::fs::read_to_string(path).unwrap());
}

#[test]
fn every_way_to_reset_and_to_switch_off_is_heard() {
    let m = machine(1);
    let mut io = m.board.io(0).unwrap();
    let mut heard = |port: u16, size: u8, values: &[u32]| {
        for &v in values {
            io.port_write(port, size, v);
        }
        assert_eq!(
            m.events[0].take(EventBits::STOP).any(EventBits::STOP),
            m.signals.pending()
        );
        m.signals.take()
    };
    assert!(matches!(
        heard(0x64, 1, &[0xfe]),
        Some(MachineEvent::Reset(_))
    ));
    assert!(matches!(
        heard(0x92, 1, &[0x01]),
        Some(MachineEvent::Reset(_))
    ));
    assert!(matches!(
        heard(0xcf9, 1, &[0x02, 0x06]),
        Some(MachineEvent::Reset(_))
    ));
    // SLP_TYP 5, SLP_EN.
    assert_eq!(
        heard(0x604, 2, &[5 << 10 | 1 << 13]),
        Some(MachineEvent::PowerOff)
    );
    assert_eq!(heard(0xf4, 4, &[0x10]), Some(MachineEvent::DebugExit(0x21)));
    assert_eq!(heard(0x80, 1, &[1]), None);
}

#[test]
fn what_nobody_answers_reads_as_ones() {
    let m = machine(1);
    let mut io = m.board.io(0).unwrap();
    assert_eq!(io.port_read(0x1234, 2), 0xffff);
    assert_eq!(io.mmio_read(0xf000_0000, 8), u64::MAX);
    assert_eq!(io.mmio_read(0xf000_0000, 1), 0xff);
    assert_eq!(io.msr_read(0x4b56_4dff), Err(MsrError));
    assert!(m.board.io(1).is_none());
}

#[test]
fn the_host_bridge_answers_both_ways() {
    let m = machine(1);
    let mut io = m.board.io(0).unwrap();
    io.port_write(0xcf8, 4, 0x8000_0000);
    assert_eq!(io.port_read(0xcfc, 4), 0x0008_1b36);
    assert_eq!(io.mmio_read(0xe000_0000, 4), 0x0008_1b36);
    assert_eq!(io.mmio_read(0xe000_8000, 4), 0xffff_ffff);
}

#[test]
fn each_cpu_sees_its_own_apic() {
    let m = machine(3);
    for cpu in 0..3 {
        let mut io = m.board.io(cpu).unwrap();
        assert_eq!(io.mmio_read(0xfee0_0020, 4) >> 24, u64::from(cpu));
    }
}

/// An 8254 interrupt through the 8259A pair and LINT0, as before any APIC is programmed.
#[test]
fn virtual_wire_mode_after_firmware() {
    let m = machine(1);
    m.board.firmware().unwrap();
    let mut io = m.board.io(0).unwrap();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xef),
    ] {
        io.port_write(port, 1, value);
    }
    assert!(!m.events[0].pending().any(EventBits::INTR));
    // Line 4 through the test device.
    io.port_write(0x2004, 1, 1);
    assert!(m.events[0].pending().any(EventBits::INTR));
    assert_eq!(io.ack_interrupt(), Some(0x24));
}

#[test]
fn state_comes_back_and_another_machines_is_refused() {
    let m = machine(2);
    let mut io = m.board.io(0).unwrap();
    let power_on = m.board.save();
    for (port, value) in [
        (0x3ff, 0x5a),
        (0x70, 0x0f),
        (0x71, 0x77),
        (0x21, 0x12),
        (0x43, 0x34),
    ] {
        io.port_write(port, 1, value);
    }
    io.mmio_write(0xfee0_0080, 4, 0x30);
    io.mmio_write(0xfec0_0000, 4, 0x12);
    io.port_write(0xe0, 4, 0x1234_5678);
    let changed = m.board.save();
    assert_ne!(changed, power_on);

    let json = serde_json::to_string(&changed).unwrap();
    let read: BoardState = serde_json::from_str(&json).unwrap();
    let other = machine(2);
    other.board.restore(&read).unwrap();
    assert_eq!(other.board.save(), changed);
    assert_eq!(other.board.io(0).unwrap().port_read(0x3ff, 1), 0x5a);
    assert!(machine(1).board.restore(&read).is_err());

    m.board.reset();
    assert_ne!(m.board.save(), changed);
    assert_eq!(m.board.io(0).unwrap().mmio_read(0xfee0_0080, 4), 0);
}

#[test]
fn time_that_is_paused_stands_still() {
    let clock = Arc::new(HostClock::default());
    let timers = Arc::new(mimeo_backends::HostTimers::new(clock.clone()).unwrap());
    let time = mimeo_machines::time::HostTime::new(clock, timers, Box::new(|_| ()));
    let host = MachineHost {
        cpu: mimeo_machines::host_cpu(),
        tuning: mimeo_machines::EngineTuning::default(),
        time: Arc::new(time),
        serial: Arc::new(NullStream),
        cards: Vec::new(),
    };
    let m = build(MachineSpec::default(), host).unwrap();
    m.board.set_paused(true);
    let mut io = m.board.io(0).unwrap();
    let (tsc, pm) = (io.tsc(0), io.port_read(0x608, 4));
    assert_eq!((io.tsc(9), io.port_read(0x608, 4)), (tsc, pm));
    m.board.set_paused(false);
    assert!(io.tsc(0) >= tsc);
}
