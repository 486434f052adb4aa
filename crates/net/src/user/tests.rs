//! The user network against a guest that is smoltcp in this process, and servers on loopback.

use super::{UserNet, UserNetConfig};
use crate::Capture;
use mimeo_bus::{NetBackend, NetCard, NetHeader};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr,
};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
const DNS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0x5054, 0xff, 0xfe01, 0x203);
const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);
/// A test that hangs fails after this.
const PATIENCE: Duration = Duration::from_secs(30);

/// The card: two queues; it may pretend to have no buffers. Its guest does without checksums of what
/// comes in, and takes segments of any length.
#[derive(Default)]
struct Card {
    out: Mutex<VecDeque<Vec<u8>>>,
    frames: Mutex<VecDeque<Vec<u8>>>,
    arrived: Condvar,
    full: AtomicBool,
}

impl NetCard for Card {
    fn transmit(&self, most: usize, take: &mut dyn FnMut(&NetHeader, &[u8]) -> bool) -> bool {
        for _ in 0..most {
            let Some(frame) = self.out.lock().unwrap().pop_front() else {
                return false;
            };
            assert!(take(&NetHeader::default(), &frame));
        }
        true
    }

    fn receive(&self, header: &NetHeader, frame: &[u8]) -> bool {
        if self.full.load(Ordering::SeqCst) {
            return false;
        }
        let tcp = header.flags & NetHeader::NEEDS_CSUM != 0;
        assert!(header.gso_type == 0 || tcp && usize::from(header.gso_size) < frame.len() - 54);
        self.frames.lock().unwrap().push_back(frame.to_vec());
        true
    }

    fn flush(&self) {
        self.arrived.notify_one();
    }

    fn set_link(&self, _up: bool) {}
}

struct Wire {
    net: UserNet,
    card: Arc<Card>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a Wire);

impl Wire {
    fn send(&self, frame: &[u8]) {
        self.card.out.lock().unwrap().push_back(frame.to_vec());
        self.net.kick();
    }
}

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.card.frames.lock().unwrap().pop_front()?;
        Some((Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Tx<'_>> {
        Some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = usize::from(self.net.mtu().unwrap()) + 14;
        c.checksum.tcp = Checksum::Tx;
        c
    }
}

struct Guest {
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    started: Instant,
}

impl Guest {
    /// A guest without an address.
    fn bare(config: UserNetConfig, capture: Capture) -> Self {
        let net = UserNet::start(config, capture, quiet()).unwrap();
        let card = Arc::new(Card::default());
        net.attach(card.clone());
        let mut wire = Wire { net, card };
        let hardware = HardwareAddress::Ethernet(MAC);
        let iface = Interface::new(Config::new(hardware), &mut wire, StackInstant::ZERO);
        Self {
            wire,
            iface,
            sockets: SocketSet::new(Vec::new()),
            started: Instant::now(),
        }
    }

    /// A guest with the address that DHCP would give.
    fn new(config: UserNetConfig) -> Self {
        let mut g = Self::bare(config, Capture::default());
        g.iface.update_ip_addrs(|a| {
            a.push(IpCidr::new(GUEST.into(), 24)).unwrap();
            a.push(IpCidr::new(GUEST6.into(), 64)).unwrap();
        });
        g.iface
            .routes_mut()
            .add_default_ipv6_route(GATEWAY6)
            .unwrap();
        g.iface
            .routes_mut()
            .add_default_ipv4_route(GATEWAY)
            .unwrap();
        g
    }

    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let now = StackInstant::from_micros(self.started.elapsed().as_micros() as i64);
            self.iface.poll(now, &mut self.wire, &mut self.sockets);
            if let Some(result) = done(self) {
                self.iface.poll(now, &mut self.wire, &mut self.sockets);
                return result;
            }
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
            let frames = self.wire.card.frames.lock().unwrap();
            if frames.is_empty() {
                let wait = Duration::from_millis(2);
                drop(self.wire.card.arrived.wait_timeout(frames, wait).unwrap());
            }
        }
    }

    fn connect(&mut self, to: (impl Into<IpAddr>, u16), local: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut s = tcp::Socket::new(buffer(), buffer());
        let to = (IpAddress::from(to.0.into()), to.1);
        s.connect(self.iface.context(), to, local).unwrap();
        self.sockets.add(s)
    }

    fn tcp(&mut self, h: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(h)
    }

    /// Waits until a connection is made (true) or refused (false).
    fn connected(&mut self, h: SocketHandle) -> bool {
        self.until("a connection", |g| match g.tcp(h).state() {
            tcp::State::Established | tcp::State::CloseWait => Some(true),
            tcp::State::Closed => Some(false),
            _ => None,
        })
    }

    fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 16384]);
        let mut s = udp::Socket::new(buffer(), buffer());
        s.bind(port).unwrap();
        self.sockets.add(s)
    }

    fn datagram(&mut self, h: SocketHandle) -> (Vec<u8>, IpAddress, u16) {
        self.until("a datagram", |g| {
            let (data, from) = g.sockets.get_mut::<udp::Socket<'_>>(h).recv().ok()?;
            Some((data.to_vec(), from.endpoint.addr, from.endpoint.port))
        })
    }
}

