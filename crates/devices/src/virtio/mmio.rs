//! Virtio over MMIO, version 2 (4.2.2).

use super::core::{VirtioCore, VirtioV1};
use super::interrupt::Interrupts;
use super::{QueueV1, VirtioDevice};
use mimeo_bus::{IrqLine, MmioDevice, RestoreError, SaveRestore};
use mimeo_memory::GuestMemory;
use std::sync::Arc;

/// Vendor ID: Mimeo's own ("MIME").
const VENDOR: u32 = 0x454d_494d;
/// Where the device's configuration begins.
const CONFIG: u64 = 0x100;

/// Saved state of a device over MMIO.
pub type VirtioMmioV1 = VirtioV1;

/// A device over MMIO: 512 bytes of registers (the configuration goes on behind them) and a level
/// interrupt.
pub struct VirtioMmio {
    core: VirtioCore,
}

impl VirtioMmio {
    /// Puts `device` behind registers; `line` is its interrupt, level-triggered.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>, line: IrqLine) -> Self {
        let interrupts = Interrupts::new(device.queue_sizes().len(), line, None);
        Self {
            core: VirtioCore::new(device, memory, interrupts),
        }
    }

    /// The part that both transports share.
    pub fn core(&mut self) -> &mut VirtioCore {
        &mut self.core
    }

    /// RESET of the machine.
    pub fn reset(&mut self) {
        self.core.reset();
    }

    fn read(&mut self, offset: u64) -> u32 {
        let core = &mut self.core;
        match offset {
            0x000 => u32::from_le_bytes(*b"virt"),
            0x004 => 2,
            0x008 => u32::from(core.device().id()),
            0x00c => VENDOR,
            0x010 => core.device_features(),
            0x034 => u32::from(core.queue_max()),
            0x044 => u32::from(core.queue().is_some_and(|q| q.ready)),
            0x060 => u32::from(core.interrupts.isr()),
            0x070 => u32::from(core.status()),
            // There is no shared memory region: its length reads as all ones.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => u32::from(core.interrupts.generation()),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let core = &mut self.core;
        match offset {
            0x014 => core.device_select = value,
            0x020 => core.set_driver_features(value),
            0x024 => core.driver_select = value,
            0x030 => core.queue_select = u16::try_from(value).unwrap_or(u16::MAX),
            0x038 => core.set_queue_size(u16::try_from(value).unwrap_or(0)),
            0x044 => core.set_queue_ready(value & 1 != 0),
            0x050 => {
                if let Ok(queue) = u16::try_from(value) {
                    core.notify(queue);
                }
            }
            0x064 => {
                core.interrupts.acknowledge(value as u8);
            }
            0x070 => core.set_status(value as u8),
            0x080..=0x0a4 => {
                if let Some(q) = core.queue_mut() {
                    set_address(q, offset, value);
                }
            }
            _ => {}
        }
    }
}

/// Writes half of a ring's address.
fn set_address(q: &mut QueueV1, offset: u64, value: u32) {
    let address = match offset & !7 {
        0x080 => &mut q.descriptors,
        0x090 => &mut q.available,
        0x0a0 => &mut q.used,
        _ => return,
    };
    let value = u64::from(value);
    *address = if offset & 4 == 0 {
        *address & !0xffff_ffff | value
    } else {
        *address & 0xffff_ffff | value << 32
    };
}

/// Registers are accessed as aligned 32-bit words (4.2.2.2); other accesses read as zero and are
/// ignored. The configuration takes any size.
impl MmioDevice for VirtioMmio {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        match offset.checked_sub(CONFIG) {
            Some(at) => self.core.config_read(at, size),
            None if size == 4 && offset & 3 == 0 => u64::from(self.read(offset)),
            None => 0,
        }
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        match offset.checked_sub(CONFIG) {
            Some(at) => self.core.config_write(at, size, value),
            None if size == 4 && offset & 3 == 0 => self.write(offset, value as u32),
            None => {}
        }
    }
}

impl SaveRestore for VirtioMmio {
    type Saved = VirtioMmioV1;

    fn save(&self) -> VirtioMmioV1 {
        self.core.save()
    }

    fn restore(&mut self, saved: &VirtioMmioV1) -> Result<(), RestoreError> {
        self.core.restore(saved, false)
    }
}
