//! QEMU's `pc-testdev`, for people who test kernels, with the serial port of its predecessor.
//!
//! Models: QEMU's device of that name as its users see it: a readable and writable 32-bit port at
//! E0h (any size and alignment within its four bytes) and again at E8h, interrupt lines that are
//! driven by writes at 2000h to 2017h, 64 KB of memory at FF00_0000h that is not RAM; and the older
//! `testdev`'s output port F1h. The page flush at E4h makes QEMU forget how a page is mapped; a
//! guest sees nothing of it, and here it does nothing.
//!
//! Port offsets are from E0h: 0 to 3 and 8 to 11 the port, 4 to 7 the flush, 11h the serial output.
//! The lines' ports are 100h to 117h.

use mimeo_bus::{IrqLine, MmioDevice, PortDevice, RestoreError, SaveRestore, StreamHost};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes of memory.
const MEMORY: usize = 0x1_0000;

/// Saved state of the test device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestDeviceV1 {
    /// The port's 32 bits.
    pub port: u32,
    /// The memory.
    pub memory: Vec<u8>,
}

/// The register model.
pub struct TestDevice {
    port: u32,
    memory: Vec<u8>,
    lines: Vec<IrqLine>,
    serial: Arc<dyn StreamHost>,
}

impl TestDevice {
    /// First offset of the lines' ports.
    pub const LINES: u16 = 0x100;

    /// `lines` are the interrupts that the guest may drive, by number (24 on QEMU's PC); `serial`
    /// takes what is written to the output port.
    #[must_use]
    pub fn new(lines: Vec<IrqLine>, serial: Arc<dyn StreamHost>) -> Self {
        Self {
            port: 0,
            memory: vec![0; MEMORY],
            lines,
            serial,
        }
    }

    /// RESET: QEMU's device keeps its contents, and so does this one.
    pub fn reset(&mut self) {}
}

/// The bits of a 32-bit word that an access of `size` bytes at `offset` means, and their shift.
fn part(offset: u16, size: u8) -> (u32, u32) {
    let bits = 8 * u32::from(size.clamp(1, 4));
    let shift = 8 * u32::from(offset & 3);
    ((u32::MAX >> (32 - bits)) << shift, shift)
}

impl PortDevice for TestDevice {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let (mask, shift) = part(offset, size);
        match offset {
            0..=3 | 8..=11 => (self.port & mask) >> shift,
            _ => 0,
        }
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        match offset {
            0..=3 | 8..=11 => {
                let (mask, shift) = part(offset, size);
                self.port = self.port & !mask | (value << shift) & mask;
            }
            0x11 => {
                // What a slow reader leaves is lost: the port has no status to wait for.
                self.serial.write(&[value as u8]);
            }
            _ => {
                let line = offset.checked_sub(Self::LINES).map(usize::from);
                if let Some(line) = line.and_then(|n| self.lines.get(n)) {
                    line.set(value != 0);
                }
            }
        }
    }
}

impl MmioDevice for TestDevice {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let at = usize::try_from(offset.saturating_add(i)).unwrap_or(MEMORY);
            value | u64::from(self.memory.get(at).copied().unwrap_or(0xff)) << (8 * i)
        })
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size.min(8)) {
            let at = usize::try_from(offset.saturating_add(i)).unwrap_or(MEMORY);
            if let Some(byte) = self.memory.get_mut(at) {
                *byte = (value >> (8 * i)) as u8;
            }
        }
    }
}

impl SaveRestore for TestDevice {
    type Saved = TestDeviceV1;

    fn save(&self) -> TestDeviceV1 {
        TestDeviceV1 {
            port: self.port,
            memory: self.memory.clone(),
        }
    }

    fn restore(&mut self, saved: &TestDeviceV1) -> Result<(), RestoreError> {
        let valid = saved.memory.len() == MEMORY;
        RestoreError::unless(valid, "the test device", "its memory is not 64 KB")?;
        self.port = saved.port;
        self.memory.clone_from(&saved.memory);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lines;
    use mimeo_bus::NullStream;

    #[test]
    fn port_lines_and_memory() {
        let lines = Arc::new(Lines::default());
        let wires = (0..24).map(|n| IrqLine::new(lines.clone(), n)).collect();
        let mut t = TestDevice::new(wires, Arc::new(NullStream));
        t.port_write(0, 4, 0x1122_3344);
        assert_eq!((t.port_read(1, 1), t.port_read(2, 2)), (0x33, 0x1122));
        t.port_write(3, 1, 0xaa);
        t.port_write(9, 1, 0xbb);
        t.port_write(4, 4, 0x1000);
        assert_eq!(t.port_read(8, 4), 0xaa22_bb44);
        t.port_write(0x10e, 1, 1);
        assert!(lines.level(14));
        t.port_write(0x10e, 1, 0);
        t.port_write(0x118, 1, 1);
        assert!(!lines.level(14));
        t.mmio_write(0xfffc, 8, 0x8877_6655_4433_2211);
        assert_eq!(t.mmio_read(0xfffd, 2), 0x3322);
        assert_eq!(t.mmio_read(0xffff, 2), 0xff44);
        assert_eq!(t.mmio_read(u64::MAX, 8), u64::MAX);
    }
}
