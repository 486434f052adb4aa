//! The network's thread: takes frames, lets smoltcp work, moves bytes, waits.

use super::config::{PREFIX6, UserNetConfig, Way};
use super::frames::{self, Frame, Macs, Packet, Unreachable};
use super::icmp::Icmp;
use super::link::{Link, Wire};
use super::tcp::Tcp;
use super::udp::Udp;
use super::{dhcp, dhcp6, ra, resolver};
use crate::waker::Waker;
use crate::{Capture, NetError, Tell, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpProtocol, TcpPacket, UdpPacket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The router's hardware address: locally administered.
const ROUTER_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);
const BROADCAST_MAC: EthernetAddress = EthernetAddress([0xff; 6]);
/// Where multicast to all nodes goes (RFC 2464, 7).
const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
/// How often silent conversations are looked for.
const EXPIRY: Duration = Duration::from_secs(5);
const DNS_PORT: u16 = 53;
/// Frames of the guest's between two looks at everything else.
const BATCH: usize = 64;
/// Larger than any datagram.
const DATAGRAM: usize = 65_536;

/// Everything that the thread owns.
pub(super) struct Engine {
    config: UserNetConfig,
    waker: Arc<Waker>,
    tell: Option<Tell>,
    link: Link,
    iface: Interface,
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    resolver: SocketAddr,
    guest_mac: EthernetAddress,
    /// The address in our prefix that the guest made itself, once it was heard of.
    guest6: Option<Ipv6Addr>,
    started: Instant,
    published: Vec<SocketAddr>,
    next_expiry: Instant,
    next_advertisement: Option<Instant>,
    buffer: Vec<u8>,
}

impl Engine {
    /// Opens the published ports and prepares the stack.
    pub(super) fn new(
        config: UserNetConfig,
        waker: Arc<Waker>,
        capture: Capture,
        tell: Tell,
    ) -> Result<Self, NetError> {
        let (mut link, started) = (Link::new(config.mtu, capture), Instant::now());
        let iface = interface(&config, &mut link);
        let resolver = config.resolver.unwrap_or_else(resolver::system);
        let mut engine = Self {
            config,
            waker,
            tell: Some(tell),
            link,
            iface,
            tcp: Tcp::new(),
            udp: Udp::default(),
            icmp: Icmp::default(),
            resolver,
            guest_mac: BROADCAST_MAC,
            guest6: None,
            started,
            published: Vec::new(),
            next_expiry: started + EXPIRY,
            next_advertisement: None,
            buffer: vec![0; DATAGRAM],
        };
        engine.open_published()?;
        Ok(engine)
    }

    pub(super) fn published(&self) -> Vec<SocketAddr> {
        self.published.clone()
    }

    fn open_published(&mut self) -> Result<(), NetError> {
        for p in self.config.publish.clone() {
            let address = p.host;
            let fail = |cause| NetError::Publish { address, cause };
            let bound = match p.transport {
                Transport::Tcp => {
                    let l = TcpListener::bind(address).map_err(fail)?;
                    l.set_nonblocking(true).map_err(fail)?;
                    let bound = l.local_addr().map_err(fail)?;
                    self.tcp.publish(l, p.guest_port);
                    bound
                }
                Transport::Udp => {
                    let s = UdpSocket::bind(address).map_err(fail)?;
                    s.set_nonblocking(true).map_err(fail)?;
                    let bound = s.local_addr().map_err(fail)?;
                    self.udp.publish(s, p.guest_port);
                    bound
                }
            };
            self.published.push(bound);
        }
        Ok(())
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        while !self.waker.stopped() {
            let card = self.waker.card().cloned();
            self.link.card.clone_from(&card);
            self.link.retry();
            let mut more = false;
            if let Some(card) = card {
                more = card.transmit(BATCH, &mut |_, frame| {
                    self.handle_frame(frame);
                    true
                });
            }
            let (guest, router) = self.published_ends();
            let v4 = (
                IpAddr::V4(self.config.guest),
                IpAddr::V4(self.config.gateway),
            );
            let ends = |a: SocketAddr| if a.is_ipv6() { (guest, router) } else { v4 };
            self.tcp.accept(&mut self.iface, ends);
            self.tcp.pump();
            self.poll_egress();
            self.tcp.reap();
            self.link.flush();
            self.wait(more);
        }
    }

