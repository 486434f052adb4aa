//! The virtio devices, on the PCI bus or over MMIO.

use super::irq::Wires;
use super::layout;
use super::lock;
use crate::machine::BuildError;
use mimeo_bus::{AddressMap, IrqLine, MmioDevice, RestoreError, SaveRestore};
use mimeo_devices::apic::ApicBus;
use mimeo_devices::pci::{IntxRouter, PciHost, SlotError};
use mimeo_devices::virtio::{VirtioDevice, VirtioMmio, VirtioMmioV1, VirtioPci, VirtioPciV1};
use mimeo_memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What cards are plugged into.
pub(super) struct Backplane<'a> {
    pub(super) host: &'a Arc<Mutex<PciHost>>,
    pub(super) memory: &'a Arc<GuestMemory>,
    pub(super) wires: &'a Arc<Wires>,
    pub(super) apics: &'a Arc<ApicBus>,
}

/// The devices, in the order of their slots or places, and their bus. A machine has them all on one
/// transport.
pub(super) struct Cards {
    host: Arc<Mutex<PciHost>>,
    functions: Vec<Arc<Mutex<VirtioPci>>>,
    mmio: Vec<Arc<Mutex<VirtioMmio>>>,
}

impl Backplane<'_> {
    fn lines(&self, gsis: [u32; 4]) -> Arc<IntxRouter> {
        IntxRouter::new(gsis.map(|gsi| IrqLine::new(self.wires.clone(), gsi)))
    }
}

/// Address and global system interrupt of place `i`.
fn place(i: usize) -> (u64, u32) {
    let gsis = layout::VIRTIO_MMIO_GSI;
    let base = layout::VIRTIO_MMIO + i as u64 * layout::VIRTIO_MMIO_STEP;
    (base, gsis[i % gsis.len()])
}

impl Cards {
    /// Puts `devices` into the slots of the PCI bus.
    pub(super) fn on_pci(
        board: &Backplane<'_>,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<Self, BuildError> {
        let intx = board.lines(layout::PCI_GSI);
        let mut functions = Vec::new();
        for device in devices {
            let mut bus = lock(board.host);
            let slot = bus.free_slot().ok_or(SlotError::Full)?;
            let (pin, memory) = (intx.pin(slot).0, board.memory.clone());
            let function = VirtioPci::new(device, memory, pin, board.apics.clone());
            let function = Arc::new(Mutex::new(function));
            bus.add(function.clone())?;
            functions.push(function);
        }
        Ok(Self {
            host: board.host.clone(),
            functions,
            mmio: Vec::new(),
        })
    }

    /// Gives `devices` registers in memory.
    pub(super) fn on_mmio(
        board: &Backplane<'_>,
        devices: Vec<Box<dyn VirtioDevice>>,
        map: &mut AddressMap<dyn MmioDevice>,
    ) -> Result<Self, BuildError> {
        if devices.len() > layout::VIRTIO_MMIO_PLACES {
            return Err(BuildError::Places(devices.len()));
        }
        let lines = board.lines(layout::VIRTIO_MMIO_GSI);
        let mut mmio = Vec::new();
        for (i, device) in devices.into_iter().enumerate() {
            // At most 32.
            let line = lines.pin(i as u8).0;
            let name = format!("virtio {}", device.id());
            let device = VirtioMmio::new(device, board.memory.clone(), line);
            let device = Arc::new(Mutex::new(device));
            let base = place(i).0;
            map.insert(&name, base, layout::VIRTIO_MMIO_STEP, device.clone())?;
            mmio.push(device);
        }
        Ok(Self {
            host: board.host.clone(),
            functions: Vec::new(),
            mmio,
        })
    }

    /// (address, global system interrupt) of each device over MMIO.
    pub(super) fn places(&self) -> Vec<(u64, u32)> {
        (0..self.mmio.len()).map(place).collect()
    }

    /// Waits for the work that is in flight on the host: after a reset it must not write into the
    /// memory of what starts next, and a saved state holds none.
    fn settle(&self) {
        let busy = || {
            self.functions
                .iter()
                .any(|f| lock(f).core().device().busy())
                || self.mmio.iter().any(|d| lock(d).core().device().busy())
        };
        while busy() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The devices stop touching the guest's memory of their own accord, or go on.
    pub(super) fn set_paused(&self, paused: bool) {
        for f in &self.functions {
            lock(f).core().device().set_paused(paused);
        }
        for d in &self.mmio {
            lock(d).core().device().set_paused(paused);
        }
    }

    /// RESET.
    pub(super) fn reset(&self) {
        lock(&self.host).reset();
        for device in &self.mmio {
            lock(device).reset();
        }
        self.settle();
    }

    /// The functions' states. No vCPU runs.
    pub(super) fn save_pci(&self) -> Vec<VirtioPciV1> {
        self.settle();
        self.functions.iter().map(|f| lock(f).save()).collect()
    }

    /// The states of the devices over MMIO. No vCPU runs.
    pub(super) fn save_mmio(&self) -> Vec<VirtioMmioV1> {
        self.settle();
        self.mmio.iter().map(|d| lock(d).save()).collect()
    }

    /// Puts the states back.
    pub(super) fn restore(
        &self,
        pci: &[VirtioPciV1],
        mmio: &[VirtioMmioV1],
    ) -> Result<(), RestoreError> {
        for (function, state) in self.functions.iter().zip(pci) {
            lock(function).restore(state)?;
        }
        for (device, state) in self.mmio.iter().zip(mmio) {
            lock(device).restore(state)?;
        }
        lock(&self.host).remap();
        Ok(())
    }

    /// Number of functions on the bus, number of devices over MMIO.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.functions.len(), self.mmio.len())
    }
}