/// Nobody is told anything.
fn quiet() -> crate::Tell {
    Arc::new(|_| ())
}

fn with_host() -> UserNetConfig {
    let mut c = UserNetConfig::default();
    c.policy.allow_host = true;
    c
}

#[test]
fn dhcp_tells_everything() {
    let config = UserNetConfig {
        mtu: 9000,
        ..UserNetConfig::default()
    };
    let mut g = Guest::bare(config, Capture::default());
    let h = g.sockets.add(dhcpv4::Socket::new());
    let got = g.until("an address", |g| {
        match g.sockets.get_mut::<dhcpv4::Socket<'_>>(h).poll() {
            Some(dhcpv4::Event::Configured(c)) => {
                Some((c.address, c.router, c.dns_servers.to_vec()))
            }
            _ => None,
        }
    });
    assert_eq!(got.0.to_string(), "10.0.2.15/24");
    assert_eq!((got.1, got.2), (Some(GATEWAY), vec![DNS]));
}

/// A server that reads to the end, then answers with the sum and as many bytes, then closes.
fn summing_server(at: &str) -> u16 {
    let listener = TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        let sum = all
            .iter()
            .fold(0u64, |s, b| s * 31 % 1_000_003 + u64::from(*b));
        s.write_all(&sum.to_le_bytes()).unwrap();
        s.write_all(&all).unwrap();
    });
    port
}

/// A megabyte both ways, through a half-closed connection.
#[test]
fn a_connection_carries_bytes_both_ways_and_half_closes() {
    both_ways(GATEWAY.into(), summing_server("127.0.0.1:0"));
}

#[test]
fn a_connection_over_ipv6_does_so_too() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: the host has no IPv6");
        return;
    }
    both_ways(GATEWAY6.into(), summing_server("[::1]:0"));
}

fn both_ways(to: IpAddr, port: u16) {
    let mut g = Guest::new(with_host());
    let h = g.connect((to, port), 40_000);
    assert!(g.connected(h));
    let data: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let mut sent = 0;
    g.until("all to be sent", |g| {
        sent += g.tcp(h).send_slice(&data[sent..]).unwrap();
        (sent == data.len()).then_some(())
    });
    g.tcp(h).close();
    let mut got = Vec::new();
    g.until("the answer", |g| {
        while g.tcp(h).can_recv() {
            g.tcp(h)
                .recv(|b| (b.len(), got.extend_from_slice(b)))
                .unwrap();
        }
        (!g.tcp(h).may_recv()).then_some(())
    });
    let sum = data
        .iter()
        .fold(0u64, |s, b| s * 31 % 1_000_003 + u64::from(*b));
    assert_eq!(got[..8], sum.to_le_bytes());
    assert!(got[8..] == data);
}

