//! `mimeo exec`, in the guest: one command with its standard streams, by poll(2) in one thread.

use crate::sys::{self, POLLIN, POLLOUT, Watched};
use crate::user::{self, User};
use mimeo_agent_proto::{Exec, Frames, Message, PIECE, WINDOW};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Bytes for the host that wait before the command has to.
const BACKLOG: usize = 256 * 1024;
/// How long output may be silent, in milliseconds, before it counts as all: somebody whom the command
/// left behind may hold it open for ever.
const SILENCE: i32 = 200;
const SIGHUP: u8 = 1;
/// The status of a command that was not ended by a signal and has none; cannot happen.
const NO_STATUS: u8 = 255;

/// Runs a command for the host at the other end of `stream`, to its end.
pub fn run(exec: &Exec, stream: io::Result<File>) -> io::Result<()> {
    let stream = stream?;
    let user = user::find(&exec.user)?;
    let mut session = Session::start(exec, &user, stream)?;
    session.say(&Message::Started)?;
    session.work()
}

/// A running command and the host.
struct Session {
    stream: File,
    frames: Frames,
    /// Bytes for the host.
    out: VecDeque<u8>,
    child: Child,
    process: OwnedFd,
    ended: Option<ExitStatus>,
    terminal: Option<File>,
    input: Option<File>,
    /// Bytes for the command, and whether there will be more.
    pending: VecDeque<u8>,
    input_ends: bool,
    output: Option<File>,
    error: Option<File>,
}

fn command(exec: &Exec, user: &User) -> io::Result<Command> {
    let text = |b: &[u8]| OsStr::from_bytes(b).to_owned();
    let Some((program, arguments)) = exec.argv.split_first() else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let mut c = Command::new(text(program));
    c.args(arguments.iter().map(|a| text(a))).env_clear();
    c.env("PATH", user::PATH)
        .env("HOME", &user.home)
        .env("USER", &user.name);
    if exec.terminal.is_some() {
        c.env("TERM", "xterm");
    }
    for variable in &exec.env {
        match variable.iter().position(|&b| b == b'=') {
            Some(at) if at > 0 => c.env(text(&variable[..at]), text(&variable[at + 1..])),
            _ => return Err(io::Error::other("a variable is not NAME=VALUE")),
        };
    }
    let directory = if exec.directory.is_empty() {
        let home = Path::new(&user.home);
        if home.is_dir() { home } else { Path::new("/") }.to_owned()
    } else {
        Path::new(&text(&exec.directory)).to_owned()
    };
    if !directory.is_dir() {
        let text = format!("the guest has no directory {}", directory.display());
        return Err(io::Error::new(ErrorKind::NotFound, text));
    }
    c.current_dir(directory);
    sys::prepare(&mut c, user, exec.terminal.is_some());
    Ok(c)
}

impl Session {
    fn start(exec: &Exec, user: &User, stream: File) -> io::Result<Self> {
        let mut c = command(exec, user)?;
        let terminal = match exec.terminal {
            Some((rows, columns)) => {
                let (ours, theirs) = sys::terminal()?;
                sys::set_size(ours.as_fd(), rows, columns)?;
                c.stdin(theirs.try_clone()?)
                    .stdout(theirs.try_clone()?)
                    .stderr(theirs);
                Some(ours)
            }
            None => {
                let input = if exec.input {
                    Stdio::piped()
                } else {
                    Stdio::null()
                };
                c.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
                None
            }
        };
        let name = String::from_utf8_lossy(&exec.argv[0]).into_owned();
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{name}: {e}"));
        let mut child = c.spawn().map_err(named)?;
        // The command's ends of a terminal must not stay open here.
        drop(c);
        let file = |fd: OwnedFd| File::from(fd);
        let mut session = Self {
            process: sys::process(child.id())?,
            input: child.stdin.take().map(|s| file(s.into())),
            output: child.stdout.take().map(|s| file(s.into())),
            error: child.stderr.take().map(|s| file(s.into())),
            stream,
            frames: Frames::default(),
            out: VecDeque::new(),
            child,
            ended: None,
            terminal: None,
            pending: VecDeque::new(),
            input_ends: false,
        };
        if let Some(terminal) = terminal {
            session.input = exec.input.then(|| terminal.try_clone()).transpose()?;
            session.output = Some(terminal.try_clone()?);
            session.terminal = Some(terminal);
        }
        let streams = [&session.input, &session.output, &session.error];
        for fd in streams.into_iter().flatten() {
            sys::set_nonblocking(fd.as_fd())?;
        }
        sys::set_nonblocking(session.stream.as_fd())?;
        Ok(session)
    }

    fn say(&mut self, message: &Message) -> io::Result<()> {
        self.out.extend(message.to_frame()?);
        Ok(())
    }

    /// Moves bytes until the command has ended and the host knows everything.
    fn work(&mut self) -> io::Result<()> {
        let result = self.conversation();
        if self.ended.is_none() {
            // The host has gone: the command is told as if its terminal had been closed.
            sys::signal_group(self.child.id(), SIGHUP);
            (self.input, self.output, self.error, self.terminal) = (None, None, None, None);
            self.child.wait()?;
        }
        result
    }

