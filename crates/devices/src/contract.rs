//! The contract of save and restore, held by every device: what is saved says everything, survives
//! text, comes back into the same device and into a fresh one, and both go on alike.

use crate::testing::{Lines, NoTimers, TestClock};
use crate::{apic, i8042, ioapic, kvmclock, pic, pit, power, rtc, testdev, uart};
use mimeo_bus::{
    IrqLine, LineModel, MmioDevice, NullStream, PortDevice, RestoreError, SaveRestore, StreamModel,
};
use std::sync::Arc;

fn contract<D: SaveRestore>(
    fresh: impl Fn() -> D,
    first: impl Fn(&mut D),
    second: impl Fn(&mut D),
) {
    let mut device = fresh();
    let new = device.save();
    first(&mut device);
    let saved = device.save();
    assert_ne!(saved, new, "the first change shows");
    second(&mut device);
    let later = device.save();
    assert_ne!(later, saved, "the second change shows");
    let text = serde_json::to_string(&saved).unwrap();
    let back: D::Saved = serde_json::from_str(&text).unwrap();
    assert_eq!(back, saved, "through text");
    let mut other = fresh();
    for d in [&mut device, &mut other] {
        d.restore(&back).unwrap();
        assert_eq!(d.save(), saved, "restored");
        second(d);
        assert_eq!(d.save(), later, "it goes on as before");
    }
}

fn line() -> IrqLine {
    IrqLine::new(Arc::new(Lines::default()), 0)
}

fn clock() -> Arc<TestClock> {
    let clock = Arc::new(TestClock::default());
    clock.set(1_234_567);
    clock
}

/// Port writes, in order.
fn out<D: PortDevice>(writes: &[(u16, u32)]) -> impl Fn(&mut D) {
    let writes = writes.to_vec();
    move |d| {
        for &(port, value) in &writes {
            d.port_write(port, 1, value);
        }
    }
}

fn no_power() -> power::PowerSink {
    Arc::new(|_| {})
}

#[test]
fn pic() {
    contract(
        || pic::PicPair::new(line()),
        |p| {
            out(&[
                (0, 0x11),
                (1, 0x20),
                (1, 4),
                (1, 3),
                (2, 0x11),
                (3, 0x28),
                (4, 8),
            ])(p);
            p.set_line(3, true);
            p.set_line(5, true);
        },
        |p| {
            p.acknowledge();
            out(&[(3, 2), (3, 1), (0, 0x0c), (1, 0x55)])(p);
        },
    );
}

#[test]
fn pit() {
    contract(
        || pit::Pit::new(clock(), line()),
        out(&[
            (3, 0x34),
            (0, 1),
            (0, 2),
            (3, 0xb6),
            (2, 9),
            (4, 3),
            (3, 0xc2),
        ]),
        out(&[(2, 1), (3, 0x00), (4, 1), (3, 0x70), (1, 7)]),
    );
}

#[test]
fn rtc() {
    contract(
        || rtc::Rtc::new(clock(), line(), 1_700_000_000_000_000_000),
        out(&[(0, 11), (1, 0x42), (0, 5), (1, 0x12), (0, 0x40)]),
        out(&[(1, 9), (0, 9), (1, 0x30)]),
    );
}

#[test]
fn uart() {
    contract(
        || uart::Uart16550::new(clock(), line(), Arc::new(NullStream)),
        |u| {
            out(&[(3, 0x83), (0, 1), (3, 3), (2, 0x81), (1, 3), (4, 0xb)])(u);
            u.input(b"hello, 16 bytes of it");
        },
        |u| {
            u.port_read(0, 1);
            out(&[(7, 1), (4, 0x1b), (0, 0x78)])(u);
        },
    );
}

#[test]
fn i8042() {
    contract(
        || i8042::I8042::new(line(), line(), no_power()),
        out(&[(4, 0x60), (0, 0x03), (4, 0xd2), (0, 0x42), (4, 0x62)]),
        out(&[(0, 0x99), (4, 0xd4), (0, 1)]),
    );
}

