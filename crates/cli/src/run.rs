//! `mimeo run`: from flags to a machine, its life, and an exit status.

use crate::args::{MachineArgs, RunArgs, SerialTarget, VsockArg};
use crate::detach::Leaving;
use crate::host::{self, SerialEnd, StopSwitch};
use crate::named::Named;
use crate::payload::{Boot, Disk};
use crate::status::{Failure, Status};
use crate::{cards, deterministic, guest, vsock};
use anyhow::anyhow;
use mimeo_arch_x86::cpuid::FeatureSet;
use mimeo_bus::{NullStream, StreamHost};
use mimeo_devices::virtio::VirtioDevice;
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
    build_with(args, time, (serial, console), jail, Vec::new())
}

/// The same with `more` virtio devices.
fn build_with(
    args: &MachineArgs,
    time: Arc<dyn MachineTime>,
    (serial, console): (Arc<dyn StreamHost>, Option<Arc<dyn StreamHost>>),
    jail: bool,
    more: Vec<Box<dyn VirtioDevice>>,
) -> Result<Machine, Failure> {
    let spec = spec(args);
    let without = FeatureSet::of(&args.mask_host_cpu);
    let mut cpu = mimeo_machines::host_cpu();
    args.mask_host_cpu
        .iter()
        .for_each(|f| cpu.features.remove(*f));
    let mut cards = cards::insert(&spec, console, jail)?;
    cards.extend(more);
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
        cards,
    };
    machine::build(spec, host).map_err(|e| match e {
        BuildError::Spec(_) | BuildError::Cpu(_) | BuildError::Engine(_) => Failure::usage(e),
        BuildError::Memory(_) | BuildError::Bus(_) => Failure::host(e),
        BuildError::Pci(_) | BuildError::Places(_) => Failure::usage(e),
    })
}

/// What is to be booted.
fn boot(args: &RunArgs, words: Vec<String>) -> Result<Boot, Failure> {
    let more = args.initrd.iter().cloned().map(Disk::File);
    if let Some(guest) = &args.guest {
        let wanted = guest::Wanted {
            append: &args.append,
            words,
            interactive: args.detached_as.is_some() || host::interactive(&args.serial),
            name: args.detached_as.as_deref().or(args.name.as_deref()),
        };
        let mut boot = guest::prepare(guest, wanted)?;
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
    if args.deterministic() {
        if args.name.is_some() || args.machine.vsock.is_some() {
            return Err(Failure::usage(anyhow!(
                "a recorded or replayed machine cannot be lived with: leave out --name and --vsock"
            )));
        }
        if !args.machine.disks.is_empty() || !args.machine.shares.is_empty() {
            return Err(Failure::usage(anyhow!(
                "disks and shared folders cannot be recorded or replayed yet: their requests end at the host's pace; leave out --disk and --share"
            )));
        }
        let boot = boot(&args, Vec::new())?.open(true)?;
        return deterministic::run(&args, boot);
    }
    // The name first: a machine that is being prepared has one already.
    let mut named = Named::claim(&args)?;
    let result = live(&mut args, named.as_mut());
    match named {
        Some(named) => named.finish(result, !args.no_jail),
        None => result,
    }
}

/// The life of a machine, from its preparation to its end.
fn live(args: &mut RunArgs, mut named: Option<&mut Named>) -> Result<Status, Failure> {
    let words = match &args.guest {
        Some(guest) => guest::furnish(guest, &mut args.machine)?,
        None => Vec::new(),
    };
    let args = &*args;
    let boot = boot(args, words)?.open(false)?;
    let switch = StopSwitch::default();
    let detached = args.detached_as.is_some();
    let serial = host::serial(&args.serial, detached, switch.clone())?;
    let (mut end, mut more) = (serial.link(), Vec::<Box<dyn VirtioDevice>>::new());
    let mut leaving = None;
    if let Some(named) = &mut named {
        end = named.open(end)?;
        if let Some(spec) = named.vsock(args) {
            more.push(Box::new(vsock::card(&spec, vsock::Reach::Nothing)?));
        }
        leaving = detached.then(|| Leaving::prepare(named)).transpose()?;
    }
    let console = match &args.console {
        SerialTarget::None => None,
        target => Some(host::serial(target, detached, switch.clone())?),
    };
    let streams = (end, console.as_ref().map(SerialEnd::link));
    let machine = build_with(&args.machine, host::time()?, streams, !args.no_jail, more)?;
    notes(&machine);
    if !detached && host::interactive(&args.serial) {
        let name = named.as_ref().map_or("", |n| n.name());
        let what = boot.description();
        eprintln!("mimeo: {name}: {what}; Ctrl-A x ends the machine");
    }
    let deadline = args.timeout.map(|t| Instant::now() + t);
    let mut removes = false;
    if !args.no_jail {
        let jailed = match &mut named {
            Some(named) => named.jail(),
            None => mimeo_jail::restrict_files(&[]).map(|()| false),
        };
        removes = jailed.as_ref().is_ok_and(|r| *r);
        say(jailed.map(drop));
    }
    let on_reset = if args.no_reboot {
        OnReset::Exit
    } else {
        OnReset::Restart
    };
    let mut vm = Vm::new(machine, boot.into_loader(), on_reset).map_err(vm_failure)?;
    let handle = vm.handle();
    switch.connect(move || handle.stop());
    if let Some(named) = &named {
        named.connect(vm.handle());
    }
    let ready = leaving.map(Leaving::leave).transpose()?;
    if !args.no_jail {
        let folders = !args.machine.shares.is_empty();
        let sockets = matches!(spec(&args.machine).net, NetSpec::User { .. });
        say(mimeo_jail::restrict_calls(Calls {
            folders,
            sockets,
            removes,
        }));
    }
    vm.start().map_err(Failure::host)?;
    if let Some(ready) = ready {
        ready.tell();
    }
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