#[test]
fn refused_and_forbidden_connections_are_reset() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut g = Guest::new(with_host());
    let refused = g.connect((GATEWAY, port), 40_001);
    assert!(!g.connected(refused));
    // Open on the host, forbidden to the guest.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut g = Guest::new(UserNetConfig::default());
    for (i, to) in [
        GATEWAY,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(169, 254, 169, 254),
    ]
    .into_iter()
    .enumerate()
    {
        let h = g.connect((to, port), 41_000 + i as u16);
        assert!(!g.connected(h), "{to}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn a_connection_is_not_accepted_before_the_hosts_is() {
    // A listener whose queue is full neither accepts nor refuses.
    let mut g = Guest::new(with_host());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let h = g.connect((GATEWAY, to.port()), 40_003);
    assert!(g.connected(h));
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"hello").unwrap();
    let got = g.until("hello", |g| {
        g.tcp(h)
            .recv(|b| (b.len(), b.to_vec()))
            .ok()
            .filter(|b| !b.is_empty())
    });
    assert_eq!(got, b"hello");
    // The host's reset becomes the guest's.
    rustix::net::sockopt::set_socket_linger(&host, Some(Duration::ZERO)).unwrap();
    drop(host);
    g.until("the reset", |g| {
        (g.tcp(h).state() == tcp::State::Closed).then_some(())
    });
}

fn udp_echo(answer: &'static [u8]) -> SocketAddr {
    let s = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = s.local_addr().unwrap();
    thread::spawn(move || {
        let mut b = [0; 2048];
        while let Ok((n, from)) = s.recv_from(&mut b) {
            let reply = [answer, &b[..n]].concat();
            s.send_to(&reply, from).unwrap();
        }
    });
    address
}

#[test]
fn datagrams_and_names() {
    let (echo, resolver) = (udp_echo(b"e:"), udp_echo(b"r:"));
    let mut config = with_host();
    config.resolver = Some(resolver);
    let mut g = Guest::new(config);
    let h = g.udp(5000);
    let send = |g: &mut Guest, to: (Ipv4Addr, u16), data: &[u8]| {
        g.sockets
            .get_mut::<udp::Socket<'_>>(h)
            .send_slice(data, to)
            .unwrap();
    };
    send(&mut g, (GATEWAY, echo.port()), b"one");
    let got = g.datagram(h);
    assert_eq!(
        got,
        (b"e:one".to_vec(), IpAddress::Ipv4(GATEWAY), echo.port())
    );
    send(&mut g, (DNS, 53), b"query");
    assert_eq!(
        g.datagram(h),
        (b"r:query".to_vec(), IpAddress::Ipv4(DNS), 53)
    );
    // Another port of the name server leads nowhere; the next answer is the echo's.
    send(&mut g, (DNS, resolver.port()), b"nothing");
    send(&mut g, (GATEWAY, echo.port()), b"two");
    assert_eq!(g.datagram(h).0, b"e:two");
}

#[test]
fn datagrams_and_names_over_ipv6() {
    if UdpSocket::bind("[::1]:0").is_err() {
        println!("skipped: the host has no IPv6");
        return;
    }
    let mut config = with_host();
    config.resolver = Some(udp_echo(b"r:"));
    let mut g = Guest::new(config);
    let h = g.udp(5000);
    let s = g.sockets.get_mut::<udp::Socket<'_>>(h);
    s.send_slice(b"query", (DNS6, 53)).unwrap();
    let got = g.datagram(h);
    assert_eq!(got, (b"r:query".to_vec(), IpAddress::Ipv6(DNS6), 53));
}

