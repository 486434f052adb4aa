//! The thread at a VM's control socket: requests, attached consoles, the log.

use crate::{Console, Reply, Request, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients at a time.
const CLIENTS: usize = 64;
/// Bytes of a request.
const LONGEST: usize = 4096;
/// Typed bytes that wait for the guest.
const PENDING: usize = 4096;
/// With nobody attached, output is gathered so long before it goes to the log.
const GATHER: Duration = Duration::from_millis(20);

/// What the server does with the VM. Called on its thread.
pub trait Actions: Send {
    /// Presses the power button.
    ///
    /// # Errors
    /// A sentence, when there is no VM yet.
    fn power_button(&self) -> Result<(), String>;

    /// Ends the VM.
    ///
    /// # Errors
    /// A sentence, when there is no VM yet.
    fn stop(&self) -> Result<(), String>;

    /// `starting` or `running`.
    fn phase(&self) -> &'static str;
}

struct Client {
    fd: OwnedFd,
    /// What has come: a request's line, or bytes for the guest.
    input: Vec<u8>,
    /// What has to go.
    output: Vec<u8>,
    /// At the console, with this number.
    reader: Option<u64>,
    /// Nothing more comes from it.
    input_ended: bool,
    done: bool,
}

struct Worker {
    listener: UnixListener,
    console: Arc<Console>,
    /// With its length.
    log: Option<(File, u64)>,
    actions: Box<dyn Actions>,
    started: Instant,
    clients: Vec<Client>,
    stop: Arc<AtomicBool>,
}

/// The server. Dropping it writes the rest of the log and closes everything.
#[derive(Debug)]
pub struct Server {
    console: Arc<Console>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the thread. `log` is new, opened for reading and appending.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn start(
        listener: UnixListener,
        console: Arc<Console>,
        log: File,
        actions: Box<dyn Actions>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            listener,
            console: console.clone(),
            log: Some((log, 0)),
            actions,
            started: Instant::now(),
            clients: Vec::new(),
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            console,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.console.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn run(mut self) {
        let mut logged = Instant::now();
        loop {
            let stop = self.stop.load(Ordering::Acquire);
            if stop || logged.elapsed() >= GATHER {
                self.write_log();
                logged = Instant::now();
            }
            self.serve_consoles();
            if stop {
                return;
            }
            self.clients.retain(|c| {
                let keep = !c.done;
                if let (false, Some(reader)) = (keep, c.reader) {
                    self.console.detach(reader);
                }
                keep
            });
            if self.wait(logged).is_none() {
                return;
            }
        }
    }

    fn write_log(&mut self) {
        if let Some((log, len)) = &mut self.log
            && let Err(e) = self.console.write_log(log, len)
        {
            eprintln!("mimeo: the console's log cannot be written: {e}");
            self.log = None;
        }
    }

    /// Waits for something to do and does it; `None` when waiting does not work.
    fn wait(&mut self, logged: Instant) -> Option<()> {
        let mut fds = vec![PollFd::new(self.console.wake_fd(), PollFlags::IN)];
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        for c in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !c.input_ended && c.input.len() < PENDING);
            flags.set(PollFlags::OUT, !c.output.is_empty());
            fds.push(PollFd::new(&c.fd, flags));
        }
        // While nobody is attached, the console's bytes wait for the log's turn.
        let gathering = self.console.log_waits();
        let attached = self.clients.iter().any(|c| c.reader.is_some());
        let left = GATHER.saturating_sub(logged.elapsed());
        let left = Timespec {
            tv_sec: 0,
            tv_nsec: left.subsec_nanos().into(),
        };
        let first = usize::from(gathering && !attached);
        match poll(&mut fds[first..], gathering.then_some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        let flags: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        self.console.awake();
        for (i, &flags) in flags.iter().enumerate().skip(2) {
            self.serve(i - 2, flags);
        }
        if !flags[1].is_empty() {
            self.accept();
        }
        Some(())
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // One too many is accepted and closed, so that it does not wait for ever.
        if let Ok(fd) = accept_with(&self.listener, flags)
            && self.clients.len() < CLIENTS
        {
            self.clients.push(Client {
                fd,
                input: Vec::new(),
                output: Vec::new(),
                reader: None,
                input_ended: false,
                done: false,
            });
        }
    }

    fn serve(&mut self, at: usize, flags: PollFlags) {
        let Some(c) = self.clients.get_mut(at) else {
            return;
        };
        if flags.intersects(PollFlags::ERR | PollFlags::NVAL) {
            c.done = true;
        }
        if flags.contains(PollFlags::OUT) {
            c.flush();
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP) && !c.input_ended {
            let mut bytes = [0; 1024];
            match rustix::io::read(&c.fd, &mut bytes) {
                Ok(0) => c.input_ended = true,
                Ok(n) => c.input.extend_from_slice(&bytes[..n]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => c.done = true,
            }
        }
        // Closed in both directions.
        c.done |= flags.contains(PollFlags::HUP) && c.input_ended;
        if c.reader.is_none() {
            self.request(at);
        }
    }

    /// Answers a request when its line is whole.
    fn request(&mut self, at: usize) {
        let c = &mut self.clients[at];
        let Some(end) = c.input.iter().position(|&b| b == b'\n') else {
            c.done |= c.input_ended || c.input.len() > LONGEST;
            return;
        };
        let line: Vec<u8> = c.input.drain(..=end).collect();
        let refused = |why: String| Reply::Refused { why };
        let done = |r: Result<(), String>| r.map_or_else(refused, |()| Reply::Done);
        let mut console = false;
        let reply = match serde_json::from_slice(&line) {
            Ok(Request::Status) => Reply::Status(Status {
                phase: self.actions.phase().to_owned(),
                uptime: self.started.elapsed().as_secs(),
                consoles: self.console.readers() as u32,
            }),
            Ok(Request::PowerButton) => done(self.actions.power_button()),
            Ok(Request::Stop) => done(self.actions.stop()),
            Ok(Request::Console) => {
                console = true;
                Reply::Done
            }
            Err(e) => refused(format!("the request is not understood: {e}")),
        };
        let c = &mut self.clients[at];
        // An enum of strings and numbers cannot fail.
        c.output
            .extend(serde_json::to_vec(&reply).unwrap_or_default());
        c.output.push(b'\n');
        if console {
            c.reader = Some(self.console.attach());
        }
        c.flush();
    }

    /// Moves bytes between the serial port and those who are attached to it.
    fn serve_consoles(&mut self) {
        // Whoever has something for the guest tries again whenever the thread wakes.
        let _ = self.console.take_wanted();
        for c in &mut self.clients {
            let Some(reader) = c.reader else {
                continue;
            };
            if c.output.is_empty() {
                match self.console.take(reader) {
                    Some(bytes) => c.output = bytes,
                    None => c.done = true,
                }
                c.flush();
            }
            if !c.input.is_empty() {
                let taken = self.console.input(&c.input);
                c.input.drain(..taken);
            }
        }
    }
}

impl Client {
    fn flush(&mut self) {
        while !self.output.is_empty() {
            match rustix::io::write(&self.fd, &self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => {
                    self.done = true;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;
    use mimeo_bus::{NullStream, StreamDevice, StreamHost};
    use std::io::{Read, Write};
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    struct Told(Mutex<Sender<&'static str>>);

    impl Actions for Told {
        fn power_button(&self) -> Result<(), String> {
            self.0
                .lock()
                .unwrap()
                .send("button")
                .map_err(|e| e.to_string())
        }
        fn stop(&self) -> Result<(), String> {
            Err("not now".into())
        }
        fn phase(&self) -> &'static str {
            "running"
        }
    }

    /// A guest that answers in capitals, two bytes at a time.
    struct Upper(Mutex<Option<Arc<Console>>>);

    impl StreamDevice for Upper {
        fn input(&self, bytes: &[u8]) -> usize {
            let n = bytes.len().min(2);
            let console = self.0.lock().unwrap().clone().unwrap();
            console.write(&bytes[..n].to_ascii_uppercase());
            if n < bytes.len() {
                console.input_wanted();
            }
            n
        }
        fn output_ready(&self) {}
    }

    fn temp(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mimeo-server-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn requests_consoles_and_the_log() {
        let dir = temp("all");
        let socket = dir.join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let console = Console::new(Arc::new(NullStream)).unwrap();
        let upper = Arc::new(Upper(Mutex::new(Some(console.clone()))));
        console.connect(upper.clone());
        let log = dir.join("log");
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&log)
            .unwrap();
        let (tell, told) = channel();
        let actions = Box::new(Told(Mutex::new(tell)));
        let server = Server::start(listener, console.clone(), file, actions).unwrap();

        let ask = |r: &Request| client::ask_at(&socket, r).unwrap();
        assert_eq!(ask(&Request::PowerButton), Reply::Done);
        assert_eq!(told.recv().unwrap(), "button");
        let why = String::from("not now");
        assert_eq!(ask(&Request::Stop), Reply::Refused { why });
        let mut nonsense = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        nonsense.write_all(b"hello\n").unwrap();
        let mut answer = [0; 8];
        nonsense.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"{\"reply\"");

        console.write(b"before ");
        let mut one = client::console_at(&socket).unwrap();
        let mut two = client::console_at(&socket).unwrap();
        let Reply::Status(status) = ask(&Request::Status) else {
            panic!("no status")
        };
        assert_eq!((status.phase.as_str(), status.consoles), ("running", 2));
        one.write_all(b"hello").unwrap();
        for reader in [&mut one, &mut two] {
            let mut text = [0; 5];
            reader.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"HELLO");
        }
        drop(one);
        console.write(b" after");
        drop(server);
        let mut rest = Vec::new();
        two.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b" after");
        assert_eq!(std::fs::read(&log).unwrap(), b"before HELLO after");
        *upper.0.lock().unwrap() = None;
        std::fs::remove_dir_all(dir).unwrap();
    }
}
