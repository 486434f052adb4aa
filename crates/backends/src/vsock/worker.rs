//! The thread: everything that touches a socket.

use super::table::{Key, Wish};
use super::{Connector, Shared};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Programs of the host that have not yet said which port they want.
const GREETINGS: usize = 64;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// `CONNECT 4294967295\n` and some air.
const LONGEST_LINE: usize = 32;
/// Bytes that are moved at once.
const PIECE: usize = 64 * 1024;

/// A program that has connected and not yet said which port it wants.
struct Greeting {
    fd: OwnedFd,
    line: Vec<u8>,
    until: Instant,
}

/// A connection's socket.
struct Socket {
    fd: OwnedFd,
    /// The program still waits for `OK PORT`.
    expects_ok: bool,
    /// The end of writing was passed on.
    write_ended: bool,
    /// Failed or ended in both directions: not looked at any more.
    dead: bool,
}

/// What a file descriptor in the poll set is.
#[derive(Clone, Copy)]
enum What {
    Wake,
    Listener,
    Connector,
    Greeting(usize),
    Connection(Key),
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    listener: UnixListener,
    connector: Option<Connector>,
    /// Asked of the connector, in the order of its answers.
    asked: VecDeque<Key>,
    greetings: Vec<Greeting>,
    sockets: HashMap<Key, Socket>,
    buffer: Vec<u8>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        listener: UnixListener,
        connector: Option<Connector>,
    ) -> Self {
        Self {
            shared,
            listener,
            connector,
            asked: VecDeque::new(),
            greetings: Vec::new(),
            sockets: HashMap::new(),
            buffer: vec![0; PIECE],
        }
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let (wishes, deadline) = self.plan();
            let Some(ready) = self.wait(&wishes, deadline) else {
                return;
            };
            for (what, flags) in ready {
                match what {
                    What::Wake => {
                        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                        self.shared.woken.store(false, Ordering::Release);
                    }
                    What::Listener => self.accept(),
                    What::Connector => self.answers(),
                    What::Greeting(at) => self.greet(at),
                    What::Connection(key) => {
                        let wish = wishes.iter().find(|w| w.key == key);
                        if let Some(wish) = wish {
                            self.serve(wish, flags);
                        }
                    }
                }
            }
            let now = Instant::now();
            self.greetings.retain(|g| g.until > now);
            if let Some(device) = self.shared.device.get() {
                device.progress();
            }
        }
    }

    /// Takes over what changed in the table; gives what is to be watched.
    fn plan(&mut self) -> (Vec<Wish>, Option<Instant>) {
        let shared = self.shared.clone();
        let mut table = shared.lock();
        for key in table.take_wanted() {
            if self.connector.as_ref().is_some_and(|c| c.ask(key.host)) {
                self.asked.push_back(key);
            } else {
                table.abort(key);
            }
        }
        let (wishes, mut deadline) = table.wishes(Instant::now());
        drop(table);
        let alive = |key: &Key| wishes.iter().any(|w| w.key == *key);
        self.sockets.retain(|key, _| alive(key));
        for wish in &wishes {
            let Some(socket) = self.sockets.get_mut(&wish.key) else {
                continue;
            };
            if wish.open && std::mem::take(&mut socket.expects_ok) {
                // Fits: the socket has sent nothing yet.
                let line = format!("OK {}\n", wish.key.host);
                let _ = rustix::io::write(&socket.fd, line.as_bytes());
            }
            if wish.end_writing && !std::mem::replace(&mut socket.write_ended, wish.end_writing) {
                let _ = shutdown(&socket.fd, Shutdown::Write);
            }
        }
        let greeting = self.greetings.iter().map(|g| g.until).min();
        deadline = [deadline, greeting].into_iter().flatten().min();
        (wishes, deadline)
    }

    /// Waits for something to do; `None` when waiting does not work.
    fn wait(&self, wishes: &[Wish], until: Option<Instant>) -> Option<Vec<(What, PollFlags)>> {
        let mut what = vec![What::Wake];
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if self.greetings.len() < GREETINGS {
            what.push(What::Listener);
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        if let Some(connector) = &self.connector {
            what.push(What::Connector);
            fds.push(PollFd::new(connector.fd(), PollFlags::IN));
        }
        for (i, g) in self.greetings.iter().enumerate() {
            what.push(What::Greeting(i));
            fds.push(PollFd::new(&g.fd, PollFlags::IN));
        }
        for wish in wishes {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, wish.read > 0);
            flags.set(PollFlags::OUT, wish.write);
            // Without flags POLLHUP would still come, again and again.
            if let Some(s) = self.sockets.get(&wish.key).filter(|s| !s.dead)
                && !flags.is_empty()
            {
                what.push(What::Connection(wish.key));
                fds.push(PollFd::new(&s.fd, flags));
            }
        }
        let timeout = until.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        let ready = what.into_iter().zip(&fds).map(|(w, fd)| (w, fd.revents()));
        Some(ready.filter(|(_, flags)| !flags.is_empty()).rev().collect())
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        if let Ok(fd) = accept_with(&self.listener, flags) {
            self.greetings.push(Greeting {
                fd,
                line: Vec::new(),
                until: Instant::now() + PATIENCE,
            });
        }
    }

    /// Reads more of what a program says first. Called from the last to the first, so that removing
    /// one leaves the others' places.
    fn greet(&mut self, at: usize) {
        let Some(greeting) = self.greetings.get_mut(at) else {
            return;
        };
        let mut bytes = [0; LONGEST_LINE];
        let n = match rustix::io::read(&greeting.fd, &mut bytes) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => 0,
        };
        greeting.line.extend_from_slice(&bytes[..n]);
        let Some(end) = greeting.line.iter().position(|&b| b == b'\n') else {
            if n == 0 || greeting.line.len() > LONGEST_LINE {
                self.greetings.swap_remove(at);
            }
            return;
        };
        let greeting = self.greetings.swap_remove(at);
        let (line, rest) = (&greeting.line[..end], &greeting.line[end + 1..]);
        // Closing says no: there is no other word for it in the convention.
        let Some(port) = requested_port(line) else {
            return;
        };
        if let Some(key) = self.shared.lock().ask(port, rest) {
            let socket = Socket {
                fd: greeting.fd,
                expects_ok: true,
                write_ended: false,
                dead: false,
            };
            self.sockets.insert(key, socket);
        }
    }

    /// Connections to the host that were asked for.
    fn answers(&mut self) {
        loop {
            let answer = match &self.connector {
                Some(connector) => connector.answer(),
                None => return,
            };
            match answer {
                Ok(None) => return,
                Ok(Some((port, fd))) => {
                    let Some(key) = self.asked.pop_front().filter(|k| k.host == port) else {
                        continue;
                    };
                    let fd = fd.filter(|fd| rustix::io::ioctl_fionbio(fd, true).is_ok());
                    let mut table = self.shared.lock();
                    let Some(fd) = fd else {
                        table.abort(key);
                        continue;
                    };
                    table.reached(key);
                    let socket = Socket {
                        fd,
                        expects_ok: false,
                        write_ended: false,
                        dead: false,
                    };
                    self.sockets.insert(key, socket);
                }
                Err(_) => {
                    // The other process is gone: whatever the guest asks for is refused from now on.
                    self.connector = None;
                    let mut table = self.shared.lock();
                    self.asked.drain(..).for_each(|key| table.abort(key));
                    return;
                }
            }
        }
    }

    /// Moves bytes of one connection.
    fn serve(&mut self, wish: &Wish, flags: PollFlags) {
        let (key, shared) = (wish.key, self.shared.clone());
        let Some(socket) = self.sockets.get_mut(&key) else {
            return;
        };
        let closed = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        if wish.read > 0 && flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            let room = wish.read.min(PIECE);
            match rustix::io::read(&socket.fd, &mut self.buffer[..room]) {
                Ok(0) => shared.lock().host_ended(key, closed),
                Ok(n) => shared.lock().host_sent(key, &self.buffer[..n]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => shared.lock().host_ended(key, true),
            }
        }
        if wish.write && flags.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR) {
            let mut bytes = Vec::new();
            shared.lock().for_host(key, &mut bytes);
            match rustix::io::write(&socket.fd, &bytes) {
                Ok(n) => shared.lock().host_took(key, n),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    socket.dead = true;
                    shared.lock().host_ended(key, true);
                }
            }
        }
    }
}

/// The port of `CONNECT PORT`.
fn requested_port(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    text.strip_prefix("CONNECT ")?.trim().parse().ok()
}
