//! The card's two data queues, as the network's thread works on them.

use super::super::{Broken, Chain, Interrupts, VirtQueue};
use super::feature;
use super::filter::{FilterV1, Mac};
use super::offload;
use mimeo_bus::{MAX_FRAME, NetCard, NetHeader};
use mimeo_memory::GuestMemory;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes in front of each frame in the queues: a [`NetHeader`] and the number of buffers (5.1.6).
const HEADER: usize = 12;
/// The shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;

/// A queue that the driver has set up, and what goes with it.
pub(super) struct Active {
    pub(super) queue: VirtQueue,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) features: u64,
}

/// The way out.
#[derive(Default)]
pub(super) struct Transmit {
    pub(super) active: Option<Active>,
    /// What the network refused, to be offered again.
    pub(super) held: Option<Chain>,
    pub(super) paused: bool,
    /// Pieces of a segment that was cut.
    pieces: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
}

/// The way in.
pub(super) struct Receive {
    pub(super) active: Option<Active>,
    /// Buffers that were taken from the queue and not used yet.
    pub(super) held: VecDeque<Chain>,
    pub(super) paused: bool,
    pub(super) filter: FilterV1,
    /// What the driver takes, as feature bits.
    pub(super) offloads: u64,
    /// Pieces of a segment that was cut, waiting for buffers.
    pieces: VecDeque<Vec<u8>>,
    /// The driver was given something and not told yet.
    used: bool,
}

/// What the transport's side and the network's thread share.
pub(super) struct Card {
    pub(super) tx: Mutex<Transmit>,
    pub(super) rx: Mutex<Receive>,
    /// The network takes frames that ask for something. (The network itself owns the card, not the
    /// reverse, so that both end with the device.)
    able: bool,
    pub(super) link: AtomicBool,
    /// The network had a frame and the driver no buffers.
    pub(super) starved: AtomicBool,
    interrupts: Mutex<Option<Arc<Interrupts>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a header makes sense for its frame, so far as all that handle it rely on.
fn sane(header: &NetHeader, frame: &[u8]) -> bool {
    let needs_csum = header.flags & NetHeader::NEEDS_CSUM != 0;
    let checksum_ends = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
    let gso = match header.gso() {
        NetHeader::GSO_NONE => true,
        NetHeader::GSO_TCPV4 | NetHeader::GSO_TCPV6 => needs_csum && header.gso_size > 0,
        _ => false,
    };
    gso && (!needs_csum || checksum_ends <= frame.len())
}

impl Card {
    pub(super) fn new(mac: Mac, able: bool) -> Arc<Self> {
        Arc::new(Self {
            tx: Mutex::default(),
            rx: Mutex::new(Receive {
                active: None,
                held: VecDeque::new(),
                paused: false,
                filter: FilterV1::new(mac, false),
                offloads: 0,
                pieces: VecDeque::new(),
                used: false,
            }),
            able,
            link: AtomicBool::new(true),
            starved: AtomicBool::new(false),
            interrupts: Mutex::default(),
        })
    }

    pub(super) fn interrupts(&self) -> MutexGuard<'_, Option<Arc<Interrupts>>> {
        lock(&self.interrupts)
    }
}

impl Transmit {
    pub(super) fn clear(&mut self) {
        self.active = None;
        self.held = None;
        self.pieces.clear();
    }

    /// Reads a chain's frame into the buffer; gives its header, or `None` for what no card would send.
    fn read(&mut self, chain: &Chain) -> Option<NetHeader> {
        let a = self.active.as_ref()?;
        let len = chain.readable.len();
        if !(HEADER + MIN_FRAME..=HEADER + MAX_FRAME).contains(&usize::try_from(len).ok()?) {
            return None;
        }
        self.buffer.resize(len as usize, 0);
        chain.readable.read(&a.memory, &mut self.buffer);
        let mut header = NetHeader::from_bytes(self.buffer.first_chunk()?);
        header.flags &= NetHeader::NEEDS_CSUM;
        let allowed = match (header.gso(), header.flags) {
            (NetHeader::GSO_NONE, 0) => true,
            (NetHeader::GSO_NONE, _) => a.features & feature::CSUM != 0,
            (NetHeader::GSO_TCPV4, _) => a.features & feature::HOST_TSO4 != 0,
            (NetHeader::GSO_TCPV6, _) => a.features & feature::HOST_TSO6 != 0,
            _ => false,
        };
        (allowed && sane(&header, &self.buffer[HEADER..])).then_some(header)
    }

