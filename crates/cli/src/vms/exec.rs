//! `mimeo exec`.

use super::{agent, running};
use crate::args::ExecArgs;
use crate::status::{COMMAND_FAILED, Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_agent_proto::{
    Exec, Failure as Why, Message, PIECE, Request, WINDOW, read_message, write_message,
};
use mimeo_backends::{Stdio, StdioHooks};
use mimeo_bus::{StreamDevice, StreamHost};
use rustix::{stdio, termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// A command that a signal ended: this and the signal's number.
const SIGNALLED: u8 = 128;

/// The sending half of the conversation.
struct Sender {
    stream: Mutex<UnixStream>,
    /// Bytes of input that may be sent.
    credit: Mutex<usize>,
    more: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender {
    fn say(&self, message: &Message) -> io::Result<()> {
        write_message(&mut *lock(&self.stream), message)
    }

    /// Takes credit for up to `n` bytes; 0 when there is none.
    fn take(&self, n: usize) -> usize {
        let mut credit = lock(&self.credit);
        let n = n.min(*credit);
        *credit -= n;
        n
    }

    /// The same, waiting for some.
    fn wait(&self, n: usize) -> usize {
        let credit = lock(&self.credit);
        let mut credit = self
            .more
            .wait_while(credit, |c| *c == 0)
            .unwrap_or_else(PoisonError::into_inner);
        let n = n.min(*credit);
        *credit -= n;
        n
    }

    fn give(&self, n: u32) {
        *lock(&self.credit) += n as usize;
        self.more.notify_all();
    }
}

/// A terminal's keys on their way to the guest.
struct Keys(Arc<Sender>);

impl StreamDevice for Keys {
    fn input(&self, bytes: &[u8]) -> usize {
        let n = self.0.take(bytes.len().min(PIECE));
        if n > 0 && self.0.say(&Message::Input(bytes[..n].to_vec())).is_err() {
            return bytes.len();
        }
        n
    }

    fn output_ready(&self) {}

    fn resized(&self, columns: u16, rows: u16) {
        // The main thread learns of a broken stream.
        let _ = self.0.say(&Message::Resize(rows, columns));
    }
}

fn request(args: &ExecArgs) -> Result<Exec, Failure> {
    let mut env = Vec::new();
    if args.tty
        && let Some(term) = std::env::var_os("TERM")
    {
        env.push([b"TERM=", term.as_bytes()].concat());
    }
    for variable in &args.env {
        let text = match (variable.contains('='), std::env::var(variable)) {
            (true, _) => variable.clone(),
            (false, Ok(value)) => format!("{variable}={value}"),
            // As podman: a variable that the host has not got is left out.
            (false, Err(_)) => continue,
        };
        if text.starts_with('=') {
            let error = anyhow!("`{text}` is not a variable: write NAME=VALUE or NAME");
            return Err(Failure::command(error));
        }
        env.push(text.into_bytes());
    }
    let size = || {
        let size = termios::tcgetwinsize(stdio::stdin()).ok();
        size.map(|s| (s.ws_row, s.ws_col))
            .filter(|s| *s != (0, 0))
            .unwrap_or((24, 80))
    };
    Ok(Exec {
        argv: args.command.iter().map(|a| a.as_bytes().to_vec()).collect(),
        env,
        directory: args.workdir.clone().unwrap_or_default().into_bytes(),
        user: args.user.clone().unwrap_or_default().into_bytes(),
        terminal: args.tty.then(size),
        input: args.interactive,
    })
}

/// `mimeo exec`.
pub fn exec(args: &ExecArgs) -> Result<Status, Failure> {
    let request = request(args)?;
    let mut stream = agent(&running(&args.name)?)?;
    let sender = Arc::new(Sender {
        stream: Mutex::new(stream.try_clone().map_err(Failure::command)?),
        credit: Mutex::new(WINDOW as usize),
        more: Condvar::new(),
    });
    sender
        .say(&Message::Request(Request::Exec(request)))
        .map_err(Failure::command)?;
    let terminal = if args.tty && args.interactive {
        Some(open_terminal(&sender)?)
    } else {
        None
    };
    if !args.tty {
        forward_signals(sender.clone()).map_err(Failure::host)?;
        if args.interactive {
            forward_input(sender.clone()).map_err(Failure::host)?;
        }
    }
    let ended = converse(&mut stream, &sender, terminal.as_ref());
    // The terminal is itself again before anything is said.
    drop(terminal);
    ended
}

/// The person's terminal, raw, with its keys going to the guest.
fn open_terminal(sender: &Arc<Sender>) -> Result<Stdio, Failure> {
    let hooks = StdioHooks {
        escape: None,
        command: Box::new(|_| ()),
        resized: Box::new(|_, _| ()),
    };
    let terminal = Stdio::open(hooks, Box::new(|_| ())).map_err(Failure::command)?;
    terminal.connect(Arc::new(Keys(sender.clone())));
    Ok(terminal)
}

/// Listens to the agent until the command has ended.
fn converse(
    stream: &mut UnixStream,
    sender: &Sender,
    terminal: Option<&Stdio>,
) -> Result<Status, Failure> {
    loop {
        let message = read_message(stream)
            .context("the conversation with the guest broke off")
            .map_err(Failure::Command)?;
        match message {
            Some(Message::Output(bytes)) => write(&mut io::stdout(), &bytes)?,
            Some(Message::Error(bytes)) => write(&mut io::stderr(), &bytes)?,
            Some(Message::Taken(n)) => {
                sender.give(n);
                if let Some(terminal) = terminal {
                    terminal.input_wanted();
                }
            }
            Some(Message::Ended { signal: 0, status }) => return Ok(Status::Passed(status)),
            Some(Message::Ended { signal, .. }) => {
                return Ok(Status::Passed(SIGNALLED.saturating_add(signal)));
            }
            Some(Message::Failed(why, text)) => {
                eprintln!("mimeo: {text}");
                return Ok(Status::Passed(match why {
                    Why::NotFound => NOT_FOUND,
                    Why::NotExecutable => NOT_EXECUTABLE,
                    Why::Other => COMMAND_FAILED,
                }));
            }
            Some(_) => {}
            None => {
                let error = anyhow!("the guest or its agent ended before the command did");
                return Err(Failure::command(error));
            }
        }
    }
}

/// Writes what the command said. With nobody to read it, there is nobody to go on for.
fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .context("cannot write the command's output")
        .map_err(Failure::Command)
}

/// Hands standard input on, as far as the command takes it.
fn forward_input(sender: Arc<Sender>) -> io::Result<()> {
    let forward = move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let n = match io::stdin().read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if n == 0 {
                // The main thread learns of a broken stream.
                let _ = sender.say(&Message::InputEnd);
                return;
            }
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(sender.wait(rest.len()));
                rest = more;
                if sender.say(&Message::Input(piece.to_vec())).is_err() {
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().spawn(forward).map(drop)
}

/// Hands signals that ask for something on to the command.
fn forward_signals(sender: Arc<Sender>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])?;
    let forward = move || {
        for signal in signals.forever() {
            let number = u8::try_from(signal).unwrap_or(0);
            if sender.say(&Message::Signal(number)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().spawn(forward).map(drop)
}
