//! A split ring as a device uses it: rust-vmm's `virtio-queue` behind checks of everything that the
//! driver says.

use mimeo_memory::{GuestMemory, RegionKind};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// The most descriptors that one chain may have, those of an indirect table included.
const LONGEST: usize = 1024;
/// Flag of the available ring: no interrupts, please.
const NO_INTERRUPT: u16 = 1;

/// The driver has broken the rules of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the driver broke the rules of a virtio ring")]
pub struct Broken;

/// Guest memory in pieces: (address, length). All of it was checked to be guest memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span(Vec<(u64, u32)>);

impl Span {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|&(_, len)| u64::from(len)).sum()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces.
    #[must_use]
    pub fn pieces(&self) -> &[(u64, u32)] {
        &self.0
    }

    /// The pieces, owned.
    #[must_use]
    pub fn into_pieces(self) -> Vec<(u64, u32)> {
        self.0
    }

    /// Cuts off the first `n` bytes; `None` (and nothing happens) when there are fewer.
    pub fn take_front(&mut self, n: u64) -> Option<Self> {
        self.len().checked_sub(n)?;
        let (front, back) = std::mem::take(self).split(n);
        *self = back;
        Some(front)
    }

    /// Cuts off the last `n` bytes; `None` (and nothing happens) when there are fewer.
    pub fn take_back(&mut self, n: u64) -> Option<Self> {
        let keep = self.len().checked_sub(n)?;
        let (front, back) = std::mem::take(self).split(keep);
        *self = front;
        Some(back)
    }

    fn split(self, mut n: u64) -> (Self, Self) {
        let (mut front, mut back) = (Self::default(), Self::default());
        for (gpa, len) in self.0 {
            // Below 2^32, as the length is.
            let here = n.min(u64::from(len)) as u32;
            if here > 0 {
                front.0.push((gpa, here));
            }
            if here < len {
                back.0.push((gpa + u64::from(here), len - here));
            }
            n -= u64::from(here);
        }
        (front, back)
    }

    /// Reads from the beginning as much as `buffer` holds; gives the number of bytes.
    pub fn read(&self, memory: &GuestMemory, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for &(gpa, len) in &self.0 {
            let n = (len as usize).min(buffer.len() - done);
            // Checked when the chain was taken; memory does not go away.
            if memory.read(gpa, &mut buffer[done..done + n]).is_err() {
                break;
            }
            done += n;
        }
        done
    }

    /// Writes `bytes` from the beginning as far as there is room; gives the number of bytes.
    pub fn write(&self, memory: &GuestMemory, bytes: &[u8]) -> usize {
        let mut done = 0;
        for &(gpa, len) in &self.0 {
            let n = (len as usize).min(bytes.len() - done);
            if memory.write(gpa, &bytes[done..done + n]).is_err() {
                break;
            }
            done += n;
        }
        done
    }
}

/// A chain of buffers that the driver has made available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor, for [`VirtQueue::push`].
    pub head: u16,
    /// What the device may read.
    pub readable: Span,
    /// What the device may write.
    pub writable: Span,
}

/// A queue that a driver has set up.
pub struct VirtQueue {
    queue: Queue,
    memory: Arc<GuestMemory>,
    broken: bool,
    /// The next used entry when the driver was last thought of.
    told: u16,
}

/// Where a queue is and how it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) event_index: bool,
    pub(super) position: (u16, u16),
}

/// Whether all of `gpa..gpa + len` is memory, and RAM if it is to be `written`.
pub(super) fn is_memory(memory: &GuestMemory, gpa: u64, len: u64, written: bool) -> bool {
    let Some(end) = gpa.checked_add(len) else {
        return false;
    };
    let mut at = gpa;
    for (base, size, kind) in memory.regions() {
        if at >= end {
            break;
        }
        if at >= base && at - base < size && (kind == RegionKind::Ram || !written) {
            at = base + size;
        }
    }
    at >= end && len > 0
}

