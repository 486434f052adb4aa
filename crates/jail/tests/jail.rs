//! The jail seen from inside, in a child process: what it must stop and what it must let through.

use mimeo_jail::{Calls, Folder};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;

const ROLE: &str = "MIMEO_JAIL_TEST_ROLE";

/// Runs the named test of this binary again, in a process of its own, with a role to play.
fn child(test: &str, role: &str) -> ExitStatus {
    let exe = std::env::current_exe().unwrap();
    let output = Command::new(exe)
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env(ROLE, role)
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A file without a name.
fn tempfile() -> File {
    let path = std::env::temp_dir().join(format!("mimeo-jail-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// After both walls: open files and locks work; files, sockets, threads and programs do not.
fn play_caged() {
    let mut file = tempfile();
    let (ask, asked) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    // A thread from before the jail is in it too.
    let thread = std::thread::spawn(move || {
        asked.recv().unwrap();
        tell.send(File::open("/etc/passwd").map(|_| ()).map_err(|e| e.kind()))
            .unwrap();
    });
    if let Err(e) = mimeo_jail::restrict_files(&[]) {
        println!("{e}");
    }
    assert!(File::open("/etc/passwd").is_err() || !landlock_here());
    mimeo_jail::restrict_calls(Calls::default()).unwrap();

    let denied = Some(ErrorKind::PermissionDenied);
    assert_eq!(File::open("/etc/passwd").err().map(|e| e.kind()), denied);
    ask.send(()).unwrap();
    assert_eq!(told.recv().unwrap().err(), denied);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0");
    assert_eq!(socket.err().map(|e| e.kind()), denied);
    let thread2 = std::thread::Builder::new().spawn(|| ());
    assert!(thread2.is_err());
    thread.join().unwrap();

    file.write_all(b"still open").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still open");
    // Large enough for the allocator to ask the kernel.
    assert_eq!(
        vec![1u8; 64 << 20]
            .iter()
            .map(|&b| u64::from(b))
            .sum::<u64>(),
        64 << 20
    );
}

fn landlock_here() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|s| s.contains("landlock"))
}

#[test]
fn caged() {
    if role().is_some() {
        play_caged();
        return;
    }
    assert!(child("caged", "inner").success());
}

#[test]
fn starting_a_program_is_deadly() {
    if role().is_some() {
        mimeo_jail::restrict_calls(Calls::default()).unwrap();
        let _ = std::os::unix::process::CommandExt::exec(&mut Command::new("/bin/true"));
        std::process::exit(0);
    }
    let status = child("starting_a_program_is_deadly", "inner");
    assert_eq!(status.signal(), Some(31), "SIGSYS expected, got {status}");
}

/// A thread that serves a folder reaches that one, and no other thread does.
fn play_serving() {
    let dir = std::env::temp_dir().join(format!("mimeo-jail-dir-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a"), "inside").unwrap();
    let (tell, told) = mpsc::channel();
    let (ask, asked) = mpsc::channel::<()>();
    let place = dir.clone();
    let server = std::thread::spawn(move || {
        let folder = File::open(&place).unwrap();
        let shared = Folder {
            fd: folder.as_fd(),
            read_only: false,
        };
        let caged = mimeo_jail::restrict_files(&[shared]).is_ok();
        tell.send(caged).unwrap();
        asked.recv().unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE;
        let open = |at: &str| {
            let (mode, how) = (rustix::fs::Mode::RUSR, rustix::fs::ResolveFlags::empty());
            rustix::fs::openat2(&folder, at, flags, mode, how).is_ok()
        };
        assert!(open("a") && open("new"));
        assert!(!caged || !open("../mimeo-jail-outside"));
    });
    let caged = told.recv().unwrap();
    let _ = mimeo_jail::restrict_files(&[]);
    mimeo_jail::restrict_calls(Calls {
        folders: true,
        ..Calls::default()
    })
    .unwrap();
    ask.send(()).unwrap();
    server.join().unwrap();
    let how = rustix::fs::ResolveFlags::empty();
    let (flags, mode) = (rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let opened = rustix::fs::openat2(rustix::fs::CWD, dir.join("a"), flags, mode, how);
    assert!(opened.is_err() || !caged);
}

#[test]
fn a_server_reaches_its_folder_only() {
    if role().is_some() {
        play_serving();
        return;
    }
    let status = child("a_server_reaches_its_folder_only", "inner");
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("mimeo-jail-dir-")
        {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    assert!(status.success());
}

/// A network's thread, which is from before Landlock, makes internet sockets and no others; the other
/// threads do not reach TCP where Landlock knows it.
fn play_networking() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let (ask, asked) = mpsc::channel::<()>();
    let network = std::thread::spawn(move || {
        asked.recv().unwrap();
        let stream = std::net::TcpStream::connect(to).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        assert!(stream.take_error().unwrap().is_none());
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(to).unwrap();
        let denied = std::os::unix::net::UnixDatagram::unbound().unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    });
    let _ = mimeo_jail::restrict_files(&[]);
    mimeo_jail::restrict_calls(Calls {
        sockets: true,
        ..Calls::default()
    })
    .unwrap();
    ask.send(()).unwrap();
    network.join().unwrap();
}

#[test]
fn a_network_makes_internet_sockets_only() {
    if role().is_some() {
        play_networking();
        return;
    }
    assert!(child("a_network_makes_internet_sockets_only", "inner").success());
}
