//! Echo requests to the world, through the host's unprivileged ICMP sockets (icmp(7),
//! `net.ipv4.ping_group_range`). Where the host has none for us, pings get no answer.

use super::frames::{self, Macs};
use super::link::Link;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Pings at one time.
const MAX_FLOWS: usize = 32;
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Flow {
    /// An ICMP socket: the same calls as for datagrams.
    socket: UdpSocket,
    guest: Ipv4Addr,
    last: Instant,
}

/// By the guest's identifier and the address it pings.
#[derive(Debug, Default)]
pub(super) struct Icmp {
    flows: HashMap<(u16, Ipv4Addr), Flow>,
}

impl Icmp {
    /// Passes on an echo request that the guest sent to `shown`, which is `to` on the host's side.
    pub(super) fn send(&mut self, guest: Ipv4Addr, shown: Ipv4Addr, to: Ipv4Addr, message: &[u8]) {
        let Ok(packet) = Icmpv4Packet::new_checked(message) else {
            return;
        };
        let checks = ChecksumCapabilities::ignored();
        let Ok(Icmpv4Repr::EchoRequest { ident, .. }) = Icmpv4Repr::parse(&packet, &checks) else {
            return;
        };
        let last = Instant::now();
        if !self.flows.contains_key(&(ident, shown)) {
            if self.flows.len() >= MAX_FLOWS {
                return;
            }
            let Some(socket) = ping_socket(to) else {
                return;
            };
            self.flows.insert(
                (ident, shown),
                Flow {
                    socket,
                    guest,
                    last,
                },
            );
        }
        if let Some(flow) = self.flows.get_mut(&(ident, shown)) {
            flow.last = last;
            // The host puts in an identifier of its own and the checksum.
            let _ = flow.socket.send(message);
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.flows
            .retain(|_, f| now.saturating_duration_since(f.last) <= SILENCE);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flows.is_empty()
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.flows.values().map(|f| &f.socket)
    }

    /// Takes the answers, gives them the guest's identifier back, and makes frames of them.
    pub(super) fn receive(&mut self, link: &mut Link, macs: Macs, max: usize) {
        let mut buffer = vec![0; 65_536];
        for ((guest_ident, shown), flow) in &self.flows {
            while let Ok(n) = flow.socket.recv(&mut buffer) {
                let Ok(packet) = Icmpv4Packet::new_checked(&buffer[..n.min(max)]) else {
                    continue;
                };
                let checks = ChecksumCapabilities::ignored();
                if let Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) =
                    Icmpv4Repr::parse(&packet, &checks)
                {
                    let ident = *guest_ident;
                    let reply = Icmpv4Repr::EchoReply {
                        ident,
                        seq_no,
                        data,
                    };
                    link.push(frames::icmp(macs, (*shown, flow.guest), &reply));
                }
            }
        }
    }
}

fn ping_socket(to: Ipv4Addr) -> Option<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        Some(ipproto::ICMP),
    )
    .ok()?;
    let socket = UdpSocket::from(fd);
    socket.connect(SocketAddr::from((to, 0))).ok()?;
    Some(socket)
}
