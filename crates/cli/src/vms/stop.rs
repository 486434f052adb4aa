//! `mimeo stop`, `kill` and `rm`.

use super::{chosen, vsock};
use crate::args::{KillArgs, RmArgs, StopArgs};
use crate::status::{Failure, Status};
use anyhow::anyhow;
use mimeo_agent_proto::{Message, PORT, Request as AgentRequest, read_message, write_message};
use mimeo_control::{Request, Seen, client};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);
/// How long an agent may take to answer before the power button is pressed instead.
const AGENT: Duration = Duration::from_secs(2);
/// How long a monitor may take to end its VM before it is killed.
const FORCED: Duration = Duration::from_secs(5);

/// Waits for the end of `vm` at most until `deadline`; whether it came.
fn ended_by(vm: &Seen, deadline: Instant) -> bool {
    while vm.running() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

/// Asks the guest's agent to shut the system down; whether it will.
fn ask_agent(vm: &Seen) -> bool {
    let Ok(path) = vsock(vm) else {
        return false;
    };
    let ask = || {
        let mut stream = client::guest_port(&path, PORT, AGENT)?;
        stream.set_read_timeout(Some(AGENT))?;
        write_message(&mut stream, &Message::Request(AgentRequest::PowerOff))?;
        let will = matches!(read_message(&mut stream)?, Some(Message::Ok(_)));
        // The agent goes on to say whether it could; it closes when it has tried.
        let failed = matches!(read_message(&mut stream), Ok(Some(Message::Failed(..))));
        Ok::<_, std::io::Error>(will && !failed)
    };
    ask().unwrap_or(false)
}

/// Shuts one machine down.
fn shut_down(vm: &Seen, time: Duration) -> Result<(), Failure> {
    if !vm.running() {
        return Ok(());
    }
    let start = Instant::now();
    if !time.is_zero() {
        let button = || client::ask(vm, &Request::PowerButton);
        let asked = ask_agent(vm) || button().is_ok();
        if asked && ended_by(vm, start + time / 2) {
            return Ok(());
        }
        // Whoever did not hear one may hear the other; or the machine has just ended.
        if asked && (button().is_err() && !vm.running() || ended_by(vm, start + time)) {
            return Ok(());
        }
        eprintln!(
            "mimeo: {} did not shut down in {}s: ending it",
            vm.name(),
            time.as_secs()
        );
    }
    if client::ask(vm, &Request::Stop).is_ok() && ended_by(vm, Instant::now() + FORCED) {
        return Ok(());
    }
    if vm.running() {
        vm.signal(Signal::KILL).map_err(Failure::command)?;
        vm.wait().map_err(Failure::command)?;
    }
    Ok(())
}

/// `mimeo stop`.
pub fn stop(args: &StopArgs) -> Result<Status, Failure> {
    let (_, seen) = chosen(&args.names, args.all)?;
    for vm in seen.iter().filter(|vm| !args.all || vm.running()) {
        shut_down(vm, Duration::from_secs(args.time.into()))?;
        println!("{}", vm.name());
    }
    Ok(Status::Done)
}

/// A signal by name, with or without SIG, or by number.
fn signal(text: &str) -> Result<Signal, Failure> {
    let upper = text.to_ascii_uppercase();
    let found = match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "HUP" | "1" => Signal::HUP,
        "INT" | "2" => Signal::INT,
        "QUIT" | "3" => Signal::QUIT,
        "ABRT" | "6" => Signal::ABORT,
        "KILL" | "9" => Signal::KILL,
        "USR1" | "10" => Signal::USR1,
        "SEGV" | "11" => Signal::SEGV,
        "USR2" | "12" => Signal::USR2,
        "PIPE" | "13" => Signal::PIPE,
        "ALRM" | "14" => Signal::ALARM,
        "TERM" | "15" => Signal::TERM,
        "CONT" | "18" => Signal::CONT,
        "STOP" | "19" => Signal::STOP,
        "TSTP" | "20" => Signal::TSTP,
        _ => {
            let error = anyhow!("there is no signal `{text}`: use a name such as TERM or a number");
            return Err(Failure::command(error));
        }
    };
    Ok(found)
}

/// `mimeo kill`.
pub fn kill(args: &KillArgs) -> Result<Status, Failure> {
    let signal = signal(&args.signal)?;
    let (_, seen) = chosen(&args.names, args.all)?;
    for vm in seen.iter().filter(|vm| !args.all || vm.running()) {
        vm.signal(signal).map_err(Failure::command)?;
        if signal == Signal::KILL {
            vm.wait().map_err(Failure::command)?;
        }
        println!("{}", vm.name());
    }
    Ok(Status::Done)
}

/// `mimeo rm`.
pub fn rm(args: &RmArgs) -> Result<Status, Failure> {
    let (root, seen) = chosen(&args.names, args.all)?;
    for vm in &seen {
        if vm.running() {
            if args.all && !args.force {
                continue;
            }
            if args.force {
                vm.signal(Signal::KILL).map_err(Failure::command)?;
                vm.wait().map_err(Failure::command)?;
            }
        }
        // One that goes with its machine has just gone.
        if vm.dir().exists() {
            root.remove(&vm.name()).map_err(Failure::command)?;
        }
        println!("{}", vm.name());
    }
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, want) in [
            ("KILL", Signal::KILL),
            ("sigterm", Signal::TERM),
            ("1", Signal::HUP),
        ] {
            assert_eq!(signal(text).unwrap(), want);
        }
        assert!(signal("SIG").is_err() && signal("99").is_err());
    }
}
