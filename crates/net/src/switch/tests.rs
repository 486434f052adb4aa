//! A switch with members that are sockets.

use super::{HELLO, WELCOME, listen, serve};
use mimeo_bus::NetHeader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let file = format!("mimeo-switch-{}-{name}.sock", std::process::id());
        let path = std::env::temp_dir().join(file);
        let listener = listen(&path).unwrap();
        std::thread::spawn(move || serve(listener, false));
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Guest {
    socket: OwnedFd,
    mac: [u8; 6],
}

impl Guest {
    fn join(path: &Path, last: u8, vlan: u16) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let g = Self {
            socket,
            mac: [2, 0, 0, 0, 0, last],
        };
        rustix::io::write(&g.socket, &[&HELLO[..], &vlan.to_le_bytes()].concat()).unwrap();
        assert_eq!(g.receive(5000), Some(vec![WELCOME]));
        g
    }

    fn packet(&self, to: [u8; 6], body: &[u8]) -> Vec<u8> {
        [
            &[0; NetHeader::LEN][..],
            &to,
            &self.mac,
            &[0x88, 0xb5],
            body,
        ]
        .concat()
    }

    fn send(&self, to: [u8; 6], body: &[u8]) {
        rustix::io::write(&self.socket, &self.packet(to, body)).unwrap();
    }

    fn receive(&self, milliseconds: i64) -> Option<Vec<u8>> {
        let wait = Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut fds, Some(&wait)).unwrap() == 0 {
            return None;
        }
        let mut buffer = vec![0; 70_000];
        let n = rustix::io::read(&self.socket, &mut buffer).unwrap();
        buffer.truncate(n);
        Some(buffer)
    }

    /// The next frame's body.
    fn body(&self) -> Vec<u8> {
        let packet = self.receive(20_000).expect("a frame");
        packet[NetHeader::LEN + 14..].to_vec()
    }

    /// Nothing has come, which a frame to itself through the switch's loop proves: what was sent
    /// before `by` sends this has been forwarded.
    fn quiet(&self, by: &Self) {
        by.send(self.mac, b"after");
        assert_eq!(self.body(), b"after");
    }
}

const ALL: [u8; 6] = [0xff; 6];

#[test]
fn addresses_are_learned() {
    let place = Place::new("learn");
    let [a, b, c] = [1, 2, 3].map(|i| Guest::join(&place.0, i, 0));
    a.send(ALL, b"who");
    assert_eq!((b.body(), c.body()), (b"who".to_vec(), b"who".to_vec()));
    b.send(a.mac, b"me");
    assert_eq!(a.body(), b"me");
    // Now b is known: c hears nothing of it.
    a.send(b.mac, b"hello b");
    assert_eq!(b.body(), b"hello b");
    c.send(ALL, b"c");
    assert_eq!((a.body(), b.body()), (b"c".to_vec(), b"c".to_vec()));
    c.quiet(&a);
    // The death of one leaves the others.
    drop(b);
    a.send(c.mac, b"still here");
    assert_eq!(c.body(), b"still here");
}

#[test]
fn vlans_are_separate_networks() {
    let place = Place::new("vlan");
    let trunk = Guest::join(&place.0, 1, 0);
    let [a, b, c] = [(2, 10), (3, 10), (4, 20)].map(|(i, v)| Guest::join(&place.0, i, v));
    a.send(ALL, b"ten");
    assert_eq!(b.body(), b"ten");
    let tagged = trunk.receive(20_000).unwrap();
    assert_eq!(tagged[NetHeader::LEN + 12..][..4], [0x81, 0, 0, 10]);
    trunk.send(ALL, b"none");
    let mut packet = trunk.packet(c.mac, b"twenty");
    let tag = NetHeader::LEN + 12;
    packet.splice(tag..tag, [0x81, 0, 0, 20]);
    rustix::io::write(&trunk.socket, &packet).unwrap();
    assert_eq!(c.body(), b"twenty", "and neither of the others before");
    assert!(a.receive(50).is_none() && b.receive(50).is_none());
}

/// One that floods and one that does not read take nothing from the others.
#[test]
fn floods_and_hangs_are_kept_away_from_others() {
    let place = Place::new("fair");
    let [a, b, flooder, hung] = [1, 2, 3, 4].map(|i| Guest::join(&place.0, i, 0));
    a.send(b.mac, b"hello");
    b.body();
    b.send(a.mac, b"hello");
    a.body();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ended = stop.clone();
    let thread = std::thread::spawn(move || {
        rustix::io::ioctl_fionbio(&flooder.socket, true).unwrap();
        let (to_all, to_b) = (
            flooder.packet(ALL, &[0; 1400]),
            flooder.packet([2, 0, 0, 0, 0, 4], &[0; 60_000]),
        );
        while !ended.load(std::sync::atomic::Ordering::SeqCst) {
            let _ = rustix::io::write(&flooder.socket, &to_all);
            let _ = rustix::io::write(&flooder.socket, &to_b);
        }
    });
    // Requests and answers go on; what the flood brings is looked over.
    let begun = Instant::now();
    for i in 0..500u32 {
        let ask = [&b"ask"[..], &i.to_le_bytes()].concat();
        a.send(b.mac, &ask);
        while b.body() != ask {}
        b.send(a.mac, &ask);
        while a.body() != ask {}
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    thread.join().unwrap();
    drop(hung);
}

#[test]
fn nonsense_ends_its_sender_only() {
    let place = Place::new("nonsense");
    let a = Guest::join(&place.0, 1, 0);
    for hello in [
        &b"mimeosw2\0\0"[..],
        b"mimeosw1\0",
        b"mimeosw1\xff\xff",
        b"x",
    ] {
        let flags = SocketFlags::CLOEXEC;
        let s = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&s, &SocketAddrUnix::new(&place.0).unwrap()).unwrap();
        rustix::io::write(&s, hello).unwrap();
        assert_eq!(rustix::io::read(&s, &mut [0; 8]).unwrap(), 0);
    }
    let b = Guest::join(&place.0, 2, 0);
    for len in [1, 9, 10, 23] {
        rustix::io::write(&b.socket, &vec![0; len]).unwrap();
    }
    b.send(ALL, b"fine");
    assert_eq!(a.body(), b"fine");
}
