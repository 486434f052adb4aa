//! Access to the registers: the xAPIC's window, the x2APIC's MSRs, IA32_APIC_BASE and
//! IA32_TSC_DEADLINE.

use super::super::message::{Delivery, Message, icr};
use super::super::timer::Mode;
use super::{
    Effect, LVT_LEVEL, LVT_MASKED, LVT_REMOTE_IRR, LVT_STATUS, LVT_WRITABLE, LocalApic, SVR_ENABLE,
    SVR_WRITABLE, VERSION, base, esr, lvt,
};
use mimeo_vcpu::MsrError;

impl LocalApic {
    fn read_register(&mut self, reg: u32) -> Option<u32> {
        let s = &self.s;
        Some(match reg {
            0x02 if self.x2apic() => s.id,
            0x02 => s.id << 24,
            0x03 => VERSION,
            0x08 => u32::from(s.tpr),
            0x0a => u32::from(self.ppr()),
            0x0d => self.ldr(),
            0x0e if !self.x2apic() => s.dfr,
            0x0f => s.svr,
            0x10..=0x17 => s.isr.word(reg - 0x10),
            0x18..=0x1f => s.tmr.word(reg - 0x18),
            0x20..=0x27 => s.irr.word(reg - 0x20),
            0x28 => s.esr,
            0x30 => s.icr as u32,
            0x31 if !self.x2apic() => (s.icr >> 32) as u32,
            0x32..=0x37 => s.lvt[(reg - 0x32) as usize],
            0x38 => self.timer.s.initial,
            0x39 => self.timer.current(self.mode()),
            0x3e => self.timer.s.divide,
            _ => return None,
        })
    }

    fn write_register(&mut self, reg: u32, value: u32) -> Option<Effect> {
        match reg {
            0x08 => self.set_tpr(value as u8),
            0x0b => return Some(self.eoi()),
            0x0f => self.set_svr(value),
            0x28 => self.s.esr = std::mem::take(&mut self.s.esr_pending),
            0x30 => return Some(self.send(self.s.icr & !0xffff_ffff | u64::from(value))),
            0x32..=0x37 => self.set_lvt((reg - 0x32) as usize, value),
            0x38 => self.timer.set_initial(self.mode(), value),
            0x3e => self.timer.set_divide(self.mode(), value),
            _ => return None,
        }
        Some(Effect::None)
    }

    fn set_svr(&mut self, value: u32) {
        self.s.svr = value & SVR_WRITABLE;
        if value & SVR_ENABLE == 0 {
            // Software-disabled: all LVT entries are masked (SDM vol. 3, 12.4.7.2).
            for lvt in &mut self.s.lvt {
                *lvt |= LVT_MASKED;
            }
        }
        self.update();
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let old = self.s.lvt[index];
        let mut new = value & LVT_WRITABLE[index];
        if self.s.svr & SVR_ENABLE == 0 {
            new |= LVT_MASKED;
        }
        if index == lvt::TIMER {
            if !self.features.tsc_deadline {
                new &= !(1 << 18);
            }
            self.timer.set_mode(Mode::of(old), Mode::of(new));
        }
        if new & LVT_LEVEL != 0 {
            new |= old & LVT_REMOTE_IRR;
        }
        self.s.lvt[index] = new;
        if index == lvt::LINT0 || index == lvt::LINT1 {
            self.lint_changed(index - lvt::LINT0, false);
        }
        self.update();
    }

    fn send(&mut self, value: u64) -> Effect {
        self.s.icr = if self.x2apic() {
            value & !icr::STATUS
        } else {
            value & (0xff00_0000_0000_0000 | icr::LOW_WRITABLE)
        };
        let Some(message) = Message::from_icr(self.s.icr, self.index, self.x2apic()) else {
            return Effect::None;
        };
        let with_vector = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        if with_vector && message.vector < 16 {
            self.error(esr::SEND_ILLEGAL);
            return Effect::None;
        }
        Effect::Send(message)
    }

