//! The register model of one local APIC.

use super::message::{Delivery, Message, icr};
use super::timer::{ApicClocks, ApicTimer, ApicTimerV1, Mode};
use super::vectors::VectorSet;
use mimeo_bus::{Nanos, RestoreError, SaveRestore, TimedModel};
use mimeo_vcpu::{EventBits, MsrError, VcpuEvents};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Indexes of LVT entries (SDM vol. 3, 12.5.1): timer, thermal sensor, performance counters, LINT0,
/// LINT1, error. CMCI is absent: version bits 16 to 23 say so.
mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
}

const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const LVT_STATUS: u32 = 1 << 12;
/// Bits that software may write, per entry; remote IRR and delivery status are read-only.
const LVT_WRITABLE: [u32; 6] = [0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];

/// Error status register bits (SDM vol. 3, 12.5.3).
mod esr {
    pub const SEND_ILLEGAL: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// IA32_APIC_BASE bits.
pub(super) mod base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const DEFAULT: u64 = 0xfee0_0000;
}

const SVR_ENABLE: u32 = 1 << 8;
const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
const SVR_WRITABLE: u32 = 0x11ff;
/// Version 15h (integrated APIC), six LVT entries, EOI-broadcast suppression.
const VERSION: u32 = 0x15 | 5 << 16 | 1 << 24;

/// What the CPU model says of its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicFeatures {
    /// CPUID.1:ECX.x2APIC.
    pub x2apic: bool,
    /// CPUID.1:ECX.TSC-Deadline.
    pub tsc_deadline: bool,
    /// CPUID.80000008h:EAX[7:0], 36 to 52.
    pub physical_bits: u8,
}

impl Default for ApicFeatures {
    fn default() -> Self {
        Self {
            x2apic: true,
            tsc_deadline: true,
            physical_bits: 46,
        }
    }
}

/// What others need to know of an APIC to address it, readable without its lock.
#[derive(Debug, Default)]
pub(super) struct Address {
    /// LDR in bits 0 to 31, DFR's model in 32 to 35, enabled 36, x2APIC 37.
    word: AtomicU64,
    /// The base of the MMIO window; 1 when closed.
    window: AtomicU64,
}

/// One look at an [`Address`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Addressed(u64);

impl Addressed {
    pub(super) const fn enabled(self) -> bool {
        self.0 & (1 << 36) != 0
    }

    pub(super) const fn x2apic(self) -> bool {
        self.0 & (1 << 37) != 0
    }

    /// Whether a logical destination means this APIC (SDM vol. 3, 12.6.2.2 and 12.12.10.2).
    pub(super) const fn logical(self, dest: u32, wide: bool) -> bool {
        let ldr = self.0 as u32;
        if self.x2apic() {
            if wide && dest == u32::MAX {
                return true;
            }
            return dest >> 16 == ldr >> 16 && dest & ldr & 0xffff != 0;
        }
        let ldr = ldr >> 24;
        if dest == 0xff || (wide && dest == u32::MAX) {
            return true;
        }
        if (self.0 >> 32) & 0xf == 0xf {
            return dest & ldr & 0xff != 0 && dest <= 0xff;
        }
        dest <= 0xff && dest >> 4 == ldr >> 4 && dest & ldr & 0xf != 0
    }
}

impl Address {
    pub(super) fn get(&self) -> Addressed {
        Addressed(self.word.load(Ordering::Acquire))
    }

    pub(super) fn window(&self) -> Option<u64> {
        Some(self.window.load(Ordering::Acquire)).filter(|&w| w != 1)
    }
}

/// What a register access asks of the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Send this message.
    Send(Message),
    /// Tell the IOAPICs of the end of the interrupt with this vector.
    Eoi(u8),
}

/// The answer to an interrupt acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Nothing is deliverable any more.
    None,
    /// This vector; it is in service now.
    Vector(u8),
    /// The vector is to be fetched from the 8259A.
    ExtInt,
}