    fn conversation(&mut self) -> io::Result<()> {
        let mut told = false;
        loop {
            let streams_open = self.output.is_some() || self.error.is_some();
            if let (Some(status), false, false) = (self.ended, told, streams_open) {
                told = true;
                let signal = status
                    .signal()
                    .and_then(|s| u8::try_from(s).ok())
                    .unwrap_or(0);
                let status = status.code().map_or(NO_STATUS, |c| c as u8);
                self.say(&Message::Ended { status, signal })?;
            }
            if told && self.out.is_empty() {
                return Ok(());
            }
            let ready = self.wait(told)?;
            if ready.silent && self.ended.is_some() {
                // Whoever still holds the streams is not the command.
                (self.output, self.error) = (None, None);
            }
            if ready.process {
                self.ended = self.child.try_wait()?;
            }
            if ready.stream_in {
                self.listen()?;
            }
            if ready.input {
                self.feed()?;
            }
            if ready.output {
                self.output = self.relay(true)?;
            }
            if ready.error {
                self.error = self.relay(false)?;
            }
            if ready.stream_out {
                self.flush()?;
            }
        }
    }

    fn wait(&self, told: bool) -> io::Result<Ready> {
        let mut set = WatchList(Vec::new());
        let room = self.out.len() < BACKLOG;
        let host = Some(self.stream.as_fd());
        let stream_in = set.add(host, POLLIN);
        let stream_out = set.add(host.filter(|_| !self.out.is_empty()), POLLOUT);
        let waiting = !self.pending.is_empty();
        let input = self.input.as_ref().filter(|_| waiting);
        let input = set.add(input.map(File::as_fd), POLLOUT);
        let output = self.output.as_ref().filter(|_| room);
        let output = set.add(output.map(File::as_fd), POLLIN);
        let error = self.error.as_ref().filter(|_| room);
        let error = set.add(error.map(File::as_fd), POLLIN);
        let process = Some(self.process.as_fd()).filter(|_| self.ended.is_none());
        let process = set.add(process, POLLIN);
        // With a full backlog silence says nothing.
        let waits_for_end = self.ended.is_some() && !told && room;
        let ready = sys::wait(&set.0, if waits_for_end { SILENCE } else { -1 })?;
        let is = |at: Option<usize>| at.is_some_and(|at| ready[at]);
        Ok(Ready {
            stream_in: is(stream_in),
            stream_out: is(stream_out),
            input: is(input),
            output: is(output),
            error: is(error),
            process: is(process),
            silent: waits_for_end && !is(output) && !is(error) && !is(stream_out),
        })
    }

    /// What the host says.
    fn listen(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.frames.push(&buffer[..n]),
            Err(e) if again(&e) => return Ok(()),
            Err(e) => return Err(e),
        }
        while let Some(message) = self.frames.next_message()? {
            match message {
                Message::Input(bytes) => {
                    if self.pending.len() + bytes.len() > WINDOW as usize {
                        return Err(io::Error::other("more input than was asked for"));
                    }
                    self.pending.extend(bytes);
                }
                Message::InputEnd => self.input_ends = true,
                Message::Resize(rows, columns) => {
                    if let Some(terminal) = &self.terminal {
                        sys::set_size(terminal.as_fd(), rows, columns)?;
                    }
                }
                Message::Signal(signal) if self.ended.is_none() => {
                    sys::signal_group(self.child.id(), signal);
                }
                _ => {}
            }
        }
        self.feed()
    }

    /// Gives the command what has come for it.
    fn feed(&mut self) -> io::Result<()> {
        let mut taken = 0;
        while let Some(input) = &mut self.input {
            let (bytes, _) = self.pending.as_slices();
            if bytes.is_empty() {
                break;
            }
            match input.write(bytes) {
                Ok(n) => {
                    self.pending.drain(..n);
                    taken += n;
                }
                Err(e) if again(&e) => break,
                // Nobody reads it any more.
                Err(_) => self.input = None,
            }
        }
        if self.input.is_none() {
            taken += self.pending.len();
            self.pending.clear();
        }
        if self.input_ends && self.pending.is_empty() {
            self.end_input();
        }
        if taken > 0 {
            // At most WINDOW.
            self.say(&Message::Taken(taken as u32))?;
        }
        Ok(())
    }

    /// The end of a pipe is closing it; a terminal has a key for it, which the host's person types.
    fn end_input(&mut self) {
        if self.terminal.is_none() {
            self.input = None;
        }
    }

    /// What the command says; the stream, if it goes on.
    fn relay(&mut self, output: bool) -> io::Result<Option<File>> {
        let stream = if output {
            self.output.take()
        } else {
            self.error.take()
        };
        let Some(mut from) = stream else {
            return Ok(None);
        };
        let mut buffer = [0; PIECE];
        match from.read(&mut buffer) {
            // A terminal's other end is closed: EIO.
            Ok(0) => Ok(None),
            Ok(n) => {
                let bytes = buffer[..n].to_vec();
                self.say(&if output {
                    Message::Output(bytes)
                } else {
                    Message::Error(bytes)
                })?;
                Ok(Some(from))
            }
            Err(e) if again(&e) => Ok(Some(from)),
            Err(_) => Ok(None),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            let (bytes, _) = self.out.as_slices();
            match self.stream.write(bytes) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if again(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Descriptors that are waited for.
struct WatchList<'a>(Vec<Watched<'a>>);

impl<'a> WatchList<'a> {
    /// Adds one, if there is one; gives its place.
    fn add(&mut self, fd: Option<BorrowedFd<'a>>, events: i16) -> Option<usize> {
        let fd = fd?;
        self.0.push(Watched { fd, events });
        Some(self.0.len() - 1)
    }
}

/// What can go on.
struct Ready {
    stream_in: bool,
    stream_out: bool,
    input: bool,
    output: bool,
    error: bool,
    process: bool,
    silent: bool,
}

fn again(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
