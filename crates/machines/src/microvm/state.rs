//! The whole state of the board: which components, in which order.

use super::{Chips, lock};
use crate::time::MachineTime;
use mimeo_bus::{RestoreError, SaveRestore};
use mimeo_devices::apic::LocalApicV1;
use mimeo_devices::ioapic::IoapicV1;
use mimeo_devices::uart::Uart16550V1;
use serde::{Deserialize, Serialize};

/// Saved state of a `microvm` board, version 1. Restored in the order of the fields: time first
/// (devices hold moments of VM time), then interrupt controllers, then what drives their lines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MicrovmV1 {
    /// VM time in nanoseconds and the guest's time-stamp counter.
    pub time: (u64, u64),
    /// Local APICs, one for each vCPU.
    pub apics: Vec<LocalApicV1>,
    /// I/O APIC.
    pub ioapic: IoapicV1,
    /// First serial port.
    pub com1: Uart16550V1,
}

impl MicrovmV1 {
    /// The components, in restore order.
    pub const COMPONENTS: &[&'static str] = &["time", "local apics", "ioapic", "com1"];
}

pub(super) fn save(chips: &Chips, time: &dyn MachineTime) -> MicrovmV1 {
    MicrovmV1 {
        time: time.save(),
        apics: (0..chips.apics.len())
            .filter_map(|i| chips.apics.apic(i).map(|a| a.save()))
            .collect(),
        ioapic: lock(&chips.ioapic).save(),
        com1: chips.com1.lock().save(),
    }
}

pub(super) fn restore(
    chips: &Chips,
    time: &dyn MachineTime,
    state: &MicrovmV1,
) -> Result<(), RestoreError> {
    RestoreError::unless(
        state.apics.len() == chips.apics.len(),
        "machine",
        "it has another number of CPUs",
    )?;
    time.restore(state.time);
    for (i, saved) in state.apics.iter().enumerate() {
        if let Some(mut apic) = chips.apics.apic(i) {
            apic.restore(saved)?;
        }
    }
    lock(&chips.ioapic).restore(&state.ioapic)?;
    chips.com1.lock().restore(&state.com1)
}
