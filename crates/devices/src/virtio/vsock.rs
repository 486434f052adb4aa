//! Socket device (VIRTIO 1.2, 5.10): stream sockets between guest and host.
//!
//! Moves packets between the rings and the host side ([`VsockHost`]), which knows connections and
//! credit. Not modelled: seqpacket sockets (feature bit 1 is not offered).
//!
//! A packet whose payload is longer than its descriptors or than [`VSOCK_PAYLOAD`] is thrown away:
//! the specification knows no answer to it. While the host side has no room, packets stay in the
//! transmit ring.

use super::{Broken, Chain, Driver, VirtQueue, VirtioDevice};
use mimeo_bus::{VSOCK_HEADER, VSOCK_PAYLOAD, VsockDevice, VsockHeader, VsockHost};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// VIRTIO_VSOCK_F_STREAM (5.10.3).
const STREAM: u64 = 1 << 0;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: all connections are gone (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// The smallest buffer that a packet is put into: a header and something.
const SMALLEST: u64 = VSOCK_HEADER as u64 + 1;

#[derive(Default)]
struct State {
    driver: Option<Driver>,
    /// A receive buffer that was taken from the ring when there was no packet after all.
    spare: Option<Chain>,
    /// The driver has still to be told that its connections are gone.
    tell_reset: bool,
}

/// What both sides, transport and host, reach.
struct Shared {
    state: Mutex<State>,
    host: Arc<dyn VsockHost>,
}

fn queue(driver: &mut Driver, index: usize) -> Option<&mut VirtQueue> {
    driver.queues.get_mut(index)?.as_mut()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both directions and the event, as far as they go.
    fn work(&self) {
        let mut state = self.lock();
        let done = self
            .transmit(&mut state)
            .and_then(|()| self.receive(&mut state))
            .and_then(|()| Self::event(&mut state));
        if done.is_err()
            && let Some(driver) = &state.driver
        {
            driver.interrupts.needs_reset();
        }
    }

    /// Hands the host side what the driver sends.
    fn transmit(&self, state: &mut State) -> Result<(), Broken> {
        let Some(driver) = state.driver.as_mut() else {
            return Ok(());
        };
        let (memory, interrupts) = (driver.memory.clone(), driver.interrupts.clone());
        let Some(queue) = queue(driver, TRANSMIT) else {
            return Ok(());
        };
        let mut used = false;
        while self.host.has_room() {
            let Some(mut chain) = queue.pop()? else {
                if queue.want_notification()? {
                    continue;
                }
                break;
            };
            let mut header = [0; VSOCK_HEADER];
            if chain.readable.read(&memory, &mut header) == VSOCK_HEADER {
                chain.readable.take_front(VSOCK_HEADER as u64);
                let header = VsockHeader::from_bytes(&header);
                let len = header.len as usize;
                if len <= VSOCK_PAYLOAD && len as u64 <= chain.readable.len() {
                    let mut payload = vec![0; len];
                    chain.readable.read(&memory, &mut payload);
                    self.host.guest_sent(&header, payload);
                }
            }
            queue.push(chain.head, 0)?;
            used = true;
        }
        if used && queue.wants_interrupt()? {
            interrupts.used(TRANSMIT);
        }
        Ok(())
    }

    /// Puts the host side's packets into the driver's buffers.
    fn receive(&self, state: &mut State) -> Result<(), Broken> {
        let Some(driver) = state.driver.as_mut() else {
            return Ok(());
        };
        let (memory, interrupts) = (driver.memory.clone(), driver.interrupts.clone());
        let Some(queue) = queue(driver, RECEIVE) else {
            return Ok(());
        };
        let mut used = false;
        while self.host.has_packet() {
            let chain = match state.spare.take() {
                Some(chain) => chain,
                None => match queue.pop()? {
                    Some(chain) => chain,
                    None if queue.want_notification()? => continue,
                    None => break,
                },
            };
            let room = chain.writable.len();
            if room < SMALLEST {
                // 5.10.6: no packet fits. The buffer is of no use to anybody.
                queue.push(chain.head, 0)?;
                used = true;
                continue;
            }
            let most = (room - VSOCK_HEADER as u64).min(VSOCK_PAYLOAD as u64) as usize;
            let Some((header, payload)) = self.host.next_packet(most) else {
                state.spare = Some(chain);
                break;
            };
            let mut packet = header.to_bytes().to_vec();
            packet.extend_from_slice(&payload);
            let written = chain.writable.write(&memory, &packet);
            queue.push(chain.head, written as u32)?;
            used = true;
        }
        if used && queue.wants_interrupt()? {
            interrupts.used(RECEIVE);
        }
        Ok(())
    }

    /// Tells the driver that its connections are gone, once it has a buffer for that.
    fn event(state: &mut State) -> Result<(), Broken> {
        let Some(driver) = state.driver.as_mut().filter(|_| state.tell_reset) else {
            return Ok(());
        };
        let (memory, interrupts) = (driver.memory.clone(), driver.interrupts.clone());
        let Some(queue) = queue(driver, EVENT) else {
            return Ok(());
        };
        let chain = match queue.pop()? {
            Some(chain) => Some(chain),
            None if queue.want_notification()? => queue.pop()?,
            None => None,
        };
        if let Some(chain) = chain {
            let written = chain
                .writable
                .write(&memory, &TRANSPORT_RESET.to_le_bytes());
            queue.push(chain.head, written as u32)?;
            state.tell_reset = false;
            if queue.wants_interrupt()? {
                interrupts.used(EVENT);
            }
        }
        Ok(())
    }
}

impl VsockDevice for Shared {
    fn progress(&self) {
        self.work();
    }
}

/// A socket device.
pub struct VirtioVsock {
    shared: Arc<Shared>,
    cid: u64,
}

impl VirtioVsock {
    /// A device of the guest with address `cid`, connected to `host`.
    pub fn new(cid: u64, host: Arc<dyn VsockHost>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            host: host.clone(),
        });
        host.connect(shared.clone());
        Self { shared, cid }
    }
}

