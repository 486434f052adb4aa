//! Block device (5.2).
//!
//! Requests are handed to a [`BlockBackend`], which works on threads of its own and completes them
//! in any order. Flush means flush: without FLUSH negotiated, every write is made durable before it
//! completes. Not modelled: geometry, topology hints, lifetime, secure erase, zoned storage.

use super::{Broken, Chain, Driver, Interrupts, Span, VirtQueue, VirtioDevice};
use mimeo_bus::{BlockBackend, BlockDone, BlockOperation, BlockRequest};
use mimeo_memory::GuestMemory;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes in a sector, whatever the block size.
const SECTOR: u64 = 512;
/// Descriptors of data in one request.
const SEGMENTS: u32 = 254;
/// Ranges in one discard or write-zeroes request.
const RANGES: u32 = 64;
/// Sectors in one such range.
const RANGE_SECTORS: u32 = 1 << 22;
/// Bytes of data in one request.
const MOST_DATA: u64 = 64 << 20;

mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const QUEUES: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}
/// Request types.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}
/// Status bytes.
mod status {
    pub const OK: u8 = 0;
    pub const ERROR: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

/// What the driver has set up, and the work in flight.
#[derive(Default)]
struct State {
    /// Counts resets: what comes back from before one touches no queue.
    epoch: u64,
    in_flight: usize,
    queues: Vec<Option<VirtQueue>>,
    interrupts: Option<Arc<Interrupts>>,
    memory: Option<Arc<GuestMemory>>,
    /// FLUSH was negotiated: the driver flushes when it wants to.
    flushes: bool,
}

impl State {
    /// Gives a request back.
    fn complete(&mut self, queue: usize, head: u16, written: u32) {
        let Some(interrupts) = self.interrupts.clone() else {
            return;
        };
        let Some(q) = self.queues.get_mut(queue).and_then(Option::as_mut) else {
            return;
        };
        match q.push(head, written).and_then(|()| q.wants_interrupt()) {
            Ok(true) => interrupts.used(queue),
            Ok(false) => {}
            Err(Broken) => interrupts.needs_reset(),
        }
    }
}

/// A block device.
pub struct VirtioBlock {
    backend: Arc<dyn BlockBackend>,
    /// Up to 20 bytes.
    serial: [u8; 20],
    queue_sizes: Vec<u16>,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request of a driver on its way: how it is given back.
struct Ticket {
    state: Arc<Mutex<State>>,
    memory: Arc<GuestMemory>,
    epoch: u64,
    queue: usize,
    head: u16,
    /// The status byte's place.
    status: Span,
    /// Bytes that the device writes if all goes well, the status byte included.
    written: u32,
}

impl Ticket {
    fn finish(self, result: u8) {
        let mut state = lock(&self.state);
        state.in_flight -= 1;
        if state.epoch == self.epoch {
            self.status.write(&self.memory, &[result]);
            let written = if result == status::OK {
                self.written
            } else {
                1
            };
            state.complete(self.queue, self.head, written);
        }
    }

    fn into_done(self) -> BlockDone {
        BlockDone::new(Box::new(move |result| {
            self.finish(if result.is_ok() {
                status::OK
            } else {
                status::ERROR
            });
        }))
    }
}

/// A request as it was found in a chain.
struct Parsed {
    kind: u32,
    sector: u64,
    input: Span,
    output: Span,
    status: Span,
}

/// Takes a chain apart: header, data, status byte (5.2.6).
fn parse(chain: Chain, memory: &GuestMemory) -> Result<Parsed, Broken> {
    let (mut input, mut output) = (chain.readable, chain.writable);
    let header = input.take_front(16).ok_or(Broken)?;
    let status = output.take_back(1).ok_or(Broken)?;
    let mut bytes = [0; 16];
    header.read(memory, &mut bytes);
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
    Ok(Parsed {
        kind: u32::from_le_bytes([k0, k1, k2, k3]),
        sector: u64::from_le_bytes(sector),
        input,
        output,
        status,
    })
}

impl VirtioBlock {
    /// A disk on `backend` with `queues` queues (1 to 16); the guest sees the first 20 bytes of
    /// `serial`.
    #[must_use]
    pub fn new(backend: Arc<dyn BlockBackend>, serial: &str, queues: u16) -> Self {
        let mut id = [0; 20];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self {
            backend,
            serial: id,
            queue_sizes: vec![256; usize::from(queues.clamp(1, 16))],
            state: Arc::default(),
        }
    }

    fn capacity(&self) -> u64 {
        self.backend.capacity() / SECTOR
    }

    /// The byte offset of `len` bytes at `sector`, if the disk has them.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len.div_ceil(SECTOR))?;
        let fits = end <= self.capacity() && len.is_multiple_of(SECTOR);
        fits.then(|| sector * SECTOR)
    }

    /// What a request asks of the backend, with its data; or the status it ends with at once.
    fn operation(
        &self,
        r: &mut Parsed,
        memory: &GuestMemory,
        flushes: bool,
    ) -> Result<(BlockOperation, Span), u8> {
        let (input, output) = (&mut r.input, &mut r.output);
        let writes = !matches!(r.kind, kind::IN | kind::FLUSH | kind::GET_ID);
        if writes && self.backend.read_only() {
            return Err(status::ERROR);
        }
        if input.len().max(output.len()) > MOST_DATA {
            return Err(status::ERROR);
        }
        match r.kind {
            kind::IN => {
                let at = self.place(r.sector, output.len()).ok_or(status::ERROR)?;
                Ok((BlockOperation::Read { at }, std::mem::take(output)))
            }
            kind::OUT => {
                let at = self.place(r.sector, input.len()).ok_or(status::ERROR)?;
                let durable = !flushes;
                Ok((BlockOperation::Write { at, durable }, std::mem::take(input)))
            }
            kind::FLUSH => Ok((BlockOperation::Flush, Span::default())),
            kind::DISCARD | kind::WRITE_ZEROES => {
                let ranges = self.ranges(r.kind, input, memory)?;
                Ok((ranges, Span::default()))
            }
            _ => Err(status::UNSUPPORTED),
        }
    }

