//! The network card and what it is connected to.

use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_backends::host_entropy;
use mimeo_bus::NetBackend;
use mimeo_devices::virtio::net::VirtioNet;
use mimeo_machines::MachineSpec;
use mimeo_machines::spec::{AllowHost, Mac, NetSpec};
use mimeo_net::{Capture, NetError, Policy, PortNet, Tell, UserNet, UserNetConfig, switch};
use rustix::process::getuid;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{env, io};

/// The address of a card that is alone in its network, so that every start of a guest is like the last.
const ALONE: Mac = Mac::local(0x56_3412_0054);

/// The card that `spec` describes, on its network; `None` when it shall have none.
pub fn card(spec: &MachineSpec) -> Result<Option<VirtioNet>, Failure> {
    if spec.net == NetSpec::None {
        return Ok(None);
    }
    let capture = capture(spec)?;
    let tell: Tell = Arc::new(|text| eprintln!("\nmimeo: {text}"));
    let backend: Arc<dyn NetBackend> = match &spec.net {
        NetSpec::None => return Ok(None),
        NetSpec::User { .. } => {
            Arc::new(UserNet::start(user(spec), capture, tell).map_err(failure)?)
        }
        NetSpec::Tap(name) => Arc::new(mimeo_net::tap(name, capture, tell).map_err(failure)?),
        NetSpec::Switch { name, vlan } => Arc::new(join(name, *vlan, capture, tell)?),
        NetSpec::Passt(socket) => {
            let socket = socket.as_deref();
            Arc::new(mimeo_net::passt(socket, capture, tell).map_err(failure)?)
        }
    };
    let mac = spec.mac.unwrap_or_else(|| match spec.net {
        NetSpec::User { .. } => ALONE,
        _ => made_up(),
    });
    Ok(Some(VirtioNet::new(mac.bytes(), backend)))
}

/// Where the switch `name` listens: in a folder that only this user reaches.
fn switch_socket(name: &str) -> Result<PathBuf, Failure> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|d| Path::new(d).is_absolute());
    let mine = getuid().as_raw();
    let root = match runtime {
        Some(dir) => PathBuf::from(dir).join("mimeo"),
        None => env::temp_dir().join(format!("mimeo-{mine}")),
    };
    let dir = root.join("switch");
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // In a folder that everybody may write to, somebody may have been there before.
        let m = fs::symlink_metadata(&root)?;
        let own = m.is_dir() && m.uid() == mine && m.mode() & 0o077 == 0;
        own.then_some(()).ok_or_else(|| {
            io::Error::other("it is not this user's own; remove it or set XDG_RUNTIME_DIR")
        })
    };
    make()
        .with_context(|| format!("cannot use the folder {}", root.display()))
        .map_err(Failure::Usage)?;
    Ok(dir.join(format!("{name}.sock")))
}

/// Joins the switch `name`, which is started if there is none.
fn join(name: &str, vlan: Option<u16>, capture: Capture, tell: Tell) -> Result<PortNet, Failure> {
    let path = switch_socket(name)?;
    let start = |listener: OwnedFd| {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["switch", name, "--on-stdin"])
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // What ends this machine from the keyboard does not end the others' switch.
        command.process_group(0).spawn().map(drop)
    };
    switch::join(&path, vlan, start, capture, tell).map_err(failure)
}

/// `mimeo switch`: serves the switch `name` until it is ended, or, started by a machine with the
/// listening socket as standard input, until nobody is left.
pub fn serve_switch(name: &NetSpec, on_stdin: bool) -> Result<Status, Failure> {
    let NetSpec::Switch { name, .. } = name else {
        return Err(Failure::usage(anyhow!("{name} is not a switch")));
    };
    let listener = if on_stdin {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        stdin.map_err(Failure::host)?
    } else {
        let listener = switch::listen(&switch_socket(name)?).map_err(Failure::usage)?;
        eprintln!("mimeo: the switch {name} is up; Ctrl-C ends it");
        listener
    };
    // It needs nothing but its sockets; what the host cannot do about that is no reason to stop.
    let _ = mimeo_jail::restrict_files(&[]);
    let _ = mimeo_jail::restrict_calls(mimeo_jail::Calls::default());
    switch::serve(listener, !on_stdin);
    Ok(Status::Done)
}

/// An address that no other card is likely to have.
fn made_up() -> Mac {
    let mut seed = [0; 8];
    host_entropy(&mut seed);
    Mac::local(u64::from_le_bytes(seed))
}

fn capture(spec: &MachineSpec) -> Result<Capture, Failure> {
    let Some(path) = &spec.pcap else {
        return Ok(Capture::default());
    };
    let begin = || Capture::new(Some(File::create(path)?));
    begin()
        .with_context(|| format!("cannot write the capture {}", path.display()))
        .map_err(Failure::Usage)
}

/// The user network that `spec` describes.
fn user(spec: &MachineSpec) -> UserNetConfig {
    let mut policy = Policy {
        deny: spec.deny_net.clone(),
        ..Policy::default()
    };
    for allowed in &spec.allow_host {
        match allowed {
            AllowHost::Host => policy.allow_host = true,
            AllowHost::Net(net) => policy.allow.push(*net),
        }
    }
    UserNetConfig {
        policy,
        publish: spec.publish.clone(),
        resolver: match spec.net {
            NetSpec::User { dns } => dns,
            _ => None,
        },
        ..UserNetConfig::default()
    }
}

/// Which kind of failure it is when a network cannot be set up.
fn failure(error: NetError) -> Failure {
    match error {
        NetError::Host(_) => Failure::host(error),
        _ => Failure::usage(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_alone_has_the_address_that_people_know() {
        assert_eq!(ALONE.to_string(), "52:54:00:12:34:56");
        assert_ne!(made_up(), made_up());
    }

    #[test]
    fn rules_reach_the_policy() {
        let spec = MachineSpec {
            net: "user,dns=127.0.0.1:5353".parse().unwrap(),
            allow_host: vec!["host".parse().unwrap(), "10.1.1.1".parse().unwrap()],
            deny_net: vec!["10.0.0.0/8".parse().unwrap()],
            ..MachineSpec::default()
        };
        let c = user(&spec);
        assert!(c.policy.allow_host && c.policy.permits("10.1.1.1".parse().unwrap()));
        assert!(!c.policy.permits("10.1.1.2".parse().unwrap()));
        assert_eq!(c.resolver, Some("127.0.0.1:5353".parse().unwrap()));
    }
}
