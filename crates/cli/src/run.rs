//! `mimeo run`: from flags to a machine, its life, and an exit status.

use crate::args::{MachineArgs, RunArgs, SerialTarget};
use crate::interim;
use crate::payload::Boot;
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_bus::{HostClock, NullStream, StreamHost};
use mimeo_machines::MachineSpec;
use mimeo_machines::machine::{self, BuildError, Machine, MachineHost};
use mimeo_machines::time::HostTime;
use mimeo_vm::{OnReset, Outcome, Vm};
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

/// The machine that the flags describe.
fn spec(args: &MachineArgs) -> MachineSpec {
    MachineSpec {
        machine: args.machine,
        memory: args.memory,
        cpus: args.cpus,
        cpu: args.cpu.clone(),
        engine: args.engine,
        devices: args.devices.clone(),
        on_triple_fault: args.on_triple_fault,
    }
}

fn build(args: &MachineArgs, serial: Arc<dyn StreamHost>) -> Result<Machine, Failure> {
    let spec = spec(args);
    // Before anything of the host is asked for.
    spec.validate().map_err(Failure::usage)?;
    let clock = Arc::new(HostClock::default());
    let timers = Arc::new(interim::Timers::start(clock.clone()));
    let time = Arc::new(HostTime::new(clock, timers, Box::new(|_| ())));
    machine::build(spec, MachineHost { time, serial }).map_err(|e| match e {
        BuildError::Spec(_) | BuildError::Cpu(_) | BuildError::Engine(_) => Failure::usage(e),
        BuildError::Memory(_) | BuildError::Bus(_) => Failure::host(e),
    })
}

fn serial(target: &SerialTarget) -> Result<Arc<dyn StreamHost>, Failure> {
    match target {
        SerialTarget::None => Ok(Arc::new(NullStream)),
        SerialTarget::File(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write the serial log {}", path.display()))
                .map_err(Failure::Usage)?;
            Ok(Arc::new(interim::Output::new(Some(file))))
        }
        SerialTarget::Stdio => {
            let out = Arc::new(interim::Output::new(None));
            out.read_stdin();
            Ok(out)
        }
    }
}

fn boot(args: &RunArgs) -> Result<Boot, Failure> {
    match (&args.guest, &args.kernel) {
        (None, Some(kernel)) => Ok(Boot {
            kernel: kernel.clone(),
            initrds: args.initrd.clone(),
            cmdline: args.append.clone(),
        }),
        (Some(guest), _) => Err(Failure::usage(anyhow!(
            "there is no guest `{guest}` yet: give --kernel FILE"
        ))),
        (None, None) => Err(Failure::usage(anyhow!("give a guest or --kernel FILE"))),
    }
}

/// Prints the manifest of the machine that the flags describe.
pub fn manifest(args: &MachineArgs) -> Result<Status, Failure> {
    let machine = build(args, Arc::new(NullStream))?;
    print!("{}", machine.board.manifest());
    Ok(Status::Done)
}

/// Boots a machine and stays with it until it ends.
pub fn run(args: RunArgs) -> Result<Status, Failure> {
    let boot = boot(&args)?.open(false)?;
    let deadline = args.timeout.map(|t| Instant::now() + t);
    let machine = build(&args.machine, serial(&args.serial)?)?;
    for note in &machine.notes {
        eprintln!("mimeo: {note}");
    }
    let jail = !args.no_jail;
    if jail && let Err(e) = mimeo_jail::restrict_files() {
        eprintln!("mimeo: {e}");
    }
    let on_reset = if args.no_reboot {
        OnReset::Exit
    } else {
        OnReset::Restart
    };
    let mut vm = Vm::new(machine, boot.into_loader(), on_reset).map_err(|e| match e {
        mimeo_vm::VmError::Load(_) => Failure::usage(e),
        e => Failure::host(e),
    })?;
    if jail && let Err(e) = mimeo_jail::restrict_calls() {
        eprintln!("mimeo: {e}");
    }
    vm.start().map_err(Failure::host)?;
    let outcome = vm.run(deadline);
    if args.stats {
        for (cpu, name, value) in vm.stats() {
            eprintln!("cpu{cpu} {name} {value}");
        }
    }
    report(outcome)
}

fn report(outcome: Outcome) -> Result<Status, Failure> {
    Ok(match outcome {
        Outcome::PowerOff => Status::Done,
        Outcome::DebugExit(status) => Status::DebugExit(status),
        Outcome::Reset(how) => {
            eprintln!("mimeo: the guest asked for a reset ({how})");
            Status::Reset
        }
        Outcome::TripleFault(report) => {
            eprint!("mimeo: {report}");
            Status::TripleFault
        }
        Outcome::Timeout => {
            eprintln!("mimeo: the time limit passed");
            Status::Timeout
        }
        Outcome::Stopped => Status::Quit,
        Outcome::HostError(text) => return Err(Failure::host(anyhow!(text))),
    })
}
