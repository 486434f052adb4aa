//! Standard input and output on a real terminal: a pseudo-terminal with this program as its child.

use mimeo_backends::{EscapeCommand, Stdio, StdioHooks};
use mimeo_bus::{StreamDevice, StreamHost};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio as Pipe};
use std::sync::{Arc, Mutex, mpsc};

const ROLE: &str = "MIMEO_TERMINAL_TEST_ROLE";

/// Tells its stream what it is given.
struct Echo(Mutex<Option<mpsc::Sender<String>>>);

impl StreamDevice for Echo {
    fn input(&self, bytes: &[u8]) -> usize {
        let text = format!("<{}>", String::from_utf8_lossy(bytes));
        let _ = self.0.lock().unwrap().as_ref().unwrap().send(text);
        bytes.len()
    }
    fn output_ready(&self) {}
}

/// The child's side: not a test of its own.
#[test]
#[ignore = "run by the other tests as their child"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (send, say) = mpsc::channel::<String>();
    let (typed, sized) = (send.clone(), send.clone());
    let hooks = StdioHooks {
        escape: Some(1),
        command: Box::new(move |c: EscapeCommand| {
            let _ = typed.send(format!("<{c:?}>"));
        }),
        resized: Box::new(move |columns, rows| {
            let _ = sized.send(format!("<{columns}x{rows}>"));
        }),
    };
    let stdio = Arc::new(Stdio::open(hooks, Box::new(|_| {})).unwrap());
    stdio.connect(Arc::new(Echo(Mutex::new(Some(send)))));
    stdio.write(b"<ready>");
    for text in say {
        stdio.write(text.as_bytes());
        match (role.as_str(), text.as_str()) {
            ("exit", "<go>") => std::process::exit(7),
            ("drop", "<go>") => break,
            ("panic", "<go>") => panic!("as told"),
            _ => {}
        }
    }
}

struct Terminal {
    master: std::fs::File,
    /// Kept open: the last close would put the modes back by itself.
    _slave: std::fs::File,
    child: Child,
    seen: String,
}

impl Terminal {
    /// A child in `role` with a terminal of its own; `None` where the host lacks `setsid`.
    fn start(role: &str) -> Option<Self> {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = || {
            let path = name.to_str().unwrap();
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(path)
                .unwrap()
        };
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        Command::new("setsid").arg("--version").output().ok()?;
        // A runner in the background (nohup, `&`) ignores signals, and its children inherit that.
        let child = Command::new("env")
            .args(["--default-signal=HUP,INT,QUIT,TERM", "setsid"])
            .args(["--ctty", "--wait"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .stdin(Pipe::from(slave()))
            .stdout(Pipe::from(slave()))
            .stderr(Pipe::null())
            .spawn()
            .ok()?;
        let mut terminal = Self {
            master: master.into(),
            _slave: slave(),
            child,
            seen: String::new(),
        };
        terminal.expect("<ready>");
        Some(terminal)
    }

    fn expect(&mut self, text: &str) {
        let mut buffer = [0; 256];
        while !self.seen.contains(text) {
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let minute = Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            let ready = poll(&mut fds, Some(&minute)).unwrap();
            assert_ne!(ready, 0, "{text} is missing in {:?}", self.seen);
            let n = self.master.read(&mut buffer).unwrap();
            self.seen += &String::from_utf8_lossy(&buffer[..n]);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).unwrap();
    }

    /// Whether typed lines are edited and echoed, as a shell's terminal does.
    fn cooked(&self) -> bool {
        let modes = tcgetattr(&self.master).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// The process that has the terminal (`setsid` may have forked).
    fn leader(&self) -> Pid {
        rustix::termios::tcgetsid(&self.master).unwrap()
    }
}

#[test]
fn raw_mode_ends_with_the_process_however_it_ends() {
    for role in ["exit", "drop", "panic"] {
        let Some(mut t) = Terminal::start(role) else {
            println!("skipped: this host has no setsid");
            return;
        };
        assert!(!t.cooked(), "{role}");
        t.send(b"go");
        let status = t.wait();
        assert!(t.cooked(), "{role}");
        assert_eq!(status.code() == Some(7), role == "exit");
    }
}

#[test]
fn raw_mode_ends_with_a_signal() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let Some(mut t) = Terminal::start("wait") else {
            println!("skipped: this host has no setsid");
            return;
        };
        assert!(!t.cooked());
        kill_process(t.leader(), signal).unwrap();
        assert!(!t.wait().success());
        assert!(t.cooked(), "{signal:?}");
    }
}

#[test]
fn keys_commands_and_the_windows_size() {
    let Some(mut t) = Terminal::start("drop") else {
        println!("skipped: this host has no setsid");
        return;
    };
    t.expect("<80x24>");
    // Ctrl-C is the guest's.
    t.send(b"ab\x03");
    t.expect("<ab\u{3}>");
    t.send(b"\x01x");
    t.expect("<Quit>");
    let size = Winsize {
        ws_row: 50,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&t.master, size).unwrap();
    t.expect("<132x50>");
    t.send(b"go");
    t.wait();
}

#[test]
fn a_pipe_is_passed_on_without_an_escape_key() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(ROLE, "drop")
        .stdin(Pipe::piped())
        .stdout(Pipe::piped())
        .stderr(Pipe::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 256]);
    let mut expect = |text: &str| {
        while !seen.contains(text) {
            let n = output.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "{text} is missing in {seen:?}");
            seen += &String::from_utf8_lossy(&buffer[..n]);
        }
    };
    expect("<ready>");
    input.write_all(b"\x01x").unwrap();
    expect("<\u{1}x>");
    input.write_all(b"go").unwrap();
    drop(input);
    expect("<go>");
    assert!(child.wait().unwrap().success());
}
