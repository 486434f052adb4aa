//! Frames taken apart and put together.

use mimeo_bus::NetHeader;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet,
    Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    TcpPacket, UdpPacket, UdpRepr,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Hop limit of what we make.
const HOPS: u8 = 64;
/// Hop limit of neighbour discovery (RFC 4861, 4.2): it has not been forwarded.
const HOPS_LINK: u8 = 255;
const ETHERNET: usize = 14;
const TCP_HEADER: usize = 20;
/// TCP's option kinds (RFC 9293, 3.1).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// An IP packet of the guest, whole and with a right header.
pub(super) struct Packet<'a> {
    pub(super) mac: EthernetAddress,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: IpProtocol,
    pub(super) payload: &'a [u8],
}

/// What a frame of the guest is.
pub(super) enum Frame<'a> {
    /// ARP about this address.
    Arp(Ipv4Addr),
    /// An IP packet.
    Ip(Packet<'a>),
    /// Anything else.
    Other,
}

/// The source of a frame, if it has an Ethernet header.
pub(super) fn source_mac(frame: &[u8]) -> Option<EthernetAddress> {
    EthernetFrame::new_checked(frame).ok().map(|f| f.src_addr())
}

/// Takes a frame apart.
pub(super) fn parse(frame: &[u8]) -> Frame<'_> {
    parts(frame).unwrap_or(Frame::Other)
}

fn parts(frame: &[u8]) -> Option<Frame<'_>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let mac = ethernet.src_addr();
    match ethernet.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpPacket::new_checked(ethernet.payload()).ok()?;
            let target: [u8; 4] = arp.target_protocol_addr().try_into().ok()?;
            Some(Frame::Arp(target.into()))
        }
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let whole = !ip.more_frags() && ip.frag_offset() == 0;
            (ip.version() == 4 && whole && ip.verify_checksum()).then(|| {
                Frame::Ip(Packet {
                    mac,
                    source: ip.src_addr().into(),
                    destination: ip.dst_addr().into(),
                    protocol: ip.next_header(),
                    payload: ip.payload(),
                })
            })
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            (ip.version() == 6).then(|| {
                Frame::Ip(Packet {
                    mac,
                    source: ip.src_addr().into(),
                    destination: ip.dst_addr().into(),
                    protocol: ip.next_header(),
                    payload: ip.payload(),
                })
            })
        }
        _ => None,
    }
}

/// Where TCP begins in a frame that smoltcp made, and whether it is over IPv6.
fn tcp_at(frame: &[u8]) -> Option<(usize, bool)> {
    match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(ETHERNET + 9)? == 6 => {
            Some((ETHERNET + 4 * usize::from(frame[ETHERNET] & 15), false))
        }
        [0x86, 0xdd] if *frame.get(ETHERNET + 6)? == 6 => Some((ETHERNET + 40, true)),
        _ => None,
    }
}

/// Makes a TCP segment one whose checksum and cutting are left to the card; gives the header that says
/// so. Other frames are complete.
pub(super) fn offload(frame: &mut [u8], mtu: u16) -> NetHeader {
    tcp_offload(frame, mtu).unwrap_or(NetHeader {
        flags: NetHeader::DATA_VALID,
        ..NetHeader::default()
    })
}

fn tcp_offload(frame: &mut [u8], mtu: u16) -> Option<NetHeader> {
    let (tcp, v6) = tcp_at(frame)?;
    let headers = tcp + 4 * usize::from(*frame.get(tcp + 12)? >> 4);
    let addresses = if v6 {
        ETHERNET + 8..ETHERNET + 40
    } else {
        ETHERNET + 12..ETHERNET + 20
    };
    let payload = frame.len().checked_sub(headers)?;
    // Protocol number and length, then the addresses: the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
    let mut sum = 6 + (frame.len() - tcp) as u32;
    for pair in frame[addresses].chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded to 16 bits.
    frame[tcp + 16..tcp + 18].copy_from_slice(&(sum as u16).to_be_bytes());
    let size = usize::from(mtu).saturating_sub(headers - ETHERNET);
    let (gso_type, gso_size) = match (payload > size, v6) {
        (false, _) => (NetHeader::GSO_NONE, 0),
        (true, false) => (NetHeader::GSO_TCPV4, size as u16),
        (true, true) => (NetHeader::GSO_TCPV6, size as u16),
    };
    Some(NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type,
        header_len: headers as u16,
        gso_size,
        csum_start: tcp as u16,
        csum_offset: 16,
    })
}

/// A copy of a SYN of the guest in which the largest segment size stands for "as long as you like", if
/// it is all that fits the MTU: between smoltcp and the card nothing has to be cut.
pub(super) fn without_mss(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let (tcp, v6) = tcp_at(frame)?;
    let syn = TcpPacket::new_checked(frame.get(tcp..)?).ok()?.syn();
    let end = tcp + 4 * usize::from(*frame.get(tcp + 12)? >> 4);
    let mut at = tcp + TCP_HEADER;
    let full = mtu.saturating_sub(if v6 { 60 } else { 40 });
    while syn && at < end {
        match *frame.get(at)? {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            OPTION_MSS => {
                let mss = u16::from_be_bytes([*frame.get(at + 2)?, *frame.get(at + 3)?]);
                let mut copy = frame.to_vec();
                copy[at + 2..at + 4].copy_from_slice(&u16::MAX.to_be_bytes());
                return (mss >= full && at + 4 <= end).then_some(copy);
            }
            _ => at += usize::from(*frame.get(at + 1)?).max(2),
        }
    }
    None
}