    /// The guest's and the router's address for what comes from outside over IPv6.
    fn published_ends(&self) -> (IpAddr, IpAddr) {
        match self.guest6 {
            Some(guest) => (guest.into(), self.config.gateway6.into()),
            None => (self.config.guest.into(), self.config.gateway.into()),
        }
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(
            i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX),
        )
    }

    fn poll_egress(&mut self) {
        let now = self.now();
        let mut wire = Wire {
            link: &mut self.link,
            frame: None,
        };
        self.iface
            .poll_egress(now, &mut wire, self.tcp.sockets_mut());
    }

    /// Shows smoltcp a frame.
    fn show_stack(&mut self, frame: &[u8]) {
        let now = self.now();
        let mut wire = Wire {
            link: &mut self.link,
            frame: Some(frame),
        };
        self.iface
            .poll_ingress_single(now, &mut wire, self.tcp.sockets_mut());
    }

    fn macs(&self, guest: EthernetAddress) -> Macs {
        Macs {
            router: ROUTER_MAC,
            guest,
        }
    }

    /// A frame of the guest goes to the stack, or out.
    fn handle_frame(&mut self, frame: &[u8]) {
        self.link.record(frame);
        if let Some(mac) = frames::source_mac(frame).filter(|m| m.is_unicast()) {
            self.guest_mac = mac;
        }
        let p = match frames::parse(frame) {
            // Only for our own addresses: the guest looks whether another has its own.
            Frame::Arp(target) if self.config.ours(target.into()) => return self.show_stack(frame),
            Frame::Ip(p) => p,
            Frame::Arp(_) | Frame::Other => return,
        };
        if let IpAddr::V6(a) = p.source
            && self.guest6.is_none()
            && self.config.inside(p.source)
        {
            self.guest6 = Some(a);
        }
        match p.protocol {
            IpProtocol::Udp => self.handle_udp(&p),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.handle_icmp(&p, frame),
            IpProtocol::Tcp => self.handle_tcp(&p, frame),
            _ => {}
        }
    }

    fn handle_icmp(&mut self, p: &Packet<'_>, frame: &[u8]) {
        if let (IpAddr::V6(from), Some(&kind)) = (p.source, p.payload.first())
            && p.protocol == IpProtocol::Icmpv6
        {
            match kind {
                ra::SOLICITATION => return self.advertise(from),
                ra::NEIGHBOUR_SOLICITATION => {
                    let ours = ra::target(p.payload).is_some_and(|t| self.config.ours(t.into()));
                    if ours {
                        self.show_stack(frame);
                    }
                    return;
                }
                _ => {}
            }
        }
        if self.config.ours(p.destination) {
            return self.show_stack(frame);
        }
        if let Way::To(to) = self.config.way(p.destination) {
            self.icmp.send(p.source, p.destination, to, p.payload);
        }
    }

    /// Sends a router advertisement to one who asked, or to all.
    fn advertise(&mut self, to: Ipv6Addr) {
        let message = ra::advertisement(&self.config, ROUTER_MAC.0);
        let (to, mac) = if to.is_unspecified() || to.is_multicast() {
            (ra::ALL_NODES, ALL_NODES_MAC)
        } else {
            (to, self.guest_mac)
        };
        let ends = (self.config.link_local(), to);
        if let Some(mut frame) = frames::discovery(self.macs(mac), ends, &message) {
            self.link.push(&mut frame);
        }
        self.next_advertisement = Some(Instant::now() + ra::INTERVAL);
    }

    /// Where an end leads: the name server's port to the host's, everything else as the policy says.
    fn route(&mut self, shown: SocketAddr) -> Option<SocketAddr> {
        if self.config.name_server(shown.ip()) {
            return (shown.port() == DNS_PORT).then_some(self.resolver);
        }
        match self.config.way(shown.ip()) {
            Way::To(a) => Some((a, shown.port()).into()),
            Way::Host => {
                if let Some(tell) = self.tell.take() {
                    tell(&format!(
                        "the guest asked for port {} of this host, which it may not reach; --allow-host allows it",
                        shown.port()
                    ));
                }
                None
            }
            Way::Nowhere => None,
        }
    }

    fn handle_tcp(&mut self, p: &Packet<'_>, frame: &[u8]) {
        let Ok(tcp) = TcpPacket::new_checked(p.payload) else {
            return;
        };
        let guest = SocketAddr::new(p.source, tcp.src_port());
        let shown = SocketAddr::new(p.destination, tcp.dst_port());
        if !tcp.syn() {
            self.tcp
                .before_segment(&(guest, shown), tcp.payload().len());
            return self.show_stack(frame);
        }
        if !tcp.ack()
            && guest.port() != 0
            && shown.port() != 0
            && let Some(to) = self.route(shown)
        {
            self.tcp.open(guest, shown, to);
        }
        // At once, so that a socket that listens for it gets this request and no other.
        match frames::without_mss(frame, self.config.mtu) {
            Some(copy) => self.show_stack(&copy),
            None => self.show_stack(frame),
        }
    }

    fn handle_udp(&mut self, p: &Packet<'_>) {
        let Ok(udp) = UdpPacket::new_checked(p.payload) else {
            return;
        };
        let (from, to) = (udp.src_port(), udp.dst_port());
        match (from, to) {
            (dhcp::CLIENT_PORT, dhcp::SERVER_PORT) => return self.handle_dhcp(p, udp.payload()),
            (dhcp6::CLIENT_PORT, dhcp6::SERVER_PORT) => {
                return self.handle_dhcp6(p, udp.payload());
            }
            _ => {}
        }
        let guest = SocketAddr::new(p.source, from);
        let shown = SocketAddr::new(p.destination, to);
        let router = p.destination == IpAddr::V4(self.config.gateway)
            || p.destination == IpAddr::V6(self.config.gateway6);
        if router && self.udp.answer_peer(guest, to, udp.payload()) {
            return;
        }
        let why = match self.route(shown) {
            Some(to) if self.udp.send((guest, shown), to, udp.payload()) => return,
            Some(_) => Unreachable::Port,
            // Nobody answers a datagram to many, nor one to the guest's own network.
            None if to_one(p.destination) && !self.config.inside(p.destination) => {
                Unreachable::Prohibited
            }
            None if self.config.ours(p.destination) => Unreachable::Port,
            None => return,
        };
        let macs = self.macs(p.mac);
        if let Some(mut frame) = frames::unreachable(macs, (guest, shown), why) {
            self.link.push(&mut frame);
        }
    }

    fn handle_dhcp(&mut self, p: &Packet<'_>, message: &[u8]) {
        if let Some(answer) = dhcp::answer(&self.config, message) {
            let from = SocketAddrV4::new(self.config.gateway, dhcp::SERVER_PORT);
            // Broadcast, which reaches clients with and without an address.
            let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT);
            let macs = self.macs(p.mac);
            if let Some(mut frame) = frames::udp(macs, from.into(), to.into(), &answer) {
                self.link.push(&mut frame);
            }
        }
    }

    fn handle_dhcp6(&mut self, p: &Packet<'_>, message: &[u8]) {
        if let Some(answer) = dhcp6::answer(&self.config, ROUTER_MAC.0, message) {
            let from = SocketAddr::from((self.config.link_local(), dhcp6::SERVER_PORT));
            let to = SocketAddr::new(p.source, dhcp6::CLIENT_PORT);
            if let Some(mut frame) = frames::udp(self.macs(p.mac), from, to, &answer) {
                self.link.push(&mut frame);
            }
        }
    }

    /// How long there is nothing to do unless somebody calls.
    fn timeout(&mut self) -> Option<Duration> {
        let now = self.now();
        let stack = self.iface.poll_delay(now, self.tcp.sockets());
        let stack = stack.map(|d| Duration::from_micros(d.total_micros()));
        let until = |i: Instant| i.saturating_duration_since(Instant::now());
        let idle = self.udp.is_idle() && self.icmp.is_idle();
        let expiry = (!idle).then(|| until(self.next_expiry));
        // A card without buffers calls when it has some; the stack's wish to send would only spin.
        let stack = stack.filter(|_| self.link.is_free());
        let advertisement = self.next_advertisement.map(until);
        stack.into_iter().chain(expiry).chain(advertisement).min()
    }

    /// Waits for the card, the host's sockets, or time; only looks at them when there is `more` to do.
    fn wait(&mut self, more: bool) {
        let timeout = if more {
            Some(Duration::ZERO)
        } else {
            self.timeout()
        };
        let timeout = timeout.map(|d| Timespec {
            tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        let waker = self.waker.clone();
        let mut fds = vec![PollFd::new(waker.bell(), PollFlags::IN)];
        let mut flows = Vec::new();
        for i in self.tcp.interests() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, i.read);
            flags.set(PollFlags::OUT, i.write);
            fds.push(PollFd::new(i.stream, flags));
            flows.push(i.index);
        }
        let streams = 1..fds.len();
        fds.extend(self.tcp.listeners().map(|l| PollFd::new(l, PollFlags::IN)));
        let datagrams = fds.len();
        // While the guest takes nothing, datagrams wait in the host's buffers.
        if self.link.is_free() {
            let sockets = self.udp.sockets().chain(self.icmp.sockets());
            fds.extend(sockets.map(|s| PollFd::new(s, PollFlags::IN)));
        }
        // Interrupted or not: everything is looked at again.
        let _ = poll(&mut fds, timeout.as_ref());
        let woken = !fds[0].revents().is_empty();
        let arrived = fds[datagrams..].iter().any(|f| !f.revents().is_empty());
        let failed = PollFlags::ERR | PollFlags::HUP;
        let events: Vec<_> = flows
            .into_iter()
            .zip(&fds[streams])
            .map(|(index, f)| {
                let r = f.revents();
                let (read, write) = (PollFlags::IN | failed, PollFlags::OUT | failed);
                (index, r.intersects(read), r.intersects(write))
            })
            .collect();
        self.tcp.ready(&events);
        if woken {
            waker.heard();
        }
        if arrived {
            self.receive_datagrams();
        }
        self.by_the_clock(Instant::now());
    }

    /// What is due at certain times.
    fn by_the_clock(&mut self, now: Instant) {
        if now >= self.next_expiry {
            self.udp.expire(now);
            self.icmp.expire(now);
            self.next_expiry = now + EXPIRY;
        }
        if self.next_advertisement.is_some_and(|due| now >= due) {
            self.advertise(Ipv6Addr::UNSPECIFIED);
        }
    }

    fn receive_datagrams(&mut self) {
        let macs = self.macs(self.guest_mac);
        let v6 = self.published_ends();
        let v4 = (
            IpAddr::V4(self.config.guest),
            IpAddr::V4(self.config.gateway),
        );
        let ends = |a: SocketAddr| if a.is_ipv6() { v6 } else { v4 };
        self.udp
            .receive(&mut self.link, macs, ends, &mut self.buffer);
        self.icmp.receive(&mut self.link, macs, &mut self.buffer);
    }
}

/// Whether an address is one host's.
fn to_one(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast() && !a.is_unspecified(),
        IpAddr::V6(a) => !a.is_multicast() && !a.is_unspecified(),
    }
}

/// smoltcp as the router and name server of the guest's networks.
fn interface(config: &UserNetConfig, link: &mut Link) -> Interface {
    let mut wire = Wire { link, frame: None };
    let hardware = Config::new(HardwareAddress::Ethernet(ROUTER_MAC));
    let mut iface = Interface::new(hardware, &mut wire, StackInstant::ZERO);
    iface.update_ip_addrs(|list| {
        for address in [config.gateway, config.dns] {
            // There is room for eight.
            let _ = list.push(IpCidr::new(address.into(), config.prefix));
        }
        for address in [config.gateway6, config.dns6, config.link_local()] {
            let _ = list.push(IpCidr::new(address.into(), PREFIX6));
        }
    });
    // Packets to anywhere are for us: we are the router.
    iface.set_any_ip(true);
    let routes = iface.routes_mut();
    let _ = routes.add_default_ipv4_route(config.gateway);
    let _ = routes.add_default_ipv6_route(config.gateway6);
    iface
}