    /// A load from the xAPIC's window. Registers are 32 bits at multiples of 16; smaller loads
    /// inside one get their part, the bytes between registers read as zero.
    pub fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let (reg, at) = ((offset >> 4) as u32 & 0xff, offset & 15);
        if at + u64::from(size) > 4 && size != 8 {
            return 0;
        }
        let value = self.read_register(reg).unwrap_or_else(|| {
            self.error(esr::ILLEGAL_REGISTER);
            0
        });
        let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        (u64::from(value) >> (8 * at.min(4))) & mask
    }

    /// A store to the xAPIC's window. Anything but an aligned 32-bit store is undefined by the
    /// manual and ignored here (SDM vol. 3, 12.4.1).
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64) -> Effect {
        if size != 4 || offset & 15 != 0 {
            return Effect::None;
        }
        let (reg, value) = ((offset >> 4) as u32 & 0xff, value as u32);
        match reg {
            // The ID is fixed by the machine.
            0x02 => {}
            0x0d => {
                self.s.ldr = value & 0xff00_0000;
                self.publish();
            }
            0x0e => {
                self.s.dfr = value | 0x0fff_ffff;
                self.publish();
            }
            0x31 => self.s.icr = self.s.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            _ => match self.write_register(reg, value) {
                Some(effect) => return effect,
                None if self.read_register(reg).is_some() => {}
                None => self.error(esr::ILLEGAL_REGISTER),
            },
        }
        Effect::None
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// [`MsrError`] where the manual asks for #GP(0).
    pub fn msr_read(&mut self, msr: u32) -> Result<u64, MsrError> {
        match msr {
            0x1b => Ok(self.s.apic_base),
            0x6e0 if self.features.tsc_deadline => Ok(self.timer.deadline_msr(self.mode())),
            0x830 if self.x2apic() => Ok(self.s.icr),
            0x800..=0x8ff if self.x2apic() => self
                .read_register(msr - 0x800)
                .map(u64::from)
                .ok_or(MsrError),
            _ => Err(MsrError),
        }
    }

    /// WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// [`MsrError`] where the manual asks for #GP(0): unknown and read-only registers, reserved
    /// bits, forbidden mode transitions (SDM vol. 3, 12.12.1.2 and 12.12.5).
    pub fn msr_write(&mut self, msr: u32, value: u64) -> Result<Effect, MsrError> {
        match msr {
            0x1b => {
                self.set_base(value)?;
                Ok(Effect::None)
            }
            0x6e0 if self.features.tsc_deadline => {
                if self.timer.set_deadline(self.mode(), value) {
                    self.fire_timer();
                }
                Ok(Effect::None)
            }
            0x800..=0x8ff if self.x2apic() => self.x2apic_write(msr - 0x800, value),
            _ => Err(MsrError),
        }
    }

    fn x2apic_write(&mut self, reg: u32, value: u64) -> Result<Effect, MsrError> {
        let reserved = match reg {
            0x08 | 0x3f => !0xff,
            0x0b | 0x28 => !0,
            0x0f => !u64::from(SVR_WRITABLE),
            0x30 => icr::X2_RESERVED,
            0x32..=0x37 => {
                let read_only = match reg {
                    0x35 | 0x36 => LVT_REMOTE_IRR | LVT_STATUS,
                    _ => LVT_STATUS,
                };
                let mut writable = LVT_WRITABLE[(reg - 0x32) as usize];
                if reg == 0x32 && !self.features.tsc_deadline {
                    writable &= !(1 << 18);
                }
                !u64::from(writable | read_only)
            }
            0x38 => !0xffff_ffff,
            0x3e => !0xb,
            _ => return Err(MsrError),
        };
        if value & reserved != 0 {
            return Err(MsrError);
        }
        match reg {
            0x30 => Ok(self.send(value)),
            0x3f if value < 16 => {
                self.error(esr::SEND_ILLEGAL);
                Ok(Effect::None)
            }
            0x3f => {
                self.accept(value as u8, false);
                Ok(Effect::None)
            }
            _ => self.write_register(reg, value as u32).ok_or(MsrError),
        }
    }

    fn set_base(&mut self, value: u64) -> Result<(), MsrError> {
        let address = (1u64 << self.features.physical_bits.clamp(36, 52)) - 1;
        let x2 = if self.features.x2apic {
            base::X2APIC
        } else {
            0
        };
        let writable = address & !0xfff | base::BSP | base::ENABLE | x2;
        let modes = base::ENABLE | base::X2APIC;
        let forbidden = match (self.s.apic_base & modes, value & modes) {
            (_, base::X2APIC) => true,
            (from, to) if from == modes => to == base::ENABLE,
            (0, to) => to == modes,
            _ => false,
        };
        if value & !writable != 0 || forbidden {
            return Err(MsrError);
        }
        let old = std::mem::replace(&mut self.s.apic_base, value);
        if old & modes != value & modes {
            if value & base::ENABLE == 0 {
                // Enabled again, it comes back as after power-up (SDM vol. 3, 12.4.3).
                self.init();
            } else if value & base::X2APIC != 0 {
                self.s.icr &= 0xffff_ffff;
                self.s.ldr = 0;
            }
        }
        self.publish();
        self.update();
        Ok(())
    }
}
