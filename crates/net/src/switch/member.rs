//! One member of the switch: its socket, its VLAN, and what waits for it.

use super::tag;
use mimeo_bus::{MAX_FRAME, NetHeader};
use rustix::io::Errno;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The shortest packet: a header and an Ethernet header.
pub(super) const SHORTEST: usize = NetHeader::LEN + 14;
/// The longest.
pub(super) const LONGEST: usize = NetHeader::LEN + MAX_FRAME;
/// Bytes from one source that may wait for one destination.
const QUEUE: usize = 256 << 10;
/// Packets from one source that may wait for one destination.
const PACKETS: usize = 128;
/// Frames to all that one member may send in a second, and at once.
const FLOOD_RATE: u32 = 2000;
const FLOOD_BURST: u32 = 256;

/// A packet on its way, where it was read: as it is, and with or without a tag where somebody wants
/// that. It is copied only for those who cannot take it at once.
pub(super) struct Packet<'a> {
    vlan: u16,
    /// With the frame that the sender gave, or without its empty tag.
    given: Cow<'a, [u8]>,
    tagged: bool,
    other: Option<Vec<u8>>,
}

impl<'a> Packet<'a> {
    /// The packet as a member with this VLAN sends it; `None` when it does not belong there.
    pub(super) fn from(member_vlan: u16, bytes: &'a [u8]) -> Option<Self> {
        let frame = bytes
            .get(NetHeader::LEN..)
            .filter(|_| bytes.len() >= SHORTEST)?;
        // A tag for VLAN 0 has a priority only (802.1Q, 9.6).
        let (tag, given) = match tag::vlan(frame) {
            Some(0) if frame.len() >= 18 => (None, Cow::Owned(tag::without(bytes))),
            Some(_) if frame.len() < 18 => return None,
            tag => (tag, Cow::Borrowed(bytes)),
        };
        let vlan = match (member_vlan, tag) {
            (0, tag) => tag.unwrap_or(0),
            (vlan, None) => vlan,
            (_, Some(_)) => return None,
        };
        Some(Self {
            vlan,
            given,
            tagged: tag.is_some(),
            other: None,
        })
    }

    pub(super) const fn vlan(&self) -> u16 {
        self.vlan
    }

    /// Destination and source address.
    pub(super) fn addresses(&self) -> ([u8; 6], [u8; 6]) {
        let f = &self.given[NetHeader::LEN..];
        (
            [f[0], f[1], f[2], f[3], f[4], f[5]],
            [f[6], f[7], f[8], f[9], f[10], f[11]],
        )
    }

    /// The packet for a member with this VLAN; `None` when it is not for it.
    fn to(&mut self, member_vlan: u16) -> Option<&[u8]> {
        let wants_tag = match member_vlan {
            0 => self.vlan != 0,
            v if v == self.vlan => false,
            _ => return None,
        };
        if wants_tag == self.tagged {
            return Some(&self.given);
        }
        let (given, vlan) = (&self.given, self.vlan);
        let other = self.other.get_or_insert_with(|| {
            if wants_tag {
                tag::with(given, vlan)
            } else {
                tag::without(given)
            }
        });
        // With a tag more it may have become too long to be sent.
        (other.len() <= LONGEST).then_some(other)
    }
}

/// What one source has waiting here.
struct Queue {
    source: u64,
    packets: VecDeque<Box<[u8]>>,
    bytes: usize,
}

/// A member.
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) socket: OwnedFd,
    /// `None` until it has said hello.
    pub(super) vlan: Option<u16>,
    /// Sources in the order of their turns.
    queues: VecDeque<Queue>,
    /// Frames to all that it may still send, and when that was counted.
    floods: u32,
    counted: Instant,
}

impl Member {
    pub(super) fn new(id: u64, socket: OwnedFd, now: Instant) -> Self {
        Self {
            id,
            socket,
            vlan: None,
            queues: VecDeque::new(),
            floods: FLOOD_BURST,
            counted: now,
        }
    }

