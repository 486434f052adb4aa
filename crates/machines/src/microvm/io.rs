//! The board as one vCPU sees it.

use super::chips::Chips;
use super::lock;
use crate::time::MachineTime;
use mimeo_bus::{AddressMap, MmioDevice, PortDevice};
use mimeo_devices::apic::CpuApic;
use mimeo_vcpu::{CpuIo, MsrError};
use std::sync::Arc;

/// IA32_APIC_BASE (SDM vol. 4, table 2-2).
const APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// Length of an APIC's register window (SDM vol. 3, 12.4.1).
const APIC_WINDOW: u64 = 0x1000;

/// One vCPU's view. Its own APIC comes first and takes no lock but that APIC's; everything else is
/// found in the board's maps, which never change while the machine lives.
pub(super) struct CpuView {
    pub(super) index: u32,
    pub(super) apic: CpuApic,
    pub(super) chips: Arc<Chips>,
    pub(super) time: Arc<dyn MachineTime>,
}

/// What an access of `size` bytes reads where nothing answers: all ones (a floating bus).
const fn ones(size: u8) -> u64 {
    u64::MAX
        >> (64
            - 8 * if size == 0 || size > 8 {
                8
            } else {
                size as u32
            })
}

impl CpuView {
    /// The offset in this CPU's APIC window, if `gpa` is there.
    #[inline]
    fn own_apic(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.wrapping_sub(self.apic.window()?);
        (offset < APIC_WINDOW).then_some(offset)
    }
}

fn with_port<R>(
    map: &AddressMap<dyn PortDevice>,
    port: u16,
    f: impl FnOnce(&mut dyn PortDevice, u16) -> R,
) -> Option<R> {
    let (device, offset) = map.find(u64::from(port))?;
    let mut device = lock(device);
    // An offset within 64 K ports fits.
    Some(f(&mut *device, offset as u16))
}

fn with_mmio<R>(
    map: &AddressMap<dyn MmioDevice>,
    gpa: u64,
    f: impl FnOnce(&mut dyn MmioDevice, u64) -> R,
) -> Option<R> {
    let (device, offset) = map.find(gpa)?;
    let mut device = lock(device);
    Some(f(&mut *device, offset))
}

impl CpuIo for CpuView {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let mask = ones(size) as u32;
        with_port(&self.chips.ports, port, |d, at| d.port_read(at, size)).unwrap_or(mask) & mask
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        let value = value & ones(size) as u32;
        with_port(&self.chips.ports, port, |d, at| {
            d.port_write(at, size, value)
        });
    }

    fn mmio_read(&mut self, gpa: u64, size: u8) -> u64 {
        if let Some(offset) = self.own_apic(gpa) {
            return self.apic.mmio_read(offset, size);
        }
        let mask = ones(size);
        with_mmio(&self.chips.mmio, gpa, |d, at| d.mmio_read(at, size)).unwrap_or(mask) & mask
    }

    fn mmio_write(&mut self, gpa: u64, size: u8, value: u64) {
        if let Some(offset) = self.own_apic(gpa) {
            return self.apic.mmio_write(offset, size, value);
        }
        let value = value & ones(size);
        with_mmio(&self.chips.mmio, gpa, |d, at| d.mmio_write(at, size, value));
    }

    fn ack_interrupt(&mut self) -> Option<u8> {
        self.apic.ack()
    }

    fn cr8_read(&mut self) -> u8 {
        self.apic.cr8()
    }

    fn cr8_write(&mut self, value: u8) {
        self.apic.set_cr8(value);
    }

    fn msr_read(&mut self, msr: u32) -> Result<u64, MsrError> {
        match msr {
            APIC_BASE | TSC_DEADLINE | 0x800..=0x8ff => self.apic.msr_read(msr),
            _ => lock(&self.chips.kvm_clock).msr_read(self.index as usize, msr),
        }
    }

    fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        match msr {
            APIC_BASE | TSC_DEADLINE | 0x800..=0x8ff => self.apic.msr_write(msr, value),
            _ => lock(&self.chips.kvm_clock).msr_write(self.index as usize, msr, value),
        }
    }

    fn tsc(&mut self, retired: u64) -> u64 {
        self.time.tsc(self.index, retired)
    }

    fn tsc_offset(&mut self) -> Option<u64> {
        self.time.tsc_offset()
    }

    fn hypercall(&mut self, _args: [u64; 5]) -> u64 {
        // KVM_ENOSYS (Linux's Documentation/virt/kvm/x86/hypercalls.rst): no call is offered.
        1000u64.wrapping_neg()
    }
}

#[cfg(test)]
mod tests {
    use super::ones;

    #[test]
    fn a_floating_bus() {
        assert_eq!(ones(1), 0xff);
        assert_eq!(ones(4), 0xffff_ffff);
        assert_eq!(ones(8), u64::MAX);
    }
}
