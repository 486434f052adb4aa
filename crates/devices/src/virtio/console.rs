//! Console device (5.3): one port, with the terminal's size.
//!
//! Not modelled: several ports. Input waits at the host until the guest has buffers; output that
//! the host refuses waits in its ring.

use super::{Broken, Chain, Driver, Span, VirtQueue, VirtioDevice};
use mimeo_bus::{StreamDevice, StreamHost};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const EMERGENCY_WRITE: u64 = 1 << 2;
}
/// Offset of the emergency write in the configuration.
const EMERGENCY: u64 = 8;

struct State {
    driver: Option<Driver>,
    /// Output of which the host has not taken everything: head, and what is left.
    sending: Option<(u16, Span)>,
    /// The host was refused input.
    refused: bool,
    size: (u16, u16),
}

/// What both sides, transport and host, reach.
struct Shared {
    state: Mutex<State>,
    host: Arc<dyn StreamHost>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` with the driver's things; a broken ring makes the device ask for a reset.
    fn with_driver(
        &self,
        state: &mut State,
        work: impl FnOnce(&Self, &mut State) -> Result<(), Broken>,
    ) {
        if work(self, state).is_err()
            && let Some(driver) = &state.driver
        {
            driver.interrupts.needs_reset();
        }
    }

    /// Hands the host what the driver sends.
    fn send(&self, state: &mut State) -> Result<(), Broken> {
        let Some(driver) = state.driver.as_mut() else {
            return Ok(());
        };
        let Some(Some(queue)) = driver.queues.get_mut(TRANSMIT) else {
            return Ok(());
        };
        let mut used = false;
        loop {
            if state.sending.is_none() {
                state.sending = queue.pop()?.map(|c: Chain| (c.head, c.readable));
            }
            let Some((head, left)) = &mut state.sending else {
                if used && queue.wants_interrupt()? {
                    driver.interrupts.used(TRANSMIT);
                }
                used = false;
                if queue.want_notification()? {
                    continue;
                }
                return Ok(());
            };
            let mut buffer = [0; 1024];
            let n = left.read(&driver.memory, &mut buffer);
            let taken = self.host.write(&buffer[..n]).min(n);
            left.take_front(taken as u64).ok_or(Broken)?;
            if left.is_empty() {
                let head = *head;
                state.sending = None;
                queue.push(head, 0)?;
                used = true;
            } else if taken < n {
                if used && queue.wants_interrupt()? {
                    driver.interrupts.used(TRANSMIT);
                }
                return Ok(());
            }
        }
    }

    /// Puts input into the driver's buffers; gives the number of bytes that found room.
    fn receive(state: &mut State, mut bytes: &[u8]) -> Result<usize, Broken> {
        let all = bytes.len();
        let Some(driver) = state.driver.as_mut() else {
            return Ok(0);
        };
        let Some(Some(queue)) = driver.queues.get_mut(RECEIVE) else {
            return Ok(0);
        };
        while !bytes.is_empty() {
            let Some(chain) = queue.pop()? else {
                // Only now: before, the driver's notification would be for nothing.
                if queue.want_notification()? {
                    continue;
                }
                break;
            };
            let n = chain.writable.write(&driver.memory, bytes);
            bytes = &bytes[n..];
            queue.push(chain.head, n as u32)?;
        }
        if bytes.len() < all && queue.wants_interrupt()? {
            driver.interrupts.used(RECEIVE);
        }
        Ok(all - bytes.len())
    }
}

impl StreamDevice for Shared {
    fn input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let mut taken = 0;
        self.with_driver(&mut state, |_, state| {
            taken = Self::receive(state, bytes)?;
            Ok(())
        });
        state.refused |= taken < bytes.len();
        taken
    }

    fn output_ready(&self) {
        let mut state = self.lock();
        self.with_driver(&mut state, Self::send);
    }

    fn resized(&self, columns: u16, rows: u16) {
        let mut state = self.lock();
        state.size = (columns, rows);
        if let Some(driver) = &state.driver {
            driver.interrupts.config_changed();
        }
    }
}

/// A console.
pub struct VirtioConsole {
    shared: Arc<Shared>,
}

impl VirtioConsole {
    /// A console at `host`, of 80 columns and 25 rows until it is told otherwise.
    pub fn new(host: Arc<dyn StreamHost>) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    driver: None,
                    sending: None,
                    refused: false,
                    size: (80, 25),
                }),
                host,
            }),
        }
    }

    /// What is to be connected to the host's side ([`StreamHost::connect`]).
    #[must_use]
    pub fn stream(&self) -> Arc<dyn StreamDevice> {
        self.shared.clone()
    }
}

impl VirtioDevice for VirtioConsole {
    fn id(&self) -> u16 {
        3
    }

    fn class(&self) -> [u8; 3] {
        [7, 0x80, 0]
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::EMERGENCY_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn config(&self) -> Vec<u8> {
        let (columns, rows) = self.shared.lock().size;
        let mut c = vec![0; 12];
        c[..2].copy_from_slice(&columns.to_le_bytes());
        c[2..4].copy_from_slice(&rows.to_le_bytes());
        c[4] = 1;
        c
    }

    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        if let (EMERGENCY, Some(&byte)) = (offset, bytes.first()) {
            self.shared.host.write(&[byte]);
        }
    }

    fn activate(&mut self, driver: Driver) {
        self.shared.lock().driver = Some(driver);
    }

    fn notify(&mut self, queue: u16) {
        let mut state = self.shared.lock();
        if usize::from(queue) == TRANSMIT {
            self.shared.with_driver(&mut state, Shared::send);
        } else if std::mem::take(&mut state.refused) {
            self.shared.host.input_wanted();
        }
    }

    fn reset(&mut self) {
        let mut state = self.shared.lock();
        state.driver = None;
        state.sending = None;
    }

    fn busy(&self) -> bool {
        false
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        let state = self.shared.lock();
        let queues = state.driver.iter().flat_map(|d| &d.queues);
        let mut positions: Vec<_> = queues
            .map(|q| q.as_ref().map_or((0, 0), VirtQueue::position))
            .collect();
        // What is being sent is sent again from its beginning after a restore.
        if let (Some(p), true) = (positions.get_mut(TRANSMIT), state.sending.is_some()) {
            p.0 = p.0.wrapping_sub(1);
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, Buffer};

    #[derive(Default)]
    struct Host {
        out: Mutex<Vec<u8>>,
        room: Mutex<usize>,
        wanted: Mutex<u32>,
    }

    impl StreamHost for Host {
        fn write(&self, bytes: &[u8]) -> usize {
            let mut room = self.room.lock().unwrap();
            let n = bytes.len().min(*room);
            *room -= n;
            self.out.lock().unwrap().extend(&bytes[..n]);
            n
        }
        fn input_wanted(&self) {
            *self.wanted.lock().unwrap() += 1;
        }
        fn connect(&self, _: Arc<dyn StreamDevice>) {}
    }

    fn bench() -> (Bench, Arc<Host>, Arc<dyn StreamDevice>) {
        let host = Arc::new(Host::default());
        *host.room.lock().unwrap() = 1 << 20;
        let console = VirtioConsole::new(host.clone());
        let stream = console.stream();
        (Bench::new(Box::new(console)), host, stream)
    }

    #[test]
    fn output_waits_for_a_slow_host() {
        let (mut b, host, stream) = bench();
        b.ready();
        *host.room.lock().unwrap() = 4;
        b.poke(0x8000, b"hello, ");
        b.poke(0x9000, b"world");
        let head = b.offer(1, &[Buffer::read(0x8000, 7), Buffer::read(0x9000, 5)]);
        b.notify(1);
        assert_eq!(*host.out.lock().unwrap(), b"hell");
        assert!(b.used(1).is_empty());
        *host.room.lock().unwrap() = 100;
        stream.output_ready();
        assert_eq!(*host.out.lock().unwrap(), b"hello, world");
        assert_eq!(b.used(1), [(head, 0)]);
    }

    #[test]
    fn input_waits_for_buffers() {
        let (mut b, host, stream) = bench();
        assert_eq!(stream.input(b"early"), 0);
        b.ready();
        b.offer(0, &[Buffer::write(0x8000, 3)]);
        b.notify(0);
        assert_eq!(*host.wanted.lock().unwrap(), 1);
        assert_eq!(stream.input(b"early"), 3);
        assert_eq!(b.bytes(0x8000, 3), *b"ear");
        assert_eq!(b.used(0), [(0, 3)]);
        assert!(b.take_interrupt());
        b.offer(0, &[Buffer::write(0x9000, 30)]);
        b.notify(0);
        assert_eq!(*host.wanted.lock().unwrap(), 2);
        assert_eq!(stream.input(b"ly"), 2);
    }

    #[test]
    fn size_and_emergency_write() {
        let (mut b, host, stream) = bench();
        b.ready();
        assert_eq!(b.config(0, 4), 80 | 25 << 16);
        let generation = b.generation();
        stream.resized(132, 50);
        assert_eq!(b.config(0, 4), 132 | 50 << 16);
        assert_ne!(b.generation(), generation);
        assert!(b.take_interrupt());
        b.config_write(8, 4, u64::from(b'!'));
        assert_eq!(*host.out.lock().unwrap(), b"!");
    }

    #[test]
    fn an_empty_output_buffer_is_given_back() {
        let (mut b, ..) = bench();
        b.ready();
        let head = b.offer(1, &[Buffer::write(0x8000, 4)]);
        b.notify(1);
        assert_eq!(b.used(1), [(head, 0)]);
    }
}
