//! Machines in the background: `mimeo run -d` and `mimeo start`.
//!
//! The command starts itself again. That process prepares the machine with the terminal still before
//! it, so that progress and errors are seen, and leaves the terminal when the machine is about to
//! run; then the first one prints the name and ends.

use crate::args::RunArgs;
use crate::named::Named;
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_control::{ControlError, Root, Seen, check_name, generate_name};
use rustix::stdio;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What the process in the background says when its machine runs.
const READY: &str = "ready";

/// `mimeo run -d`.
pub fn run(args: &RunArgs) -> Result<Status, Failure> {
    let root = Root::open().map_err(Failure::usage)?;
    if args.deterministic() {
        return Err(Failure::usage(anyhow!(
            "a recorded or replayed machine runs in the foreground: leave out -d"
        )));
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => free_name(&root),
    };
    check_name(&name).map_err(Failure::usage)?;
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    launch(&name, &arguments, None)
}

fn free_name(root: &Root) -> String {
    let taken = root.names();
    loop {
        let name = generate_name();
        if !taken.contains(&name) {
            return name;
        }
    }
}

/// `mimeo start`.
pub fn start(name: &str) -> Result<Status, Failure> {
    let root = Root::open().map_err(Failure::command)?;
    let vm: Seen = root.find(name).map_err(Failure::command)?;
    if vm.running() {
        return Err(Failure::command(ControlError::InUse(name.to_owned())));
    }
    let unknown =
        || anyhow!("nothing is known of how {name} was started: mimeo run starts a new one");
    let record = vm.record().ok_or_else(unknown).map_err(Failure::Command)?;
    let arguments: Vec<OsString> = record.arguments.iter().map(OsString::from).collect();
    launch(name, &arguments, Some(&record.directory))
}

/// Starts `mimeo run` with `arguments` in the background; returns when the machine runs or could not
/// be started.
fn launch(name: &str, arguments: &[OsString], dir: Option<&Path>) -> Result<Status, Failure> {
    let own = std::env::current_exe().map_err(Failure::host)?;
    let mut command = Command::new(own);
    command
        .arg("run")
        .args(arguments)
        .arg("--detached-as")
        .arg(name);
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child
        .context("cannot start the machine's process")
        .map_err(Failure::Host)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        // An end without the word: it failed and has said why.
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    if line.trim_end() == READY {
        println!("{name}");
        return Ok(Status::Done);
    }
    let status = child.wait().map_err(Failure::host)?;
    match status.code() {
        Some(0) => Err(Failure::host(anyhow!("the machine ended before it ran"))),
        // At most 255.
        Some(code) => Ok(Status::Passed(code as u8)),
        None => Err(Failure::host(anyhow!(
            "the machine's process was killed: {status}"
        ))),
    }
}

/// The process in the background: what it needs to leave the terminal, opened before the jail.
pub struct Leaving {
    nothing: File,
    log: File,
    /// The pipe to the process that waits for us.
    ready: File,
}

impl Leaving {
    /// Opens everything.
    pub fn prepare(named: &Named) -> Result<Self, Failure> {
        let nothing = File::options().read(true).write(true).open("/dev/null");
        let ready = rustix::io::dup(stdio::stdout()).map_err(Failure::host)?;
        Ok(Self {
            nothing: nothing.map_err(Failure::host)?,
            log: named.monitor_log()?,
            ready: File::from(ready),
        })
    }

    /// Leaves the terminal, its session and its process group. What is said from now on goes to the
    /// monitor's log.
    pub fn leave(self) -> Result<Ready, Failure> {
        let leave = || {
            // Fails for the leader of a process group only, who has no terminal to lose then.
            let _ = rustix::process::setsid();
            stdio::dup2_stdin(&self.nothing)?;
            stdio::dup2_stdout(&self.nothing)?;
            stdio::dup2_stderr(&self.log)
        };
        leave().map_err(Failure::host)?;
        Ok(Ready(self.ready))
    }
}

/// The process that waits for us still does.
pub struct Ready(File);

impl Ready {
    /// The machine runs.
    pub fn tell(mut self) {
        // Nobody may wait any more; the machine runs all the same.
        let _ = writeln!(self.0, "{READY}");
    }
}
