//! Frames taken apart and put together.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr,
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Hop limit of what we make.
const HOPS: u8 = 64;

/// An IPv4 packet of the guest, whole and with a right header.
pub(super) struct Packet<'a> {
    pub(super) mac: EthernetAddress,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: IpProtocol,
    pub(super) payload: &'a [u8],
}

/// The source of a frame, if it has an Ethernet header.
pub(super) fn source_mac(frame: &[u8]) -> Option<EthernetAddress> {
    EthernetFrame::new_checked(frame).ok().map(|f| f.src_addr())
}

/// Takes a frame apart; `None` for anything but a whole IPv4 packet.
pub(super) fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    let whole = !ip.more_frags() && ip.frag_offset() == 0;
    (ip.version() == 4 && whole && ip.verify_checksum()).then(|| Packet {
        mac: ethernet.src_addr(),
        source: ip.src_addr(),
        destination: ip.dst_addr(),
        protocol: ip.next_header(),
        payload: ip.payload(),
    })
}

/// The two ends of the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Macs {
    pub(super) router: EthernetAddress,
    pub(super) guest: EthernetAddress,
}

/// An IPv4 frame to the guest whose payload `fill` writes.
fn ip_frame(
    macs: Macs,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let ethernet = EthernetRepr {
        src_addr: macs.router,
        dst_addr: macs.guest,
        ethertype: EthernetProtocol::Ipv4,
    };
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: protocol,
        payload_len: len,
        hop_limit: HOPS,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    fill(packet.payload_mut());
    bytes
}

/// A UDP datagram to the guest.
pub(super) fn udp(
    macs: Macs,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    data: &[u8],
) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
    };
    let ends = (*source.ip(), *destination.ip());
    ip_frame(
        macs,
        ends,
        IpProtocol::Udp,
        udp.header_len() + data.len(),
        |payload| {
            udp.emit(
                &mut UdpPacket::new_unchecked(payload),
                &IpAddress::Ipv4(ends.0),
                &IpAddress::Ipv4(ends.1),
                data.len(),
                |b| b.copy_from_slice(data),
                &ChecksumCapabilities::default(),
            );
        },
    )
}

/// An ICMP message to the guest.
pub(super) fn icmp(macs: Macs, ends: (Ipv4Addr, Ipv4Addr), message: &Icmpv4Repr<'_>) -> Vec<u8> {
    ip_frame(
        macs,
        ends,
        IpProtocol::Icmp,
        message.buffer_len(),
        |payload| {
            message.emit(
                &mut Icmpv4Packet::new_unchecked(payload),
                &ChecksumCapabilities::default(),
            );
        },
    )
}
