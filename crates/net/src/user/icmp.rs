//! Echo requests to the world, through the host's unprivileged ICMP sockets (icmp(7),
//! `net.ipv4.ping_group_range`). Where the host has none for us, pings get no answer.

use super::frames::{self, Macs};
use super::link::Link;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Pings at one time.
const MAX_FLOWS: usize = 32;
const SILENCE: Duration = Duration::from_secs(30);
/// Replies taken from one socket before others have their turn.
const BATCH: usize = 32;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

#[derive(Debug)]
struct Flow {
    /// An ICMP socket: the same calls as for datagrams.
    socket: UdpSocket,
    guest: IpAddr,
    last: Instant,
}

/// By the guest's identifier and the address it pings.
#[derive(Debug, Default)]
pub(super) struct Icmp {
    flows: HashMap<(u16, IpAddr), Flow>,
}

/// (request, reply) of the echo messages: RFC 792 and RFC 4443, 4.
const fn echo_types(a: IpAddr) -> (u8, u8) {
    match a {
        IpAddr::V4(_) => (8, 0),
        IpAddr::V6(_) => (128, 129),
    }
}

impl Icmp {
    /// Passes on an echo request that the guest sent to `shown`, which is `to` on the host's side.
    pub(super) fn send(&mut self, guest: IpAddr, shown: IpAddr, to: IpAddr, message: &[u8]) {
        let &[kind, 0, _, _, high, low, _, _, ..] = message else {
            return;
        };
        if kind != echo_types(shown).0 {
            return;
        }
        let ident = u16::from_be_bytes([high, low]);
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
    pub(super) fn receive(&mut self, link: &mut Link, macs: Macs, buffer: &mut [u8]) {
        for (&(ident, shown), flow) in &self.flows {
            for _ in 0..BATCH {
                let Ok(n) = flow.socket.recv(buffer) else {
                    break;
                };
                let message = &buffer[..n];
                if n < HEADER || message[0] != echo_types(shown).1 {
                    continue;
                }
                let sequence = u16::from_be_bytes([message[6], message[7]]);
                let ends = (shown, flow.guest);
                let id = (ident, sequence);
                if let Some(mut f) = frames::echo_reply(macs, ends, id, &message[HEADER..]) {
                    link.push(&mut f);
                }
            }
        }
    }
}

fn ping_socket(to: IpAddr) -> Option<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let fd = socket_with(family, SocketType::DGRAM, flags, Some(protocol)).ok()?;
    let socket = UdpSocket::from(fd);
    socket.connect(SocketAddr::from((to, 0))).ok()?;
    Some(socket)
}
