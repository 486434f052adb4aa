//! UDP: one connected socket of the host for each pair of ends (a symmetric NAT), and published ports.

use super::frames::{self, Macs, Unreachable};
use super::link::Link;
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Conversations at one time; the one silent for longest makes room.
const MAX_FLOWS: usize = 256;
/// A conversation ends after this silence (RFC 4787, REQ-5 wants two minutes at least).
const SILENCE: Duration = Duration::from_secs(120);
/// Datagrams taken from one socket before others have their turn.
const BATCH: usize = 64;

/// Both ends as the guest sees them.
type Key = (SocketAddr, SocketAddr);

#[derive(Debug)]
struct Flow {
    socket: UdpSocket,
    last: Instant,
}

/// A published port's peers, each under a port of the router.
#[derive(Debug)]
struct Published {
    socket: UdpSocket,
    guest_port: u16,
}

/// All conversations.
#[derive(Debug, Default)]
pub(super) struct Udp {
    flows: HashMap<Key, Flow>,
    published: Vec<Published>,
    /// (published index, peer) by the router's port that stands for it, and when it was last heard.
    peers: HashMap<u16, (usize, SocketAddr, Instant)>,
    next_port: u16,
}

/// First of the router's ports that stand for peers of published ports.
const FIRST_PEER_PORT: u16 = 50_000;

impl Udp {
    pub(super) fn publish(&mut self, socket: UdpSocket, guest_port: u16) {
        self.published.push(Published { socket, guest_port });
    }

    /// Sends the guest's datagram to `to` on the host's side. False: an earlier one of this conversation
    /// was refused there, or the host has no way to it. Other failures are losses.
    pub(super) fn send(&mut self, key: Key, to: SocketAddr, data: &[u8]) -> bool {
        if !self.flows.contains_key(&key) {
            self.make_room();
            let Some(socket) = connect(to) else {
                return false;
            };
            let last = Instant::now();
            self.flows.insert(key, Flow { socket, last });
        }
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.last = Instant::now();
            if flow.socket.send(data).is_err_and(|e| is_refusal(&e)) {
                // The error is the earlier one's; this one has not been sent.
                let _ = flow.socket.send(data);
                return false;
            }
        }
        true
    }

    /// A datagram of the guest to the router: whether it was an answer to a published port's peer.
    pub(super) fn answer_peer(&mut self, from: SocketAddr, port: u16, data: &[u8]) -> bool {
        let Some((index, peer, last)) = self.peers.get_mut(&port) else {
            return false;
        };
        let published = &self.published[*index];
        if published.guest_port != from.port() {
            return false;
        }
        *last = Instant::now();
        let _ = published.socket.send_to(data, *peer);
        true
    }

    fn make_room(&mut self) {
        if self.flows.len() >= MAX_FLOWS {
            let oldest = self
                .flows
                .iter()
                .min_by_key(|(_, f)| f.last)
                .map(|(k, _)| *k);
            if let Some(k) = oldest {
                self.flows.remove(&k);
            }
        }
    }

    /// Ends silent conversations.
    pub(super) fn expire(&mut self, now: Instant) {
        let silent = |last: Instant| now.saturating_duration_since(last) > SILENCE;
        self.flows.retain(|_, f| !silent(f.last));
        self.peers.retain(|_, (.., last)| !silent(*last));
    }

    /// Whether time matters to us.
    pub(super) fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.peers.is_empty()
    }

    /// Every socket, to be waited for.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        let flows = self.flows.values().map(|f| &f.socket);
        flows.chain(self.published.iter().map(|p| &p.socket))
    }

    /// Takes what has arrived and makes frames of it. `ends` gives the guest's and the router's address
    /// for a published socket's.
    pub(super) fn receive(
        &mut self,
        link: &mut Link,
        macs: Macs,
        ends: impl Fn(SocketAddr) -> (IpAddr, IpAddr),
        buffer: &mut [u8],
    ) {
        let mut refused = Vec::new();
        let mut push = |from, to, data: &[u8]| {
            if let Some(mut frame) = frames::udp(macs, from, to, data) {
                link.push(&mut frame);
            }
        };
        for ((inside, outside), flow) in &mut self.flows {
            for _ in 0..BATCH {
                match flow.socket.recv(buffer) {
                    Ok(n) => {
                        flow.last = Instant::now();
                        push(*outside, *inside, &buffer[..n]);
                    }
                    Err(e) if is_refusal(&e) => refused.push((*inside, *outside)),
                    Err(_) => break,
                }
            }
        }
        for index in 0..self.published.len() {
            for _ in 0..BATCH {
                let Ok((n, peer)) = self.published[index].socket.recv_from(buffer) else {
                    break;
                };
                let Some(port) = self.peer_port(index, peer) else {
                    continue;
                };
                let (guest, router) = ends(peer);
                let to = SocketAddr::new(guest, self.published[index].guest_port);
                push(SocketAddr::new(router, port), to, &buffer[..n]);
            }
        }
        for ends in refused {
            if let Some(mut frame) = frames::unreachable(macs, ends, Unreachable::Port) {
                link.push(&mut frame);
            }
        }
    }

    /// The router's port that stands for a peer; `None` when too many are known.
    fn peer_port(&mut self, index: usize, peer: SocketAddr) -> Option<u16> {
        let known = self
            .peers
            .iter_mut()
            .find(|(_, (i, p, _))| (*i, *p) == (index, peer));
        if let Some((port, (.., last))) = known {
            *last = Instant::now();
            return Some(*port);
        }
        if self.peers.len() >= MAX_FLOWS {
            return None;
        }
        while self.peers.contains_key(&(FIRST_PEER_PORT + self.next_port)) {
            self.next_port = (self.next_port + 1) % 8192;
        }
        let port = FIRST_PEER_PORT + self.next_port;
        self.next_port = (self.next_port + 1) % 8192;
        self.peers.insert(port, (index, peer, Instant::now()));
        Some(port)
    }
}

/// Whether an error says that an earlier datagram met nobody (ICMP, port unreachable).
fn is_refusal(e: &Error) -> bool {
    e.kind() == ErrorKind::ConnectionRefused
}

/// A socket that speaks with `to` only.
fn connect(to: SocketAddr) -> Option<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}
