//! Host folders: the file system device (5.11) and the 9P transport (Linux's `trans_virtio`; device
//! ID 9).
//!
//! Both hand the requests of their driver to a server on the host ([`MessageHost`]) and its replies
//! back; neither knows what they mean. Not modelled: the file system device's notification queue and
//! its shared memory window (DAX). The server's state (open files) is not part of a saved state.

use super::{Broken, Chain, Driver, Interrupts, Span, VirtQueue, VirtioDevice};
use mimeo_bus::{Message, MessageDone, MessageHost};
use mimeo_memory::GuestMemory;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a request or reply at the most; what is longer is answered with nothing.
const MOST: u64 = 2 << 20;
/// Bytes of a file system device's tag.
const TAG: usize = 36;

/// What stands on the other side.
enum Kind {
    Fs,
    NineP,
}

#[derive(Default)]
struct State {
    /// Counts resets: what comes back from before one touches no queue.
    epoch: u64,
    in_flight: usize,
    queues: Vec<Option<VirtQueue>>,
    interrupts: Option<Arc<Interrupts>>,
    memory: Option<Arc<GuestMemory>>,
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

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shared folder.
pub struct VirtioShare {
    kind: Kind,
    tag: String,
    host: Arc<dyn MessageHost>,
    state: Arc<Mutex<State>>,
}

/// A request on its way: how its reply is given back.
struct Ticket {
    state: Arc<Mutex<State>>,
    memory: Arc<GuestMemory>,
    epoch: u64,
    queue: usize,
    head: u16,
    reply: Span,
}

impl Ticket {
    fn finish(self, reply: &[u8]) {
        let mut state = lock(&self.state);
        state.in_flight -= 1;
        if state.epoch == self.epoch {
            // At most MOST.
            let written = self.reply.write(&self.memory, reply) as u32;
            state.complete(self.queue, self.head, written);
        }
    }
}

impl VirtioShare {
    fn new(kind: Kind, tag: &str, host: Arc<dyn MessageHost>) -> Self {
        Self {
            kind,
            tag: tag.to_owned(),
            host,
            state: Arc::default(),
        }
    }

    /// A file system device whose server speaks FUSE; of `tag`, the first 36 bytes count.
    pub fn fs(tag: &str, host: Arc<dyn MessageHost>) -> Self {
        Self::new(Kind::Fs, tag, host)
    }

    /// A 9P transport whose server speaks 9P2000.L; of `tag`, the first 65,535 bytes count.
    pub fn nine_p(tag: &str, host: Arc<dyn MessageHost>) -> Self {
        Self::new(Kind::NineP, tag, host)
    }

