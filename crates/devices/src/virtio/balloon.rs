//! Traditional memory balloon (5.5): inflate, deflate, statistics, free page reporting.
//!
//! What the guest gives up goes back to the host at once ([`GuestMemory::discard`]); what it takes
//! back reads as zero, without being asked for (MUST_TELL_HOST is not offered). Not modelled: free
//! page hints, page poison. The host's wish and the guest's answer are not part of a saved state:
//! the driver writes `actual` again when the wish is repeated.

use super::{Broken, Driver, Span, VirtQueue, VirtioDevice};
use mimeo_memory::GuestMemory;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a page as the balloon counts them, whatever the guest's.
const PAGE: u64 = 4096;
/// Bytes of page numbers in one request that are looked at; drivers send 1024.
const MOST_NUMBERS: u64 = 64 << 10;
/// Statistics that are kept.
const MOST_STATS: usize = 32;

mod feature {
    pub const STATS: u64 = 1 << 1;
    pub const REPORTING: u64 = 1 << 5;
}

/// Queues by what they are for; their numbers follow from the features (5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reporting,
}

#[derive(Default)]
struct State {
    driver: Option<Driver>,
    /// Pages that the host wants, and those that the guest says it has given.
    target: u32,
    actual: u32,
    stats: BTreeMap<u16, u64>,
    /// The buffer that the driver left for the next question about statistics.
    asked: Option<u16>,
    /// Bytes that went back to the host.
    returned: u64,
}

impl State {
    /// What queue `index` is for.
    fn role(&self, index: usize) -> Option<Role> {
        let features = self.driver.as_ref()?.features;
        let mut roles = vec![Role::Inflate, Role::Deflate];
        for (bit, role) in [
            (feature::STATS, Role::Stats),
            (feature::REPORTING, Role::Reporting),
        ] {
            if features & bit != 0 {
                roles.push(role);
            }
        }
        roles.get(index).copied()
    }

    fn stats_queue(&mut self) -> Option<(usize, &mut VirtQueue)> {
        let driver = self.driver.as_mut()?;
        if driver.features & feature::STATS == 0 {
            return None;
        }
        Some((2, driver.queues.get_mut(2)?.as_mut()?))
    }

    /// Puts statistics in: tag and value, ten bytes each (5.5.6.3).
    fn take_stats(&mut self, memory: &GuestMemory, span: &Span) {
        let mut bytes = [0; 10 * MOST_STATS];
        let n = span.read(memory, &mut bytes);
        for stat in bytes[..n].chunks_exact(10) {
            let (tag, value) = stat.split_at(2);
            let tag = u16::from_le_bytes([tag[0], tag[1]]);
            let value = value.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
            if self.stats.len() < MOST_STATS || self.stats.contains_key(&tag) {
                self.stats.insert(tag, value);
            }
        }
    }
}

/// Gives the pages whose numbers are in `span` back to the host, neighbours together.
fn discard_numbers(memory: &GuestMemory, span: &Span) -> u64 {
    let mut bytes = vec![0; span.len().min(MOST_NUMBERS) as usize];
    let n = span.read(memory, &mut bytes);
    let mut done = 0;
    let (mut first, mut pages) = (0, 0);
    for number in bytes[..n].chunks_exact(4) {
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        let number = u64::from(number);
        // Drivers hand out pages from either end.
        if number == first + pages {
            pages += 1;
        } else if number + 1 == first {
            (first, pages) = (number, pages + 1);
        } else {
            done += memory.discard(first * PAGE, pages * PAGE);
            (first, pages) = (number, 1);
        }
    }
    done + memory.discard(first * PAGE, pages * PAGE)
}

