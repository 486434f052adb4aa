//! Recording: a [`CpuIo`] that answers from the machine and writes every answer down.

use crate::{Entry, LogError, LogWriter, VirtualClock};
use mimeo_memory::{DeviceWriteObserver, GuestMemory};
use mimeo_vcpu::{CpuIo, EventBits, MsrError, VcpuEvents};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A log that several writers share. The first failure sticks and is given by [`Self::check`].
#[derive(Debug, Clone)]
pub struct SharedLog(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    writer: LogWriter,
    failure: Option<LogError>,
    /// The entries of a slice whose end is not known yet.
    slice: Option<Vec<Entry>>,
}

impl Shared {
    fn write(&mut self, entry: &Entry) {
        if self.failure.is_none() {
            self.failure = self.writer.push(entry).err();
        }
    }
}

impl SharedLog {
    /// Shares a writer.
    #[must_use]
    pub fn new(writer: LogWriter) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            writer,
            failure: None,
            slice: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an entry.
    pub fn push(&self, entry: &Entry) {
        let mut log = self.lock();
        match &mut log.slice {
            Some(slice) => slice.push(entry.clone()),
            None => log.write(entry),
        }
    }

    /// Holds back what follows until [`Self::end_slice`]: where a slice ends is only known then.
    pub(crate) fn begin_slice(&self) {
        self.lock().slice = Some(Vec::new());
    }

    /// What was held back since [`Self::begin_slice`] or the last call.
    pub(crate) fn take_slice(&self) -> Vec<Entry> {
        self.lock().slice.replace(Vec::new()).unwrap_or_default()
    }

    /// Writes `run`, then what was held back, then `ran`.
    pub(crate) fn end_slice(&self, run: &Entry, ran: &Entry) {
        let mut log = self.lock();
        let slice = log.slice.take().unwrap_or_default();
        log.write(run);
        slice.iter().for_each(|entry| log.write(entry));
        log.write(ran);
    }

    /// Flushes, and gives the first error if any write failed.
    ///
    /// # Errors
    /// The first failure since the last call.
    pub fn check(&self) -> Result<(), LogError> {
        let mut log = self.lock();
        match log.failure.take() {
            Some(error) => Err(error),
            None => log.writer.finish(),
        }
    }
}

/// Writes device writes to guest memory down. Register it with the memory's tracker.
#[derive(Debug)]
pub struct DmaRecorder {
    memory: Weak<GuestMemory>,
    log: SharedLog,
}

impl DmaRecorder {
    /// An observer that logs what devices write to `memory`.
    #[must_use]
    pub fn new(memory: &Arc<GuestMemory>, log: SharedLog) -> Self {
        Self {
            memory: Arc::downgrade(memory),
            log,
        }
    }
}

impl DeviceWriteObserver for DmaRecorder {
    fn device_wrote(&self, page: usize, offset: usize, len: usize) {
        let Some(memory) = self.memory.upgrade() else {
            return;
        };
        let Some(base) = memory.page_address(page) else {
            return;
        };
        let gpa = base + offset as u64;
        let mut bytes = vec![0; len.min(4096)];
        if memory.read(gpa, &mut bytes).is_ok() {
            self.log.push(&Entry::Dma { gpa, bytes });
        }
    }
}

/// Where the TSC of a recorded vCPU comes from.
#[derive(Debug, Clone, Copy)]
enum Time<'a> {
    /// A clock, from the number of instructions retired since the slice began.
    Virtual(&'a VirtualClock, u64),
    /// The machine, from the number of instructions retired plus this.
    Machine(u64),
}

/// One vCPU's [`CpuIo`] while it is being recorded. The TSC comes from the virtual clock.
pub struct Recorder<'a> {
    inner: &'a mut dyn CpuIo,
    log: &'a SharedLog,
    time: Time<'a>,
    /// Event words of all vCPUs: a callback may change any of them.
    events: &'a [Arc<VcpuEvents>],
    seen: Vec<EventBits>,
}

impl std::fmt::Debug for Recorder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorder({:?})", self.time)
    }
}

