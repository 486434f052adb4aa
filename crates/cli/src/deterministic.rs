//! `mimeo run --record`, `--replay` and `--verify`.

use crate::args::RunArgs;
use crate::host::{self, StopSwitch};
use crate::payload::OpenBoot;
use crate::run::{build, notes, report, vm_failure};
use crate::status::{Failure, Status};
use anyhow::Context;
use mimeo_bus::{NullStream, StreamHost};
use mimeo_machines::virtual_time::VirtualTime;
use mimeo_vm::deterministic::{self, Finished, HeldInput, StopFlag};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Records or replays, as the flags say.
pub fn run(args: &RunArgs, boot: OpenBoot) -> Result<Status, Failure> {
    let finished = match (&args.record, &args.replay, args.machine.verify) {
        (Some(path), ..) => record(args, boot, path)?,
        (None, Some(path), _) => replay(args, boot, path)?,
        (None, None, Some(_)) => verify(args, boot)?,
        (None, None, None) => return Err(Failure::usage(anyhow::anyhow!("no log was named"))),
    };
    if args.stats {
        for (cpu, name, value) in &finished.stats {
            eprintln!("mimeo: cpu{cpu} {name}: {value}");
        }
    }
    if let Some(hash) = finished.hash {
        eprintln!("mimeo: state hash {hash:016x}");
    }
    report(finished.outcome)
}

fn verify(args: &RunArgs, boot: OpenBoot) -> Result<Finished, Failure> {
    let (switch, stop) = (StopSwitch::default(), StopFlag::default());
    let flag = stop.clone();
    switch.connect(move || flag.stop());
    let serial = host::serial(&args.serial, false, switch)?;
    let input = HeldInput::new(serial.link());
    let time = Arc::new(VirtualTime::default());
    let ends = (Arc::new(input.clone()) as Arc<dyn StreamHost>, None);
    let machine = build(&args.machine, time.clone(), ends, false)?;
    notes(&machine);
    let deadline = args.timeout.map(|t| Instant::now() + t);
    let loader = boot.into_loader();
    deterministic::verify(&machine, loader, &time, &input, &stop, deadline).map_err(vm_failure)
}

fn record(args: &RunArgs, boot: OpenBoot, path: &Path) -> Result<Finished, Failure> {
    let file = File::create(path)
        .with_context(|| format!("cannot write the log {}", path.display()))
        .map_err(Failure::Usage)?;
    let (switch, stop) = (StopSwitch::default(), StopFlag::default());
    let flag = stop.clone();
    switch.connect(move || flag.stop());
    let serial = host::serial(&args.serial, false, switch)?;
    let input = HeldInput::new(serial.link());
    let time = Arc::new(VirtualTime::default());
    let machine = build(
        &args.machine,
        time.clone(),
        (Arc::new(input.clone()), None),
        false,
    )?;
    notes(&machine);
    let deadline = args.timeout.map(|t| Instant::now() + t);
    let loader = boot.into_loader();
    deterministic::record(&machine, loader, &time, &input, file, &stop, deadline)
        .map_err(vm_failure)
}

fn replay(args: &RunArgs, boot: OpenBoot, path: &Path) -> Result<Finished, Failure> {
    let file = File::open(path)
        .with_context(|| format!("cannot read the log {}", path.display()))
        .map_err(Failure::Usage)?;
    let time = Arc::new(VirtualTime::default());
    let machine = build(&args.machine, time, (Arc::new(NullStream), None), false)?;
    deterministic::replay(&machine, boot.into_loader(), file).map_err(vm_failure)
}
