//! `mimeo run`: from flags to a machine, its life, and an exit status.

use crate::args::{MachineArgs, RunArgs, SerialTarget, VsockArg};
use crate::host::{self, SerialEnd, StopSwitch};
use crate::payload::{Boot, Disk};
use crate::status::{Failure, Status};
use crate::{cards, deterministic, guest};
use anyhow::anyhow;
use mimeo_arch_x86::cpuid::FeatureSet;
use mimeo_bus::{NullStream, StreamHost};
use mimeo_jail::{Calls, JailError};
use mimeo_machines::machine::{self, BuildError, Machine, MachineHost};
use mimeo_machines::spec::NetSpec;
use mimeo_machines::time::MachineTime;
use mimeo_machines::{EngineTuning, MachineSpec};
use mimeo_vm::{OnReset, Outcome, Vm, VmError};
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
        transport: args.transport,
        rng: args.rng,
        balloon: args.balloon,
        balloon_size: args.balloon_size,
        disks: args.disks.clone(),
        shares: args.shares.clone(),
        vsock: match &args.vsock {
            Some(VsockArg::On(spec)) => Some(spec.clone()),
            Some(VsockArg::Off) | None => None,
        },
        net: args.net.clone().unwrap_or_default(),
        mac: args.mac,
        publish: args.publish.clone(),
        allow_host: args.allow_host.clone(),
        deny_net: args.deny_net.clone(),
        pcap: args.pcap.clone(),
        on_triple_fault: args.on_triple_fault,
    }
}

/// Builds the machine; says which kind of failure it is when that fails. With `jail`, its threads
/// are caged as far as each can be on its own.
pub fn build(
    args: &MachineArgs,
    time: Arc<dyn MachineTime>,
    (serial, console): (Arc<dyn StreamHost>, Option<Arc<dyn StreamHost>>),
    jail: bool,
) -> Result<Machine, Failure> {
    let spec = spec(args);
    let without = FeatureSet::of(&args.mask_host_cpu);
    let mut cpu = mimeo_machines::host_cpu();
    args.mask_host_cpu
        .iter()
        .for_each(|f| cpu.features.remove(*f));
    let host = MachineHost {
        cpu,
        tuning: EngineTuning {
            paranoid: args.paranoid,
            verify: args.verify,
            trace: args.trace,
            without,
        },
        time,
        serial,
        cards: cards::insert(&spec, console, jail)?,
    };
    machine::build(spec, host).map_err(|e| match e {
        BuildError::Spec(_) | BuildError::Cpu(_) | BuildError::Engine(_) => Failure::usage(e),
        BuildError::Memory(_) | BuildError::Bus(_) => Failure::host(e),
        BuildError::Pci(_) | BuildError::Places(_) => Failure::usage(e),
    })
}

/// What is to be booted.
fn boot(args: &RunArgs) -> Result<Boot, Failure> {
    let more = args.initrd.iter().cloned().map(Disk::File);
    if let Some(guest) = &args.guest {
        let interactive = host::interactive(&args.serial);
        let mut boot = guest::prepare(guest, &args.append, interactive)?;
        boot.initrds.extend(more);
        return Ok(boot);
    }
    let Some(kernel) = args.kernel.clone() else {
        return Err(Failure::usage(anyhow!(
            "nothing to boot: name a guest (mimeo run debian) or give --kernel FILE"
        )));
    };
    Ok(Boot {
        kernel,
        initrds: more.collect(),
        cmdline: args.append.clone(),
    })
}

/// Prints the manifest of the machine that the flags describe.
pub fn manifest(args: &MachineArgs) -> Result<Status, Failure> {
    let machine = build(args, host::time()?, (Arc::new(NullStream), None), false)?;
    print!("{}", machine.board.manifest());
    Ok(Status::Done)
}

