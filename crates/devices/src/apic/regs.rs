//! The register model of one local APIC.

mod access;

use super::address::Address;
use super::message::{Delivery, Message};
use super::timer::{ApicClocks, ApicTimer, ApicTimerV1, Mode};
use super::vectors::VectorSet;
use mimeo_bus::{Nanos, RestoreError, SaveRestore, TimedModel};
use mimeo_vcpu::{EventBits, VcpuEvents};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
        let window = (self.enabled() && !self.x2apic()).then_some(self.s.apic_base & !0xfff);
        self.address.set(
            self.ldr(),
            self.s.dfr,
            self.enabled(),
            self.x2apic(),
            window,
        );
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
