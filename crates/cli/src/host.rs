//! What a machine gets from this process: time, the serial port's other end, ways to end it.

use crate::args::SerialTarget;
use crate::status::Failure;
use anyhow::Context;
use mimeo_backends::{EscapeCommand, FileStream, HostTimers, Stdio, StdioHooks};
use mimeo_bus::{HostClock, NullStream, StreamDevice, StreamHost};
use mimeo_machines::time::HostTime;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock, Weak};

/// Ctrl-A.
const ESCAPE: u8 = 1;

const KEYS: &str = "\n\
mimeo: Ctrl-A x  end the machine\n\
mimeo: Ctrl-A h  this help\n\
mimeo: Ctrl-A Ctrl-A  send Ctrl-A to the guest\n";

/// How other threads end the machine: set once it exists.
#[derive(Clone, Default)]
pub struct StopSwitch(Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>);

impl StopSwitch {
    /// What stopping does from now on.
    pub fn connect(&self, stop: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(stop));
    }

    fn stop(&self) {
        if let Some(stop) = self.0.get() {
            stop();
        }
    }
}

/// Time that follows the host's.
pub fn time() -> Result<Arc<HostTime>, Failure> {
    let clock = Arc::new(HostClock::default());
    let timers = HostTimers::new(clock.clone())
        .context("cannot start the timer thread")
        .map_err(Failure::Host)?;
    let timers = Arc::new(timers);
    let pausing = timers.clone();
    let pause = move |paused| {
        if paused {
            pausing.pause();
        } else {
            pausing.resume();
        }
    };
    Ok(Arc::new(HostTime::new(clock, timers, Box::new(pause))))
}

/// Whether a person sits at the other end of the serial port.
pub fn interactive(target: &SerialTarget) -> bool {
    *target == SerialTarget::Stdio && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The host's end of a serial port. Dropping it writes what is still to be written and gives the
/// terminal back; the machine holds a [`Link`] only, so nothing keeps it alive.
pub struct SerialEnd(Arc<dyn StreamHost>);

impl SerialEnd {
    /// What the machine is handed.
    pub fn link(&self) -> Arc<dyn StreamHost> {
        Arc::new(Link(Arc::downgrade(&self.0)))
    }
}

struct Link(Weak<dyn StreamHost>);

impl StreamHost for Link {
    fn write(&self, bytes: &[u8]) -> usize {
        // With nobody at the other end, it goes nowhere.
        self.0.upgrade().map_or(bytes.len(), |h| h.write(bytes))
    }

    fn input_wanted(&self) {
        if let Some(host) = self.0.upgrade() {
            host.input_wanted();
        }
    }

    fn connect(&self, device: Arc<dyn StreamDevice>) {
        if let Some(host) = self.0.upgrade() {
            host.connect(device);
        }
    }
}

/// The other end of the serial port. In the background (`detached`) there is no terminal.
pub fn serial(
    target: &SerialTarget,
    detached: bool,
    stop: StopSwitch,
) -> Result<SerialEnd, Failure> {
    if detached && *target == SerialTarget::Stdio {
        return Ok(SerialEnd(Arc::new(NullStream)));
    }
    open(target, stop).map(SerialEnd)
}

fn open(target: &SerialTarget, stop: StopSwitch) -> Result<Arc<dyn StreamHost>, Failure> {
    let failed = |e: &io::Error| eprintln!("mimeo: the serial output cannot be written: {e}");
    match target {
        SerialTarget::None => Ok(Arc::new(NullStream)),
        SerialTarget::File(path) => FileStream::create(path, Box::new(failed))
            .map(|f| Arc::new(f) as _)
            .map_err(Failure::usage),
        SerialTarget::Stdio => {
            let hooks = StdioHooks {
                escape: Some(ESCAPE),
                command: Box::new(move |command| match command {
                    EscapeCommand::Quit => stop.stop(),
                    EscapeCommand::Help | EscapeCommand::Console => {
                        let _ = io::stderr().write_all(KEYS.as_bytes());
                    }
                }),
                resized: Box::new(|_, _| ()),
            };
            Stdio::open(hooks, Box::new(failed))
                .map(|s| Arc::new(s) as _)
                .map_err(Failure::host)
        }
    }
}
