//! Virtio over PCI, modern interface (4.1).
//!
//! BAR 0 holds the common configuration at 0, the ISR status at 1000h, the device's configuration
//! at 2000h and the notification words at 3000h, four bytes a queue; BAR 2 holds MSI-X.

use super::VirtioDevice;
use super::core::{VirtioCore, VirtioV1};
use super::interrupt::{Interrupts, NO_VECTOR};
use crate::pci::{
    Bar, BarKind, ConfigSpace, ConfigSpaceV1, Identity, MsiSink, Msix, MsixV1, PciFunction,
};
use mimeo_bus::{IrqLine, RestoreError, SaveRestore};
use mimeo_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const REGISTERS: u64 = 0x4000;
/// Bytes between two queues' notification words.
const NOTIFY_STEP: u32 = 4;
/// Index of the registers' BAR and of MSI-X's.
const BAR: usize = 0;
const MSIX_BAR: usize = 2;
/// Vendor-specific capability.
const VENDOR_CAPABILITY: u8 = 9;

/// Saved state of a device over PCI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciV1 {
    /// The common part.
    pub virtio: VirtioV1,
    /// Configuration space.
    pub config: ConfigSpaceV1,
    /// MSI-X.
    pub msix: MsixV1,
}

/// A device over PCI.
pub struct VirtioPci {
    core: VirtioCore,
    config: ConfigSpace,
    msix: Arc<Msix>,
    msix_at: u16,
    /// The window into the BARs that configuration space has (4.1.4.9).
    window_at: u16,
}

/// A capability's body behind its length byte (4.1.4): type, BAR, offset, length.
fn capability(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, kind, BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    body
}

impl VirtioPci {
    /// Puts `device` on a PCI function: `intx` is its INTA pin, `msi` where messages go. One vector
    /// a queue and one for configuration changes.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        intx: IrqLine,
        msi: Arc<dyn MsiSink>,
    ) -> Self {
        let queues = device.queue_sizes().len();
        let id = Identity {
            vendor: 0x1af4,
            device: 0x1040 + device.id(),
            revision: 1,
            class: device.class(),
            subsystem_vendor: 0x1af4,
            subsystem: 0x40 + device.id(),
        };
        let mut config = ConfigSpace::new(&id, true);
        let bar = |kind, size| Bar { kind, size };
        config.add_bar(BAR, bar(BarKind::Memory64, REGISTERS));
        config.add_bar(MSIX_BAR, bar(BarKind::Memory32, Msix::BAR_SIZE));
        let msix = Msix::new(queues + 1, msi);
        let (body, writable) = msix.capability(MSIX_BAR as u8);
        let msix_at = u16::from(config.add_capability(Msix::CAPABILITY, &body, &writable));
        let mut add = |body: &[u8], writable: &[u8]| {
            u16::from(config.add_capability(VENDOR_CAPABILITY, body, writable))
        };
        add(&capability(1, COMMON, 0x38, &[]), &[]);
        add(&capability(3, ISR, 1, &[]), &[]);
        add(&capability(4, DEVICE, 0x1000, &[]), &[]);
        let notify = u64::from(NOTIFY_STEP) * queues as u64;
        add(
            &capability(2, NOTIFY, notify, &NOTIFY_STEP.to_le_bytes()),
            &[],
        );
        // The window: BAR, offset, length and data are the driver's to write.
        let mut writable = vec![0, 0, 0xff, 0, 0, 0];
        writable.extend([0xff; 12]);
        let window_at = add(&capability(5, 0, 0, &[0; 4]), &writable);
        let interrupts = Interrupts::new(queues, intx, Some(msix.clone()));
        Self {
            core: VirtioCore::new(device, memory, interrupts),
            config,
            msix,
            msix_at,
            window_at,
        }
    }

    /// The part that both transports share.
    pub fn core(&mut self) -> &mut VirtioCore {
        &mut self.core
    }

    fn common_read(&mut self, offset: u64) -> u32 {
        let core = &mut self.core;
        let queue = core.queue().copied();
        let low = |a: Option<u64>| a.unwrap_or(0) as u32;
        let high = |a: Option<u64>| (a.unwrap_or(0) >> 32) as u32;
        let index = usize::from(core.queue_select);
        match offset {
            0x00 => core.device_select,
            0x04 => core.device_features(),
            0x08 => core.driver_select,
            0x0c => core.driver_features(),
            0x10 => u32::from(core.interrupts.config_vector()),
            0x12 => u32::from(core.queue_count()),
            0x14 => u32::from(core.status()),
            0x15 => u32::from(core.interrupts.generation()),
            0x16 => u32::from(core.queue_select),
            0x18 => queue.map_or(0, |q| u32::from(q.size)),
            0x1a if queue.is_some() => u32::from(core.interrupts.queue_vector(index)),
            0x1a => u32::from(NO_VECTOR),
            0x1c => u32::from(queue.is_some_and(|q| q.ready)),
            0x1e => u32::from(core.queue_select),
            0x20 => low(queue.map(|q| q.descriptors)),
            0x24 => high(queue.map(|q| q.descriptors)),
            0x28 => low(queue.map(|q| q.available)),
            0x2c => high(queue.map(|q| q.available)),
            0x30 => low(queue.map(|q| q.used)),
            0x34 => high(queue.map(|q| q.used)),
            _ => 0,
        }
    }

    fn common_write(&mut self, offset: u64, value: u32) {
        let core = &mut self.core;
        let half = value as u16;
        match offset {
            0x00 => core.device_select = value,
            0x08 => core.driver_select = value,
            0x0c => core.set_driver_features(value),
            0x10 => core.interrupts.set_config_vector(half),
            0x14 => core.set_status(value as u8),
            0x16 => core.queue_select = half,
            0x18 => core.set_queue_size(half),
            0x1a => {
                let queue = usize::from(core.queue_select);
                core.interrupts.set_queue_vector(queue, half);
            }
            // Zero is not for the driver to write (4.1.4.3.2).
            0x1c if half == 1 => core.set_queue_ready(true),
            0x20..=0x37 => self.ring_write(offset, value),
            _ => {}
        }
    }

    fn ring_write(&mut self, offset: u64, value: u32) {
        let Some(q) = self.core.queue_mut() else {
            return;
        };
        let address = match offset & !7 {
            0x20 => &mut q.descriptors,
            0x28 => &mut q.available,
            _ => &mut q.used,
        };
        let value = u64::from(value);
        match offset & 7 {
            0 => *address = *address & !0xffff_ffff | value,
            4 => *address = *address & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn registers_read(&mut self, offset: u64, size: u8) -> u64 {
        match offset {
            ISR => u64::from(self.core.interrupts.acknowledge(0xff)),
            DEVICE..NOTIFY => self.core.config_read(offset - DEVICE, size),
            _ if offset < ISR => {
                let low = u64::from(self.common_read(offset));
                match size {
                    1 => low & 0xff,
                    2 => low & 0xffff,
                    8 => low | u64::from(self.common_read(offset + 4)) << 32,
                    _ => low,
                }
            }
            _ => 0,
        }
    }

    fn registers_write(&mut self, offset: u64, size: u8, value: u64) {
        match offset {
            DEVICE..NOTIFY => self.core.config_write(offset - DEVICE, size, value),
            NOTIFY.. => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_STEP);
                // Below 400h, as the BAR is small. Without bus mastering it may not touch memory.
                if self.config.bus_master() {
                    self.core.notify(queue as u16);
                }
            }
            _ if offset < ISR => {
                self.common_write(offset, value as u32);
                if size == 8 {
                    self.common_write(offset + 4, (value >> 32) as u32);
                }
            }
            _ => {}
        }
    }

    /// An access through configuration space's window: offset in BAR 0 and size, if that is what the
    /// driver has set up.
    fn window(&self) -> Option<(u64, u8)> {
        let bar = self.config.read(self.window_at + 4, 1);
        let offset = u64::from(self.config.read(self.window_at + 8, 4));
        let size = self.config.read(self.window_at + 12, 4);
        let valid = bar == BAR as u32
            && matches!(size, 1 | 2 | 4)
            && offset < REGISTERS
            && offset.is_multiple_of(u64::from(size));
        valid.then_some((offset, size as u8))
    }
}

