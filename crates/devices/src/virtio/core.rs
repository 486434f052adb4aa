//! What both transports share: status, features, queue set-up, reset (2.1, 2.2, 3.1).

use super::interrupt::Interrupts;
use super::net::VirtioNetV1;
use super::queue::{Setup, VirtQueue};
use super::{Driver, VirtioDevice, feature};
use mimeo_bus::RestoreError;
use mimeo_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Device status bits (2.1).
pub(super) mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// One queue as the driver sets it up, and where the device is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueV1 {
    /// Number of descriptors.
    pub size: u16,
    /// The driver has enabled it.
    pub ready: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring (driver area).
    pub available: u64,
    /// Used ring (device area).
    pub used: u64,
    /// MSI-X vector.
    pub vector: u16,
    /// Index of the next available entry.
    pub next_available: u16,
    /// Index of the next used entry.
    pub next_used: u16,
}

/// Saved state of what only one type of device has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DeviceV1 {
    /// Nothing.
    #[default]
    None,
    /// A network card.
    Net(VirtioNetV1),
}

/// Saved state of a device's common part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioV1 {
    /// Device ID.
    pub id: u16,
    /// Device status.
    pub status: u8,
    /// Which half of the device's features is shown.
    pub device_select: u32,
    /// Which half of the driver's features is written.
    pub driver_select: u32,
    /// The driver's features.
    pub features: u64,
    /// The queue that the queue registers mean.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueV1>,
    /// MSI-X vector for changes of configuration.
    pub config_vector: u16,
    /// ISR status.
    pub isr: u8,
    /// The device wants a reset.
    pub broken: bool,
    /// The type's own.
    #[serde(default)]
    pub device: DeviceV1,
}

/// A device with its status. The transports are two ways to reach this.
pub struct VirtioCore {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    pub(super) interrupts: Arc<Interrupts>,
    status: u8,
    /// The status before a reset that waits for work in flight.
    resetting: Option<u8>,
    pub(super) device_select: u32,
    pub(super) driver_select: u32,
    features: u64,
    pub(super) queue_select: u16,
    queues: Vec<QueueV1>,
}