/// Saved state of a local APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "register names of SDM vol. 3, table 12-1")]
pub struct LocalApicV1 {
    pub id: u32,
    pub apic_base: u64,
    pub tpr: u8,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub irr: VectorSet,
    pub isr: VectorSet,
    pub tmr: VectorSet,
    pub lvt: [u32; 6],
    pub esr: u32,
    pub esr_pending: u32,
    pub icr: u64,
    pub timer: ApicTimerV1,
    /// Levels of the pins LINT0 and LINT1.
    pub lint: [bool; 2],
    /// An ExtINT message that waits for its acknowledge.
    pub ext_int: bool,
}

/// The register model. It raises and clears [`EventBits::INTR`] itself, and raises the others.
pub struct LocalApic {
    s: LocalApicV1,
    timer: ApicTimer,
    index: usize,
    features: ApicFeatures,
    address: Arc<Address>,
    events: Arc<VcpuEvents>,
    intr: bool,
}

impl LocalApic {
    /// The APIC of vCPU `index` with the ID `id`, after power-up.
    pub(super) fn new(
        index: usize,
        id: u32,
        features: ApicFeatures,
        clocks: ApicClocks,
        events: Arc<VcpuEvents>,
        address: Arc<Address>,
    ) -> Self {
        let bsp = if index == 0 { base::BSP } else { 0 };
        let mut apic = Self {
            s: LocalApicV1 {
                id,
                apic_base: base::DEFAULT | base::ENABLE | bsp,
                tpr: 0,
                ldr: 0,
                dfr: 0,
                svr: 0,
                irr: VectorSet::default(),
                isr: VectorSet::default(),
                tmr: VectorSet::default(),
                lvt: [0; 6],
                esr: 0,
                esr_pending: 0,
                icr: 0,
                timer: ApicTimerV1::default(),
                lint: [false; 2],
                ext_int: false,
            },
            timer: ApicTimer::new(clocks),
            index,
            features,
            address,
            events,
            intr: false,
        };
        apic.init();
        apic
    }

    /// Power-up or RESET: [`Self::init`], and IA32_APIC_BASE as well.
    pub fn reset(&mut self) {
        let bsp = if self.index == 0 { base::BSP } else { 0 };
        self.s.apic_base = base::DEFAULT | base::ENABLE | bsp;
        self.init();
    }

    /// The state after INIT: as after power-up, save the ID and IA32_APIC_BASE (SDM vol. 3,
    /// 12.4.7.3 and 12.12.5.1). The levels of the pins are not the APIC's to change.
    pub fn init(&mut self) {
        let s = &mut self.s;
        s.tpr = 0;
        s.ldr = 0;
        s.dfr = u32::MAX;
        s.svr = 0xff;
        (s.irr, s.isr, s.tmr) = Default::default();
        s.lvt = [LVT_MASKED; 6];
        (s.esr, s.esr_pending, s.icr) = (0, 0, 0);
        s.ext_int = false;
        self.timer.s = ApicTimerV1::default();
        self.publish();
        self.update();
    }

    /// What firmware leaves behind for the boot processor (MultiProcessor Specification 3.6.2.2,
    /// virtual wire mode through the local APIC): enabled, LINT0 is ExtINT, LINT1 is NMI. For
    /// boards that start a kernel without firmware.
    pub fn virtual_wire(&mut self) {
        self.s.svr |= SVR_ENABLE;
        self.s.lvt[lvt::LINT0] = 7 << 8;
        self.s.lvt[lvt::LINT1] = 4 << 8;
        self.update();
    }

    fn enabled(&self) -> bool {
        self.s.apic_base & base::ENABLE != 0
    }

    fn x2apic(&self) -> bool {
        self.s.apic_base & base::X2APIC != 0
    }

    fn mode(&self) -> Mode {
        Mode::of(self.s.lvt[lvt::TIMER])
    }

    fn ldr(&self) -> u32 {
        if self.x2apic() {
            (self.s.id >> 4) << 16 | 1 << (self.s.id & 15)
        } else {
            self.s.ldr
        }
    }

