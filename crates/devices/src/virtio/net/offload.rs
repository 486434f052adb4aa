//! Checksums and segmentation in software, for frames whose other side does not do them.
//!
//! Documents: RFC 791, 8200, 9293, 1071 (the sum), 3168 6.1.2 (CWR only on the first piece); VIRTIO
//! 1.2, 5.1.6.2 and 5.1.6.4. A header that does not fit its frame is answered with `None`: the frame
//! is lost, as a broken one is on a wire.

use mimeo_bus::NetHeader;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// TCP flags, in byte 13 of its header.
const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 0x80;
/// Where TCP's checksum is in its header.
const TCP_CHECKSUM: usize = 16;

/// RFC 1071's sum of 16-bit words, not complemented.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = u64::from(start);
    let mut chunks = bytes.chunks_exact(2);
    for c in &mut chunks {
        total += u64::from(u16::from_be_bytes([c[0], c[1]]));
    }
    if let [last] = chunks.remainder() {
        total += u64::from(*last) << 8;
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // Folded to 16 bits.
    total as u16
}

fn word(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*b.get(at)?, *b.get(at + 1)?]))
}

fn put(b: &mut [u8], at: usize, value: u16) {
    if let Some(place) = b.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Writes the checksum that `header` asks for.
pub(super) fn finish_checksum(header: &NetHeader, frame: &mut [u8]) -> Option<()> {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    if at + 2 > frame.len() {
        return None;
    }
    // The place holds the pseudo header's sum, which is counted with the rest.
    let value = !sum(frame.get(start..)?, 0);
    // Zero would say "no checksum" in UDP (RFC 768); the two are the same number otherwise.
    put(frame, at, if value == 0 { 0xffff } else { value });
    Some(())
}

/// Where things are in a TCP segment's frame.
struct Layout {
    /// Offset of the IP header.
    ip: usize,
    v6: bool,
    tcp: usize,
    payload: usize,
}

fn layout(frame: &[u8]) -> Option<Layout> {
    let (mut kind, mut ip) = (word(frame, 12)?, ETHERNET);
    if kind == 0x8100 {
        (kind, ip) = (word(frame, ETHERNET + 2)?, ETHERNET + VLAN_TAG);
    }
    let (v6, tcp) = match kind {
        0x0800 if *frame.get(ip + 9)? == 6 => {
            let words = usize::from(*frame.get(ip)? & 15);
            (false, ip + 4 * words.max(5))
        }
        // Extension headers in front of TCP are not cut.
        0x86dd if *frame.get(ip + 6)? == 6 => (true, ip + 40),
        _ => return None,
    };
    let words = usize::from(*frame.get(tcp + 12)? >> 4);
    let payload = tcp + 4 * words.max(5);
    (payload <= frame.len()).then_some(Layout {
        ip,
        v6,
        tcp,
        payload,
    })
}

/// The sum over TCP's pseudo header.
fn pseudo(frame: &[u8], l: &Layout, len: usize) -> u16 {
    let addresses = if l.v6 {
        &frame[l.ip + 8..l.ip + 40]
    } else {
        &frame[l.ip + 12..l.ip + 20]
    };
    // Below 2^17.
    sum(addresses, 6 + len as u32)
}

/// Cuts a TCP segment into frames with at most `gso_size` bytes of payload, each with all its
/// checksums, and hands them to `piece` in their order.
pub(super) fn segment(
    header: &NetHeader,
    frame: &[u8],
    piece: &mut dyn FnMut(&[u8]),
) -> Option<()> {
    let size = usize::from(header.gso_size);
    let l = layout(frame)?;
    let kind = if l.v6 {
        NetHeader::GSO_TCPV6
    } else {
        NetHeader::GSO_TCPV4
    };
    if size == 0 || header.gso() != kind {
        return None;
    }
    let data = &frame[l.payload..];
    let first = u32::from(word(frame, l.tcp + 4)?) << 16 | u32::from(word(frame, l.tcp + 6)?);
    let id = word(frame, l.ip + 4)?;
    let count = data.len().div_ceil(size).max(1);
    let mut out = Vec::with_capacity(l.payload + size.min(data.len()));
    for i in 0..count {
        let part = &data[i * size..data.len().min((i + 1) * size)];
        out.clear();
        out.extend_from_slice(&frame[..l.payload]);
        out.extend_from_slice(part);
        // The frame is shorter than 2^17, so an index and an offset fit.
        let sequence = first.wrapping_add((i * size) as u32).to_be_bytes();
        out[l.tcp + 4..l.tcp + 8].copy_from_slice(&sequence);
        if i > 0 {
            out[l.tcp + 13] &= !CWR;
        }
        if i + 1 < count {
            out[l.tcp + 13] &= !(FIN | PSH);
        }
        if l.v6 {
            put(
                &mut out,
                l.ip + 4,
                u16::try_from(l.payload - l.ip - 40 + part.len()).ok()?,
            );
        } else {
            put(
                &mut out,
                l.ip + 2,
                u16::try_from(l.payload - l.ip + part.len()).ok()?,
            );
            put(&mut out, l.ip + 4, id.wrapping_add(i as u16));
            put(&mut out, l.ip + 10, 0);
            let ip_sum = !sum(&out[l.ip..l.tcp], 0);
            put(&mut out, l.ip + 10, ip_sum);
        }
        put(&mut out, l.tcp + TCP_CHECKSUM, 0);
        let start = pseudo(&out, &l, out.len() - l.tcp);
        let tcp_sum = !sum(&out[l.tcp..], start.into());
        put(&mut out, l.tcp + TCP_CHECKSUM, tcp_sum);
        piece(&out);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(v6: bool, payload: usize) -> Vec<u8> {
        let mut f = vec![0u8; 12];
        f.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
        let tcp = 20 + payload;
        if v6 {
            f.extend([0x60, 0, 0, 0]);
            f.extend((tcp as u16).to_be_bytes());
            f.extend([6, 64]);
            f.extend([1; 16]);
            f.extend([2; 16]);
        } else {
            f.extend([0x45, 0]);
            f.extend(((20 + tcp) as u16).to_be_bytes());
            f.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        }
        f.extend([0x30, 0x39, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1]);
        f.extend([0x50, 0x10 | PSH | FIN | CWR, 1, 0, 0, 0, 0, 0]);
        f.extend((0..payload).map(|i| i as u8));
        f
    }

    fn header(v6: bool, size: u16) -> NetHeader {
        NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            gso_type: if v6 { 4 } else { 1 },
            gso_size: size,
            ..NetHeader::default()
        }
    }

    /// All pieces are whole packets whose sums come out even, and their payloads join to the whole.
    #[test]
    fn pieces_are_whole_packets() {
        for v6 in [false, true] {
            let whole = frame(v6, 2501);
            let mut pieces = Vec::new();
            segment(&header(v6, 1000), &whole, &mut |p| pieces.push(p.to_vec())).unwrap();
            assert_eq!(pieces.len(), 3);
            let (mut data, mut sequence) = (Vec::new(), 0xffff_fff0u32);
            for (i, p) in pieces.iter().enumerate() {
                let l = layout(p).unwrap();
                assert_eq!(
                    sum(&p[l.tcp..], pseudo(p, &l, p.len() - l.tcp).into()),
                    0xffff
                );
                if !v6 {
                    assert_eq!(sum(&p[l.ip..l.tcp], 0), 0xffff);
                    assert_eq!(word(p, l.ip + 2), Some((p.len() - l.ip) as u16));
                    assert_eq!(word(p, l.ip + 4), Some(9 + i as u16));
                } else {
                    assert_eq!(word(p, l.ip + 4), Some((p.len() - l.tcp) as u16));
                }
                assert_eq!(p[l.tcp + 4..l.tcp + 8], sequence.to_be_bytes());
                sequence = sequence.wrapping_add(1000);
                assert_eq!(p[l.tcp + 13] & CWR != 0, i == 0);
                assert_eq!(p[l.tcp + 13] & (FIN | PSH) != 0, i == 2);
                data.extend_from_slice(&p[l.payload..]);
            }
            assert_eq!(data, whole[whole.len() - 2501..]);
        }
    }

    #[test]
    fn a_checksum_is_finished() {
        let mut f = frame(false, 100);
        let l = layout(&f).unwrap();
        let partial = pseudo(&f, &l, f.len() - l.tcp);
        put(&mut f, l.tcp + TCP_CHECKSUM, partial);
        let h = NetHeader {
            flags: 1,
            csum_start: l.tcp as u16,
            csum_offset: 16,
            ..NetHeader::default()
        };
        finish_checksum(&h, &mut f).unwrap();
        assert_eq!(sum(&f[l.tcp..], partial.into()), 0xffff);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut none = |_: &[u8]| panic!("a piece of nonsense");
        for v6 in [false, true] {
            let f = frame(v6, 3000);
            assert!(segment(&header(v6, 0), &f, &mut none).is_none());
            assert!(segment(&header(!v6, 1000), &f, &mut none).is_none());
            for len in 0..f.len() - 3000 {
                assert!(
                    segment(&header(v6, 100), &f[..len], &mut none).is_none(),
                    "{len}"
                );
            }
        }
        let h = NetHeader {
            csum_start: 0xffff,
            csum_offset: 0xffff,
            ..NetHeader::default()
        };
        assert!(finish_checksum(&h, &mut [0; 64]).is_none());
        let h = NetHeader {
            csum_start: 60,
            csum_offset: 3,
            ..NetHeader::default()
        };
        assert!(finish_checksum(&h, &mut [0; 64]).is_none());
    }
}