    fn start(&self, state: &mut State, queue: usize, chain: Chain) -> Result<(), Broken> {
        let memory = state.memory.clone().ok_or(Broken)?;
        if chain.readable.len() > MOST {
            state.complete(queue, chain.head, 0);
            return Ok(());
        }
        // At most MOST, each.
        let mut request = vec![0; chain.readable.len() as usize];
        chain.readable.read(&memory, &mut request);
        let room = chain.writable.len().min(MOST) as usize;
        state.in_flight += 1;
        let ticket = Ticket {
            state: self.state.clone(),
            memory,
            epoch: state.epoch,
            queue,
            head: chain.head,
            reply: chain.writable,
        };
        self.host.submit(Message {
            request,
            room,
            done: MessageDone::new(Box::new(move |reply| ticket.finish(&reply))),
        });
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

impl VirtioDevice for VirtioShare {
    fn id(&self) -> u16 {
        match self.kind {
            Kind::Fs => 26,
            Kind::NineP => 9,
        }
    }

    fn class(&self) -> [u8; 3] {
        [1, 0x80, 0]
    }

    fn features(&self) -> u64 {
        match self.kind {
            Kind::Fs => 0,
            // MOUNT_TAG: the configuration has it.
            Kind::NineP => 1,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        match self.kind {
            // High priority, requests. Long enough for a megabyte in single pages.
            Kind::Fs => &[128, 512],
            Kind::NineP => &[128],
        }
    }

    fn config(&self) -> Vec<u8> {
        let tag = self.tag.as_bytes();
        match self.kind {
            Kind::Fs => {
                let mut c: Vec<u8> = tag.iter().copied().take(TAG).collect();
                c.resize(TAG, 0);
                // Request queues.
                c.extend(1u32.to_le_bytes());
                c
            }
            Kind::NineP => {
                let len = u16::try_from(tag.len()).unwrap_or(u16::MAX);
                let mut c = len.to_le_bytes().to_vec();
                c.extend(&tag[..usize::from(len)]);
                c
            }
        }
    }

    fn activate(&mut self, driver: Driver) {
        let mut state = lock(&self.state);
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
        self.host.reset();
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
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, Buffer};

    /// Keeps what it is asked until it is told to answer.
    #[derive(Default)]
    struct Host {
        waiting: Mutex<Vec<Message>>,
        resets: Mutex<u32>,
    }

    impl MessageHost for Host {
        fn submit(&self, message: Message) {
            self.waiting.lock().unwrap().push(message);
        }
        fn reset(&self) {
            *self.resets.lock().unwrap() += 1;
        }
    }

    impl Host {
        fn answer(&self, reply: &[u8]) -> Vec<u8> {
            let message = self.waiting.lock().unwrap().remove(0);
            message.done.finish(reply.to_vec());
            message.request
        }
    }

    #[test]
    fn requests_go_out_and_replies_come_back() {
        let host = Arc::new(Host::default());
        let mut b = Bench::new(Box::new(VirtioShare::fs("data", host.clone())));
        assert_eq!(b.config(0, 8), u64::from(u32::from_le_bytes(*b"data")));
        assert_eq!(b.config(36, 4), 1);
        b.ready();
        b.poke(0x8000, b"question");
        let buffers = [
            Buffer::read(0x8000, 4),
            Buffer::read(0x8004, 4),
            Buffer::write(0x9000, 3),
            Buffer::write(0xa000, 100),
        ];
        let head = b.offer(1, &buffers);
        b.notify(1);
        assert!(b.used(1).is_empty());
        assert_eq!(host.waiting.lock().unwrap()[0].room, 103);
        assert_eq!(host.answer(b"answer"), b"question");
        assert_eq!(b.used(1), [(head, 6)]);
        assert!(b.take_interrupt());
        assert_eq!(b.bytes(0x9000, 3), b"ans");
        assert_eq!(b.bytes(0xa000, 3), b"wer");
        // Nothing to be said: FORGET has no reply.
        let head = b.offer(0, &[Buffer::read(0x8000, 8)]);
        b.notify(0);
        host.answer(b"");
        assert_eq!(b.used(0), [(head, 0)]);
    }

    #[test]
    fn a_reply_from_before_a_reset_goes_nowhere() {
        let host = Arc::new(Host::default());
        let mut b = Bench::new(Box::new(VirtioShare::nine_p("t", host.clone())));
        assert_eq!(b.config(0, 4), 1 | u64::from(b't') << 16);
        b.ready();
        let buffers = [Buffer::read(0x8000, 4), Buffer::write(0x9000, 4)];
        b.offer(0, &buffers);
        b.notify(0);
        b.set(0x70, 0);
        // The reset is over when the work has come back.
        assert_ne!(b.status(), 0);
        host.answer(b"late");
        assert_eq!(b.status(), 0);
        assert_eq!(b.bytes(0x9000, 4), [0; 4]);
        assert!(*host.resets.lock().unwrap() >= 1);
    }

    #[test]
    fn a_request_of_absurd_length_is_given_back() {
        let host = Arc::new(Host::default());
        let mut b = Bench::new(Box::new(VirtioShare::nine_p("t", host.clone())));
        b.ready();
        // Ten times the whole of memory.
        let head = b.offer(0, &[Buffer::read(0, 0x4_0000); 10]);
        b.notify(0);
        assert_eq!(b.used(0), [(head, 0)]);
        assert!(host.waiting.lock().unwrap().is_empty());
    }
}
