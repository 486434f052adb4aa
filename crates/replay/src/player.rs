//! Replaying: a [`CpuIo`] that answers from a log and has no machine behind it.

use crate::{Entry, LogError, LogReader};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{CpuIo, EventBits, MsrError, VcpuEvents};
use std::sync::Arc;

/// A [`CpuIo`] that gives the recorded answers. After the first difference it answers zeros, raises
/// STOP on the running vCPU and keeps the error.
#[derive(Debug)]
pub struct Replayer<'a> {
    log: &'a mut LogReader,
    events: &'a [Arc<VcpuEvents>],
    memory: &'a GuestMemory,
    cpu: usize,
    error: Option<LogError>,
}

/// Bits that devices own; the others belong to the control plane and to engines.
const DEVICE_BITS: u32 =
    EventBits::INTR.0 | EventBits::NMI.0 | EventBits::INIT.0 | EventBits::SIPI.0;

/// Makes an event word say `bits` (device bits only).
pub(crate) fn set_events(events: &VcpuEvents, bits: u32) {
    events.take(EventBits(DEVICE_BITS));
    if bits & EventBits::SIPI.0 != 0 {
        events.raise_sipi((bits >> 8) as u8);
    }
    let rest = bits & DEVICE_BITS & !EventBits::SIPI.0;
    if rest != 0 {
        events.raise(EventBits(rest));
    }
}

impl<'a> Replayer<'a> {
    /// Answers vCPU `cpu` from `log`.
    pub fn new(
        log: &'a mut LogReader,
        events: &'a [Arc<VcpuEvents>],
        memory: &'a GuestMemory,
        cpu: usize,
    ) -> Self {
        Self {
            log,
            events,
            memory,
            cpu,
            error: None,
        }
    }

    /// The first difference, if there was one.
    ///
    /// # Errors
    /// That difference.
    pub fn finish(self) -> Result<(), LogError> {
        self.error.map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: LogError) {
        if self.error.is_none() {
            self.error = Some(error);
            if let Some(events) = self.events.get(self.cpu) {
                events.raise(EventBits::STOP);
            }
        }
    }

    /// Takes the next answer; `pick` gives the answer out of the right kind of entry with the right
    /// arguments, `what` describes the request.
    fn answer<T: Default>(&mut self, what: &str, pick: impl Fn(&Entry) -> Option<T>) -> T {
        if self.error.is_some() {
            return T::default();
        }
        let result = self.dma().and_then(|()| {
            let entry = self.log.next_entry()?;
            let value = pick(&entry).ok_or_else(|| self.log.diverged(&entry, what))?;
            self.trailing()?;
            Ok(value)
        });
        result.unwrap_or_else(|error| {
            self.fail(error);
            T::default()
        })
    }

    /// DMA that happened inside the callback stands before its answer.
    fn dma(&mut self) -> Result<(), LogError> {
        while let Entry::Dma { .. } = self.log.peek()? {
            apply_dma(self.memory, &self.log.next_entry()?);
        }
        Ok(())
    }

    /// Event changes of the callback stand after its answer.
    fn trailing(&mut self) -> Result<(), LogError> {
        while let &Entry::Events { cpu, bits } = self.log.peek()? {
            self.log.next_entry()?;
            if let Some(events) = self.events.get(cpu as usize) {
                set_events(events, bits);
            }
        }
        Ok(())
    }
}

/// Does a recorded DMA write; a write outside memory (a damaged log) does nothing and shows up as a
/// different final hash.
pub(crate) fn apply_dma(memory: &GuestMemory, entry: &Entry) {
    if let Entry::Dma { gpa, bytes } = entry {
        let _ = memory.write(*gpa, bytes);
    }
}

impl CpuIo for Replayer<'_> {
    fn port_read(&mut self, p: u16, s: u8) -> u32 {
        self.answer(&format!("in {p:#x}/{s}"), |e| match e {
            &Entry::PortRead { port, size, value } if (port, size) == (p, s) => Some(value),
            _ => None,
        })
    }

    fn port_write(&mut self, p: u16, s: u8, v: u32) {
        self.answer(&format!("out {p:#x}/{s} <- {v:#x}"), |e| {
            (*e == Entry::PortWrite {
                port: p,
                size: s,
                value: v,
            })
            .then_some(())
        });
    }

    fn mmio_read(&mut self, a: u64, s: u8) -> u64 {
        self.answer(&format!("mmio read {a:#x}/{s}"), |e| match e {
            &Entry::MmioRead { gpa, size, value } if (gpa, size) == (a, s) => Some(value),
            _ => None,
        })
    }

    fn mmio_write(&mut self, a: u64, s: u8, v: u64) {
        self.answer(&format!("mmio write {a:#x}/{s} <- {v:#x}"), |e| {
            (*e == Entry::MmioWrite {
                gpa: a,
                size: s,
                value: v,
            })
            .then_some(())
        });
    }

    fn ack_interrupt(&mut self) -> Option<u8> {
        self.answer("interrupt acknowledge", |e| match e {
            &Entry::Ack(vector) => Some(vector),
            _ => None,
        })
    }

    fn cr8_read(&mut self) -> u8 {
        self.answer("read of cr8", |e| match e {
            &Entry::Cr8Read(value) => Some(value),
            _ => None,
        })
    }

    fn cr8_write(&mut self, v: u8) {
        self.answer(&format!("cr8 <- {v}"), |e| {
            (*e == Entry::Cr8Write(v)).then_some(())
        });
    }

    fn msr_read(&mut self, m: u32) -> Result<u64, MsrError> {
        let value = self.answer(&format!("rdmsr {m:#x}"), |e| match e {
            &Entry::MsrRead { msr, value } if msr == m => Some(value),
            _ => None,
        });
        value.ok_or(MsrError)
    }

    fn msr_write(&mut self, m: u32, v: u64) -> Result<(), MsrError> {
        let ok = self.answer(&format!("wrmsr {m:#x} <- {v:#x}"), |e| match e {
            &Entry::MsrWrite { msr, value, ok } if (msr, value) == (m, v) => Some(ok),
            _ => None,
        });
        if ok { Ok(()) } else { Err(MsrError) }
    }

    fn tsc(&mut self, _retired: u64) -> u64 {
        self.answer("rdtsc", |e| match e {
            &Entry::Tsc(value) => Some(value),
            _ => None,
        })
    }

    fn random(&mut self) -> Option<u64> {
        self.answer("random number", |e| match e {
            &Entry::Random(value) => Some(value),
            _ => None,
        })
    }

    fn hypercall(&mut self, a: [u64; 5]) -> u64 {
        self.answer(&format!("hypercall {a:x?}"), |e| match e {
            &Entry::Hypercall { args, result } if args == a => Some(result),
            _ => None,
        })
    }
}
