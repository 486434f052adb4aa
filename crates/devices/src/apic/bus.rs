//! Routing of messages between APICs, and what a vCPU thread holds of its own.

use super::address::Address;
use super::message::{Destination, Message};
use super::regs::{Ack, ApicFeatures, Effect, LocalApic};
use super::timer::ApicClocks;
use mimeo_bus::{IrqSink, Timed, TimedGuard, TimerService};
use mimeo_vcpu::{MsrError, VcpuEvents};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Told of the end of level-triggered interrupts: an IOAPIC.
pub trait EoiSink: Send + Sync {
    /// The interrupt with this vector has ended. Called without an APIC's lock held.
    fn end_of_interrupt(&self, vector: u8);
}

/// Where interrupt messages go: [`ApicBus`].
pub trait MessageSink: Send + Sync {
    /// Delivers a message. Whether any APIC accepted it.
    fn send_message(&self, message: &Message) -> bool;
}

impl MessageSink for ApicBus {
    fn send_message(&self, message: &Message) -> bool {
        self.send(message)
    }
}

/// Gives the vector of an ExtINT: the 8259A pair.
pub trait ExtIntSource: Send + Sync {
    /// The two INTA cycles. Called without an APIC's lock held.
    fn acknowledge(&self) -> u8;
}

struct Slot {
    id: u32,
    address: Arc<Address>,
    apic: Arc<Timed<LocalApic>>,
}

/// All local APICs of a machine. The pins LINT0 of the CPUs are its [`IrqSink`] pins 0, 2, 4, ...,
/// their LINT1 pins 1, 3, 5, ...
pub struct ApicBus {
    /// By index; [`Self::by_id`] finds IDs.
    slots: Box<[Slot]>,
    /// (ID, index), sorted.
    ids: Box<[(u32, usize)]>,
    /// Where the search for the lowest priority starts.
    turn: AtomicUsize,
    eoi: OnceLock<Vec<Weak<dyn EoiSink>>>,
    ext_int: OnceLock<Weak<dyn ExtIntSource>>,
}

impl std::fmt::Debug for ApicBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApicBus({} APICs)", self.slots.len())
    }
}

impl ApicBus {
    /// One APIC for each (APIC ID, event word) of `cpus`; the first is the boot processor's. IDs
    /// must differ.
    pub fn new(
        cpus: Vec<(u32, Arc<VcpuEvents>)>,
        features: ApicFeatures,
        clocks: &ApicClocks,
        timers: &dyn TimerService,
    ) -> Arc<Self> {
        let slots: Box<[Slot]> = cpus
            .into_iter()
            .enumerate()
            .map(|(index, (id, events))| {
                let address = Arc::new(Address::default());
                let clocks = clocks.clone();
                let apic = LocalApic::new(index, id, features, clocks, events, address.clone());
                Slot {
                    id,
                    address,
                    apic: Timed::new(apic, timers),
                }
            })
            .collect();
        let mut ids: Box<[_]> = slots.iter().enumerate().map(|(i, s)| (s.id, i)).collect();
        ids.sort_unstable();
        Arc::new(Self {
            slots,
            ids,
            turn: AtomicUsize::new(0),
            eoi: OnceLock::new(),
            ext_int: OnceLock::new(),
        })
    }

    /// Wires the IOAPICs' EOI input and the PIC. Once; a second call changes nothing.
    pub fn connect(&self, ioapics: Vec<Weak<dyn EoiSink>>, pic: Weak<dyn ExtIntSource>) {
        let _ = self.eoi.set(ioapics);
        let _ = self.ext_int.set(pic);
    }

