//! Connections and credit, without any input or output (VIRTIO 1.2, 5.10.6).

use mimeo_bus::{
    HOST_CID, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, VSOCK_STREAM, VsockHeader, vsock_op as op,
};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Bytes that wait in each direction of a connection.
pub(super) const BUFFER: usize = 128 * 1024;
/// Connections at a time.
pub(super) const CONNECTIONS: usize = 256;
/// Refusals that wait for the guest to take them; with more, its packets have to wait.
const REFUSALS: usize = 256;
/// How long the guest may take to answer a request or the end of a connection.
const ANSWER: Duration = Duration::from_secs(5);
/// The first port for programs of the host.
const FIRST_PORT: u32 = 1 << 30;
const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A connection's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host: u32,
    pub(super) guest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A program of the host wants it; the guest has not answered.
    Asked,
    /// The guest wants it; the host's socket is being reached.
    Wanted,
    Open,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    phase: Phase,
    /// Bytes for the guest, and from it.
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
    /// A request or response that is still to be sent.
    say: Option<u16>,
    /// What the host's side has ended, and what of that the guest was told.
    host_ended: u32,
    told_ended: u32,
    /// What the guest has ended.
    guest_ended: u32,
    /// The guest's buffer, what it has taken out of it, what we have sent it.
    peer_buffer: u32,
    peer_taken: u32,
    sent: u32,
    /// What we have taken out of our buffer, and what of that the guest knows.
    taken: u32,
    told: u32,
    credit_asked: bool,
    credit_wanted: bool,
    /// It is in the queue of those that may have something to say.
    queued: bool,
    deadline: Option<Instant>,
}

impl Connection {
    fn new(phase: Phase) -> Self {
        Self {
            phase,
            to_guest: VecDeque::new(),
            to_host: VecDeque::new(),
            say: None,
            host_ended: 0,
            told_ended: 0,
            guest_ended: 0,
            peer_buffer: 0,
            peer_taken: 0,
            sent: 0,
            taken: 0,
            told: 0,
            credit_asked: false,
            credit_wanted: false,
            queued: false,
            deadline: None,
        }
    }

    /// Bytes that may be sent to the guest (5.10.6.3).
    fn credit(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.peer_taken);
        self.peer_buffer.saturating_sub(in_flight) as usize
    }

    /// The guest believes that less than half of our buffer is free, and that is wrong.
    fn credit_due(&self) -> bool {
        self.taken.wrapping_sub(self.told) as usize >= BUFFER / 2
    }

    /// What is to be sent next.
    fn next(&self) -> Option<u16> {
        if let Some(op) = self.say {
            return Some(op);
        }
        if self.phase != Phase::Open {
            return None;
        }
        let data = !self.to_guest.is_empty();
        if data && self.credit() > 0 {
            Some(op::RW)
        } else if !data && self.host_ended != self.told_ended {
            Some(op::SHUTDOWN)
        } else if self.credit_wanted || self.credit_due() {
            Some(op::CREDIT_UPDATE)
        } else if data && !self.credit_asked {
            Some(op::CREDIT_REQUEST)
        } else {
            None
        }
    }

    /// Everything that the guest sent has gone on, and it will neither send nor take more.
    fn over(&self) -> bool {
        self.guest_ended == BOTH && self.to_host.is_empty()
    }
}

/// What the thread has to do for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) key: Key,
    /// Room for bytes of the host.
    pub(super) read: usize,
    /// There are bytes for the host.
    pub(super) write: bool,
    /// The guest has answered, or the host's socket was asked for by the guest.
    pub(super) open: bool,
    /// The guest has sent its last byte and the host has got it.
    pub(super) end_writing: bool,
}

/// All connections of one guest.
pub(super) struct Table {
    cid: u64,
    driver: bool,
    connections: HashMap<Key, Connection>,
    turns: VecDeque<Key>,
    refusals: VecDeque<VsockHeader>,
    /// Host ports that the guest asked for.
    wanted: Vec<Key>,
    next_port: u32,
}

impl Table {
    pub(super) fn new(cid: u64) -> Self {
        Self {
            cid,
            driver: false,
            connections: HashMap::new(),
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            wanted: Vec::new(),
            next_port: FIRST_PORT,
        }
    }

    pub(super) fn set_driver(&mut self, present: bool) {
        self.driver = present;
        self.connections.clear();
        self.turns.clear();
        self.refusals.clear();
        self.wanted.clear();
    }

    pub(super) fn has_room(&self) -> bool {
        self.refusals.len() < REFUSALS
    }

    /// A connection may have something to say.
    fn turn(&mut self, key: Key) {
        if let Some(c) = self.connections.get_mut(&key)
            && !c.queued
            && c.next().is_some()
        {
            c.queued = true;
            self.turns.push_back(key);
        }
    }

