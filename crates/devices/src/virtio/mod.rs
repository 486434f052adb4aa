//! Virtio devices and their transports.
//!
//! Models: Virtual I/O Device (VIRTIO) Version 1.2 (OASIS), split rings with indirect descriptors and
//! the event index, over PCI (modern only) and over MMIO (version 2). Not modelled: packed rings,
//! legacy interfaces, notification data, resetting one queue, shared memory, platform IOMMUs.
//!
//! What a guest can do wrong ends in one of two ways: it is ignored, or the device sets
//! DEVICE_NEEDS_RESET and does nothing more until it is reset. A ring is walked once, within its
//! size; every buffer is checked against guest memory, and against RAM where the device writes,
//! before it is used.
//!
//! Locks: the transport's, then the device's, then the interrupts', then MSI-X or a line. Work that
//! completes on another thread takes the device's lock and those after it. A reset that finds work
//! in flight is over (status reads zero) when the last of it has come back.

mod core;
mod interrupt;
mod mmio;
mod pci;
mod queue;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub mod balloon;
pub mod block;
pub mod console;
pub mod net;
pub mod rng;
pub mod share;
pub mod vsock;

pub use core::{DeviceV1, QueueV1, VirtioCore, VirtioV1};
pub use interrupt::Interrupts;
pub use mmio::{VirtioMmio, VirtioMmioV1};
pub use pci::{VirtioPci, VirtioPciV1};
pub use queue::{Broken, Chain, Span, VirtQueue};

use mimeo_bus::RestoreError;
use mimeo_memory::GuestMemory;
use std::sync::Arc;

/// Feature bits of all devices (6 and 2.8 of the specification).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Version 1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// What a device gets when its driver is ready.
pub struct Driver {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The queues by index; `None` for those that the driver did not enable.
    pub queues: Vec<Option<VirtQueue>>,
    /// The negotiated features.
    pub features: u64,
    /// How the driver is told of things.
    pub interrupts: Arc<Interrupts>,
}

/// A device type. Called with the transport's lock held.
pub trait VirtioDevice: Send {
    /// Device ID (5 of the specification).
    fn id(&self) -> u16;

    /// PCI class code: base class, subclass, interface.
    fn class(&self) -> [u8; 3];

    /// The features of its type that it offers (bits 0 to 23).
    fn features(&self) -> u64;

    /// The largest size of each queue: powers of two, at most 1024.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration space as it is now.
    fn config(&self) -> Vec<u8>;

    /// A write to its configuration space.
    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// The driver is ready: work may begin.
    fn activate(&mut self, driver: Driver);

    /// The driver has put buffers into a queue.
    fn notify(&mut self, queue: u16);

    /// Stops using the queues: nothing is started any more. Work in flight goes on until it is done.
    fn reset(&mut self);

    /// Work of before the reset is still in flight.
    fn busy(&self) -> bool {
        false
    }

    /// (next available, next used) of each queue, while active; for saving.
    fn positions(&self) -> Vec<(u16, u16)>;

    /// Whether the driver may have chosen these of the offered features: some need others.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The machine is stopped or goes on: meanwhile nothing of the guest's memory may change.
    fn set_paused(&mut self, paused: bool) {
        let _ = paused;
    }

    /// What of its state its driver's set-up does not say.
    fn save(&self) -> DeviceV1 {
        DeviceV1::None
    }

    /// Puts back what [`Self::save`] gave, after [`Self::activate`] where the driver was ready.
    ///
    /// # Errors
    /// When it is not a state of this device.
    fn restore(&mut self, saved: &DeviceV1) -> Result<(), RestoreError> {
        let plain = *saved == DeviceV1::None;
        RestoreError::unless(plain, "a virtio device", "it is of another kind of device")
    }
}
