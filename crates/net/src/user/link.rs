//! The wire between smoltcp and the card: two bounded queues.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;

/// Frames for the guest that may wait until its card has buffers.
const OUTBOX: usize = 256;
const ETHERNET_HEADER: usize = 14;

#[derive(Debug)]
pub(super) struct Link {
    mtu: usize,
    /// For smoltcp.
    pub(super) to_stack: VecDeque<Vec<u8>>,
    /// For the guest.
    pub(super) to_guest: VecDeque<Vec<u8>>,
}

impl Link {
    pub(super) fn new(mtu: u16) -> Self {
        Self {
            mtu: usize::from(mtu),
            to_stack: VecDeque::new(),
            to_guest: VecDeque::new(),
        }
    }

    /// Queues a frame of our own making for the guest; a full queue drops it.
    pub(super) fn push(&mut self, frame: Vec<u8>) {
        if self.to_guest.len() < OUTBOX {
            self.to_guest.push_back(frame);
        }
    }
}

pub(super) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(super) struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        // An answer needs room too.
        if self.to_guest.len() >= OUTBOX {
            return None;
        }
        let frame = self.to_stack.pop_front()?;
        Some((Received(frame), Sending(&mut self.to_guest)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        (self.to_guest.len() < OUTBOX).then_some(Sending(&mut self.to_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        // What comes from the guest came through its memory, not over a wire.
        c.checksum.ipv4 = Checksum::Both;
        c.checksum.tcp = Checksum::Tx;
        c.checksum.udp = Checksum::Tx;
        c
    }
}
