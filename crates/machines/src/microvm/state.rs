//! The whole state of the board: which components, in which order.

use super::chips::Chips;
use super::lock;
use crate::time::MachineTime;
use mimeo_bus::{RestoreError, SaveRestore};
use mimeo_devices::apic::LocalApicV1;
use mimeo_devices::i8042::I8042V1;
use mimeo_devices::ioapic::IoapicV1;
use mimeo_devices::kvmclock::KvmClockV1;
use mimeo_devices::pic::PicPairV1;
use mimeo_devices::pit::PitV1;
use mimeo_devices::power::{AcpiPmV1, Port92V1, ResetControlV1};
use mimeo_devices::rtc::RtcV1;
use mimeo_devices::testdev::TestDeviceV1;
use mimeo_devices::uart::Uart16550V1;
use mimeo_devices::virtio::{VirtioMmioV1, VirtioPciV1};
use serde::{Deserialize, Serialize};

/// Saved state of a `microvm` board, version 1. Restored in the order of the fields: time first
/// (devices hold moments of VM time), then interrupt controllers, then what drives their lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MicrovmV1 {
    /// VM time in nanoseconds and the guest's time-stamp counter.
    pub time: (u64, u64),
    /// Local APICs, one for each vCPU.
    pub apics: Vec<LocalApicV1>,
    /// I/O APIC.
    pub ioapic: IoapicV1,
    /// 8259A pair.
    pub pic: PicPairV1,
    /// 8254.
    pub pit: PitV1,
    /// Real-time clock.
    pub rtc: RtcV1,
    /// First serial port.
    pub com1: Uart16550V1,
    /// Keyboard controller.
    pub i8042: I8042V1,
    /// Port 92h.
    pub port92: Port92V1,
    /// Reset control register.
    pub reset_control: ResetControlV1,
    /// ACPI's fixed registers.
    pub acpi_pm: AcpiPmV1,
    /// KVM's paravirtual clock.
    pub kvm_clock: KvmClockV1,
    /// The test device, where the machine has one.
    pub testdev: Option<TestDeviceV1>,
    /// The functions on the PCI bus, by slot; none where there is no bus.
    pub pci: Vec<VirtioPciV1>,
    /// The virtio devices over MMIO, by place; none where they are on the bus.
    pub virtio_mmio: Vec<VirtioMmioV1>,
}

impl MicrovmV1 {
    /// The components, in restore order. The debug-exit device has no state.
    pub const COMPONENTS: &[&'static str] = &[
        "time",
        "local apics",
        "ioapic",
        "8259a pair",
        "8254",
        "mc146818",
        "com1",
        "i8042",
        "port 92h",
        "reset control",
        "acpi pm",
        "kvm clock",
        "testdev (optional)",
        "pci functions (optional)",
        "virtio over mmio (optional)",
    ];
}

pub(super) fn save(chips: &Chips, time: &dyn MachineTime) -> MicrovmV1 {
    MicrovmV1 {
        time: time.save(),
        apics: (0..chips.apics.len())
            .filter_map(|i| chips.apics.apic(i).map(|a| a.save()))
            .collect(),
        ioapic: lock(&chips.ioapic).save(),
        pic: lock(&chips.pic).save(),
        pit: chips.pit.lock().save(),
        rtc: chips.rtc.lock().save(),
        com1: chips.com1.lock().save(),
        i8042: lock(&chips.i8042).save(),
        port92: lock(&chips.port92).save(),
        reset_control: lock(&chips.reset_control).save(),
        acpi_pm: chips.acpi_pm.lock().save(),
        kvm_clock: lock(&chips.kvm_clock).save(),
        testdev: chips.testdev.as_ref().map(|t| lock(t).save()),
        pci: chips.cards.save_pci(),
        virtio_mmio: chips.cards.save_mmio(),
    }
}

pub(super) fn restore(
    chips: &Chips,
    time: &dyn MachineTime,
    state: &MicrovmV1,
) -> Result<(), RestoreError> {
    let same = state.apics.len() == chips.apics.len();
    RestoreError::unless(same, "machine", "it has another number of CPUs")?;
    let same = state.testdev.is_some() == chips.testdev.is_some();
    RestoreError::unless(
        same,
        "machine",
        "one has a test device and the other has not",
    )?;
    let same = (state.pci.len(), state.virtio_mmio.len()) == chips.cards.len();
    RestoreError::unless(same, "machine", "it has other virtio devices")?;
    time.restore(state.time);
    for (i, saved) in state.apics.iter().enumerate() {
        if let Some(mut apic) = chips.apics.apic(i) {
            apic.restore(saved)?;
        }
    }
    lock(&chips.ioapic).restore(&state.ioapic)?;
    lock(&chips.pic).restore(&state.pic)?;
    chips.pit.lock().restore(&state.pit)?;
    chips.rtc.lock().restore(&state.rtc)?;
    chips.com1.lock().restore(&state.com1)?;
    lock(&chips.i8042).restore(&state.i8042)?;
    lock(&chips.port92).restore(&state.port92)?;
    lock(&chips.reset_control).restore(&state.reset_control)?;
    chips.acpi_pm.lock().restore(&state.acpi_pm)?;
    if let (Some(chip), Some(saved)) = (&chips.testdev, &state.testdev) {
        lock(chip).restore(saved)?;
    }
    chips.cards.restore(&state.pci, &state.virtio_mmio)?;
    lock(&chips.kvm_clock).restore(&state.kvm_clock)
}