impl VirtQueue {
    /// The queue that `setup` describes.
    ///
    /// # Errors
    /// [`Broken`] when a ring is not aligned, not in memory, or of an impossible size.
    pub(super) fn new(setup: &Setup, memory: &Arc<GuestMemory>) -> Result<Self, Broken> {
        let n = u64::from(setup.size);
        let in_memory = is_memory(memory, setup.descriptors, 16 * n, false)
            && is_memory(memory, setup.available, 6 + 2 * n, false)
            && is_memory(memory, setup.used, 6 + 8 * n, true);
        let aligned =
            setup.descriptors & 15 == 0 && setup.available & 1 == 0 && setup.used & 3 == 0;
        // The crate takes a ring at zero for one that was not set up.
        if !in_memory || !aligned || setup.available == 0 || !setup.size.is_power_of_two() {
            return Err(Broken);
        }
        let mut queue = Queue::new(setup.size).map_err(|_| Broken)?;
        let halves = |a: u64| (Some(a as u32), Some((a >> 32) as u32));
        let (low, high) = halves(setup.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(setup.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(setup.used);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(setup.event_index);
        queue.set_next_avail(setup.position.0);
        queue.set_next_used(setup.position.1);
        queue.set_ready(true);
        Ok(Self {
            queue,
            memory: memory.clone(),
            broken: false,
            told: setup.position.1,
        })
    }

    /// (next available, next used).
    #[must_use]
    pub fn position(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }

    /// The next chain that the driver has made available.
    ///
    /// # Errors
    /// [`Broken`], now and for ever after.
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if self.broken {
            return Err(Broken);
        }
        let chain = self.try_pop();
        self.broken |= chain.is_err();
        chain
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, Broken> {
        let vm = self.memory.vm();
        let next = self.queue.next_avail();
        let available = self.queue.avail_idx(vm, Ordering::Acquire);
        if available.map_err(|_| Broken)?.0 == next {
            return Ok(None);
        }
        let size = self.queue.size();
        // Fails when more is available than the ring holds.
        let mut iter = self.queue.iter(vm).map_err(|_| Broken)?;
        let mut descriptors = iter.next().ok_or(Broken)?;
        let head = descriptors.head_index();
        if head >= size {
            return Err(Broken);
        }
        let mut chain = Chain {
            head,
            readable: Span::default(),
            writable: Span::default(),
        };
        let mut more = true;
        for (count, d) in descriptors.by_ref().enumerate() {
            let span = if d.is_write_only() {
                &mut chain.writable
            } else {
                &mut chain.readable
            };
            span.0.push((d.addr().0, d.len()));
            // What is read comes before what is written (2.7.4.2).
            let misplaced = !d.is_write_only() && !chain.writable.0.is_empty();
            let outside = !is_memory(&self.memory, d.addr().0, d.len().into(), d.is_write_only());
            if misplaced || outside || count >= LONGEST {
                return Err(Broken);
            }
            more = d.has_next();
        }
        // The iterator ends at the chain's end, but also at whatever it does not like: a loop, a
        // descriptor that does not exist, an indirect table in an indirect table.
        if more { Err(Broken) } else { Ok(Some(chain)) }
    }

    /// Gives a chain back, of which the device has written `len` bytes.
    ///
    /// # Errors
    /// [`Broken`] when the queue is.
    pub fn push(&mut self, head: u16, len: u32) -> Result<(), Broken> {
        self.push_all(&[(head, len)])
    }

    /// Gives chains back together: the driver sees all of them or none (2.7.14).
    ///
    /// # Errors
    /// [`Broken`] when the queue is.
    pub fn push_all(&mut self, chains: &[(u16, u32)]) -> Result<(), Broken> {
        if self.broken {
            return Err(Broken);
        }
        let pushed = self.try_push(chains);
        self.broken |= pushed.is_err();
        pushed
    }

    fn try_push(&mut self, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = self.queue.next_used();
        for &(head, len) in chains {
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&len.to_le_bytes());
            // Inside the ring, which was found to be in memory.
            let at = ring + 4 + 8 * u64::from(next % size);
            self.memory.write(at, &element).map_err(|_| Broken)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let (vm, index) = (self.memory.vm(), GuestAddress(ring + 2));
        let stored = vm.store(next.to_le(), index, Ordering::Release);
        stored.map_err(|_| Broken)
    }

    /// Whether the driver wants to be interrupted for what was given back since the last call.
    ///
    /// # Errors
    /// [`Broken`] when the queue is.
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        if self.broken {
            return Err(Broken);
        }
        // What was given back is seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        let next = self.queue.next_used();
        let before = std::mem::replace(&mut self.told, next);
        // The event index stands behind the available ring's last entry (2.7.10).
        let behind = 4 + 2 * u64::from(self.queue.size());
        let event_index = self.queue.event_idx_enabled();
        let at = self.queue.avail_ring() + if event_index { behind } else { 0 };
        let mut word = [0; 2];
        self.memory.read(at, &mut word).map_err(|_| Broken)?;
        let word = u16::from_le_bytes(word);
        Ok(if event_index {
            let passed = next.wrapping_sub(word).wrapping_sub(1);
            passed < next.wrapping_sub(before)
        } else {
            word & NO_INTERRUPT == 0
        })
    }

    /// Asks the driver to notify of what it makes available from now on; true when there is
    /// something already.
    ///
    /// # Errors
    /// [`Broken`] when the queue is.
    pub fn want_notification(&mut self) -> Result<bool, Broken> {
        if self.broken {
            return Err(Broken);
        }
        let more = self.queue.enable_notification(self.memory.vm());
        more.map_err(|_| Broken)
    }
}
