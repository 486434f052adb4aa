//! The monitor's own standard input and output as a serial line.
//!
//! On a terminal: raw mode (see [`super::terminal`]), an escape key, the window's size. From a pipe
//! or a file: bytes as they are, read only as fast as the guest takes them; the end of the input is
//! the end of typing and nothing else.
//!
//! Threads: one reads standard input and feeds the device, one writes standard output. Locks: none
//! is held while the device is called.

use super::StreamError;
use super::output::Output;
use super::terminal::{RawMode, ResizeNotice};
use mimeo_bus::{StreamDevice, StreamHost};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::{stdio, termios};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Typed or piped bytes that wait for the guest.
const PENDING: usize = 4096;

/// A key after the escape key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EscapeCommand {
    /// `x`: end the VM.
    Quit,
    /// `h` or `?`: explain the keys.
    Help,
    /// `c`: the monitor's own console.
    Console,
}

impl EscapeCommand {
    const fn of(key: u8) -> Option<Self> {
        match key {
            b'x' | b'X' => Some(Self::Quit),
            b'h' | b'H' | b'?' => Some(Self::Help),
            b'c' | b'C' => Some(Self::Console),
            _ => None,
        }
    }
}

/// What standard input and output tell their user.
pub struct StdioHooks {
    /// The escape key, 1 (Ctrl-A) by habit: it and a key are a command, it twice sends it once.
    /// `None`: no escape key. Only a terminal has one.
    pub escape: Option<u8>,
    /// A command was typed. Called on the reading thread.
    pub command: Box<dyn FnMut(EscapeCommand) + Send>,
    /// The terminal has this many columns and rows: called at the start and at each change, on the
    /// reading thread, besides [`StreamDevice::resized`].
    pub resized: Box<dyn FnMut(u16, u16) + Send>,
}

/// Finds the escape key in what is typed.
struct EscapeFilter {
    key: Option<u8>,
    armed: bool,
}

impl EscapeFilter {
    /// The bytes of `typed` that are for the guest; commands go to `command`.
    fn filter(&mut self, typed: &[u8], mut command: impl FnMut(EscapeCommand)) -> Vec<u8> {
        let Some(key) = self.key else {
            return typed.to_vec();
        };
        let mut out = Vec::with_capacity(typed.len());
        for &b in typed {
            if std::mem::take(&mut self.armed) {
                match EscapeCommand::of(b) {
                    Some(c) => command(c),
                    None if b == key => out.push(b),
                    // Not a command: swallowed, as the person was not talking to the guest.
                    None => {}
                }
            } else if b == key {
                self.armed = true;
            } else {
                out.push(b);
            }
        }
        out
    }
}

struct Shared {
    device: OnceLock<Arc<dyn StreamDevice>>,
    wake: &'static OwnedFd,
    stop: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // Full (2^64 - 2 wakes unread) is as good as written.
        let _ = rustix::io::write(self.wake, &1u64.to_ne_bytes());
    }
}

struct Reader {
    shared: Arc<Shared>,
    filter: EscapeFilter,
    hooks: StdioHooks,
    terminal: bool,
    pending: VecDeque<u8>,
    size: Option<(u16, u16)>,
}

impl Reader {
    /// Gives the device what it has room for.
    fn feed(&mut self) {
        if let Some(device) = self.shared.device.get() {
            while !self.pending.is_empty() {
                let (bytes, _) = self.pending.as_slices();
                let offered = bytes.len();
                let taken = device.input(bytes).min(offered);
                self.pending.drain(..taken);
                if taken < offered {
                    break;
                }
            }
        }
    }

    fn tell_size(&mut self) {
        let Ok(size) = termios::tcgetwinsize(stdio::stdin()) else {
            return;
        };
        let now = (size.ws_col, size.ws_row);
        if now != (0, 0) && self.size != Some(now) {
            self.size = Some(now);
            (self.hooks.resized)(now.0, now.1);
            if let Some(device) = self.shared.device.get() {
                device.resized(now.0, now.1);
            }
        }
    }

    /// Reads once. Whether there may be more.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 1024];
        // A pipe's bytes wait in the pipe; a terminal is read even when the guest does not read,
        // because of the escape key.
        let room = if self.terminal {
            buffer.len()
        } else {
            buffer.len().min(PENDING - self.pending.len())
        };
        match rustix::io::read(stdio::stdin(), &mut buffer[..room]) {
            Ok(0) => false,
            Ok(n) => {
                let command = &mut self.hooks.command;
                let bytes = self.filter.filter(&buffer[..n], command);
                let keep = bytes.len().min(PENDING - self.pending.len());
                self.pending.extend(&bytes[..keep]);
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            // The terminal has gone: there will be no more.
            Err(_) => false,
        }
    }

