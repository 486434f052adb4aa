//! The network's thread: takes frames, lets smoltcp work, moves bytes, waits.

use super::frames::{self, Macs, Packet};
use super::icmp::Icmp;
use super::link::Link;
use super::tcp::Tcp;
use super::udp::Udp;
use super::{Shared, UserNetConfig, dhcp, resolver};
use crate::{NetError, PcapWriter, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpProtocol, TcpPacket, UdpPacket};
use std::fs::File;
use std::io::BufWriter;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// The router's hardware address: locally administered.
const ROUTER_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);
const BROADCAST_MAC: EthernetAddress = EthernetAddress([0xff; 6]);
/// How often silent conversations are looked for.
const EXPIRY: Duration = Duration::from_secs(5);
const DNS_PORT: u16 = 53;
/// Headers of IPv4 and UDP.
const UDP_OVERHEAD: usize = 28;

/// Everything that the thread owns.
pub(super) struct Engine {
    config: UserNetConfig,
    shared: Arc<Shared>,
    capture: Option<PcapWriter<BufWriter<File>>>,
    link: Link,
    iface: Interface,
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    resolver: SocketAddr,
    guest_mac: EthernetAddress,
    started: Instant,
    published: Vec<SocketAddr>,
    next_expiry: Instant,
}

impl Engine {
    /// Opens the published ports and prepares the stack.
    pub(super) fn new(
        config: UserNetConfig,
        shared: Arc<Shared>,
        capture: Option<PcapWriter<BufWriter<File>>>,
    ) -> Result<Self, NetError> {
        let (mut link, started) = (Link::new(config.mtu), Instant::now());
        let mut iface = Interface::new(
            Config::new(HardwareAddress::Ethernet(ROUTER_MAC)),
            &mut link,
            StackInstant::ZERO,
        );
        iface.update_ip_addrs(|list| {
            for address in [config.gateway, config.dns] {
                // There is room for two.
                let _ = list.push(IpCidr::new(address.into(), config.prefix));
            }
        });
        // Packets to anywhere are for us: we are the router.
        iface.set_any_ip(true);
        let _ = iface.routes_mut().add_default_ipv4_route(config.gateway);
        let resolver = config.resolver.unwrap_or_else(resolver::system);
        let mut engine = Self {
            config,
            shared,
            capture,
            link,
            iface,
            tcp: Tcp::new(),
            udp: Udp::default(),
            icmp: Icmp::default(),
            resolver,
            guest_mac: BROADCAST_MAC,
            started,
            published: Vec::new(),
            next_expiry: started + EXPIRY,
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

    /// The thread's body.
    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            for frame in self.shared.take_inbox() {
                self.record(&frame);
                self.handle_frame(frame);
            }
            self.tcp
                .accept(&mut self.iface, self.config.guest, self.config.gateway);
            self.poll_stack();
            self.tcp.pump();
            self.poll_stack();
            self.tcp.reap();
            self.flush();
            self.wait();
        }
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(
            i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX),
        )
    }

    fn poll_stack(&mut self) {
        let now = self.now();
        self.iface.poll(now, &mut self.link, self.tcp.sockets_mut());
    }

    fn record(&mut self, frame: &[u8]) {
        let failed = |w: &mut PcapWriter<_>| w.frame(SystemTime::now(), frame).is_err();
        // A full disk ends the capture, not the network.
        if self.capture.as_mut().is_some_and(failed) {
            self.capture = None;
        }
    }

    /// Gives the card what waits for it, as long as it has buffers.
    fn flush(&mut self) {
        let sink = self.shared.sink();
        while let Some(frame) = self.link.to_guest.pop_front() {
            if sink.as_ref().is_some_and(|s| !s.frame(&frame)) {
                self.link.to_guest.push_front(frame);
                break;
            }
            self.record(&frame);
        }
        if self.capture.as_mut().is_some_and(|w| w.flush().is_err()) {
            self.capture = None;
        }
    }

    /// A frame of the guest goes to the stack, or out.
    fn handle_frame(&mut self, frame: Vec<u8>) {
        if let Some(mac) = frames::source_mac(&frame).filter(|m| m.is_unicast()) {
            self.guest_mac = mac;
        }
        let Some(p) = frames::parse(&frame) else {
            // ARP, and what the stack throws away.
            self.link.to_stack.push_back(frame);
            return self.poll_stack();
        };
        match p.protocol {
            IpProtocol::Udp => self.handle_udp(&p),
            IpProtocol::Icmp if p.destination != self.config.gateway => {
                if let Some(to) = self.outside(p.destination) {
                    self.icmp.send(p.source, p.destination, to, p.payload);
                }
            }
            IpProtocol::Tcp | IpProtocol::Icmp => {
                if p.protocol == IpProtocol::Tcp {
                    self.handle_tcp(&p);
                }
                self.link.to_stack.push_back(frame);
                // At once, so that a socket that listens for it gets this request and no other.
                self.poll_stack();
            }
            _ => {}
        }
    }

    /// Where an address leads outside of the guest's network, if it may be reached.
    fn outside(&self, a: Ipv4Addr) -> Option<Ipv4Addr> {
        let c = &self.config;
        if a == c.gateway {
            return c.policy.allow_host.then_some(Ipv4Addr::LOCALHOST);
        }
        let mask = u32::MAX << (32 - u32::from(c.prefix));
        let inside = (u32::from(a) ^ u32::from(c.gateway)) & mask == 0;
        (!inside && c.policy.permits(a)).then_some(a)
    }

    /// As [`Self::outside`] for a port: the name server's leads to the host's.
    fn route(&self, shown: SocketAddrV4) -> Option<SocketAddr> {
        if *shown.ip() == self.config.dns {
            return (shown.port() == DNS_PORT).then_some(self.resolver);
        }
        self.outside(*shown.ip())
            .map(|a| SocketAddr::from((a, shown.port())))
    }

    fn handle_tcp(&mut self, p: &Packet<'_>) {
        let Ok(tcp) = TcpPacket::new_checked(p.payload) else {
            return;
        };
        if !tcp.syn() || tcp.ack() || tcp.dst_port() == 0 || tcp.src_port() == 0 {
            return;
        }
        let guest = SocketAddrV4::new(p.source, tcp.src_port());
        let shown = SocketAddrV4::new(p.destination, tcp.dst_port());
        if let Some(to) = self.route(shown) {
            self.tcp.open(guest, shown, to);
        }
    }

    fn handle_udp(&mut self, p: &Packet<'_>) {
        let Ok(udp) = UdpPacket::new_checked(p.payload) else {
            return;
        };
        let (from, to) = (udp.src_port(), udp.dst_port());
        if to == dhcp::SERVER_PORT && from == dhcp::CLIENT_PORT {
            return self.handle_dhcp(p, udp.payload());
        }
        let guest = SocketAddrV4::new(p.source, from);
        let shown = SocketAddrV4::new(p.destination, to);
        if p.destination == self.config.gateway {
            self.udp.answer_peer(guest, to, udp.payload());
        }
        if let Some(outside) = self.route(shown) {
            self.udp.send((guest, shown), outside, udp.payload());
        }
    }

    fn handle_dhcp(&mut self, p: &Packet<'_>, message: &[u8]) {
        if let Some(answer) = dhcp::answer(&self.config, message) {
            let from = SocketAddrV4::new(self.config.gateway, dhcp::SERVER_PORT);
            // Broadcast, which reaches clients with and without an address.
            let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT);
            let macs = Macs {
                router: ROUTER_MAC,
                guest: p.mac,
            };
            self.link.push(frames::udp(macs, from, to, &answer));
        }
    }

    /// How long there is nothing to do unless somebody calls.
    fn timeout(&mut self) -> Option<Duration> {
        let now = self.now();
        let stack = self.iface.poll_delay(now, self.tcp.sockets());
        let stack = stack.map(|d| Duration::from_micros(d.total_micros()));
        let idle = self.udp.is_idle() && self.icmp.is_idle();
        let expiry = (!idle).then(|| self.next_expiry.saturating_duration_since(Instant::now()));
        // A card without buffers calls when it has some; the stack's wish to send would only spin.
        let stack = stack.filter(|_| self.link.to_guest.is_empty());
        stack.into_iter().chain(expiry).min()
    }

    /// Waits for the card, the host's sockets, or time.
    fn wait(&mut self) {
        let timeout = self.timeout().map(|d| Timespec {
            tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
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
        if self.link.to_guest.is_empty() {
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
            let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
        }
        if arrived {
            self.receive_datagrams();
        }
        if Instant::now() >= self.next_expiry {
            let now = Instant::now();
            self.udp.expire(now);
            self.icmp.expire(now);
            self.next_expiry = now + EXPIRY;
        }
    }

    fn receive_datagrams(&mut self) {
        let macs = Macs {
            router: ROUTER_MAC,
            guest: self.guest_mac,
        };
        let guest = SocketAddrV4::new(self.config.guest, 0);
        let router = SocketAddrV4::new(self.config.gateway, 0);
        let max = usize::from(self.config.mtu) - UDP_OVERHEAD;
        self.udp.receive(&mut self.link, macs, guest, router, max);
        self.icmp.receive(&mut self.link, macs, max);
    }
}
