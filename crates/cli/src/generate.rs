//! What is made from the command line's definition, and the agent as a file.

use crate::args::Cli;
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use clap::CommandFactory;
use mimeo_agent_binary::{AGENT, WHY_NOT};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `mimeo completions`.
pub fn completions(shell: clap_complete::Shell) -> Result<Status, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mimeo", &mut script);
    let written = std::io::stdout().write_all(&script);
    written.map_err(Failure::host)?;
    Ok(Status::Done)
}

/// `mimeo man`.
pub fn man(directory: &Path) -> Result<Status, Failure> {
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .with_context(|| format!("cannot write manual pages into {}", directory.display()))
        .map_err(Failure::Usage)?;
    Ok(Status::Done)
}

/// `mimeo agent`.
pub fn agent(file: &Path) -> Result<Status, Failure> {
    if AGENT.is_empty() {
        return Err(Failure::host(anyhow!(
            "this mimeo was built without the guest agent: {WHY_NOT}"
        )));
    }
    fs::write(file, AGENT)
        .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", file.display()))
        .map_err(Failure::Usage)?;
    Ok(Status::Done)
}