    fn run(mut self) {
        let mut open = true;
        while !self.shared.stop.load(Ordering::Acquire) {
            if self.terminal {
                self.tell_size();
            }
            self.feed();
            let wants = open && (self.terminal || self.pending.len() < PENDING);
            let shared = self.shared.clone();
            let input = stdio::stdin();
            let mut fds = [
                PollFd::new(shared.wake, PollFlags::IN),
                PollFd::new(&input, PollFlags::IN),
            ];
            let watched = if wants { 2 } else { 1 };
            match poll(&mut fds[..watched], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !fds[0].revents().is_empty() {
                let _ = rustix::io::read(shared.wake, &mut [0; 8]);
            }
            if wants && !fds[1].revents().is_empty() {
                open = self.read();
            }
        }
    }
}

/// Standard output as the queue's thread writes it: waits where it is non-blocking.
struct StandardOutput;

impl io::Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(stdio::stdout(), bytes) {
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let output = stdio::stdout();
                    poll(&mut [PollFd::new(&output, PollFlags::OUT)], None)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard input and output. Dropping it writes out what is queued and leaves raw mode.
pub struct Stdio {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    // Dropped in this order: what the guest said last is written in the mode that it was said in.
    output: Output,
    _resize: Option<ResizeNotice>,
    _raw: Option<RawMode>,
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stdio")
    }
}

impl Stdio {
    /// Takes standard input and output. One at a time in a process. `output_failed` is told of the
    /// first failure to write; what the guest sends later is thrown away.
    ///
    /// # Errors
    /// [`StreamError::Stdio`] when the terminal cannot be made raw or a thread is refused.
    pub fn open(
        hooks: StdioHooks,
        output_failed: Box<dyn Fn(&io::Error) + Send>,
    ) -> Result<Self, StreamError> {
        Self::try_open(hooks, output_failed).map_err(StreamError::Stdio)
    }

    fn try_open(
        hooks: StdioHooks,
        output_failed: Box<dyn Fn(&io::Error) + Send>,
    ) -> io::Result<Self> {
        let terminal = termios::isatty(stdio::stdin());
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            device: OnceLock::new(),
            // Never closed: a handler of SIGWINCH may be about to write to it.
            wake: Box::leak(Box::new(wake)),
            stop: AtomicBool::new(false),
        });
        let output = Output::new(StandardOutput, output_failed)?;
        let raw = if terminal {
            Some(RawMode::enter(stdio::stdin())?)
        } else {
            None
        };
        let resize = terminal.then(|| ResizeNotice::to(shared.wake.as_fd()));
        let reader = Reader {
            shared: shared.clone(),
            filter: EscapeFilter {
                key: hooks.escape.filter(|_| terminal),
                armed: false,
            },
            hooks,
            terminal,
            pending: VecDeque::new(),
            size: None,
        };
        let reader = std::thread::Builder::new()
            .name("serial-in".into())
            .spawn(move || reader.run())?;
        Ok(Self {
            shared,
            reader: Some(reader),
            output,
            _resize: resize,
            _raw: raw,
        })
    }
}

impl StreamHost for Stdio {
    fn write(&self, bytes: &[u8]) -> usize {
        self.output.write(bytes)
    }

    fn input_wanted(&self) {
        self.shared.wake();
    }

    fn connect(&self, device: Arc<dyn StreamDevice>) {
        self.output.connect(device.clone());
        let _ = self.shared.device.set(device);
        self.shared.wake();
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(reader) = self.reader.take()
            && reader.thread().id() != std::thread::current().id()
        {
            // A panic of the thread has been reported by itself.
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_makes_commands_and_twice_is_itself() {
        let mut filter = EscapeFilter {
            key: Some(1),
            armed: false,
        };
        let mut commands = Vec::new();
        let mut run = |bytes: &[u8]| filter.filter(bytes, |c| commands.push(c));
        assert_eq!(run(b"ab\x01"), b"ab");
        assert_eq!(run(b"xc\x01\x01d\x01qe\x01?"), b"c\x01de");
        assert_eq!(commands, [EscapeCommand::Quit, EscapeCommand::Help]);
        let mut none = EscapeFilter {
            key: None,
            armed: false,
        };
        assert_eq!(none.filter(b"\x01x", |_| panic!()), b"\x01x");
    }
}
