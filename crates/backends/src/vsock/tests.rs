use super::table::BUFFER;
use super::*;
use mimeo_bus::{HOST_CID, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, VSOCK_STREAM, vsock_op as op};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Condvar;
use std::time::Duration;

/// A guest that does what a test says.
struct Guest {
    mux: Arc<VsockMux>,
    turned: Arc<(Mutex<u64>, Condvar)>,
    path: PathBuf,
}

struct Turn(Arc<(Mutex<u64>, Condvar)>);

impl VsockDevice for Turn {
    fn progress(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }
}

fn guest(name: &str, connector: Option<Connector>) -> Guest {
    let path = std::env::temp_dir().join(format!("mimeo-vsock-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let mux = VsockMux::new(3, listener, connector).unwrap();
    let turned = Arc::<(Mutex<u64>, Condvar)>::default();
    mux.connect(Arc::new(Turn(turned.clone())));
    mux.driver(true);
    Guest { mux, turned, path }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Guest {
    /// The next packet for the guest.
    fn next(&self) -> (VsockHeader, Vec<u8>) {
        loop {
            let before = *self.turned.0.lock().unwrap();
            if let Some(packet) = self.mux.next_packet(4096) {
                return packet;
            }
            let count = self.turned.0.lock().unwrap();
            let wait = self
                .turned
                .1
                .wait_timeout_while(count, Duration::from_secs(60), |count| *count == before);
            assert!(!wait.unwrap().1.timed_out(), "no packet came");
        }
    }

    fn send(&self, host: u32, guest: u32, op: u16, flags: u32, payload: &[u8], taken: u32) {
        let header = VsockHeader {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len: payload.len() as u32,
            kind: VSOCK_STREAM,
            op,
            flags,
            buf_alloc: 1000,
            fwd_cnt: taken,
        };
        self.mux.guest_sent(&header, payload.to_vec());
    }

    /// A program of the host on the guest's port 52: the program's end, the host's port.
    fn connection(&self) -> (UnixStream, u32) {
        let mut program = UnixStream::connect(&self.path).unwrap();
        program.write_all(b"CONNECT 52\n").unwrap();
        let (request, _) = self.next();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, 52));
        assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, 3));
        assert_eq!(request.buf_alloc as usize, BUFFER);
        self.send(request.src_port, 52, op::RESPONSE, 0, b"", 0);
        let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
        program.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port).as_bytes());
        (program, request.src_port)
    }
}

#[test]
fn a_program_of_the_host_talks_with_the_guest() {
    let g = guest("talk", None);
    let (mut program, port) = g.connection();
    program.write_all(b"ping").unwrap();
    let (header, bytes) = g.next();
    assert_eq!(
        (header.op, header.len, &bytes[..]),
        (op::RW, 4, &b"ping"[..])
    );
    g.send(port, 52, op::RW, 0, b"pong!", 4);
    let mut answer = [0; 5];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong!");
    // The program has said everything and still listens.
    program.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = g.next();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    assert_eq!(header.fwd_cnt, 5);
    g.send(port, 52, op::RW, 0, b"last", 4);
    g.send(
        port,
        52,
        op::SHUTDOWN,
        SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        b"",
        4,
    );
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
    assert_eq!(g.next().0.op, op::RST);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let g = guest("credit", None);
    let (mut program, port) = g.connection();
    let data: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
    program.write_all(&data).unwrap();
    let mut got = Vec::new();
    while got.len() < 1000 {
        let (header, bytes) = g.next();
        assert_eq!(header.op, op::RW);
        got.extend(bytes);
    }
    assert_eq!(got.len(), 1000, "the guest's buffer has 1000 bytes");
    // It is asked, once, how much it has taken.
    assert_eq!(g.next().0.op, op::CREDIT_REQUEST);
    assert!(!g.mux.has_packet());
    g.send(port, 52, op::CREDIT_UPDATE, 0, b"", 600);
    let (header, bytes) = g.next();
    assert_eq!((header.op, bytes.len()), (op::RW, 600));
    got.extend(bytes);
    g.send(port, 52, op::CREDIT_UPDATE, 0, b"", 1600);
    while got.len() < data.len() {
        got.extend(g.next().1);
    }
    assert!(got == data);
}