impl VirtioDevice for VirtioVsock {
    fn id(&self) -> u16 {
        19
    }

    fn class(&self) -> [u8; 3] {
        [7, 0x80, 0]
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 16]
    }

    fn config(&self) -> Vec<u8> {
        self.cid.to_le_bytes().to_vec()
    }

    fn activate(&mut self, driver: Driver) {
        // A fresh ring begins at zero; one that was restored has moved on, and the connections that
        // its driver knows did not come along.
        let moved = |q: &Option<VirtQueue>| q.as_ref().is_some_and(|q| q.position() != (0, 0));
        {
            let mut state = self.shared.lock();
            state.tell_reset = driver.queues.iter().any(moved);
            state.driver = Some(driver);
        }
        self.shared.host.driver(true);
        self.shared.work();
    }

    fn notify(&mut self, _queue: u16) {
        self.shared.work();
    }

    fn reset(&mut self) {
        let had = {
            let mut state = self.shared.lock();
            let had = state.driver.is_some();
            *state = State::default();
            had
        };
        if had {
            self.shared.host.driver(false);
        }
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        let state = self.shared.lock();
        let queues = state.driver.iter().flat_map(|d| &d.queues);
        let mut positions: Vec<_> = queues
            .map(|q| q.as_ref().map_or((0, 0), VirtQueue::position))
            .collect();
        // The buffer in hand is taken again after a restore.
        if let (Some(p), true) = (positions.get_mut(RECEIVE), state.spare.is_some()) {
            p.0 = p.0.wrapping_sub(1);
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, Buffer};
    use mimeo_bus::{SaveRestore, vsock_op};
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Host {
        full: AtomicBool,
        got: Mutex<Vec<(VsockHeader, Vec<u8>)>>,
        queue: Mutex<VecDeque<(VsockHeader, Vec<u8>)>>,
        drivers: Mutex<Vec<bool>>,
        device: Mutex<Option<Arc<dyn VsockDevice>>>,
    }

    impl VsockHost for Host {
        fn has_room(&self) -> bool {
            !self.full.load(Ordering::SeqCst)
        }
        fn guest_sent(&self, header: &VsockHeader, payload: Vec<u8>) {
            self.got.lock().unwrap().push((*header, payload));
        }
        fn has_packet(&self) -> bool {
            !self.queue.lock().unwrap().is_empty()
        }
        fn next_packet(&self, most: usize) -> Option<(VsockHeader, Vec<u8>)> {
            let (header, payload) = self.queue.lock().unwrap().pop_front()?;
            assert!(payload.len() <= most);
            Some((header, payload))
        }
        fn driver(&self, present: bool) {
            self.drivers.lock().unwrap().push(present);
        }
        fn connect(&self, device: Arc<dyn VsockDevice>) {
            *self.device.lock().unwrap() = Some(device);
        }
    }

    fn bench() -> (Bench, Arc<Host>) {
        let host = Arc::new(Host::default());
        let device = VirtioVsock::new(3, host.clone());
        (Bench::new(Box::new(device)), host)
    }

    fn header(len: u32) -> VsockHeader {
        VsockHeader {
            src_cid: 3,
            dst_cid: 2,
            src_port: 7,
            dst_port: 1024,
            len,
            kind: 1,
            op: vsock_op::RW,
            ..VsockHeader::default()
        }
    }

    #[test]
    fn packets_go_both_ways() {
        let (mut b, host) = bench();
        assert_eq!(b.config(0, 4), 3);
        b.ready();
        assert_eq!(*host.drivers.lock().unwrap(), [true]);
        b.poke(0x8000, &header(5).to_bytes());
        b.poke(0x9000, b"hello, world");
        // The descriptors may hold more than the packet.
        let head = b.offer(1, &[Buffer::read(0x8000, 44), Buffer::read(0x9000, 12)]);
        b.notify(1);
        assert_eq!(b.used(1), [(head, 0)]);
        assert_eq!(host.got.lock().unwrap()[0], (header(5), b"hello".to_vec()));

        let answer = (header(3), b"abc".to_vec());
        host.queue.lock().unwrap().push_back(answer);
        let head = b.offer(0, &[Buffer::write(0xa000, 4096)]);
        b.notify(0);
        assert_eq!(b.used(0), [(head, 47)]);
        assert_eq!(b.bytes(0xa000, 44), header(3).to_bytes());
        assert_eq!(b.bytes(0xa02c, 3), b"abc");
        assert!(b.take_interrupt());
    }

    #[test]
    fn a_packet_waits_for_a_buffer_and_a_sender_for_room() {
        let (mut b, host) = bench();
        b.ready();
        let device = host.device.lock().unwrap().clone().unwrap();
        let answer = (header(1), b"x".to_vec());
        host.queue.lock().unwrap().push_back(answer);
        device.progress();
        assert!(b.used(0).is_empty());
        b.offer(0, &[Buffer::write(0xa000, 100)]);
        b.notify(0);
        assert_eq!(b.used(0).len(), 1);

        host.full.store(true, Ordering::SeqCst);
        b.poke(0x8000, &header(0).to_bytes());
        b.offer(1, &[Buffer::read(0x8000, 44)]);
        b.notify(1);
        assert!(b.used(1).is_empty());
        host.full.store(false, Ordering::SeqCst);
        device.progress();
        assert_eq!(b.used(1).len(), 1);
        assert_eq!(host.got.lock().unwrap().len(), 1);
    }

    #[test]
    fn lies_about_lengths_are_thrown_away() {
        let (mut b, host) = bench();
        b.ready();
        for (claimed, there) in [(13, 12), (u32::MAX, 12), (70_000, 0x1_1800)] {
            b.poke(0x8000, &header(claimed).to_bytes());
            let buffers = [Buffer::read(0x8000, 44), Buffer::read(0x9000, there)];
            b.offer(1, &buffers);
            b.notify(1);
            assert_eq!(b.used(1).len(), 1, "{claimed}");
        }
        // No whole header, and nothing to read at all.
        b.offer(1, &[Buffer::read(0x8000, 43)]);
        b.offer(1, &[Buffer::write(0x8000, 44)]);
        b.notify(1);
        assert_eq!(b.used(1).len(), 2);
        assert!(host.got.lock().unwrap().is_empty());
        // A receive buffer without room for a packet goes back and the next is used.
        let answer = (header(2), b"ok".to_vec());
        host.queue.lock().unwrap().push_back(answer);
        let small = b.offer(0, &[Buffer::write(0xa000, 44)]);
        let good = b.offer(0, &[Buffer::write(0xb000, 46)]);
        b.notify(0);
        assert_eq!(b.used(0), [(small, 0), (good, 46)]);
    }

    #[test]
    fn a_reset_ends_everything_and_a_broken_ring_asks_for_one() {
        let (mut b, host) = bench();
        b.ready();
        b.offer(1, &[Buffer::read(0xffff_0000, 44)]);
        b.notify(1);
        b.assert_broken("a packet outside of memory");
        b.ready();
        assert_eq!(*host.drivers.lock().unwrap(), [true, false, true]);
        b.poke(0x8000, &header(0).to_bytes());
        b.offer(1, &[Buffer::read(0x8000, 44)]);
        b.notify(1);
        assert_eq!(host.got.lock().unwrap().len(), 1);
    }

    #[test]
    fn after_a_restore_the_driver_is_told_that_its_connections_are_gone() {
        let (mut b, _host) = bench();
        b.ready();
        b.poke(0x8000, &header(0).to_bytes());
        b.offer(1, &[Buffer::read(0x8000, 44)]);
        b.notify(1);
        let saved = b.mmio.save();
        b.mmio.restore(&saved).unwrap();
        assert!(b.used(2).is_empty());
        b.offer(2, &[Buffer::write(0xc000, 4)]);
        b.poke(0xc000, &[0xff; 4]);
        b.notify(2);
        assert_eq!(b.used(2), [(0, 4)]);
        assert_eq!(b.bytes(0xc000, 4), [0; 4]);
    }
}
