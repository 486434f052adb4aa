//! The guest's network: Debian's own virtio-net driver against servers on this host's loopback, other
//! machines on a switch, a tap interface. No test needs the internet.

use crate::debian::{available, boot};
use crate::support::Guest;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What is carried both ways.
fn payload() -> Vec<u8> {
    let mut x = 1u32;
    let next = |_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    (0..4 << 20).map(next).collect()
}

/// A web server that gives the payload.
fn web_server(address: &str) -> Option<u16> {
    let listener = TcpListener::bind(address).ok()?;
    let port = listener.local_addr().ok()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || give(stream));
        }
    });
    Some(port)
}

fn give(mut stream: TcpStream) {
    let (mut request, mut buffer) = (Vec::<u8>::new(), [0; 1024]);
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend(&buffer[..n]),
        }
    }
    let body = payload();
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body);
}

/// Takes one connection and keeps what it sends.
fn collector() -> (u16, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    (port, thread)
}

/// A name server that knows one address for all names.
fn name_server() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut query) {
            // The question is a name and its type and class; the answer names it by an offset.
            let is_a = n > 16 && query[n - 4..n] == [0, 1, 0, 1];
            let mut answer = query[..n].to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, u8::from(is_a));
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    port
}

fn free_port(address: &str) -> Option<u16> {
    let listener = TcpListener::bind((address, 0)).ok()?;
    listener.local_addr().ok().map(|a| a.port())
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Everything that the user network does for a guest.
fn user_network(engine: &str) {
    if !available("busybox") {
        return;
    }
    let web = web_server("127.0.0.1:0").unwrap();
    let web6 = web_server("[::1]:0");
    let (upload, collected) = collector();
    let published = free_port("127.0.0.1").unwrap();
    let published6 = free_port("::1");
    let capture = std::env::temp_dir().join(format!("mimeo-{engine}-{}.pcap", std::process::id()));
    let mut args = vec!["busybox".to_owned(), "--engine".into(), engine.into()];
    args.extend([
        "--allow-host".into(),
        format!("--net=user,dns=127.0.0.1:{}", name_server()),
    ]);
    args.extend(["--publish".into(), format!("{published}:80")]);
    if let Some(p) = published6 {
        args.extend(["--publish".into(), format!("[::1]:{p}:80")]);
    }
    args.extend(["--pcap".into(), capture.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut g = boot(&args);

    assert!(g.shell("ip addr show eth0").contains("inet 10.0.2.15/24"));
    assert!(g.shell("ping -c 1 10.0.2.2").contains("1 packets received"));
    let name = g.shell("nslookup -type=a name.test");
    assert!(name.contains("192.0.2.7"), "{name}");
    g.shell(&format!("wget -q -O /tmp/got http://10.0.2.2:{web}/"));
    g.shell(&format!("nc 10.0.2.2 {upload} </tmp/got"));
    assert!(collected.join().unwrap() == payload(), "down and up again");
    g.shell("mkdir /tmp/www; echo pa''ge >/tmp/www/index.html; httpd -h /tmp/www");
    assert!(get(&format!("127.0.0.1:{published}")).ends_with("page\n"));

    if let (Some(web6), Some(published6)) = (web6, published6) {
        // The kernel looks at links once a second; with the link come the advertisement and the address.
        let wait = "for i in $(seq 60); do ping -6 -c 1 -W 1 fec0::2 && break; sleep 0.2; done";
        assert!(g.shell(wait).contains("1 packets received"));
        let sum = |g: &mut Guest, file: &str| g.shell(&format!("sha256sum <{file}"));
        g.shell(&format!("wget -q -O /tmp/got6 'http://[fec0::2]:{web6}/'"));
        assert_eq!(sum(&mut g, "/tmp/got"), sum(&mut g, "/tmp/got6"));
        assert!(get(&format!("[::1]:{published6}")).ends_with("page\n"));
    } else {
        println!("IPv6 skipped: this host has none");
    }
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    let bytes = std::fs::read(&capture).unwrap();
    std::fs::remove_file(&capture).unwrap();
    assert_eq!(bytes[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
    assert!(
        bytes.len() > 2 * payload().len(),
        "every frame is in the capture"
    );
}

#[test]
fn user_network_on_bt() {
    user_network("bt");
}

#[test]
fn user_network_on_interp() {
    user_network("interp");
}

#[test]
fn what_is_denied_is_not_reached() {
    if !available("busybox") {
        return;
    }
    let web = web_server("127.0.0.1:0").unwrap();
    let mut g = boot(&["busybox", "--deny-net", "192.0.2.0/24"]);
    let refused = |g: &mut Guest, host: &str| {
        let said = g.shell(&format!(
            "wget -q -O /dev/null http://{host}/ 2>&1 || echo no''ne"
        ));
        assert!(
            said.contains("refused") && said.contains("none"),
            "{host}: {said}"
        );
    };
    refused(&mut g, &format!("10.0.2.2:{web}"));
    assert!(g.errors().contains("--allow-host"), "{}", g.errors());
    refused(&mut g, "192.0.2.1");
    refused(&mut g, "169.254.169.254");
    assert!(g.shell("ping -c 1 10.0.2.2").contains("1 packets received"));
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0));
}

/// A folder for sockets, removed in the end.
struct Runtime(PathBuf);

impl Runtime {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mimeo-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A machine on the switch `lab` of a runtime folder, with the address 10.9.0.N.
fn member(runtime: &Runtime, n: u32, options: &str) -> Guest {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mimeo"));
    command
        .args([
            "run",
            "busybox",
            "-m",
            "128M",
            "--net",
            &format!("switch=lab{options}"),
        ])
        .env("XDG_RUNTIME_DIR", &runtime.0);
    let mut g = Guest::spawn(&mut command);
    g.shell("true");
    // Nobody answers DHCP there.
    g.shell(&format!(
        "killall udhcpc; ip addr add 10.9.0.{n}/24 dev eth0"
    ));
    g
}

fn reaches(g: &mut Guest, n: u32) -> bool {
    let said = g.shell(&format!("ping -c 1 -W 10 10.9.0.{n}"));
    said.contains("1 packets received")
}

#[test]
fn machines_on_a_switch_reach_each_other() {
    if !available("busybox") {
        return;
    }
    let runtime = Runtime::new("switch");
    let mut all: Vec<Guest> = thread::scope(|s| {
        let start = |n| {
            let runtime = &runtime;
            s.spawn(move || member(runtime, n, ""))
        };
        let started: Vec<_> = (1..=3).map(start).collect();
        started.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (from, guest) in all.iter_mut().enumerate() {
        for to in 1..=3 {
            assert!(reaches(guest, to), "{} to {to}", from + 1);
        }
    }
    // The first one started the switch; its death leaves the others connected.
    drop(all.remove(0));
    assert!(reaches(&mut all[0], 3) && reaches(&mut all[1], 2));
    for mut g in all {
        g.send("poweroff -f\n");
        assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    }
}

/// A tap interface in a network namespace of our own, through which the host answers; then it goes away.
#[test]
fn a_tap_interface_carries_frames_until_it_is_gone() {
    if !available("busybox") {
        return;
    }
    let make = "ip link set lo up && ip tuntap add tap0 mode tap && ip addr add 10.8.0.1/24 dev tap0 && ip link set tap0 up";
    let unshare = |script: &str| {
        let mut c = Command::new("unshare");
        c.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        c
    };
    let possible = unshare(make).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|s| s.success()) {
        println!("skipped: no user namespaces, no /dev/net/tun or no ip(8) here");
        return;
    }
    // What is written to the fifo runs in the namespace.
    let runtime = Runtime::new("tap");
    let fifo = runtime.0.join("commands");
    let mimeo = env!("CARGO_BIN_EXE_mimeo");
    let script = format!(
        "{make} && mkfifo {fifo} && (sh <{fifo} &) && exec {mimeo} run debian --net tap=tap0",
        fifo = fifo.display()
    );
    let mut g = Guest::spawn(&mut unshare(&script));
    g.shell("true");
    g.shell("killall udhcpc; ip addr add 10.8.0.2/24 dev eth0");
    assert!(
        g.shell("ping -c 1 -W 20 10.8.0.1")
            .contains("1 packets received")
    );
    std::fs::write(&fifo, "ip link del tap0\n").unwrap();
    let down = "for i in $(seq 600); do [ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ] && break; sleep 0.1; done; cat /sys/class/net/eth0/carrier";
    assert_eq!(g.shell(down).trim(), "0");
    assert!(g.errors().contains("tap0 is gone"), "{}", g.errors());
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

/// passt's end of the wire, played by this test: the frames' lengths, an end in the middle.
#[test]
fn a_socket_at_the_other_end_may_close() {
    if !available("busybox") {
        return;
    }
    let runtime = Runtime::new("passt");
    let path = runtime.0.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let frames = Arc::new(Mutex::new(0));
    let count = frames.clone();
    let server = thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        // Until the guest asks for an address.
        loop {
            let mut length = [0; 4];
            s.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            s.read_exact(&mut frame).unwrap();
            *count.lock().unwrap() += 1;
            if frame[12..14] == [8, 0] && frame[23] == 17 {
                return;
            }
        }
    });
    let mut g = boot(&["busybox", "--net", &format!("passt={}", path.display())]);
    server.join().unwrap();
    let down = "for i in $(seq 600); do [ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ] && break; sleep 0.1; done; cat /sys/class/net/eth0/carrier";
    assert_eq!(g.shell(down).trim(), "0");
    assert!(g.errors().contains("passt has ended"), "{}", g.errors());
    assert!(*frames.lock().unwrap() > 0);
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

/// Debian's own passt, where it is installed and the host has a network for it.
#[test]
fn passt_gives_an_address() {
    let installed = Command::new("passt").arg("--version").output().is_ok();
    let routed = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routed = routed
        .lines()
        .any(|l| l.split_whitespace().nth(1) == Some("00000000"));
    if !available("busybox") || !installed || !routed {
        println!("skipped: passt is not installed or the host has no route");
        return;
    }
    let mut g = boot(&["busybox", "--net", "passt"]);
    let wait = "for i in $(seq 100); do ip addr show eth0 | grep -w inet && break; sleep 0.2; done";
    let address = g.shell(wait);
    assert!(address.contains("inet "), "{address}\n{}", g.errors());
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

#[test]
fn networks_that_cannot_be_had_are_said_so() {
    let cases = [
        (&["--net", "tap=nosuchtap"][..], "ip tuntap add nosuchtap"),
        (&["--net", "passt=/no/such/socket"], "/no/such/socket"),
        (&["--net", "bridge"], "switch=NAME"),
        (&["--net", "none", "--publish", "1:1"], "--net user"),
        (&["--publish", "80"], "8080:80"),
        (&["--mac", "01:00:00:00:00:00"], "52:54:00:12:34:56"),
        (&["--allow-host=nobody"], "192.168.1.0/24"),
        (&["--pcap", "/no/such/directory/x"], "/no/such/directory/x"),
    ];
    for (flags, remedy) in cases {
        let out = Command::new(env!("CARGO_BIN_EXE_mimeo"))
            .args(["manifest"])
            .args(flags)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(remedy), "{flags:?}: {said}");
    }
}