    /// Hands a chain's frame on, cut and summed where the network (`able` or not) does not do that.
    /// False: refused.
    fn send(
        &mut self,
        chain: &Chain,
        able: bool,
        take: &mut dyn FnMut(&NetHeader, &[u8]) -> bool,
    ) -> bool {
        let Some(header) = self.read(chain) else {
            return true;
        };
        let frame = &mut self.buffer[HEADER..];
        if able || header.flags == 0 {
            return take(&header, frame);
        }
        if header.gso() != NetHeader::GSO_NONE {
            let pieces = &mut self.pieces;
            // What cannot be cut is lost.
            let _ = offload::segment(&header, frame, &mut |p| pieces.push_back(p.to_vec()));
            return true;
        }
        match offload::finish_checksum(&header, frame) {
            // The sum is not to be finished twice: the buffer is read anew if it is refused.
            Some(()) => take(&NetHeader::default(), frame),
            None => true,
        }
    }

    fn run(
        &mut self,
        most: usize,
        able: bool,
        link: bool,
        take: &mut dyn FnMut(&NetHeader, &[u8]) -> bool,
    ) -> Result<bool, Broken> {
        let mut used = false;
        let mut count = 0;
        let more = loop {
            while let Some(piece) = self.pieces.front() {
                if !take(&NetHeader::default(), piece) {
                    break;
                }
                self.pieces.pop_front();
            }
            if !self.pieces.is_empty() || count >= most {
                break true;
            }
            let Some(a) = self.active.as_mut() else {
                return Ok(false);
            };
            let chain = match self.held.take() {
                Some(chain) => chain,
                None => match a.queue.pop()? {
                    Some(chain) => chain,
                    None if a.queue.want_notification()? => continue,
                    None => break false,
                },
            };
            // Without a cable, frames go nowhere.
            if link && !self.send(&chain, able, take) {
                self.held = Some(chain);
                break true;
            }
            if let Some(a) = self.active.as_mut() {
                a.queue.push(chain.head, 0)?;
            }
            used = true;
            count += 1;
        };
        if let (Some(a), true) = (self.active.as_mut(), used)
            && a.queue.wants_interrupt()?
        {
            a.interrupts.used(super::TRANSMIT.into());
        }
        Ok(more)
    }
}

impl Receive {
    pub(super) fn clear(&mut self, mac: Mac) {
        self.active = None;
        self.held.clear();
        self.pieces.clear();
        self.used = false;
        self.offloads = 0;
        self.filter = FilterV1::new(mac, false);
    }

    /// Takes buffers from the queue until there is room for `need` bytes. False: there are too few.
    fn gather(&mut self, need: u64, starved: &AtomicBool) -> Result<bool, Broken> {
        let Some(a) = self.active.as_mut() else {
            return Ok(false);
        };
        let merge = a.features & feature::MRG_RXBUF != 0;
        let mut room: u64 = self.held.iter().map(|c| c.writable.len()).sum();
        while room < need && (merge || self.held.is_empty()) {
            match a.queue.pop()? {
                Some(chain) => {
                    let len = chain.writable.len();
                    let first = self.held.is_empty();
                    // The first has the header; none is empty; no ring has so many (5.1.6.3.2).
                    if len == 0 || first && len < HEADER as u64 || self.held.len() > 1024 {
                        return Err(Broken);
                    }
                    room += len;
                    self.held.push_back(chain);
                }
                None => {
                    starved.store(true, Ordering::SeqCst);
                    if !a.queue.want_notification()? {
                        return Ok(false);
                    }
                    starved.store(false, Ordering::SeqCst);
                }
            }
        }
        Ok(true)
    }

    /// Puts one frame into the driver's buffers. False: there are too few.
    fn put(
        &mut self,
        header: &NetHeader,
        frame: &[u8],
        starved: &AtomicBool,
    ) -> Result<bool, Broken> {
        let need = (HEADER + frame.len()) as u64;
        if !self.gather(need, starved)? {
            return Ok(false);
        }
        let Some(a) = self.active.as_mut() else {
            return Ok(true);
        };
        let (mut room, mut count) = (0, 0u16);
        for chain in &self.held {
            if room >= need {
                break;
            }
            room += chain.writable.len();
            count += 1;
        }
        // Buffers that cannot be merged and are too small for this frame: it is lost (5.1.6.4.1).
        if room < need {
            return Ok(true);
        }
        let mut bytes = [0; HEADER];
        bytes[..NetHeader::LEN].copy_from_slice(&header.to_bytes());
        bytes[NetHeader::LEN..].copy_from_slice(&count.to_le_bytes());
        let (mut front, mut rest) = (&bytes[..], frame);
        let mut given = Vec::with_capacity(count.into());
        for mut chain in self.held.drain(..usize::from(count)) {
            let mut written = 0;
            if !front.is_empty() {
                let place = chain
                    .writable
                    .take_front(front.len() as u64)
                    .ok_or(Broken)?;
                written += place.write(&a.memory, front);
                front = &[];
            }
            let n = chain.writable.write(&a.memory, rest);
            rest = &rest[n..];
            // A frame has fewer than 2^17 bytes.
            given.push((chain.head, (written + n) as u32));
        }
        a.queue.push_all(&given)?;
        self.used = true;
        Ok(true)
    }