/// The two ends of the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Macs {
    pub(super) router: EthernetAddress,
    pub(super) guest: EthernetAddress,
}

/// A frame with an IP packet of ours, whose payload `fill` writes. `None` for two kinds of addresses
/// and for what does not fit a packet.
fn ip_frame(
    macs: Macs,
    ends: (IpAddr, IpAddr),
    (protocol, hops): (IpProtocol, u8),
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Option<Vec<u8>> {
    if len > 65_535 - 40 {
        return None;
    }
    let ethernet = |ethertype| EthernetRepr {
        src_addr: macs.router,
        dst_addr: macs.guest,
        ethertype,
    };
    Some(match ends {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let ip = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header: protocol,
                payload_len: len,
                hop_limit: hops,
            };
            let mut bytes = vec![0; ETHERNET + ip.buffer_len() + len];
            let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
            ethernet(EthernetProtocol::Ipv4).emit(&mut frame);
            let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
            ip.emit(&mut packet, &ChecksumCapabilities::default());
            fill(packet.payload_mut());
            bytes
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let ip = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header: protocol,
                payload_len: len,
                hop_limit: hops,
            };
            let mut bytes = vec![0; ETHERNET + ip.buffer_len() + len];
            let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
            ethernet(EthernetProtocol::Ipv6).emit(&mut frame);
            let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
            ip.emit(&mut packet);
            fill(packet.payload_mut());
            bytes
        }
        _ => return None,
    })
}

/// A UDP datagram to the guest.
pub(super) fn udp(
    macs: Macs,
    source: SocketAddr,
    destination: SocketAddr,
    data: &[u8],
) -> Option<Vec<u8>> {
    let udp = UdpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
    };
    let ends = (source.ip(), destination.ip());
    let len = udp.header_len() + data.len();
    ip_frame(macs, ends, (IpProtocol::Udp, HOPS), len, |payload| {
        udp.emit(
            &mut UdpPacket::new_unchecked(payload),
            &ends.0.into(),
            &ends.1.into(),
            data.len(),
            |b| b.copy_from_slice(data),
            &ChecksumCapabilities::default(),
        );
    })
}

/// An echo reply to the guest.
pub(super) fn echo_reply(
    macs: Macs,
    ends: (IpAddr, IpAddr),
    (ident, seq_no): (u16, u16),
    data: &[u8],
) -> Option<Vec<u8>> {
    let checks = ChecksumCapabilities::default();
    match ends {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let message = Icmpv4Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            let kind = (IpProtocol::Icmp, HOPS);
            ip_frame(macs, ends, kind, message.buffer_len(), |p| {
                message.emit(&mut Icmpv4Packet::new_unchecked(p), &checks);
            })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let message = Icmpv6Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            let kind = (IpProtocol::Icmpv6, HOPS);
            ip_frame(macs, ends, kind, message.buffer_len(), |p| {
                message.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(p), &checks);
            })
        }
        _ => None,
    }
}

/// Why a datagram cannot be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Nobody listens at its port: RFC 792; RFC 4443, 3.1.
    Port,
    /// A rule forbids it: RFC 1812, 5.2.7.1; RFC 4443, 3.1.
    Prohibited,
}

/// Tells the guest that its datagram from `inside` to `outside` cannot be delivered: an ICMP message with
/// the datagram's IP and UDP headers.
pub(super) fn unreachable(
    macs: Macs,
    (inside, outside): (SocketAddr, SocketAddr),
    why: Unreachable,
) -> Option<Vec<u8>> {
    let original = udp(macs, inside, outside, &[])?;
    let v6 = outside.is_ipv6();
    let (kind, code) = match (v6, why) {
        (false, Unreachable::Port) => (3, 3),
        (false, Unreachable::Prohibited) => (3, 13),
        (true, Unreachable::Port) => (1, 4),
        (true, Unreachable::Prohibited) => (1, 1),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&original[ETHERNET..]);
    let ends = (outside.ip(), inside.ip());
    let protocol = if v6 {
        IpProtocol::Icmpv6
    } else {
        IpProtocol::Icmp
    };
    ip_frame(macs, ends, (protocol, HOPS), message.len(), |p| {
        p.copy_from_slice(&message);
        match ends {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                Icmpv6Packet::new_unchecked(p).fill_checksum(&from, &to);
            }
            _ => Icmpv4Packet::new_unchecked(p).fill_checksum(),
        }
    })
}

/// A message of neighbour discovery to the guest, its checksum to be made here.
pub(super) fn discovery(macs: Macs, ends: (Ipv6Addr, Ipv6Addr), message: &[u8]) -> Option<Vec<u8>> {
    let addresses = (ends.0.into(), ends.1.into());
    let kind = (IpProtocol::Icmpv6, HOPS_LINK);
    ip_frame(macs, addresses, kind, message.len(), |p| {
        p.copy_from_slice(message);
        Icmpv6Packet::new_unchecked(p).fill_checksum(&ends.0, &ends.1);
    })
}