    /// The ranges of a discard or write-zeroes request (5.2.6.2).
    fn ranges(&self, kind: u32, input: &Span, memory: &GuestMemory) -> Result<BlockOperation, u8> {
        let zeroes = kind == kind::WRITE_ZEROES;
        let len = input.len();
        if len == 0 || !len.is_multiple_of(16) || len / 16 > u64::from(RANGES) {
            return Err(status::ERROR);
        }
        // At most 1024 bytes.
        let mut bytes = vec![0; len as usize];
        input.read(memory, &mut bytes);
        let mut ranges = Vec::new();
        let mut unmap = true;
        for range in bytes.chunks_exact(16) {
            let word =
                |i: usize| u32::from_le_bytes([range[i], range[i + 1], range[i + 2], range[i + 3]]);
            let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
            let (sectors, flags) = (word(8), word(12));
            // Only UNMAP is known, and only for write-zeroes.
            if flags & !u32::from(zeroes) != 0 {
                return Err(status::UNSUPPORTED);
            }
            unmap &= flags & 1 != 0;
            let bytes = u64::from(sectors) * SECTOR;
            let at = self
                .place(sector, bytes)
                .filter(|_| sectors <= RANGE_SECTORS);
            ranges.push((at.ok_or(status::ERROR)?, bytes));
        }
        Ok(if zeroes {
            BlockOperation::WriteZeroes { ranges, unmap }
        } else {
            BlockOperation::Discard { ranges }
        })
    }

    /// Starts one request.
    fn start(&self, state: &mut State, queue: usize, chain: Chain) -> Result<(), Broken> {
        let memory = state.memory.clone().ok_or(Broken)?;
        let head = chain.head;
        let mut r = parse(chain, &memory)?;
        if r.kind == kind::GET_ID {
            let n = r.output.write(&memory, &self.serial);
            r.status.write(&memory, &[status::OK]);
            state.complete(queue, head, n as u32 + 1);
            return Ok(());
        }
        let flushes = state.flushes;
        match self.operation(&mut r, &memory, flushes) {
            Err(result) => {
                r.status.write(&memory, &[result]);
                state.complete(queue, head, 1);
            }
            Ok((operation, data)) => {
                state.in_flight += 1;
                // At most 64 MB.
                let read = match operation {
                    BlockOperation::Read { .. } => data.len() as u32,
                    _ => 0,
                };
                let ticket = Ticket {
                    state: self.state.clone(),
                    memory: memory.clone(),
                    epoch: state.epoch,
                    queue,
                    head,
                    status: r.status,
                    written: read + 1,
                };
                self.backend.submit(BlockRequest {
                    operation,
                    memory,
                    data: data.into_pieces(),
                    done: ticket.into_done(),
                });
            }
        }
        Ok(())
    }

    fn run(&self, state: &mut State, queue: usize) -> Result<(), Broken> {
        loop {
            let q = state.queues.get_mut(queue).and_then(Option::as_mut);
            let Some(q) = q else {
                return Ok(());
            };
            match q.pop()? {
                Some(chain) => self.start(state, queue, chain)?,
                None if q.want_notification()? => {}
                None => return Ok(()),
            }
        }
    }
}

impl VirtioDevice for VirtioBlock {
    fn id(&self) -> u16 {
        2
    }

    fn class(&self) -> [u8; 3] {
        [1, 0x80, 0]
    }

    fn features(&self) -> u64 {
        let mut bits = feature::SEG_MAX | feature::BLOCK_SIZE | feature::FLUSH;
        if self.queue_sizes.len() > 1 {
            bits |= feature::QUEUES;
        }
        if self.backend.read_only() {
            bits |= feature::READ_ONLY;
        } else {
            bits |= feature::DISCARD | feature::WRITE_ZEROES;
        }
        bits
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        let mut c = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.capacity().to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes());
        for at in [36, 48] {
            put(at, &RANGE_SECTORS.to_le_bytes());
            put(at + 4, &RANGES.to_le_bytes());
        }
        put(44, &8u32.to_le_bytes());
        put(56, &[1]);
        c
    }

    fn activate(&mut self, driver: Driver) {
        let mut state = lock(&self.state);
        state.flushes = driver.features & feature::FLUSH != 0;
        state.queues = driver.queues;
        state.interrupts = Some(driver.interrupts);
        state.memory = Some(driver.memory);
    }

    fn notify(&mut self, queue: u16) {
        let mut state = lock(&self.state);
        if self.run(&mut state, usize::from(queue)).is_err()
            && let Some(interrupts) = &state.interrupts
        {
            interrupts.needs_reset();
        }
    }

    fn reset(&mut self) {
        let mut state = lock(&self.state);
        state.epoch += 1;
        state.queues.clear();
        (state.interrupts, state.memory) = (None, None);
    }

    fn busy(&self) -> bool {
        lock(&self.state).in_flight != 0
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        let state = lock(&self.state);
        let position = |q: &Option<VirtQueue>| q.as_ref().map_or((0, 0), VirtQueue::position);
        state.queues.iter().map(position).collect()
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