/// Sends a frame to all nodes and waits for one that `want` accepts.
fn ask(g: &mut Guest, frame: &[u8], want: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    g.wire.send(frame);
    let begun = Instant::now();
    loop {
        let frames: Vec<_> = g.wire.card.frames.lock().unwrap().drain(..).collect();
        if let Some(f) = frames.into_iter().find(|f| want(f)) {
            return f;
        }
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
}

/// An IPv6 frame of the guest's.
fn frame6(to: Ipv6Addr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let from: Ipv6Addr = "fe80::5054:ff:fe01:203".parse().unwrap();
    let mut f = [
        &[0x33, 0x33, 0, 0, 0, 2][..],
        &MAC.0,
        &[0x86, 0xdd, 0x60, 0, 0, 0],
    ]
    .concat();
    f.extend((payload.len() as u16).to_be_bytes());
    f.extend([protocol, hops]);
    f.extend(from.octets());
    f.extend(to.octets());
    f.extend(payload);
    f
}

/// A UDP datagram of the guest's over IPv4.
fn datagram4(to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut f = [&[0x52, 0x55, 0x0a, 0, 2, 2][..], &MAC.0, &[8, 0]].concat();
    f.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    f.extend(GUEST.octets());
    f.extend(to.octets());
    let sum: u32 = f[14..34]
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f.extend(5000u16.to_be_bytes());
    f.extend(port.to_be_bytes());
    f.extend([0, 8, 0, 0]);
    f
}

#[test]
fn a_datagram_that_meets_nobody_is_answered() {
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut g = Guest::bare(with_host(), Capture::default());
    let denied = Ipv4Addr::new(169, 254, 169, 254);
    for (to, port, code) in [(GATEWAY, port, 3), (denied, 80, 13), (DNS, 54, 3)] {
        let f = datagram4(to, port);
        let is_icmp = |f: &[u8]| f[12..14] == [8, 0] && f[23] == 1;
        let said = ask(&mut g, &f, is_icmp);
        assert_eq!((said[34], said[35]), (3, code), "{to}");
        assert_eq!(said[26..30], to.octets());
        // What could not be delivered, by its addresses and ports.
        assert_eq!(said[42 + 12..42 + 24], f[26..38]);
    }
}

#[test]
fn a_guest_learns_its_ipv6_network() {
    let mut g = Guest::bare(UserNetConfig::default(), Capture::default());
    let all_routers = "ff02::2".parse().unwrap();
    let solicitation = frame6(all_routers, 58, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let advertised = ask(&mut g, &solicitation, |f| f.get(54) == Some(&134));
    assert_eq!((advertised[20], advertised[21]), (58, 255));
    // The prefix behind its option's head, lifetimes and a gap.
    let prefix = [0xfe, 0xc0, 0, 0, 0, 0, 0, 0];
    assert!(advertised.windows(8).any(|w| w == prefix));
    assert!(advertised.ends_with(&DNS6.octets()));
    // DHCPv6: an information request from port 546 to 547.
    let ask6 = [2, 34, 2, 35, 0, 12, 0, 0, 11, 7, 7, 7];
    let agents = "ff02::1:2".parse().unwrap();
    let reply = ask(&mut g, &frame6(agents, 17, 1, &ask6), |f| {
        f.get(54..58) == Some(&[2, 35, 2, 34])
    });
    assert_eq!(reply[62..66], [7, 7, 7, 7]);
    assert!(reply.ends_with(&DNS6.octets()));
}

#[test]
fn the_person_is_told_once_of_what_is_refused() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let log = said.clone();
    let tell: crate::Tell = Arc::new(move |s| log.lock().unwrap().push(s.to_owned()));
    let net = UserNet::start(UserNetConfig::default(), Capture::default(), tell).unwrap();
    let mut g = Guest::new(UserNetConfig::default());
    net.attach(g.wire.card.clone());
    g.wire.net = net;
    for port in [80, 81] {
        let h = g.connect((GATEWAY, port), 42_000 + port);
        assert!(!g.connected(h));
    }
    let said = said.lock().unwrap();
    assert!(said.len() == 1 && said[0].contains("port 80") && said[0].contains("--allow-host"));
}

#[test]
fn published_ports_lead_into_the_guest() {
    let config = UserNetConfig {
        publish: vec!["0:80".parse().unwrap(), "0:53/udp".parse().unwrap()],
        ..UserNetConfig::default()
    };
    let mut g = Guest::new(config);
    let [tcp_port, udp_port] = [0, 1].map(|i| g.wire.net.published()[i]);
    let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
    let mut s = tcp::Socket::new(buffer(), buffer());
    s.listen(80).unwrap();
    let h = g.sockets.add(s);
    let client = thread::spawn(move || {
        let mut s = TcpStream::connect(tcp_port).unwrap();
        s.write_all(b"GET").unwrap();
        let mut answer = String::new();
        s.read_to_string(&mut answer).unwrap();
        answer
    });
    g.until("a request", |g| (g.tcp(h).recv_queue() >= 3).then_some(()));
    assert_eq!(
        g.tcp(h).remote_endpoint().unwrap().addr,
        IpAddress::Ipv4(GATEWAY)
    );
    g.tcp(h).send_slice(b"page").unwrap();
    g.tcp(h).close();
    g.until("the end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "page");

    let u = g.udp(53);
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    host.send_to(b"ask", udp_port).unwrap();
    let (data, from, port) = g.datagram(u);
    assert_eq!(
        (data.as_slice(), from),
        (&b"ask"[..], IpAddress::Ipv4(GATEWAY))
    );
    g.sockets
        .get_mut::<udp::Socket<'_>>(u)
        .send_slice(b"tell", (GATEWAY, port))
        .unwrap();
    g.until("the datagram to leave", |g| {
        (g.sockets.get::<udp::Socket<'_>>(u).send_queue() == 0).then_some(())
    });
    let mut b = [0; 16];
    let (n, peer) = host.recv_from(&mut b).unwrap();
    assert_eq!((&b[..n], peer), (&b"tell"[..], udp_port));
}

fn ping(g: &mut Guest, to: Ipv4Addr) -> Vec<u8> {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut s = icmp::Socket::new(buffer(), buffer());
    s.bind(icmp::Endpoint::Ident(0x1234)).unwrap();
    let h = g.sockets.add(s);
    let request = Icmpv4Repr::EchoRequest {
        ident: 0x1234,
        seq_no: 7,
        data: b"payload",
    };
    let checks = smoltcp::phy::ChecksumCapabilities::default();
    let s = g.sockets.get_mut::<icmp::Socket<'_>>(h);
    let bytes = s.send(request.buffer_len(), to.into()).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checks);
    g.until("an echo", |g| {
        let s = g.sockets.get_mut::<icmp::Socket<'_>>(h);
        let (bytes, from) = s.recv().ok()?;
        assert_eq!(from, IpAddress::Ipv4(to));
        let packet = Icmpv4Packet::new_checked(bytes).unwrap();
        match Icmpv4Repr::parse(&packet, &checks).unwrap() {
            Icmpv4Repr::EchoReply {
                ident: 0x1234,
                seq_no: 7,
                data,
            } => Some(data.to_vec()),
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn the_router_answers_pings() {
    assert_eq!(
        ping(&mut Guest::new(UserNetConfig::default()), GATEWAY),
        b"payload"
    );
}

#[test]
fn pings_go_out_where_the_host_lets_them() {
    // The host's own address as others see it: no packet leaves the host.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe
        .connect("192.0.2.1:9")
        .and_then(|()| probe.local_addr());
    let Some(SocketAddr::V4(own)) = own.ok().filter(|a| !a.ip().is_loopback()) else {
        println!("skipped: the host has no address but loopback");
        return;
    };
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let icmp = Some(rustix::net::ipproto::ICMP);
    let family = rustix::net::AddressFamily::INET;
    if rustix::net::socket_with(family, rustix::net::SocketType::DGRAM, flags, icmp).is_err() {
        println!("skipped: net.ipv4.ping_group_range does not include this user");
        return;
    }
    assert_eq!(
        ping(&mut Guest::new(UserNetConfig::default()), *own.ip()),
        b"payload"
    );
}

#[test]
fn nothing_is_lost_while_the_card_has_no_buffers() {
    let mut g = Guest::new(with_host());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let h = g.connect((GATEWAY, listener.local_addr().unwrap().port()), 40_004);
    assert!(g.connected(h));
    let (mut host, _) = listener.accept().unwrap();
    g.wire.card.full.store(true, Ordering::SeqCst);
    let data = vec![0x5a; 200_000];
    let copy = data.clone();
    let writer = thread::spawn(move || host.write_all(&copy).unwrap());
    // Some go-round while nothing can be delivered.
    for _ in 0..20 {
        g.wire.net.kick();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(g.wire.card.frames.lock().unwrap().len(), 0);
    g.wire.card.full.store(false, Ordering::SeqCst);
    g.wire.net.kick();
    let mut got = 0;
    g.until("all bytes", |g| {
        while g.tcp(h).can_recv() {
            got += g.tcp(h).recv(|b| (b.len(), b.len())).unwrap();
        }
        (got == data.len()).then_some(())
    });
    writer.join().unwrap();
}

/// Frames of every kind, broken everywhere, leave the network alive; and the capture holds them.
#[test]
fn broken_frames_do_no_harm() {
    let path = std::env::temp_dir().join(format!("mimeo-net-{}.pcap", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    let capture = Capture::new(Some(file)).unwrap();
    let mut g = Guest::bare(with_host(), capture);
    let mut random = 88_172_645_463_325_252u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let base: Vec<u8> = [
        &[0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 1, 2, 3, 8, 0][..],
        &[
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2,
        ],
        &[
            0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ],
    ]
    .concat();
    for i in 0..3000 {
        let mut f = base.clone();
        f[23] = [1, 2, 6, 17, 58][next() % 5];
        if next() % 3 == 0 {
            // The same bytes as IPv6: version, next header, hop limit, addresses of the network.
            (f[12], f[13]) = (0x86, 0xdd);
            f[14] = 0x60;
            f[18..20].copy_from_slice(&(next() as u16 % 64).to_be_bytes());
            f[20] = [0, 6, 17, 58][next() % 4];
            f.resize(54, 0);
            f[38..54].copy_from_slice(&GATEWAY6.octets());
            f.extend((0..next() % 64).map(|_| next() as u8));
        }
        for _ in 0..next() % 5 {
            let at = next() % f.len();
            f[at] = next() as u8;
        }
        // The header's checksum right, so that what is behind it is looked at.
        if f[12] == 8 {
            (f[24], f[25]) = (0, 0);
            let sum: u32 = f[14..34]
                .chunks(2)
                .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
                .sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            f[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        f.truncate(if next() % 4 == 0 {
            next() % f.len()
        } else {
            f.len()
        });
        g.wire.send(&f);
        if i % 500 == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    g.wire.card.frames.lock().unwrap().clear();
    let h = g.sockets.add(dhcpv4::Socket::new());
    g.until("an address", |g| {
        match g.sockets.get_mut::<dhcpv4::Socket<'_>>(h).poll() {
            Some(dhcpv4::Event::Configured(_)) => Some(()),
            _ => None,
        }
    });
    drop(g);
    let capture = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (mut at, mut records) = (24, 0);
    while at < capture.len() {
        let len = u32::from_le_bytes(capture[at + 8..at + 12].try_into().unwrap());
        at += 16 + len as usize;
        records += 1;
    }
    assert_eq!(at, capture.len());
    assert!(records > 500, "{records}");
}

#[test]
fn senseless_configurations_are_refused() {
    let bad = |change: fn(&mut UserNetConfig)| {
        let mut c = UserNetConfig::default();
        change(&mut c);
        UserNet::start(c, Capture::default(), quiet())
            .unwrap_err()
            .to_string()
    };
    assert!(bad(|c| c.mtu = 100).contains("MTU"));
    assert!(bad(|c| c.prefix = 31).contains("prefix"));
    assert!(bad(|c| c.dns = Ipv4Addr::new(10, 0, 3, 3)).contains("one network"));
    assert!(bad(|c| c.guest = Ipv4Addr::new(10, 0, 2, 255)).contains("first or last"));
    assert!(bad(|c| c.dns = c.gateway).contains("differ"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let c = UserNetConfig {
        publish: vec![format!("{port}:80").parse().unwrap()],
        ..UserNetConfig::default()
    };
    let e = UserNet::start(c, Capture::default(), quiet())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains(&format!("127.0.0.1:{port}")) && e.contains("another host port"),
        "{e}"
    );
}
