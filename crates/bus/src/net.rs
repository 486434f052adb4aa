//! What a network card and the network behind it know of each other.
//!
//! The network's own thread does the work: it takes the guest's frames out of the card and puts frames
//! for the guest into it. The card's side only says that there is something to do
//! ([`NetBackend::kick`]), which never waits, so no vCPU ever does the network's work.

use std::sync::Arc;

/// How a frame's checksum and segmentation stand: `struct virtio_net_hdr` (VIRTIO 1.2, 5.1.6), which
/// Linux's tun devices speak too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`].
    pub flags: u8,
    /// [`Self::GSO_NONE`] or how the frame is to be cut, with [`Self::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers; a hint.
    pub header_len: u16,
    /// Bytes of payload in each piece.
    pub gso_size: u16,
    /// Where the bytes begin that the checksum is over.
    pub csum_start: u16,
    /// Where the checksum goes, from there.
    pub csum_offset: u16,
}

impl NetHeader {
    /// The checksum's place holds that of the pseudo header only.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum has been looked at and is right.
    pub const DATA_VALID: u8 = 2;
    /// The frame is as it goes over the wire.
    pub const GSO_NONE: u8 = 0;
    /// A TCP segment over IPv4, to be cut.
    pub const GSO_TCPV4: u8 = 1;
    /// A TCP segment over IPv6, to be cut.
    pub const GSO_TCPV6: u8 = 4;
    /// Or'ed to the others: the segment has the ECN bit CWR.
    pub const GSO_ECN: u8 = 0x80;
    /// Bytes of the encoding.
    pub const LEN: usize = 10;

    /// The encoding (little-endian).
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut b = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [
            self.header_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (to, from) in b[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        b
    }

    /// From the encoding.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        let word = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// How the frame is to be cut, without the ECN bit.
    #[must_use]
    pub const fn gso(self) -> u8 {
        self.gso_type & !Self::GSO_ECN
    }
}

/// Bytes of the largest frame between a card and a network: an IP packet of 65535 bytes behind an
/// Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = 65_535 + 18;

/// A card as its network sees it. Called on the network's thread, under no lock of the network's.
pub trait NetCard: Send + Sync {
    /// Hands the guest's frames to `take`, at most `most` of them. A frame that `take` refuses (false)
    /// is kept, and the call ends. The result is true while more may wait; after false the card calls
    /// [`NetBackend::kick`] when there is something again.
    fn transmit(&self, most: usize, take: &mut dyn FnMut(&NetHeader, &[u8]) -> bool) -> bool;

    /// Hands one Ethernet frame, without its check sequence, to the guest. False: it has no buffers; the
    /// card calls [`NetBackend::kick`] when it has, and the frame is offered again. Frames that the
    /// guest does not want count as taken. [`Self::flush`] ends a batch.
    fn receive(&self, header: &NetHeader, frame: &[u8]) -> bool;

    /// Tells the guest of what it was given since the last call.
    fn flush(&self);

    /// The cable is plugged in or not.
    fn set_link(&self, up: bool);
}

/// A network as its card sees it. None of the calls waits, and none calls the card.
pub trait NetBackend: Send + Sync {
    /// The card. Once, before the machine runs.
    fn attach(&self, card: Arc<dyn NetCard>);

    /// The guest has put frames or buffers into its card, or the card was switched on or off.
    fn kick(&self);

    /// The largest IP packet in bytes, where the network prescribes one to the guest.
    fn mtu(&self) -> Option<u16>;

    /// Whether it takes frames with a [`NetHeader`] that asks for something; otherwise the card does
    /// all cutting and checksums itself.
    fn offloads(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::NetHeader;

    #[test]
    fn headers_round_trip() {
        let h = NetHeader {
            flags: 1,
            gso_type: 0x81,
            header_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        let b = h.to_bytes();
        assert_eq!(b, [1, 0x81, 54, 0, 0xb4, 5, 34, 0, 16, 0]);
        assert_eq!(NetHeader::from_bytes(&b), h);
        assert_eq!(h.gso(), NetHeader::GSO_TCPV4);
    }
}
