//! VLAN tags (IEEE 802.1Q, 9.6): what is on the wire, and what the switch knows.

use mimeo_bus::NetHeader;

/// Bytes of a tag, and where it stands.
const TAG: usize = 4;
const AT: usize = 12;
const TPID: [u8; 2] = [0x81, 0];

/// The VLAN in a frame's tag, if it has one.
pub(super) fn vlan(frame: &[u8]) -> Option<u16> {
    match frame.get(AT..AT + TAG)? {
        [0x81, 0, high, low] => Some(u16::from(high & 15) << 8 | u16::from(*low)),
        _ => None,
    }
}

/// A packet (header and frame) whose frame has no tag any more.
pub(super) fn without(packet: &[u8]) -> Vec<u8> {
    change(packet, |frame, out| {
        out.extend_from_slice(&frame[..AT]);
        out.extend_from_slice(&frame[AT + TAG..]);
        -(TAG as i32)
    })
}

/// A packet whose frame got a tag.
pub(super) fn with(packet: &[u8], vlan: u16) -> Vec<u8> {
    change(packet, |frame, out| {
        out.extend_from_slice(&frame[..AT]);
        out.extend_from_slice(&TPID);
        out.extend_from_slice(&vlan.to_be_bytes());
        out.extend_from_slice(&frame[AT..]);
        TAG as i32
    })
}

/// Rewrites a packet of at least a header and an Ethernet header; offsets in the header follow.
fn change(packet: &[u8], frame: impl FnOnce(&[u8], &mut Vec<u8>) -> i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(packet.len() + TAG);
    let (head, body) = packet.split_at(NetHeader::LEN);
    out.extend_from_slice(head);
    let moved = frame(body, &mut out);
    if let Some(bytes) = out.first_chunk_mut::<{ NetHeader::LEN }>() {
        let mut h = NetHeader::from_bytes(bytes);
        let shift = |v: u16| u16::try_from(i32::from(v) + moved).unwrap_or(v);
        if h.flags & NetHeader::NEEDS_CSUM != 0 {
            h.csum_start = shift(h.csum_start);
        }
        if h.header_len != 0 {
            h.header_len = shift(h.header_len);
        }
        *bytes = h.to_bytes();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_comes_and_goes() {
        let h = NetHeader {
            flags: 1,
            csum_start: 34,
            header_len: 54,
            ..NetHeader::default()
        };
        let packet = [&h.to_bytes()[..], &[1; 12], &[8, 0], &[7; 50]].concat();
        let tagged = with(&packet, 0x123);
        assert_eq!(vlan(&tagged[NetHeader::LEN..]), Some(0x123));
        let moved = NetHeader::from_bytes(tagged.first_chunk().unwrap());
        assert_eq!((moved.csum_start, moved.header_len), (38, 58));
        assert_eq!(without(&tagged), packet);
        assert_eq!(vlan(&packet[NetHeader::LEN..]), None);
        assert_eq!(vlan(&[0; 15]), None);
    }
}