    /// Whether it may send one more frame to all.
    pub(super) fn may_flood(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted);
        let earned = passed.as_secs_f64() * f64::from(FLOOD_RATE);
        if earned >= 1.0 {
            let earned = earned.min(f64::from(FLOOD_BURST)) as u32;
            self.floods = (self.floods + earned).min(FLOOD_BURST);
            self.counted = now;
        }
        let may = self.floods > 0;
        self.floods = self.floods.saturating_sub(1);
        may
    }

    /// Sends a packet of `source`, or lets it wait; one that finds its source's queue full is lost.
    pub(super) fn deliver(&mut self, source: u64, packet: &mut Packet<'_>) {
        let Some(bytes) = self.vlan.and_then(|vlan| packet.to(vlan)) else {
            return;
        };
        if self.queues.is_empty() && self.try_send(bytes) {
            return;
        }
        let at = self.queues.iter().position(|q| q.source == source);
        let at = at.unwrap_or_else(|| {
            self.queues.push_back(Queue {
                source,
                packets: VecDeque::new(),
                bytes: 0,
            });
            self.queues.len() - 1
        });
        let q = &mut self.queues[at];
        if q.packets.len() < PACKETS && q.bytes + bytes.len() <= QUEUE {
            q.bytes += bytes.len();
            q.packets.push_back(bytes.into());
        }
    }

    /// Something waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Sends what waits, one packet of each source in turn, as far as the socket takes it.
    pub(super) fn drain(&mut self) {
        while let Some(mut q) = self.queues.pop_front() {
            if let Some(bytes) = q.packets.pop_front() {
                if !self.try_send(&bytes) {
                    q.packets.push_front(bytes);
                    self.queues.push_front(q);
                    return;
                }
                q.bytes -= bytes.len();
            }
            if !q.packets.is_empty() {
                self.queues.push_back(q);
            }
        }
    }

    /// False: not now. Errors show when the socket is read.
    fn try_send(&self, bytes: &[u8]) -> bool {
        let sent = rustix::io::write(&self.socket, bytes);
        !matches!(sent, Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS))
    }
}

/// How often limits and ages are looked at.
pub(super) const TICK: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(tag: Option<u16>) -> Vec<u8> {
        let plain = [&[0; NetHeader::LEN][..], &[1; 12], &[8, 0], &[7; 46]].concat();
        tag.map_or(plain.clone(), |v| tag::with(&plain, v))
    }

    #[test]
    fn vlans_keep_apart() {
        // (sender's VLAN, tag, receiver's VLAN) → arrives with this tag.
        let cases = [
            (0, None, 0, Some(None)),
            (0, Some(7), 0, Some(Some(7))),
            (0, Some(7), 7, Some(None)),
            (0, Some(7), 8, None),
            (0, None, 7, None),
            (0, Some(0), 0, Some(None)),
            (7, None, 7, Some(None)),
            (7, None, 0, Some(Some(7))),
            (7, Some(0), 7, Some(None)),
            (7, None, 8, None),
        ];
        for (from, tag, to, arrives) in cases {
            let sent = packet(tag);
            let mut p = Packet::from(from, &sent).unwrap();
            let got = p.to(to).map(|b| b.to_vec());
            assert_eq!(got, arrives.map(packet), "{from} {tag:?} {to}");
        }
        assert!(
            Packet::from(7, &packet(Some(7))).is_none(),
            "an access port has no tags"
        );
        assert!(Packet::from(0, &packet(None)[..23]).is_none());
        assert!(Packet::from(0, &packet(Some(5))[..27]).is_none());
    }

    #[test]
    fn floods_are_limited() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let now = Instant::now();
        let mut m = Member::new(1, a.into(), now);
        let count = |m: &mut Member, now| (0..10_000).filter(|_| m.may_flood(now)).count();
        assert_eq!(count(&mut m, now), FLOOD_BURST as usize);
        assert_eq!(count(&mut m, now + Duration::from_millis(10)), 20);
        assert_eq!(
            count(&mut m, now + Duration::from_secs(99)),
            FLOOD_BURST as usize
        );
    }
}
