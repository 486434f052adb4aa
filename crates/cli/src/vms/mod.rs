//! Commands about machines that run elsewhere: each a file.

pub mod console;
pub mod cp;
pub mod exec;
pub mod logs;
pub mod ps;
pub mod stop;

use crate::status::Failure;
use anyhow::anyhow;
use mimeo_agent_proto::PORT;
use mimeo_control::{ControlError, Root, Seen, client, now};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How long a guest's agent may take to be there after its machine was started.
const BOOT: u64 = 120;
/// How long a connection to the agent may take.
const CONNECT: Duration = Duration::from_secs(6);
const STEP: Duration = Duration::from_millis(100);

/// The machines that `names` mean, or all.
fn chosen(names: &[String], all: bool) -> Result<(Root, Vec<Seen>), Failure> {
    let root = Root::open().map_err(Failure::command)?;
    let seen = if all {
        root.all()
    } else {
        let found = names.iter().map(|n| root.find(n)).collect::<Result<_, _>>();
        found.map_err(Failure::command)?
    };
    Ok((root, seen))
}

/// The machine `name`, which runs.
fn running(name: &str) -> Result<Seen, Failure> {
    let root = Root::open().map_err(Failure::command)?;
    let vm = root.find(name).map_err(Failure::command)?;
    if vm.running() {
        Ok(vm)
    } else {
        let error = ControlError::NotRunning(name.to_owned());
        Err(Failure::command(error))
    }
}

/// The socket of a machine's vsock device.
fn vsock(vm: &Seen) -> Result<PathBuf, Failure> {
    let none = || {
        let name = vm.name();
        anyhow!("the machine {name} has no socket device: it was started with --vsock off")
    };
    let path = vm.record().and_then(|r| r.vsock);
    path.ok_or_else(none).map_err(Failure::Command)
}

/// A conversation with the agent in `vm`'s guest. Waits while the guest may still be starting.
fn agent(vm: &Seen) -> Result<UnixStream, Failure> {
    let path = vsock(vm)?;
    let until = vm.record().map_or(0, |r| r.created + BOOT);
    let mut said = false;
    loop {
        let error = match client::guest_port(&path, PORT, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(e) => e,
        };
        if !vm.running() {
            return Err(Failure::command(ControlError::NotRunning(vm.name())));
        }
        let refused = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        );
        if !refused || now() >= until {
            return Err(Failure::command(anyhow!(
                "no agent answers in the guest of {}: {error}; mimeo agent --help says how a guest gets one",
                vm.name()
            )));
        }
        if !said && now() + BOOT > until + 5 {
            eprintln!("mimeo: waiting for the guest's agent");
            said = true;
        }
        std::thread::sleep(STEP);
    }
}
