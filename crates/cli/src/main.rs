//! The `mimeo` command.

mod args;
mod cards;
mod cpu_help;
mod detach;
mod deterministic;
mod disk;
mod generate;
mod guest;
mod host;
mod named;
mod net;
mod payload;
mod run;
mod status;
mod toml_file;
mod vms;
mod vsock;

use args::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use status::{Failure, Status};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Clap ends the process with status 2 on a usage error.
    let matches = Cli::command().get_matches();
    let result = toml_file::merged(matches).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
        carry_out(cli.command, &matches)
    });
    match result {
        Ok(status) => status.into(),
        Err(failure) => {
            eprintln!("mimeo: {failure}");
            failure.status().into()
        }
    }
}

fn carry_out(command: Command, matches: &clap::ArgMatches) -> Result<Status, Failure> {
    match command {
        Command::Run(args) if args.machine.cpu == "help" => cpu_help::print(),
        Command::Run(args) if args.detach && args.detached_as.is_none() => detach::run(&args),
        Command::Run(args) => run::run(*args),
        Command::Ps(args) => vms::ps::ps(&args),
        Command::Logs(args) => vms::logs::logs(&args),
        Command::Console { name } => vms::console::console(&name),
        Command::Exec(args) => vms::exec::exec(&args),
        Command::Cp {
            source,
            destination,
        } => vms::cp::cp(&source, &destination),
        Command::Stop(args) => vms::stop::stop(&args),
        Command::Start { name } => detach::start(&name),
        Command::Kill(args) => vms::stop::kill(&args),
        Command::Rm(args) => vms::stop::rm(&args),
        Command::Wait { names } => vms::ps::wait(&names),
        Command::Inspect { names } => vms::ps::inspect(&names),
        Command::Spec(_) => toml_file::print(matches),
        Command::Agent { file } => generate::agent(&file),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { directory } => generate::man(&directory),
        Command::Manifest(args) => run::manifest(&args),
        Command::VsockConnect { path } => vsock::connect_for_guest(&path),
        Command::Switch { name, on_stdin } => net::serve_switch(&name, on_stdin),
        Command::Disk(command) => disk::run(command),
    }
}