    fn refuse(&mut self, of: &VsockHeader) {
        // An answer to a refusal would never end.
        if of.op != op::RST {
            self.refusals.push_back(VsockHeader {
                src_cid: of.dst_cid,
                dst_cid: of.src_cid,
                src_port: of.dst_port,
                dst_port: of.src_port,
                kind: of.kind,
                op: op::RST,
                ..VsockHeader::default()
            });
        }
    }

    /// Ends a connection and tells the guest.
    pub(super) fn abort(&mut self, key: Key) {
        if self.connections.remove(&key).is_some() {
            self.refusals.push_back(VsockHeader {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: key.host,
                dst_port: key.guest,
                kind: VSOCK_STREAM,
                op: op::RST,
                ..VsockHeader::default()
            });
        }
    }

    /// A packet of the guest's.
    pub(super) fn guest_sent(&mut self, h: &VsockHeader, payload: &[u8]) {
        if h.src_cid != self.cid {
            return;
        }
        if h.dst_cid != HOST_CID || h.kind != VSOCK_STREAM {
            return self.refuse(h);
        }
        let key = Key {
            host: h.dst_port,
            guest: h.src_port,
        };
        let full = self.connections.len() >= CONNECTIONS;
        let Some(c) = self.connections.get_mut(&key) else {
            if h.op != op::REQUEST || full {
                return self.refuse(h);
            }
            let mut c = Connection::new(Phase::Wanted);
            (c.peer_buffer, c.peer_taken) = (h.buf_alloc, h.fwd_cnt);
            self.connections.insert(key, c);
            self.wanted.push(key);
            return;
        };
        (c.peer_buffer, c.peer_taken) = (h.buf_alloc, h.fwd_cnt);
        c.credit_asked = false;
        let legal = match (h.op, c.phase) {
            (op::RESPONSE, Phase::Asked) => {
                (c.phase, c.deadline) = (Phase::Open, None);
                true
            }
            (op::RW, Phase::Open) => accept(c, payload),
            (op::SHUTDOWN, Phase::Open) => {
                c.guest_ended |= h.flags & BOTH;
                if c.guest_ended & SHUTDOWN_RECEIVE != 0 {
                    c.to_guest.clear();
                }
                true
            }
            (op::CREDIT_UPDATE, Phase::Open) => true,
            (op::CREDIT_REQUEST, Phase::Open) => {
                c.credit_wanted = true;
                true
            }
            (op::RST, _) => {
                // What the guest sent before still goes to the host: the thread closes afterwards.
                c.to_guest.clear();
                c.guest_ended = BOTH;
                c.told_ended = BOTH;
                c.host_ended = BOTH;
                if c.phase != Phase::Open || c.to_host.is_empty() {
                    self.connections.remove(&key);
                }
                return;
            }
            _ => false,
        };
        if !legal {
            return self.abort(key);
        }
        if self.connections.get(&key).is_some_and(Connection::over) {
            return self.abort(key);
        }
        self.turn(key);
    }

    /// Whether there is a packet for the guest.
    pub(super) fn has_packet(&mut self) -> bool {
        if !self.refusals.is_empty() {
            return true;
        }
        while let Some(key) = self.turns.front() {
            match self.connections.get_mut(key) {
                Some(c) if c.next().is_some() => return true,
                Some(c) => c.queued = false,
                None => {}
            }
            self.turns.pop_front();
        }
        false
    }

    /// The next packet for the guest; and whether the thread should look again.
    pub(super) fn next_packet(&mut self, most: usize) -> (Option<(VsockHeader, Vec<u8>)>, bool) {
        let had_room = self.has_room();
        if let Some(refusal) = self.refusals.pop_front() {
            return (Some((refusal, Vec::new())), !had_room);
        }
        if !self.has_packet() {
            return (None, false);
        }
        let (Some(key), cid) = (self.turns.pop_front(), self.cid) else {
            return (None, false);
        };
        let Some(c) = self.connections.get_mut(&key) else {
            return (None, false);
        };
        c.queued = false;
        let Some(op) = c.next() else {
            return (None, false);
        };
        let (mut payload, mut flags, mut wake) = (Vec::new(), 0, false);
        match op {
            op::RW => {
                wake = c.to_guest.len() >= BUFFER;
                let n = c.to_guest.len().min(c.credit()).min(most);
                payload = c.to_guest.drain(..n).collect();
                c.sent = c.sent.wrapping_add(n as u32);
            }
            op::SHUTDOWN => {
                flags = c.host_ended;
                c.told_ended = flags;
                if flags == BOTH {
                    c.deadline = Some(Instant::now() + ANSWER);
                    wake = true;
                }
            }
            op::CREDIT_REQUEST => c.credit_asked = true,
            _ => {}
        }
        c.say = None;
        (c.told, c.credit_wanted) = (c.taken, false);
        let header = VsockHeader {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: key.host,
            dst_port: key.guest,
            len: payload.len() as u32,
            kind: VSOCK_STREAM,
            op,
            flags,
            buf_alloc: BUFFER as u32,
            fwd_cnt: c.taken,
        };
        self.turn(key);
        (Some((header, payload)), wake)
    }

