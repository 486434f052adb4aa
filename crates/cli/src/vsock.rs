//! The socket device's end at the host.

use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_backends::{Connector, VsockMux, connector, serve_connector};
use mimeo_control::client;
use mimeo_devices::virtio::vsock::VirtioVsock;
use mimeo_machines::spec::VsockSpec;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the guest's own connections reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The sockets `PATH_PORT`, by a process beside this one.
    Sockets,
    /// Nothing: only the host connects.
    Nothing,
}

/// A socket device that listens at `spec`'s path.
pub fn card(spec: &VsockSpec, reach: Reach) -> Result<VirtioVsock, Failure> {
    let path = &spec.path;
    let listener = listen(path)
        .with_context(|| format!("cannot listen on the socket {}", path.display()))
        .map_err(Failure::Usage)?;
    let connector = match reach {
        Reach::Sockets => Some(start_connector(path).map_err(Failure::Host)?),
        Reach::Nothing => None,
    };
    let mux = VsockMux::new(spec.cid, listener, connector)
        .context("cannot start the thread for vsock")
        .map_err(Failure::Host)?;
    Ok(VirtioVsock::new(spec.cid, mux))
}

/// Listens at `path`; takes the place of a socket that nobody listens on any more.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let error = match client::listen(path) {
        Ok(listener) => return Ok(listener),
        Err(e) => e,
    };
    if error.kind() != ErrorKind::AddrInUse {
        return Err(error.into());
    }
    // To connect to a file that is no socket is refused too.
    let socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
    match client::connect(path) {
        Err(e) if socket && e.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
            Ok(client::listen(path)?)
        }
        Err(_) => Err(anyhow!("there is a file of that name: choose another")),
        Ok(_) => Err(anyhow!(
            "another program listens there: choose another path"
        )),
    }
}

/// Starts the process that reaches the host's sockets. It ends when this one has ended.
fn start_connector(path: &Path) -> anyhow::Result<Connector> {
    let (ours, theirs) = connector().context("cannot make a pair of sockets")?;
    let own = std::env::current_exe().context("cannot find the mimeo program")?;
    let child = Command::new(own)
        .arg("vsock-connect")
        .arg(path)
        .stdin(theirs.0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.context("cannot start the process that reaches sockets for the guest")?;
    Ok(ours)
}

/// The work of that process.
pub fn connect_for_guest(path: &Path) -> Result<Status, Failure> {
    serve_connector(rustix::stdio::stdin(), path).map_err(Failure::host)?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_makes_way_and_a_live_one_or_a_file_does_not() {
        let path = std::env::temp_dir().join(format!("mimeo-listen-{}", std::process::id()));
        drop(listen(&path).unwrap());
        let live = listen(&path).unwrap();
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("another program"), "{error}");
        drop(live);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
    }
}