impl PciFunction for VirtioPci {
    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        if offset == self.window_at + 16
            && let Some((at, size)) = self.window()
        {
            let value = self.registers_read(at, size) as u32;
            self.config.write(self.window_at + 16, 4, value);
        }
        let asserted = self.core.interrupts.isr() != 0 && !self.msix.enabled();
        self.config.set_intx_status(asserted);
        self.config.read(offset, size)
    }

    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        if offset & !3 == self.msix_at {
            let control = self.config.read(self.msix_at + 2, 2) as u16;
            self.msix.set_control(control);
        }
        let intx_off = !self.config.intx_allowed() || self.msix.enabled();
        self.core.interrupts.set_intx_off(intx_off);
        if offset == self.window_at + 16
            && let Some((at, size)) = self.window()
        {
            self.registers_write(at, size, u64::from(value));
        }
    }

    fn bar_read(&mut self, bar: usize, offset: u64, size: u8) -> u64 {
        match bar {
            BAR => self.registers_read(offset, size),
            _ => self.msix.bar_read(offset, size),
        }
    }

    fn bar_write(&mut self, bar: usize, offset: u64, size: u8, value: u64) {
        match bar {
            BAR => self.registers_write(offset, size, value),
            _ => self.msix.bar_write(offset, size, value),
        }
    }

    fn reset(&mut self) {
        self.core.reset();
        self.msix.reset();
        self.config.reset();
        self.core.interrupts.set_intx_off(false);
    }
}

impl SaveRestore for VirtioPci {
    type Saved = VirtioPciV1;

    fn save(&self) -> VirtioPciV1 {
        VirtioPciV1 {
            virtio: self.core.save(),
            config: self.config.save(),
            msix: self.msix.save(),
        }
    }

    /// Call [`crate::pci::PciHost::remap`] afterwards.
    fn restore(&mut self, saved: &VirtioPciV1) -> Result<(), RestoreError> {
        let before = (self.config.save(), self.msix.save());
        let restored = self
            .config
            .restore(&saved.config)
            .and_then(|()| self.msix.restore(&saved.msix))
            .and_then(|()| {
                let intx_off = !self.config.intx_allowed() || self.msix.enabled();
                self.core.restore(&saved.virtio, intx_off)
            });
        if restored.is_err() {
            // Both were valid a moment ago.
            let _ = self.config.restore(&before.0);
            let _ = self.msix.restore(&before.1);
        }
        restored
    }
}
