//! Reaching the host's sockets for the guest, by a process of its own.
//!
//! The monitor is jailed and can reach no socket; a small process beside it, which knows one path,
//! connects to `PATH_PORT` and hands the connection over (unix(7), SCM_RIGHTS). It ends when the
//! monitor's end of the pair is closed.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The monitor's end.
#[derive(Debug)]
pub struct Connector(OwnedFd);

/// The other process's end, to be its standard input.
#[derive(Debug)]
pub struct ConnectorEnd(pub OwnedFd);

/// Makes both ends.
///
/// # Errors
/// The system refuses a pair of sockets.
pub fn connector() -> std::io::Result<(Connector, ConnectorEnd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Connector(ours), ConnectorEnd(theirs)))
}

impl Connector {
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Asks for a port; whether that could be asked.
    pub(super) fn ask(&self, port: u32) -> bool {
        send(&self.0, &port.to_le_bytes(), SendFlags::NOSIGNAL).is_ok()
    }

    /// The next answer: the port, and the connection when there is one. `Err` when the other
    /// process has gone, `Ok(None)` when there is no answer yet.
    pub(super) fn answer(&self) -> Result<Option<(u32, Option<OwnedFd>)>, Errno> {
        let mut bytes = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut parts, &mut control, flags) {
                Ok(m) => m.bytes,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
                Err(e) => return Err(e),
            }
        };
        if got < 4 {
            return Err(Errno::PIPE);
        }
        let mut fd = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.into_iter().next();
            }
        }
        Ok(Some((u32::from_le_bytes(bytes), fd)))
    }
}

/// The other process's work: connects to `PATH_PORT` for each port that comes on `pair`, until the
/// monitor has gone.
///
/// # Errors
/// The pair does not work.
pub fn serve_connector(pair: impl AsFd, path: &Path) -> std::io::Result<()> {
    let mut bytes = [0; 4];
    loop {
        let n = match rustix::io::read(&pair, &mut bytes) {
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        if n < 4 {
            return Ok(());
        }
        let mut name = OsString::from(path);
        name.push(format!("_{}", u32::from_le_bytes(bytes)));
        let stream = UnixStream::connect(&name).ok();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = stream.as_ref().map(|s| [s.as_fd()]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(
            &pair,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
}
