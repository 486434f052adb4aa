//! The wire between smoltcp and the card.
//!
//! smoltcp makes TCP segments of up to 64 KB without checksums; here they become frames that say so,
//! and the card or the guest's driver does the rest.

use super::frames;
use crate::Capture;
use mimeo_bus::{NetCard, NetHeader};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;
use std::sync::Arc;

/// Frames for the guest that may wait until its card has buffers.
const BACKLOG: usize = 64;
const ETHERNET_HEADER: usize = 14;
/// The largest IP packet that smoltcp makes; with its Ethernet header less than 64 KB.
pub(super) const STACK_MTU: usize = 65_500;

pub(super) struct Link {
    /// The guest's MTU, by which segments are to be cut.
    mtu: u16,
    pub(super) card: Option<Arc<dyn NetCard>>,
    capture: Capture,
    backlog: VecDeque<(NetHeader, Vec<u8>)>,
    scratch: Vec<u8>,
    /// The card was given something since it was flushed.
    fed: bool,
}

impl Link {
    pub(super) fn new(mtu: u16, capture: Capture) -> Self {
        Self {
            mtu,
            card: None,
            capture,
            backlog: VecDeque::new(),
            scratch: Vec::new(),
            fed: false,
        }
    }

    /// Whether the card takes what it is given.
    pub(super) fn is_free(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Gives the card what waits for it, as long as it has buffers.
    pub(super) fn retry(&mut self) {
        while let Some((header, frame)) = self.backlog.pop_front() {
            if !self.offer(&header, &frame) {
                self.backlog.push_front((header, frame));
                return;
            }
        }
    }

    fn offer(&mut self, header: &NetHeader, frame: &[u8]) -> bool {
        self.fed = true;
        self.card.as_ref().is_none_or(|c| c.receive(header, frame))
    }

    /// Sends a frame to the guest; one that neither the card nor the backlog takes is lost.
    pub(super) fn push(&mut self, frame: &mut [u8]) {
        let header = frames::offload(frame, self.mtu);
        self.capture.frame(frame);
        let waiting = !self.backlog.is_empty();
        if (waiting || !self.offer(&header, frame)) && self.backlog.len() < BACKLOG {
            self.backlog.push_back((header, frame.to_vec()));
        }
    }

    /// Notes a frame of the guest.
    pub(super) fn record(&mut self, frame: &[u8]) {
        self.capture.frame(frame);
    }

    /// The end of a batch: the guest is told of what it was given.
    pub(super) fn flush(&mut self) {
        if let (Some(card), true) = (&self.card, std::mem::take(&mut self.fed)) {
            card.flush();
        }
        self.capture.flush();
    }
}

/// The wire with the frame on it that smoltcp is to look at next, if any.
pub(super) struct Wire<'a> {
    pub(super) link: &'a mut Link,
    pub(super) frame: Option<&'a [u8]>,
}

pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Sending<'a>(&'a mut Link);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = std::mem::take(&mut self.0.scratch);
        frame.resize(len, 0);
        let result = f(&mut frame);
        self.0.push(&mut frame);
        self.0.scratch = frame;
        result
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let frame = self.frame.take()?;
        Some((Received(frame), Sending(self.link)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.link.is_free().then_some(Sending(self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = STACK_MTU + ETHERNET_HEADER;
        // What comes from the guest came through its memory, not over a wire; what goes to it is
        // summed where it is needed.
        c.checksum.ipv4 = Checksum::Both;
        c.checksum.tcp = Checksum::None;
        c.checksum.udp = Checksum::Tx;
        c
    }
}