impl<'a> Recorder<'a> {
    /// Wraps `inner` for a slice that starts at `slice_start` retired instructions.
    pub fn new(
        inner: &'a mut dyn CpuIo,
        log: &'a SharedLog,
        clock: &'a VirtualClock,
        events: &'a [Arc<VcpuEvents>],
        slice_start: u64,
    ) -> Self {
        Self::with_time(inner, log, events, Time::Virtual(clock, slice_start))
    }

    /// As [`Self::new`], but the TSC is the machine's at the vCPU's count of retired instructions plus
    /// `shift`.
    pub(crate) fn passing(
        inner: &'a mut dyn CpuIo,
        log: &'a SharedLog,
        events: &'a [Arc<VcpuEvents>],
        shift: u64,
    ) -> Self {
        Self::with_time(inner, log, events, Time::Machine(shift))
    }

    fn with_time(
        inner: &'a mut dyn CpuIo,
        log: &'a SharedLog,
        events: &'a [Arc<VcpuEvents>],
        time: Time<'a>,
    ) -> Self {
        let seen = events.iter().map(|e| e.pending()).collect();
        Self {
            inner,
            log,
            time,
            events,
            seen,
        }
    }

    /// Before a callback: what the vCPU itself took meanwhile is not a change by a device.
    fn before(&mut self) {
        for (seen, events) in self.seen.iter_mut().zip(self.events) {
            *seen = events.pending();
        }
    }

    fn after(&mut self, entry: &Entry) {
        self.log.push(entry);
        for (cpu, (seen, events)) in self.seen.iter_mut().zip(self.events).enumerate() {
            let now = events.pending();
            if now != *seen {
                *seen = now;
                let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
                self.log.push(&Entry::Events { cpu, bits: now.0 });
            }
        }
    }
}

impl CpuIo for Recorder<'_> {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.before();
        let value = self.inner.port_read(port, size);
        self.after(&Entry::PortRead { port, size, value });
        value
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.before();
        self.inner.port_write(port, size, value);
        self.after(&Entry::PortWrite { port, size, value });
    }

    fn mmio_read(&mut self, gpa: u64, size: u8) -> u64 {
        self.before();
        let value = self.inner.mmio_read(gpa, size);
        self.after(&Entry::MmioRead { gpa, size, value });
        value
    }

    fn mmio_write(&mut self, gpa: u64, size: u8, value: u64) {
        self.before();
        self.inner.mmio_write(gpa, size, value);
        self.after(&Entry::MmioWrite { gpa, size, value });
    }

    fn ack_interrupt(&mut self) -> Option<u8> {
        self.before();
        let vector = self.inner.ack_interrupt();
        self.after(&Entry::Ack(vector));
        vector
    }

    fn cr8_read(&mut self) -> u8 {
        self.before();
        let value = self.inner.cr8_read();
        self.after(&Entry::Cr8Read(value));
        value
    }

    fn cr8_write(&mut self, value: u8) {
        self.before();
        self.inner.cr8_write(value);
        self.after(&Entry::Cr8Write(value));
    }

    fn msr_read(&mut self, msr: u32) -> Result<u64, MsrError> {
        self.before();
        let result = self.inner.msr_read(msr);
        self.after(&Entry::MsrRead {
            msr,
            value: result.ok(),
        });
        result
    }

    fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        self.before();
        let result = self.inner.msr_write(msr, value);
        self.after(&Entry::MsrWrite {
            msr,
            value,
            ok: result.is_ok(),
        });
        result
    }

    fn tsc(&mut self, retired: u64) -> u64 {
        let value = match self.time {
            Time::Virtual(clock, start) => clock.tsc(retired.saturating_sub(start)),
            Time::Machine(shift) => self.inner.tsc(retired.wrapping_add(shift)),
        };
        self.log.push(&Entry::Tsc(value));
        value
    }

    fn random(&mut self) -> Option<u64> {
        let value = self.inner.random();
        self.log.push(&Entry::Random(value));
        value
    }

    fn hypercall(&mut self, args: [u64; 5]) -> u64 {
        self.before();
        let result = self.inner.hypercall(args);
        self.after(&Entry::Hypercall { args, result });
        result
    }
}