    // What the thread does.

    /// Host ports that the guest asked for since the last call.
    pub(super) fn take_wanted(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.wanted)
    }

    /// The host's socket was reached for the guest.
    pub(super) fn reached(&mut self, key: Key) {
        if let Some(c) = self.connections.get_mut(&key)
            && c.phase == Phase::Wanted
        {
            (c.phase, c.say) = (Phase::Open, Some(op::RESPONSE));
            self.turn(key);
        }
    }

    /// A program of the host wants the guest's `port`; `first` are its bytes for it. `None` when
    /// that cannot be.
    pub(super) fn ask(&mut self, port: u32, first: &[u8]) -> Option<Key> {
        if !self.driver || self.connections.len() >= CONNECTIONS {
            return None;
        }
        let key = loop {
            let key = Key {
                host: self.next_port,
                guest: port,
            };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.connections.contains_key(&key) {
                break key;
            }
        };
        let mut c = Connection::new(Phase::Asked);
        c.say = Some(op::REQUEST);
        c.deadline = Some(Instant::now() + ANSWER);
        c.to_guest.extend(first);
        self.connections.insert(key, c);
        self.turn(key);
        Some(key)
    }

    /// What is to be done for each connection, and when the next one has waited long enough.
    pub(super) fn wishes(&mut self, now: Instant) -> (Vec<Wish>, Option<Instant>) {
        let late = |(k, c): (&Key, &Connection)| c.deadline.is_some_and(|d| d <= now).then_some(*k);
        let late: Vec<Key> = self.connections.iter().filter_map(late).collect();
        late.into_iter().for_each(|key| self.abort(key));
        let next = self.connections.values().filter_map(|c| c.deadline).min();
        let wish = |(&key, c): (&Key, &Connection)| Wish {
            key,
            read: if c.phase == Phase::Open && c.host_ended & SHUTDOWN_SEND == 0 {
                BUFFER.saturating_sub(c.to_guest.len())
            } else {
                0
            },
            write: !c.to_host.is_empty(),
            open: c.phase == Phase::Open,
            end_writing: c.guest_ended & SHUTDOWN_SEND != 0 && c.to_host.is_empty(),
        };
        (self.connections.iter().map(wish).collect(), next)
    }

    /// Bytes of the host for the guest, not more than [`Wish::read`].
    pub(super) fn host_sent(&mut self, key: Key, bytes: &[u8]) {
        if let Some(c) = self.connections.get_mut(&key) {
            // A guest that takes no more does not get it.
            if c.guest_ended & SHUTDOWN_RECEIVE == 0 {
                c.to_guest.extend(bytes);
            }
            self.turn(key);
        }
    }

    /// The host sends no more, or (`gone`) takes no more either.
    pub(super) fn host_ended(&mut self, key: Key, gone: bool) {
        if let Some(c) = self.connections.get_mut(&key) {
            c.host_ended |= if gone { BOTH } else { SHUTDOWN_SEND };
            if gone {
                c.taken = c.taken.wrapping_add(c.to_host.len() as u32);
                c.to_host.clear();
            }
            if c.over() {
                return self.abort(key);
            }
            self.turn(key);
        }
    }

    /// A copy of the first bytes for the host.
    pub(super) fn for_host(&self, key: Key, buffer: &mut Vec<u8>) {
        buffer.clear();
        if let Some(c) = self.connections.get(&key) {
            let (front, _) = c.to_host.as_slices();
            buffer.extend_from_slice(front);
        }
    }

    /// The host has taken `n` bytes of [`Self::for_host`].
    pub(super) fn host_took(&mut self, key: Key, n: usize) {
        let Some(c) = self.connections.get_mut(&key) else {
            return;
        };
        let n = n.min(c.to_host.len());
        c.to_host.drain(..n);
        c.taken = c.taken.wrapping_add(n as u32);
        if c.over() {
            if c.told_ended == BOTH {
                // The guest's own RST ended it.
                self.connections.remove(&key);
            } else {
                self.abort(key);
            }
            return;
        }
        self.turn(key);
    }
}

/// Takes the guest's bytes; false when it sent more than it had credit for, or after its end.
fn accept(c: &mut Connection, payload: &[u8]) -> bool {
    if c.guest_ended & SHUTDOWN_SEND != 0 || payload.len() > BUFFER - c.to_host.len() {
        return false;
    }
    if c.host_ended & SHUTDOWN_RECEIVE != 0 {
        // Nobody reads it any more; the guest is about to learn that.
        c.taken = c.taken.wrapping_add(payload.len() as u32);
    } else {
        c.to_host.extend(payload);
    }
    true
}
