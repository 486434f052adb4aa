//! The functions on the PCI bus.

use super::irq::Wires;
use super::layout;
use super::lock;
use mimeo_bus::{IrqLine, RestoreError, SaveRestore};
use mimeo_devices::apic::ApicBus;
use mimeo_devices::pci::{IntxRouter, PciHost, SlotError};
use mimeo_devices::virtio::{VirtioDevice, VirtioPci, VirtioPciV1};
use mimeo_memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The functions, in the order of their slots, and their bus.
pub(super) struct Cards {
    host: Arc<Mutex<PciHost>>,
    functions: Vec<Arc<Mutex<VirtioPci>>>,
}

impl Cards {
    /// Puts `devices` into the slots of `host`.
    pub(super) fn insert(
        host: &Arc<Mutex<PciHost>>,
        devices: Vec<Box<dyn VirtioDevice>>,
        memory: &Arc<GuestMemory>,
        wires: &Arc<Wires>,
        apics: &Arc<ApicBus>,
    ) -> Result<Self, SlotError> {
        let line = |gsi| IrqLine::new(wires.clone(), gsi);
        let intx = IntxRouter::new(layout::PCI_GSI.map(line));
        let mut functions = Vec::new();
        for device in devices {
            let mut bus = lock(host);
            let slot = bus.free_slot().ok_or(SlotError::Full)?;
            let pin = intx.pin(slot).0;
            let function = VirtioPci::new(device, memory.clone(), pin, apics.clone());
            let function = Arc::new(Mutex::new(function));
            bus.add(function.clone())?;
            functions.push(function);
        }
        Ok(Self {
            host: host.clone(),
            functions,
        })
    }

    /// Waits for the work that is in flight on the host: after a reset it must not write into the
    /// memory of what starts next, and a saved state holds none.
    fn settle(&self) {
        for function in &self.functions {
            while lock(function).core().device().busy() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// RESET.
    pub(super) fn reset(&self) {
        lock(&self.host).reset();
        self.settle();
    }

    /// The functions' states. No vCPU runs.
    pub(super) fn save(&self) -> Vec<VirtioPciV1> {
        self.settle();
        self.functions.iter().map(|f| lock(f).save()).collect()
    }

    /// Puts the functions' states back.
    pub(super) fn restore(&self, saved: &[VirtioPciV1]) -> Result<(), RestoreError> {
        for (function, state) in self.functions.iter().zip(saved) {
            lock(function).restore(state)?;
        }
        lock(&self.host).remap();
        Ok(())
    }

    /// Number of functions.
    pub(super) fn len(&self) -> usize {
        self.functions.len()
    }
}