/// Boots a machine and stays with it until it ends.
pub fn run(mut args: RunArgs) -> Result<Status, Failure> {
    if args.deterministic() {
        // Only who asked for a network misses it.
        let net = args.machine.net.get_or_insert(NetSpec::None);
        if *net != NetSpec::None {
            return Err(Failure::usage(anyhow!(
                "a network cannot be recorded or replayed: its frames come at the world's pace; leave out --net"
            )));
        }
    }
    // Everything that a person can get wrong comes before anything that takes time.
    spec(&args.machine).validate().map_err(Failure::usage)?;
    if args.serial == SerialTarget::Stdio && args.console == SerialTarget::Stdio {
        return Err(Failure::usage(anyhow!(
            "the serial port and the console cannot both have the terminal: add --serial none"
        )));
    }
    let boot = boot(&args)?.open(args.deterministic())?;
    if args.deterministic() {
        if !args.machine.disks.is_empty() || !args.machine.shares.is_empty() {
            return Err(Failure::usage(anyhow!(
                "disks and shared folders cannot be recorded or replayed yet: their requests end at the host's pace; leave out --disk and --share"
            )));
        }
        return deterministic::run(&args, boot);
    }
    let machine_net = spec(&args.machine).net;
    let switch = StopSwitch::default();
    let serial = host::serial(&args.serial, switch.clone())?;
    let console = match &args.console {
        SerialTarget::None => None,
        target => Some(host::serial(target, switch.clone())?),
    };
    let streams = (serial.link(), console.as_ref().map(SerialEnd::link));
    let machine = build(&args.machine, host::time()?, streams, !args.no_jail)?;
    notes(&machine);
    if host::interactive(&args.serial) {
        eprintln!("mimeo: {}; Ctrl-A x ends the machine", boot.description());
    }
    let deadline = args.timeout.map(|t| Instant::now() + t);
    if !args.no_jail {
        say(mimeo_jail::restrict_files(&[]));
    }
    let on_reset = if args.no_reboot {
        OnReset::Exit
    } else {
        OnReset::Restart
    };
    let mut vm = Vm::new(machine, boot.into_loader(), on_reset).map_err(vm_failure)?;
    let handle = vm.handle();
    switch.connect(move || handle.stop());
    if !args.no_jail {
        let folders = !args.machine.shares.is_empty();
        let sockets = matches!(machine_net, NetSpec::User { .. });
        say(mimeo_jail::restrict_calls(Calls { folders, sockets }));
    }
    vm.start().map_err(Failure::host)?;
    let outcome = vm.run(deadline);
    if let Some(rip) = args.machine.trace {
        explain(&vm, rip);
    }
    if args.stats {
        for (cpu, name, value) in vm.stats() {
            eprintln!("mimeo: cpu{cpu} {name}: {value}");
        }
        if matches!(outcome, Outcome::Timeout) {
            for cpu in 0..args.machine.cpus as usize {
                vm.describe(cpu).iter().for_each(|r| eprint!("mimeo: {r}"));
            }
        }
    }
    // What the guest said last is written and the terminal is itself again before anything is
    // reported.
    drop(vm);
    drop((serial, console));
    report(outcome)
}

/// The engine's code for the guest instruction at `rip`, as each vCPU has it.
fn explain(vm: &Vm, rip: u64) {
    let mut found = false;
    for (cpu, text) in vm.explain(rip) {
        found = true;
        eprint!("mimeo: cpu{cpu}: {text}");
    }
    if !found {
        eprintln!("mimeo: no translated block holds {rip:#x}");
    }
}

/// What the jail could not do.
fn say(result: Result<(), JailError>) {
    if let Err(error) = result {
        eprintln!("mimeo: {error}");
    }
}

/// What was asked for and is different here.
pub fn notes(machine: &Machine) {
    for note in &machine.notes {
        eprintln!("mimeo: {note}");
    }
}

/// Which kind of failure it is when a VM cannot be made.
pub fn vm_failure(error: VmError) -> Failure {
    match error {
        VmError::Load(_) | VmError::Log(_) => Failure::usage(error),
        error => Failure::host(error),
    }
}

/// Says how it ended and gives the status for it.
pub fn report(outcome: Outcome) -> Result<Status, Failure> {
    Ok(match outcome {
        Outcome::PowerOff => Status::Done,
        Outcome::DebugExit(status) => Status::DebugExit(status),
        Outcome::Reset(how) => {
            eprintln!("mimeo: the guest asked for a reset ({how})");
            Status::Reset
        }
        Outcome::TripleFault(report) => {
            eprint!("mimeo: triple fault on {report}");
            Status::TripleFault
        }
        Outcome::Timeout => {
            eprintln!("mimeo: the time limit passed");
            Status::Timeout
        }
        Outcome::Replayed => Status::Done,
        Outcome::Stopped => Status::Quit,
        Outcome::HostError(text) => return Err(Failure::host(anyhow!(text))),
    })
}