#[test]
fn the_guest_learns_of_the_room_that_it_has_and_must_respect_it() {
    let g = guest("room", None);
    let (mut program, port) = g.connection();
    let piece = vec![7; 32 * 1024];
    for _ in 0..3 {
        g.send(port, 52, op::RW, 0, &piece, 0);
    }
    let mut all = vec![0; 3 * piece.len()];
    program.read_exact(&mut all).unwrap();
    // More than half was taken: the guest is told without asking.
    let (header, _) = g.next();
    assert_eq!(header.op, op::CREDIT_UPDATE);
    assert!(header.fwd_cnt as usize >= BUFFER / 2);
    g.send(port, 52, op::CREDIT_REQUEST, 0, b"", 0);
    assert_eq!(g.next().0.op, op::CREDIT_UPDATE);
    // Nobody reads: the socket's own buffer and ours fill up, then the guest has broken the rules.
    let mut packets = 0;
    while !g.mux.has_packet() {
        g.send(port, 52, op::RW, 0, &piece, 0);
        packets += 1;
        assert!(packets < 100_000, "there is no bound");
    }
    let mut last = g.next().0;
    while last.op == op::CREDIT_UPDATE {
        g.send(port, 52, op::RW, 0, &vec![0; BUFFER + 1], 0);
        last = g.next().0;
    }
    assert_eq!(last.op, op::RST);
}

#[test]
fn the_guest_reaches_the_hosts_sockets() {
    let (ours, theirs) = connector().unwrap();
    let g = guest("reach", Some(ours));
    let path = g.path.clone();
    let target = PathBuf::from(format!("{}_80", path.display()));
    let _ = std::fs::remove_file(&target);
    let listener = UnixListener::bind(&target).unwrap();
    let helper = std::thread::spawn(move || serve_connector(theirs.0, &path));
    g.send(80, 1025, op::REQUEST, 0, b"", 0);
    let (mut program, _) = listener.accept().unwrap();
    let (header, _) = g.next();
    assert_eq!((header.op, header.dst_port), (op::RESPONSE, 1025));
    g.send(80, 1025, op::RW, 0, b"hello", 0);
    let mut hello = [0; 5];
    program.read_exact(&mut hello).unwrap();
    // A port that nobody listens on, and an end at once.
    g.send(81, 1026, op::REQUEST, 0, b"", 0);
    let (header, _) = g.next();
    assert_eq!((header.op, header.src_port), (op::RST, 81));
    g.send(80, 1025, op::RST, 0, b"", 0);
    assert_eq!(program.read(&mut hello).unwrap(), 0);
    drop(g);
    helper.join().unwrap().unwrap();
    std::fs::remove_file(target).unwrap();
}

#[test]
fn nonsense_is_refused() {
    let g = guest("nonsense", None);
    // Nobody reaches the host's sockets without a connector.
    g.send(80, 1, op::REQUEST, 0, b"", 0);
    assert_eq!(g.next().0.op, op::RST);
    for op in [
        0,
        op::RW,
        op::RESPONSE,
        op::SHUTDOWN,
        op::CREDIT_REQUEST,
        99,
    ] {
        g.send(80, 1, op, u32::MAX, b"x", 5);
        assert_eq!(g.next().0.op, op::RST, "{op}");
    }
    // A refusal is not refused; another's packet is not heard.
    g.send(80, 1, op::RST, 0, b"", 0);
    let foreign = VsockHeader {
        src_cid: 9,
        dst_cid: HOST_CID,
        op: op::REQUEST,
        kind: VSOCK_STREAM,
        ..VsockHeader::default()
    };
    g.mux.guest_sent(&foreign, Vec::new());
    assert!(!g.mux.has_packet());
    // Seqpacket sockets and other machines.
    for (kind, dst_cid) in [(2, HOST_CID), (VSOCK_STREAM, 4)] {
        let header = VsockHeader {
            src_cid: 3,
            dst_cid,
            kind,
            op: op::REQUEST,
            ..VsockHeader::default()
        };
        g.mux.guest_sent(&header, Vec::new());
        let (refusal, _) = g.next();
        assert_eq!(
            (refusal.op, refusal.kind, refusal.src_cid),
            (op::RST, kind, dst_cid)
        );
    }
    // A flood of nonsense has to wait.
    let mut sent = 0;
    while g.mux.has_room() {
        g.send(80, 1, op::RW, 0, b"", 0);
        sent += 1;
        assert!(sent < 100_000, "there is no bound");
    }
}

#[test]
fn programs_that_say_nonsense_or_come_too_early_are_sent_away() {
    let g = guest("early", None);
    let closed = |what: &[u8]| {
        let mut program = UnixStream::connect(&g.path).unwrap();
        program.write_all(what).unwrap();
        let mut rest = Vec::new();
        // Closed with our bytes unread: an end or a reset, and not a word.
        let _ = program.read_to_end(&mut rest);
        assert!(rest.is_empty());
    };
    closed(b"GET / HTTP/1.1\r\n");
    closed(b"CONNECT 4294967296\n");
    closed(&[b'x'; 100]);
    let (mut program, _) = g.connection();
    g.mux.driver(false);
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    closed(b"CONNECT 52\n");
}
