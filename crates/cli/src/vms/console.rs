//! `mimeo console`.

use super::running;
use crate::status::{Failure, Status};
use mimeo_backends::{EscapeCommand, Stdio, StdioHooks};
use mimeo_bus::{StreamDevice, StreamHost};
use mimeo_control::client;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Ctrl-A.
const ESCAPE: u8 = 1;
const KEYS: &[u8] =
    b"\r\nmimeo: Ctrl-A x leaves the console, the machine goes on; Ctrl-A Ctrl-A sends Ctrl-A\r\n";

/// What is typed goes to the machine's serial port.
struct Typed(UnixStream);

impl StreamDevice for Typed {
    fn input(&self, bytes: &[u8]) -> usize {
        // The machine has gone: what is typed goes nowhere.
        let _ = (&self.0).write_all(bytes);
        bytes.len()
    }

    fn output_ready(&self) {}
}

/// `mimeo console`.
pub fn console(name: &str) -> Result<Status, Failure> {
    let vm = running(name)?;
    let mut stream = client::console(&vm).map_err(Failure::command)?;
    let clone = || stream.try_clone().map_err(Failure::host);
    let (typed, leaving) = (Typed(clone()?), clone()?);
    let hooks = StdioHooks {
        escape: Some(ESCAPE),
        command: Box::new(move |command| match command {
            EscapeCommand::Quit => {
                let _ = leaving.shutdown(Shutdown::Both);
            }
            EscapeCommand::Help | EscapeCommand::Console => {
                let _ = io::stderr().write_all(KEYS);
            }
        }),
        resized: Box::new(|_, _| ()),
    };
    let stdio = Stdio::open(hooks, Box::new(|_| ())).map_err(Failure::host)?;
    if io::stdin().is_terminal() {
        eprint!("mimeo: the console of {name}; Ctrl-A x leaves it\r\n");
    }
    stdio.connect(Arc::new(typed));
    let mut buffer = [0; 16 * 1024];
    let mut out = io::stdout();
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if out
            .write_all(&buffer[..n])
            .and_then(|()| out.flush())
            .is_err()
        {
            break;
        }
    }
    drop(stdio);
    if io::stdin().is_terminal() {
        let how = if vm.running() {
            "left the console"
        } else {
            "the machine has ended"
        };
        eprintln!("\nmimeo: {how}");
    }
    Ok(Status::Done)
}