#[derive(Default)]
struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's hand on a balloon.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to give up `bytes` of its memory (whole pages of 4096; 2^44 at the most), and to
    /// take back what it gave beyond that.
    pub fn set_target(&self, bytes: u64) {
        let mut state = self.0.lock();
        state.target = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if let Some(driver) = &state.driver {
            driver.interrupts.config_changed();
        }
    }

    /// Bytes that the guest says it has given up.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.lock().actual) * PAGE
    }

    /// Bytes that have gone back to the host so far, reported free pages included; what the guest took
    /// again in between counts every time.
    #[must_use]
    pub fn returned(&self) -> u64 {
        self.0.lock().returned
    }

    /// The statistics by tag (5.5.6.3), as the guest told them last; asks for newer ones.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<u16, u64> {
        let mut state = self.0.lock();
        if let Some(head) = state.asked.take()
            && let Some((index, queue)) = state.stats_queue()
        {
            let wants = queue.push(head, 0).and_then(|()| queue.wants_interrupt());
            if let Some(driver) = &state.driver {
                match wants {
                    Ok(true) => driver.interrupts.used(index),
                    Ok(false) => {}
                    Err(Broken) => driver.interrupts.needs_reset(),
                }
            }
        }
        state.stats.clone()
    }
}

/// A memory balloon.
pub struct VirtioBalloon {
    shared: Arc<Shared>,
}

impl VirtioBalloon {
    /// A balloon that wants `target` bytes of the guest's memory.
    #[must_use]
    pub fn new(target: u64) -> Self {
        let shared = Arc::new(Shared::default());
        BalloonHandle(shared.clone()).set_target(target);
        Self { shared }
    }

    /// The host's hand on it.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(self.shared.clone())
    }

    fn run(state: &mut State, index: usize) -> Result<(), Broken> {
        let Some(role) = state.role(index) else {
            return Ok(());
        };
        loop {
            let Some(driver) = state.driver.as_mut() else {
                return Ok(());
            };
            let memory = driver.memory.clone();
            let Some(Some(queue)) = driver.queues.get_mut(index) else {
                return Ok(());
            };
            let mut used = false;
            while let Some(chain) = queue.pop()? {
                match role {
                    Role::Inflate => state.returned += discard_numbers(&memory, &chain.readable),
                    Role::Deflate => {}
                    Role::Reporting => {
                        for &(gpa, len) in chain.writable.pieces() {
                            state.returned += memory.discard(gpa, len.into());
                        }
                    }
                    Role::Stats => {
                        // Kept until the next question.
                        let before = state.asked.replace(chain.head);
                        state.take_stats(&memory, &chain.readable);
                        if before.is_some() {
                            return Err(Broken);
                        }
                        return Ok(());
                    }
                }
                queue.push(chain.head, 0)?;
                used = true;
            }
            if used && queue.wants_interrupt()? {
                driver.interrupts.used(index);
            }
            if !queue.want_notification()? {
                return Ok(());
            }
        }
    }
}

impl VirtioDevice for VirtioBalloon {
    fn id(&self) -> u16 {
        5
    }

    fn class(&self) -> [u8; 3] {
        [0xff, 0, 0]
    }