impl VirtioCore {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupts: Arc<Interrupts>,
    ) -> Self {
        let mut core = Self {
            device,
            memory,
            interrupts,
            status: 0,
            resetting: None,
            device_select: 0,
            driver_select: 0,
            features: 0,
            queue_select: 0,
            queues: Vec::new(),
        };
        core.clear();
        core
    }

    fn clear(&mut self) {
        self.status = 0;
        (self.device_select, self.driver_select) = (0, 0);
        (self.features, self.queue_select) = (0, 0);
        let queue = |&size: &u16| QueueV1 {
            size,
            ..QueueV1::default()
        };
        self.queues = self.device.queue_sizes().iter().map(queue).collect();
        self.interrupts.reset();
    }

    /// The device, for its own calls.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    pub(super) fn device_features(&self) -> u32 {
        match self.device_select {
            0 => self.offered() as u32,
            1 => (self.offered() >> 32) as u32,
            _ => 0,
        }
    }

    pub(super) fn driver_features(&self) -> u32 {
        match self.driver_select {
            0 => self.features as u32,
            1 => (self.features >> 32) as u32,
            _ => 0,
        }
    }

    pub(super) fn set_driver_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_select {
            0 => self.features = self.features & !0xffff_ffff | value,
            1 => self.features = self.features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// Device status as the driver reads it.
    pub(super) fn status(&mut self) -> u8 {
        if let Some(before) = self.resetting {
            if self.device.busy() {
                return before;
            }
            self.resetting = None;
        }
        let broken = if self.interrupts.broken() && self.status != 0 {
            status::NEEDS_RESET
        } else {
            0
        };
        self.status | broken
    }

    pub(super) fn set_status(&mut self, value: u8) {
        // Settles a reset whose work has come back meanwhile.
        let before = self.status();
        if value == 0 {
            self.device.reset();
            self.clear();
            self.resetting = self.device.busy().then_some(before.max(1));
            return;
        }
        if self.resetting.is_some() {
            return;
        }
        // Bits are added; only a reset takes them away.
        let mut new = value & !self.status & !status::NEEDS_RESET;
        let wanted = self.features;
        let acceptable = wanted & !self.offered() == 0
            && wanted & feature::VERSION_1 != 0
            && self.device.accepts(wanted);
        if new & status::FEATURES_OK != 0 && !acceptable {
            new &= !status::FEATURES_OK;
        }
        if (self.status | new) & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.status |= new;
        if new & status::DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let event_index = self.features & feature::EVENT_IDX != 0;
        let memory = &self.memory;
        let make = |q: &QueueV1| {
            let setup = Setup {
                size: q.size,
                descriptors: q.descriptors,
                available: q.available,
                used: q.used,
                event_index,
                position: (q.next_available, q.next_used),
            };
            q.ready.then(|| VirtQueue::new(&setup, memory)).transpose()
        };
        match self.queues.iter().map(make).collect() {
            Ok(queues) => self.device.activate(Driver {
                memory: self.memory.clone(),
                queues,
                features: self.features,
                interrupts: self.interrupts.clone(),
            }),
            Err(_) => self.interrupts.needs_reset(),
        }
    }

    fn active(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && !self.interrupts.broken()
    }

    /// The driver notifies of a queue.
    pub(super) fn notify(&mut self, queue: u16) {
        if self.active() && usize::from(queue) < self.queues.len() {
            self.device.notify(queue);
        }
    }

    pub(super) fn queue_count(&self) -> u16 {
        // The device has few.
        self.queues.len() as u16
    }

    /// The largest size of the selected queue; 0 when it does not exist.
    pub(super) fn queue_max(&self) -> u16 {
        let sizes = self.device.queue_sizes();
        sizes
            .get(usize::from(self.queue_select))
            .copied()
            .unwrap_or(0)
    }

    /// The selected queue, to be read.
    pub(super) fn queue(&self) -> Option<&QueueV1> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, to be set up: while it is neither enabled nor in use.
    pub(super) fn queue_mut(&mut self) -> Option<&mut QueueV1> {
        let idle = self.status & status::DRIVER_OK == 0 && self.resetting.is_none();
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        queue.filter(|q| idle && !q.ready)
    }

    pub(super) fn set_queue_size(&mut self, size: u16) {
        let most = self.queue_max();
        if let Some(q) = self.queue_mut()
            && size.is_power_of_two()
            && size <= most
        {
            q.size = size;
        }
    }

    pub(super) fn set_queue_ready(&mut self, ready: bool) {
        let idle = self.status & status::DRIVER_OK == 0 && self.resetting.is_none();
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        if let Some(q) = queue.filter(|_| idle) {
            q.ready = ready;
        }
    }

    /// Reads the device's configuration; zero beyond its end.
    pub(super) fn config_read(&self, offset: u64, size: u8) -> u64 {
        let config = self.device.config();
        let at = |i: u64| usize::try_from(offset.checked_add(i)?).ok();
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let byte = at(i).and_then(|at| config.get(at)).copied().unwrap_or(0);
            value | u64::from(byte) << (8 * i)
        })
    }

    pub(super) fn config_write(&mut self, offset: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let size = usize::from(size.clamp(1, 8));
        self.device.config_write(offset, &bytes[..size]);
    }

    /// RESET of the machine.
    pub(super) fn reset(&mut self) {
        self.set_status(0);
        self.resetting = None;
    }

    /// The state now. No work may be in flight ([`VirtioDevice::busy`]).
    pub(super) fn save(&self) -> VirtioV1 {
        let positions = self.device.positions();
        let mut queues = self.queues.clone();
        for (i, q) in queues.iter_mut().enumerate() {
            q.vector = self.interrupts.queue_vector(i);
            if let Some(&(available, used)) = positions.get(i) {
                (q.next_available, q.next_used) = (available, used);
            }
        }
        let (isr, broken) = self.interrupts.save();
        VirtioV1 {
            id: self.device.id(),
            status: self.status,
            device_select: self.device_select,
            driver_select: self.driver_select,
            features: self.features,
            queue_select: self.queue_select,
            queues,
            config_vector: self.interrupts.config_vector(),
            isr,
            broken,
            device: self.device.save(),
        }
    }

    /// Puts a state back and lets the device go on.
    pub(super) fn restore(&mut self, s: &VirtioV1, intx_off: bool) -> Result<(), RestoreError> {
        let check = |ok, what| RestoreError::unless(ok, "a virtio device", what);
        let sizes = self.device.queue_sizes();
        check(s.id == self.device.id(), "it is of another kind of device")?;
        check(s.queues.len() == sizes.len(), "it has other queues")?;
        let fits = |(q, &most): (&QueueV1, &u16)| q.size.is_power_of_two() && q.size <= most;
        check(s.queues.iter().zip(sizes).all(fits), "a queue is too long")?;
        let allowed = s.status & status::FEATURES_OK == 0 || s.features & !self.offered() == 0;
        check(allowed, "it uses features that this device lacks")?;
        self.device.reset();
        self.clear();
        self.resetting = None;
        self.status = s.status;
        (self.device_select, self.driver_select) = (s.device_select, s.driver_select);
        (self.features, self.queue_select) = (s.features, s.queue_select);
        self.queues.clone_from(&s.queues);
        self.interrupts.restore((s.isr, s.broken), intx_off);
        self.interrupts.set_config_vector(s.config_vector);
        for (i, q) in s.queues.iter().enumerate() {
            self.interrupts.set_queue_vector(i, q.vector);
        }
        if self.active() {
            self.activate();
        }
        self.device.restore(&s.device)
    }
}