    /// Tells the bus how this APIC is addressed.
    fn publish(&self) {
        let word = u64::from(self.ldr())
            | u64::from(self.s.dfr >> 28) << 32
            | u64::from(self.enabled()) << 36
            | u64::from(self.x2apic()) << 37;
        self.address.word.store(word, Ordering::Release);
        let window = if self.enabled() && !self.x2apic() {
            self.s.apic_base & !0xfff
        } else {
            1
        };
        self.address.window.store(window, Ordering::Release);
    }

    /// Processor priority (SDM vol. 3, 12.8.3.1).
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let in_service = self.s.isr.highest().unwrap_or(0);
        if self.s.tpr >> 4 >= in_service >> 4 {
            self.s.tpr
        } else {
            in_service & 0xf0
        }
    }

    fn deliverable(&self) -> Option<u8> {
        let vector = self.s.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    fn ext_int(&self) -> bool {
        if !self.enabled() {
            return self.s.lint[0];
        }
        let through = |lvt: u32| lvt & LVT_MASKED == 0 && (lvt >> 8) & 7 == 7;
        let line = |i: usize| {
            let lvt = self.s.lvt[lvt::LINT0 + i];
            through(lvt) && self.s.lint[i]
        };
        self.s.ext_int || line(0) || line(1)
    }

    /// Makes the vCPU's event word say whether there is something to acknowledge.
    fn update(&mut self) {
        let want = self.ext_int() || (self.enabled() && self.deliverable().is_some());
        if want != self.intr {
            self.intr = want;
            if want {
                self.events.raise(EventBits::INTR);
            } else {
                self.events.take(EventBits::INTR);
            }
        }
    }

    /// The processor takes the highest-priority interrupt: from the 8259A first, as LINT0 is not
    /// subject to the processor priority.
    pub fn ack(&mut self) -> Ack {
        if self.ext_int() {
            self.s.ext_int = false;
            self.update();
            return Ack::ExtInt;
        }
        let Some(vector) = self.deliverable().filter(|_| self.enabled()) else {
            return Ack::None;
        };
        self.s.irr.clear(vector);
        self.s.isr.set(vector);
        self.update();
        Ack::Vector(vector)
    }

    /// CR8: bits 4 to 7 of the task priority.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.s.tpr >> 4
    }

    /// Sets the task priority register (CR8 shifted left by four, or the register itself).
    pub fn set_tpr(&mut self, value: u8) {
        self.s.tpr = value;
        self.update();
    }

    fn eoi(&mut self) -> Effect {
        let Some(vector) = self.s.isr.highest() else {
            return Effect::None;
        };
        self.s.isr.clear(vector);
        let level = self.s.tmr.has(vector);
        for pin in 0..2 {
            let lvt = &mut self.s.lvt[lvt::LINT0 + pin];
            if *lvt & LVT_REMOTE_IRR != 0 && *lvt as u8 == vector {
                *lvt &= !LVT_REMOTE_IRR;
                self.lint_changed(pin, false);
            }
        }
        self.update();
        if level && self.s.svr & SVR_NO_EOI_BROADCAST == 0 {
            Effect::Eoi(vector)
        } else {
            Effect::None
        }
    }

    /// Takes a message that is addressed to this APIC. Whether it was accepted: an IOAPIC marks a
    /// level-triggered entry in service only then.
    pub fn receive(&mut self, message: &Message) -> bool {
        if !self.enabled() {
            return false;
        }
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                return self.accept(message.vector, message.level);
            }
            Delivery::Smi => return false,
            Delivery::Nmi => self.events.raise(EventBits::NMI),
            Delivery::Init => {
                self.init();
                self.events.raise(EventBits::INIT);
            }
            Delivery::StartUp => self.events.raise_sipi(message.vector),
            Delivery::ExtInt => {
                if self.s.svr & SVR_ENABLE == 0 {
                    return false;
                }
                self.s.ext_int = true;
                self.update();
            }
        }
        true
    }

    fn accept(&mut self, vector: u8, level: bool) -> bool {
        if self.s.svr & SVR_ENABLE == 0 {
            return false;
        }
        if vector < 16 {
            self.error(esr::RECEIVE_ILLEGAL);
            return false;
        }
        self.s.irr.set(vector);
        if level {
            self.s.tmr.set(vector);
        } else {
            self.s.tmr.clear(vector);
        }
        self.update();
        true
    }

    fn error(&mut self, bit: u32) {
        self.s.esr_pending |= bit;
        let lvt = self.s.lvt[lvt::ERROR];
        if lvt & LVT_MASKED == 0 && self.s.svr & SVR_ENABLE != 0 {
            if lvt & 0xf0 == 0 {
                self.s.esr_pending |= esr::RECEIVE_ILLEGAL;
            } else {
                self.accept(lvt as u8, false);
            }
        }
    }

    /// The pin LINT0 or LINT1 has this level now.
    pub fn set_lint(&mut self, pin: usize, level: bool) {
        if pin < 2 && self.s.lint[pin] != level {
            self.s.lint[pin] = level;
            self.lint_changed(pin, true);
            self.update();
        }
    }

    /// Acts on the level of a pin; `edge`: it has just changed.
    fn lint_changed(&mut self, pin: usize, edge: bool) {
        if !self.enabled() {
            // Without an APIC the pins are INTR and NMI (SDM vol. 3, 12.1).
            if pin == 1 && edge && self.s.lint[1] {
                self.events.raise(EventBits::NMI);
            }
            return;
        }
        let entry = self.s.lvt[lvt::LINT0 + pin];
        if entry & LVT_MASKED != 0 || !self.s.lint[pin] {
            return;
        }
        match Delivery::from_bits(entry >> 8) {
            Some(Delivery::Fixed) if entry & LVT_LEVEL != 0 => self.accept_lint_level(pin),
            Some(Delivery::Fixed) if edge => {
                self.accept(entry as u8, false);
            }
            Some(Delivery::Nmi) if edge => self.events.raise(EventBits::NMI),
            Some(Delivery::Init) if edge => {
                self.init();
                self.events.raise(EventBits::INIT);
            }
            // ExtINT is looked at when INTR is computed; the other modes do nothing.
            _ => {}
        }
    }

    /// A level-triggered pin is asserted: one interrupt at a time (SDM vol. 3, 12.5.1, remote IRR).
    fn accept_lint_level(&mut self, pin: usize) {
        let entry = self.s.lvt[lvt::LINT0 + pin];
        if entry & LVT_REMOTE_IRR == 0 && self.accept(entry as u8, true) {
            self.s.lvt[lvt::LINT0 + pin] |= LVT_REMOTE_IRR;
        }
    }

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

    fn fire_timer(&mut self) {
        let lvt = self.s.lvt[lvt::TIMER];
        if lvt & LVT_MASKED == 0 {
            self.accept(lvt as u8, false);
        }
    }
}

