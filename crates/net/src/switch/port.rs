//! A machine's way to a switch.

use super::{HELLO, WELCOME};
use crate::port::{Port, PortNet};
use crate::{Capture, NetError, Tell};
use mimeo_bus::NetHeader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Members that may wait to be let in.
const BACKLOG: i32 = 64;
/// How long a switch may take to answer.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// How often another switch is started after one that has just ended.
const ATTEMPTS: usize = 3;

/// A switch that cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Its socket or lock cannot be made.
    #[error("the switch's socket {path} cannot be used: {cause}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// There is a process, and it does not answer.
    #[error("the switch at {0} does not answer; end its process (`mimeo switch`) and try again")]
    Silent(PathBuf),
    /// A process cannot be started for it.
    #[error("the switch cannot be started: {0}")]
    Start(io::Error),
}

fn packets() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Makes the socket at which a switch listens, in the place of one that nobody listens at any more.
///
/// # Errors
/// [`SwitchError::Socket`].
pub fn listen(path: &Path) -> Result<OwnedFd, SwitchError> {
    let make = || {
        let address = SocketAddrUnix::new(path)?;
        let socket = packets()?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    make().map_err(|cause| SwitchError::Socket {
        path: path.to_owned(),
        cause,
    })
}

/// How joining went.
enum Answer {
    In(OwnedFd),
    Nobody,
    Silence,
}

/// Asks the switch at `path` to be let in.
fn knock(path: &Path, vlan: u16) -> Result<Answer, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = packets()?;
    match connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(Answer::Nobody),
        // Its queue is full.
        Err(Errno::AGAIN) => return Ok(Answer::Silence),
        Err(e) => return Err(e),
    }
    let hello = [&HELLO[..], &vlan.to_le_bytes()].concat();
    let mut answer = [0; 2];
    if rustix::io::write(&socket, &hello).is_err() {
        return Ok(Answer::Nobody);
    }
    poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&PATIENCE))?;
    match rustix::io::read(&socket, &mut answer) {
        Ok(1) if answer[0] == WELCOME => Ok(Answer::In(socket)),
        Err(Errno::AGAIN) => Ok(Answer::Silence),
        _ => Ok(Answer::Nobody),
    }
}

/// Joins the switch whose socket is `path`, in a folder of the user's own; where nobody listens there,
/// `start` is to start a process that serves the listening socket it is given.
///
/// # Errors
/// [`NetError::Switch`].
pub fn join(
    path: &Path,
    vlan: Option<u16>,
    start: impl Fn(OwnedFd) -> io::Result<()>,
    capture: Capture,
    tell: Tell,
) -> Result<PortNet, NetError> {
    let fail = |cause: Errno| SwitchError::Socket {
        path: path.to_owned(),
        cause: cause.into(),
    };
    // One at a time, so that two who come at once start one switch.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = open(path.with_extension("lock"), flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(fail)?;
    for _ in 0..ATTEMPTS {
        match knock(path, vlan.unwrap_or(0)).map_err(fail)? {
            Answer::In(socket) => {
                let name = path.file_stem().unwrap_or_default();
                let name = name.to_string_lossy().into_owned();
                let member = SwitchPort { socket, name };
                return PortNet::start("net-switch", member, capture, tell);
            }
            Answer::Silence => break,
            Answer::Nobody => start(listen(path)?).map_err(SwitchError::Start)?,
        }
    }
    Err(SwitchError::Silent(path.to_owned()).into())
}

struct SwitchPort {
    socket: OwnedFd,
    name: String,
}

impl Port for SwitchPort {
    const OFFLOADS: bool = true;

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, header: &NetHeader, frame: &[u8]) -> io::Result<bool> {
        let bytes = header.to_bytes();
        let parts = [IoSlice::new(&bytes), IoSlice::new(frame)];
        match rustix::io::writev(&self.socket, &parts) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(NetHeader, Range<usize>)>> {
        match rustix::io::read(&self.socket, &mut *buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(buffer
                .first_chunk()
                .filter(|_| n >= NetHeader::LEN)
                .map(|b| (NetHeader::from_bytes(b), NetHeader::LEN..n))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn gone(&self, _why: &io::Error) -> String {
        format!("the switch {} is gone; the guest's link is down", self.name)
    }
}