    fn features(&self) -> u64 {
        feature::STATS | feature::REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128, 128, 16, 128]
    }

    fn config(&self) -> Vec<u8> {
        let state = self.shared.lock();
        let mut c = state.target.to_le_bytes().to_vec();
        c.extend(state.actual.to_le_bytes());
        c
    }

    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        let mut state = self.shared.lock();
        let mut actual = state.actual.to_le_bytes();
        // `actual`, at 4, is the only field of the driver's.
        for (at, &byte) in (offset..).zip(bytes) {
            let place = at.checked_sub(4).and_then(|i| usize::try_from(i).ok());
            if let Some(b) = place.and_then(|i| actual.get_mut(i)) {
                *b = byte;
            }
        }
        state.actual = u32::from_le_bytes(actual);
    }

    fn activate(&mut self, driver: Driver) {
        self.shared.lock().driver = Some(driver);
    }

    fn notify(&mut self, queue: u16) {
        let mut state = self.shared.lock();
        if Self::run(&mut state, usize::from(queue)).is_err()
            && let Some(driver) = &state.driver
        {
            driver.interrupts.needs_reset();
        }
    }

    fn reset(&mut self) {
        let mut state = self.shared.lock();
        (state.driver, state.asked) = (None, None);
        state.actual = 0;
        state.stats.clear();
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        let state = self.shared.lock();
        let queues = state.driver.iter().flat_map(|d| &d.queues);
        let mut positions: Vec<_> = queues
            .map(|q| q.as_ref().map_or((0, 0), VirtQueue::position))
            .collect();
        // The buffer that waits for a question is taken again after a restore.
        if let (Some(p), true) = (positions.get_mut(2), state.asked.is_some()) {
            p.0 = p.0.wrapping_sub(1);
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, Buffer};

    const INFLATE: usize = 0;
    const DEFLATE: usize = 1;

    fn bench() -> (Bench, BalloonHandle) {
        let balloon = VirtioBalloon::new(0x3000);
        let handle = balloon.handle();
        (Bench::new(Box::new(balloon)), handle)
    }

    #[test]
    fn the_wish_is_seen_and_answered() {
        let (mut b, handle) = bench();
        b.ready();
        assert_eq!(b.config(0, 8), 3);
        handle.set_target(0x8fff);
        assert!(b.take_interrupt());
        assert_eq!(b.config(0, 4), 8);
        b.config_write(4, 4, 5);
        assert_eq!(handle.actual(), 0x5000);
        b.config_write(0, 4, 77);
        assert_eq!(b.config(0, 4), 8);
    }

    #[test]
    fn pages_that_are_given_up_are_empty() {
        let (mut b, handle) = bench();
        b.ready();
        for page in 0x10..0x16u64 {
            b.poke(page * PAGE, &[0xaa; 4096]);
        }
        // Up, down, apart, and one that does not exist.
        let numbers: Vec<u8> = [0x11u32, 0x12, 0x10, 0x14, u32::MAX]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        b.poke(0x8000, &numbers);
        let head = b.offer(INFLATE, &[Buffer::read(0x8000, numbers.len() as u32)]);
        b.notify(INFLATE as u32);
        assert_eq!(b.used(INFLATE), [(head, 0)]);
        let first = |page: u64| b.bytes(page * PAGE, 1)[0];
        let bytes = [0x10, 0x11, 0x12, 0x13, 0x14, 0x15].map(first);
        assert_eq!(bytes, [0, 0, 0, 0xaa, 0, 0xaa]);
        assert_eq!(handle.returned(), 4 * PAGE);
        let head = b.offer(DEFLATE, &[Buffer::read(0x8000, 4)]);
        b.notify(DEFLATE as u32);
        assert_eq!(b.used(DEFLATE), [(head, 0)]);
    }

    #[test]
    fn free_pages_that_are_reported_are_empty() {
        let (mut b, handle) = bench();
        b.ready();
        b.poke(0x10000, &[0xaa; 0x3000]);
        let head = b.offer(3, &[Buffer::write(0x10800, 0x1900)]);
        b.notify(3);
        assert_eq!(b.used(3), [(head, 0)]);
        assert_eq!(handle.returned(), PAGE);
        let bytes = [0x10fff, 0x11000, 0x11fff, 0x12000].map(|at| b.bytes(at, 1)[0]);
        assert_eq!(bytes, [0xaa, 0, 0, 0xaa]);
    }

    #[test]
    fn without_statistics_reporting_has_their_number() {
        let (mut b, handle) = bench();
        b.ready_without(crate::virtio::feature::EVENT_IDX | feature::STATS);
        b.offer(2, &[Buffer::write(0x10000, 0x1000)]);
        b.notify(2);
        assert_eq!(handle.returned(), PAGE);
    }

    #[test]
    fn statistics_come_when_they_are_asked_for() {
        let (mut b, handle) = bench();
        b.ready();
        let stat = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        b.poke(0x8000, &[stat(4, 1 << 40), stat(5, 7)].concat());
        let head = b.offer(2, &[Buffer::read(0x8000, 20)]);
        b.notify(2);
        assert!(b.used(2).is_empty());
        assert_eq!(handle.stats(), BTreeMap::from([(4, 1 << 40), (5, 7)]));
        assert_eq!(b.used(2), [(head, 0)]);
        assert!(b.take_interrupt());
        // Nothing was left to ask with.
        let _ = handle.stats();
        assert!(b.used(2).is_empty());
        // Two buffers at a time are against the rules.
        b.offer(2, &[Buffer::read(0x8000, 20)]);
        b.notify(2);
        b.offer(2, &[Buffer::read(0x8000, 20)]);
        b.notify(2);
        b.assert_broken("two statistics buffers");
    }
}
