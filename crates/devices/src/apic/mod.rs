//! Local APICs and the bus that carries interrupt messages between them.
//!
//! Models: Intel SDM vol. 3, chapter 12 (xAPIC and x2APIC, timer with TSC-deadline, LVT, IPIs,
//! EOI broadcast and its suppression) and MSIs as messages. Not modelled: SMIs (there is no SMM),
//! CMCI, the performance counter's and the thermal sensor's interrupts (their LVT entries hold what
//! is written), bus arbitration registers, extended APIC space. The APIC ID cannot be written; the
//! reset default of the xAPIC ID is the machine's. Lines carry assertion, not voltage, so the polarity
//! bits hold what is written and change nothing.
//!
//! Locks: one per APIC, and no code holds two of them. Order: device, PIC or IOAPIC, APIC, then
//! the timer service's lock or a vCPU's event word (leaves). The PIC and the IOAPICs are never
//! called with an APIC's lock held. [`VcpuEvents`](mimeo_vcpu::VcpuEvents) kicks run under the
//! APIC's lock and must not come back to it.

mod address;
mod bus;
mod message;
mod regs;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use bus::{ApicBus, CpuApic, EoiSink, ExtIntSource, MessageSink};
pub use message::{Delivery, Destination, Message};
pub use regs::{Ack, ApicFeatures, Effect, LocalApic, LocalApicV1};
pub use timer::{ApicClocks, ApicTimerV1};
pub use vectors::VectorSet;