    /// Number of APICs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The registers of APIC `index`, locked (reset, save, restore, firmware set-up).
    #[must_use]
    pub fn apic(&self, index: usize) -> Option<TimedGuard<'_, LocalApic>> {
        self.slots.get(index).map(|s| s.apic.lock())
    }

    /// Resets all APICs.
    pub fn reset(&self) {
        for slot in &self.slots {
            slot.apic.lock().reset();
        }
    }

    /// The handle of the thread of vCPU `index`.
    #[must_use]
    pub fn cpu(self: &Arc<Self>, index: usize) -> Option<CpuApic> {
        (index < self.slots.len()).then(|| CpuApic {
            bus: self.clone(),
            index,
        })
    }

    fn by_id(&self, id: u32) -> Option<usize> {
        let at = self.ids.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(self.ids[at].1)
    }

    fn addressed(&self, message: &Message, index: usize) -> bool {
        let slot = &self.slots[index];
        let address = slot.address.get();
        address.enabled()
            && match message.to {
                Destination::Physical(id) => {
                    // FFh from an 8-bit source is everybody, as it is to an APIC in xAPIC mode.
                    let all = if message.wide && address.x2apic() {
                        id == u32::MAX
                    } else {
                        id == 0xff || id == u32::MAX
                    };
                    all || id == slot.id
                }
                Destination::Logical(dest) => address.logical(dest, message.wide),
                Destination::Itself(sender) => index == sender,
                Destination::All => true,
                Destination::AllBut(sender) => index != sender,
            }
    }

    /// The index of the only APIC that `message` can be for, where that is known at once.
    fn single(&self, message: &Message) -> Option<usize> {
        match message.to {
            Destination::Itself(sender) => Some(sender),
            Destination::Physical(id) if id != 0xff && id != u32::MAX => self.by_id(id),
            _ => None,
        }
    }

    /// Delivers a message. Whether any APIC accepted it.
    pub fn send(&self, message: &Message) -> bool {
        if let Some(index) = self.single(message) {
            return index < self.slots.len()
                && self.addressed(message, index)
                && self.slots[index].apic.lock().receive(message);
        }
        if message.to_one {
            return self.send_to_one(message);
        }
        let mut accepted = false;
        for (index, slot) in self.slots.iter().enumerate() {
            if self.addressed(message, index) {
                accepted |= slot.apic.lock().receive(message);
            }
        }
        accepted
    }

    /// Lowest-priority delivery: to the addressed APIC with the lowest processor priority; among
    /// equals they take turns.
    fn send_to_one(&self, message: &Message) -> bool {
        let n = self.slots.len();
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut candidates: Vec<(u8, usize)> = (0..n)
            .map(|i| start.wrapping_add(i) % n)
            .filter(|&i| self.addressed(message, i))
            .map(|i| (self.slots[i].apic.lock().ppr() >> 4, i))
            .collect();
        // Stable: equals keep their turn.
        candidates.sort_by_key(|&(priority, _)| priority);
        candidates
            .iter()
            .any(|&(_, i)| self.slots[i].apic.lock().receive(message))
    }

    /// Delivers a message-signalled interrupt. Whether any APIC accepted it.
    pub fn send_msi(&self, address: u64, data: u32) -> bool {
        Message::from_msi(address, data).is_some_and(|m| self.send(&m))
    }

    fn end_of_interrupt(&self, vector: u8) {
        for sink in self.eoi.get().into_iter().flatten() {
            if let Some(sink) = sink.upgrade() {
                sink.end_of_interrupt(vector);
            }
        }
    }
}

impl IrqSink for ApicBus {
    fn set_level(&self, pin: u32, level: bool) {
        if let Some(slot) = self.slots.get(pin as usize / 2) {
            slot.apic.lock().set_lint(pin as usize % 2, level);
        }
    }
}

/// A vCPU thread's own APIC.
#[derive(Debug, Clone)]
pub struct CpuApic {
    bus: Arc<ApicBus>,
    index: usize,
}

impl CpuApic {
    fn lock(&self) -> TimedGuard<'_, LocalApic> {
        self.bus.slots[self.index].apic.lock()
    }

    fn perform(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => {
                self.bus.send(&message);
            }
            Effect::Eoi(vector) => self.bus.end_of_interrupt(vector),
        }
    }

    /// The guest-physical base of this CPU's 4 KB register window; `None` in x2APIC mode or when
    /// the APIC is disabled. Without a lock.
    #[inline]
    #[must_use]
    pub fn window(&self) -> Option<u64> {
        self.bus.slots[self.index].address.window()
    }

    /// A load from the window.
    pub fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        self.lock().mmio_read(offset, size)
    }

    /// A store to the window.
    pub fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        let effect = self.lock().mmio_write(offset, size, value);
        self.perform(effect);
    }

    /// RDMSR of IA32_APIC_BASE (1Bh), IA32_TSC_DEADLINE (6E0h) or 800h to 8FFh.
    ///
    /// # Errors
    /// [`MsrError`]: #GP(0).
    pub fn msr_read(&self, msr: u32) -> Result<u64, MsrError> {
        self.lock().msr_read(msr)
    }

    /// WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or 800h to 8FFh.
    ///
    /// # Errors
    /// [`MsrError`]: #GP(0).
    pub fn msr_write(&self, msr: u32, value: u64) -> Result<(), MsrError> {
        let effect = self.lock().msr_write(msr, value)?;
        self.perform(effect);
        Ok(())
    }

    /// CR8, 0 to 15.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.lock().cr8()
    }

    /// MOV to CR8, 0 to 15.
    pub fn set_cr8(&self, value: u8) {
        self.lock().set_tpr(value << 4);
    }

    /// Interrupt acknowledge: the vector to deliver; `None` when the interrupt has gone.
    #[must_use]
    pub fn ack(&self) -> Option<u8> {
        let answer = self.lock().ack();
        match answer {
            Ack::None => None,
            Ack::Vector(vector) => Some(vector),
            Ack::ExtInt => Some(self.bus.ext_int.get()?.upgrade()?.acknowledge()),
        }
    }
}