impl TimedModel for LocalApic {
    fn deadline(&self) -> Option<Nanos> {
        self.timer.s.fires_at
    }

    fn due(&mut self, now: Nanos) {
        if self.timer.due(self.mode(), now) {
            self.fire_timer();
        }
    }
}

impl SaveRestore for LocalApic {
    type Saved = LocalApicV1;

    fn save(&self) -> LocalApicV1 {
        LocalApicV1 {
            timer: self.timer.s,
            ..self.s.clone()
        }
    }

    fn restore(&mut self, saved: &LocalApicV1) -> Result<(), RestoreError> {
        let check = |ok, what| RestoreError::unless(ok, "a local APIC", what);
        let modes = saved.apic_base & (base::ENABLE | base::X2APIC);
        check(saved.id == self.s.id, "it is of another CPU")?;
        check(modes != base::X2APIC, "IA32_APIC_BASE is in no legal mode")?;
        check(
            self.features.x2apic || modes & base::X2APIC == 0,
            "it is in x2APIC mode, which this CPU model lacks",
        )?;
        let low = |set: &VectorSet| set.word(0) & 0xffff != 0;
        check(
            !low(&saved.irr) && !low(&saved.isr),
            "an interrupt below 16 is pending",
        )?;
        self.s = saved.clone();
        self.timer.s = saved.timer;
        self.publish();
        self.intr = false;
        self.events.take(EventBits::INTR);
        self.update();
        Ok(())
    }
}