    /// Puts pieces that waited. False: some still wait.
    fn put_pieces(&mut self, starved: &AtomicBool) -> Result<bool, Broken> {
        while let Some(piece) = self.pieces.pop_front() {
            let valid = self.plain();
            if !self.put(&valid, &piece, starved)? {
                self.pieces.push_front(piece);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The header of a frame whose checksums were made here.
    fn plain(&self) -> NetHeader {
        let known = self.offloads & feature::GUEST_CSUM != 0;
        NetHeader {
            flags: if known { NetHeader::DATA_VALID } else { 0 },
            ..NetHeader::default()
        }
    }

    /// Takes a frame for the guest, whatever its driver can do with it.
    fn take(
        &mut self,
        header: &NetHeader,
        frame: &[u8],
        starved: &AtomicBool,
    ) -> Result<bool, Broken> {
        if !self.put_pieces(starved)? {
            return Ok(false);
        }
        let has = |bits: u64| self.offloads & bits != 0;
        let as_it_is = match header.gso() {
            NetHeader::GSO_TCPV4 => has(feature::GUEST_TSO4),
            NetHeader::GSO_TCPV6 => has(feature::GUEST_TSO6),
            _ => has(feature::GUEST_CSUM),
        } && (header.gso_type & NetHeader::GSO_ECN == 0 || has(feature::GUEST_ECN));
        if as_it_is {
            return self.put(header, frame, starved);
        }
        if header.gso() != NetHeader::GSO_NONE {
            let pieces = &mut self.pieces;
            let _ = offload::segment(header, frame, &mut |p| pieces.push_back(p.to_vec()));
            // They are ours now, whether there is room for them or not.
            self.put_pieces(starved)?;
            return Ok(true);
        }
        let plain = self.plain();
        if header.flags & NetHeader::NEEDS_CSUM == 0 {
            return self.put(&plain_or(header, plain), frame, starved);
        }
        let mut whole = frame.to_vec();
        match offload::finish_checksum(header, &mut whole) {
            Some(()) => self.put(&plain, &whole, starved),
            None => Ok(true),
        }
    }
}

/// The header for a frame that asks for nothing.
fn plain_or(header: &NetHeader, plain: NetHeader) -> NetHeader {
    NetHeader {
        flags: header.flags & plain.flags,
        ..NetHeader::default()
    }
}

impl NetCard for Card {
    fn transmit(&self, most: usize, take: &mut dyn FnMut(&NetHeader, &[u8]) -> bool) -> bool {
        let (able, link) = (self.able, self.link.load(Ordering::SeqCst));
        let mut tx = lock(&self.tx);
        if tx.paused {
            return false;
        }
        tx.run(most, able, link, take).unwrap_or_else(|Broken| {
            if let Some(a) = &tx.active {
                a.interrupts.needs_reset();
            }
            tx.clear();
            false
        })
    }

    fn receive(&self, header: &NetHeader, frame: &[u8]) -> bool {
        let whole = (MIN_FRAME..=MAX_FRAME).contains(&frame.len()) && sane(header, frame);
        let mut rx = lock(&self.rx);
        let connected = rx.active.is_some() && self.link.load(Ordering::SeqCst);
        if !connected || !whole || !rx.filter.passes(frame) {
            return true;
        }
        if rx.paused {
            return false;
        }
        rx.take(header, frame, &self.starved)
            .unwrap_or_else(|Broken| rx.broken())
    }

    fn flush(&self) {
        let mut rx = lock(&self.rx);
        if rx.paused {
            return;
        }
        let told = rx.put_pieces(&self.starved).and_then(|_| rx.tell());
        if told.is_err() {
            rx.broken();
        }
    }

    fn set_link(&self, up: bool) {
        if self.link.swap(up, Ordering::SeqCst) != up
            && let Some(interrupts) = &*self.interrupts()
        {
            interrupts.config_changed();
        }
    }
}

impl Receive {
    /// The driver broke the rules; what was for it is lost.
    fn broken(&mut self) -> bool {
        if let Some(a) = self.active.take() {
            a.interrupts.needs_reset();
        }
        self.held.clear();
        self.pieces.clear();
        true
    }

    fn tell(&mut self) -> Result<(), Broken> {
        let used = std::mem::take(&mut self.used);
        if let (Some(a), true) = (self.active.as_mut(), used)
            && a.queue.wants_interrupt()?
        {
            a.interrupts.used(super::RECEIVE.into());
        }
        Ok(())
    }
}
