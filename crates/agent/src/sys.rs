//! What the standard library has not got: vsock sockets, terminals, process groups. The functions are
//! those of the C library that the standard library links already; numbers are Linux's for x86-64.
#![expect(
    unsafe_code,
    reason = "calls of the C library; each wrapper passes only values and memory that it owns"
)]

use crate::user::User;
use std::ffi::{c_int, c_long, c_short, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

const AF_VSOCK: u16 = 40;
const SOCK_STREAM: c_int = 1;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const CID_ANY: u32 = u32::MAX;
/// The host's address.
pub const CID_HOST: u32 = 2;
const O_RDWR_NOCTTY: c_int = 0o2 | 0o400;
const O_CLOEXEC: c_int = 0o2_000_000;
const O_NONBLOCK: c_int = 0o4000;
const F_GETFL: c_int = 3;
const F_SETFL: c_int = 4;
const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTPEER: c_ulong = 0x5441;
const TIOCSWINSZ: c_ulong = 0x5414;
const TIOCSCTTY: c_ulong = 0x540e;
const SYS_PIDFD_OPEN: c_long = 434;
/// poll(2): there is something to read.
pub const POLLIN: c_short = 1;
/// poll(2): there is room to write.
pub const POLLOUT: c_short = 4;

/// `struct sockaddr_vm` (linux/vm_sockets.h).
#[repr(C)]
#[derive(Default)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

/// `struct winsize` (asm-generic/termios.h).
#[repr(C)]
struct WindowSize {
    rows: u16,
    columns: u16,
    x: u16,
    y: u16,
}

/// `struct pollfd` (poll.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct PollEntry {
    fd: c_int,
    events: c_short,
    returned: c_short,
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const c_void, len: c_uint) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept4(fd: c_int, address: *mut c_void, len: *mut c_uint, flags: c_int) -> c_int;
    fn poll(entries: *mut PollEntry, count: c_ulong, timeout: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn setsid() -> c_int;
    fn setgroups(count: usize, groups: *const c_uint) -> c_int;
    fn setgid(gid: c_uint) -> c_int;
    fn setuid(uid: c_uint) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A listening vsock socket.
pub struct VsockListener(OwnedFd);

impl VsockListener {
    /// Listens on `port` for everybody.
    pub fn bind(port: u32) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = check(unsafe { socket(AF_VSOCK.into(), SOCK_STREAM | SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = VsockAddress {
            family: AF_VSOCK,
            port,
            cid: CID_ANY,
            ..VsockAddress::default()
        };
        let len = size_of::<VsockAddress>() as c_uint;
        // SAFETY: `address` is a `sockaddr_vm` of `len` bytes and lives over the call.
        check(unsafe { bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        // SAFETY: no memory is passed.
        check(unsafe { listen(fd.as_raw_fd(), 16) })?;
        Ok(Self(fd))
    }

    /// The next connection and the address that it comes from.
    pub fn accept(&self) -> io::Result<(File, u32)> {
        let mut address = VsockAddress::default();
        let mut len = size_of::<VsockAddress>() as c_uint;
        let to = (&raw mut address).cast();
        // SAFETY: `to` has room for the `len` bytes that the kernel may write.
        let fd = check(unsafe { accept4(self.0.as_raw_fd(), to, &raw mut len, SOCK_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok((unsafe { File::from_raw_fd(fd) }, address.cid))
    }
}

/// What a descriptor is waited for.
pub struct Watched<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// [`POLLIN`], [`POLLOUT`] or both.
    pub events: c_short,
}

/// Waits until something is ready or `timeout` (milliseconds; negative: none) has passed; gives for
/// each descriptor whether it is.
pub fn wait(watched: &[Watched<'_>], timeout: i32) -> io::Result<Vec<bool>> {
    let entry = |w: &Watched<'_>| PollEntry {
        fd: w.fd.as_raw_fd(),
        events: w.events,
        returned: 0,
    };
    let mut entries: Vec<PollEntry> = watched.iter().map(entry).collect();
    // SAFETY: the kernel reads and writes `entries.len()` entries of a vector that lives over the call.
    let n = unsafe { poll(entries.as_mut_ptr(), entries.len() as c_ulong, timeout) };
    match check(n) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
        _ => Ok(entries.iter().map(|e| e.returned != 0).collect()),
    }
}

/// Makes reads and writes return at once.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let flags = check(unsafe { fcntl(fd.as_raw_fd(), F_GETFL) })?;
    // SAFETY: no memory is passed.
    check(unsafe { fcntl(fd.as_raw_fd(), F_SETFL, flags | O_NONBLOCK) }).map(drop)
}

/// A new terminal: our end and the command's end (pty(7), ioctl_tty(2)).
pub fn terminal() -> io::Result<(File, OwnedFd)> {
    let ours = File::options().read(true).write(true).open("/dev/ptmx")?;
    let unlocked: c_int = 0;
    // SAFETY: the request reads one int.
    check(unsafe { ioctl(ours.as_raw_fd(), TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: no memory is passed.
    let fd = check(unsafe { ioctl(ours.as_raw_fd(), TIOCGPTPEER, O_RDWR_NOCTTY | O_CLOEXEC) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok((ours, unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Tells a terminal its size.
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let (x, y) = (0, 0);
    let size = WindowSize {
        rows,
        columns,
        x,
        y,
    };
    // SAFETY: the request reads one `winsize`.
    check(unsafe { ioctl(terminal.as_raw_fd(), TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Sends a signal to a process group.
pub fn signal_group(leader: u32, signal: u8) {
    let Ok(leader) = c_int::try_from(leader) else {
        return;
    };
    if leader > 1 {
        // SAFETY: no memory is passed. A group that has ended meanwhile is an error that concerns
        // nobody.
        unsafe { kill(-leader, signal.into()) };
    }
}

/// A descriptor that becomes readable when the process has ended (pidfd_open(2)).
pub fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { syscall(SYS_PIDFD_OPEN, c_long::from(pid), 0 as c_long) };
    let fd = check(c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `command` run as `user` in a session of its own; `terminal`: its standard input is its
/// controlling terminal.
pub fn prepare(command: &mut Command, user: &User, terminal: bool) {
    let (uid, gid, groups) = (user.uid, user.gid, user.groups.clone());
    let become_user = move || {
        // SAFETY: no memory is passed.
        check(unsafe { setsid() })?;
        if terminal {
            // SAFETY: no memory is passed.
            check(unsafe { ioctl(0, TIOCSCTTY, 0 as c_long) })?;
        }
        // SAFETY: the kernel reads `groups.len()` numbers.
        check(unsafe { setgroups(groups.len(), groups.as_ptr()) })?;
        // SAFETY: no memory is passed; the group first, while there is the right to change it.
        check(unsafe { setgid(gid) })?;
        // SAFETY: no memory is passed.
        check(unsafe { setuid(uid) }).map(drop)
    };
    // SAFETY: between fork and exec only system calls are made: nothing allocates or takes a lock
    // (the error of a failed call is a number).
    unsafe { command.pre_exec(become_user) };
}
