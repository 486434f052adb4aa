//! The `mimeo` command.

mod args;
mod cards;
mod deterministic;
mod disk;
mod guest;
mod host;
mod net;
mod payload;
mod run;
mod status;
mod vsock;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Clap ends the process with status 2 on a usage error.
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Manifest(args) => run::manifest(&args),
        Command::VsockConnect { path } => vsock::connect_for_guest(&path),
        Command::Disk(command) => disk::run(command),
    };
    match result {
        Ok(status) => status.into(),
        Err(failure) => {
            eprintln!("mimeo: {failure}");
            failure.status().into()
        }
    }
}