#[test]
fn ioapic() {
    struct Nobody;
    impl apic::MessageSink for Nobody {
        fn send_message(&self, _: &apic::Message) -> bool {
            true
        }
    }
    contract(
        || ioapic::Ioapic::new(Arc::new(Nobody)),
        |io| {
            io.mmio_write(0, 4, 0x22);
            io.mmio_write(0x10, 4, 0x8041);
            io.set_line(9, true);
        },
        |io| {
            io.set_line(9, false);
            io.end_of_interrupt(0x41);
            io.mmio_write(0, 4, 0);
            io.mmio_write(0x10, 4, 0x0500_0000);
        },
    );
}

/// One APIC of a bus, as a component.
struct OneApic(Arc<apic::ApicBus>);

impl SaveRestore for OneApic {
    type Saved = apic::LocalApicV1;
    fn save(&self) -> Self::Saved {
        self.0.apic(0).unwrap().save()
    }
    fn restore(&mut self, saved: &Self::Saved) -> Result<(), RestoreError> {
        self.0.apic(0).unwrap().restore(saved)
    }
}

#[test]
fn local_apic() {
    let fresh = || {
        let clock = clock();
        let clocks = apic::ApicClocks {
            clock: clock.clone(),
            tsc: clock.clone(),
            timer_hz: 1_000_000_000,
        };
        let cpus = vec![(0, Arc::default())];
        let features = apic::ApicFeatures::default();
        OneApic(apic::ApicBus::new(
            cpus,
            features,
            &clocks,
            &NoTimers(clock),
        ))
    };
    contract(
        fresh,
        |a| {
            let mut apic = a.0.apic(0).unwrap();
            apic.virtual_wire();
            apic.mmio_write(0x320, 4, 0x2_0040);
            apic.mmio_write(0x380, 4, 1_000_000);
            apic.mmio_write(0x370, 4, 0x33);
            apic.mmio_write(0x0d0, 4, 0x0100_0000);
            apic.set_lint(0, true);
        },
        |a| {
            let mut apic = a.0.apic(0).unwrap();
            apic.mmio_write(0x300, 4, 5);
            apic.set_tpr(0x20);
            apic.ack();
            apic.set_lint(0, false);
            apic.ack();
            apic.msr_write(0x1b, 0xfee0_0d00).unwrap();
        },
    );
}

#[test]
fn acpi_and_resets() {
    contract(
        || power::AcpiPm::new(clock(), line(), no_power(), 5),
        |pm| {
            pm.press_power_button();
            out(&[(3, 1), (5, 0x14)])(pm);
        },
        out(&[(1, 1), (2, 1)]),
    );
    contract(
        || power::ResetControl::new(no_power()),
        out(&[(0, 2)]),
        out(&[(0, 0xe)]),
    );
    contract(
        || power::Port92::new(no_power()),
        out(&[(0, 0)]),
        out(&[(0, 3)]),
    );
}

#[test]
fn test_device() {
    contract(
        || testdev::TestDevice::new(Vec::new(), Arc::new(NullStream)),
        |t| {
            t.port_write(0, 4, 7);
            t.mmio_write(0x123, 4, 0x1234_5678);
        },
        |t| t.mmio_write(0xffff, 1, 9),
    );
}

#[test]
fn kvm_clock() {
    let memory = Arc::new(mimeo_memory::GuestMemory::ram(4096).unwrap());
    contract(
        || kvmclock::KvmClock::new(2, memory.clone(), clock(), clock(), 0),
        |k| {
            k.msr_write(0, kvmclock::MSR_SYSTEM_TIME, 0x101).unwrap();
            k.msr_write(1, kvmclock::MSR_WALL_CLOCK, 0x200).unwrap();
        },
        |k| k.msr_write(1, kvmclock::MSR_SYSTEM_TIME, 0x301).unwrap(),
    );
}
