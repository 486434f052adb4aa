//! An existing tap interface of the host (Linux's Documentation/networking/tuntap.rst), with the
//! header that lets segments through uncut.

#![expect(
    unsafe_code,
    reason = "ioctl(2) on the tun device has no safe interface"
)]

use crate::port::{Port, PortNet};
use crate::{Capture, NetError, Tell};
use mimeo_bus::NetHeader;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use std::ffi::{c_int, c_uint};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// linux/if_tun.h.
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_uint>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
/// Checksums, TCP segments over IPv4 and IPv6, with ECN.
const OFFLOADS: usize = 0x01 | 0x02 | 0x04 | 0x08;
/// Bytes of an interface's name with its NUL.
const NAME: usize = 16;

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: i16,
    /// The rest of its union.
    rest: [u8; 22],
}

struct Tap {
    fd: OwnedFd,
    name: String,
}

/// Connects to the tap interface `name`, which has to exist.
///
/// # Errors
/// [`NetError::Tap`] says what is missing.
pub fn tap(name: &str, capture: Capture, tell: Tell) -> Result<PortNet, NetError> {
    let fail = |why: String| NetError::Tap {
        name: name.to_owned(),
        why,
    };
    let create = format!("create it with `ip tuntap add {name} mode tap user $USER`");
    let probe = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let probe = probe.map_err(|e| NetError::Host(e.into()))?;
    // Asking for one that does not exist would make it, for who may.
    netdevice::name_to_index(&probe, name)
        .map_err(|_| fail(format!("does not exist; {create}")))?;
    let fd = attach(name).map_err(|e| {
        fail(match e {
            Errno::PERM => format!("belongs to somebody else; {create}"),
            Errno::BUSY => "is in use by another program; end that first".into(),
            Errno::INVAL => "is no tap interface; give another".into(),
            Errno::NOENT => "needs /dev/net/tun; load the module tun".into(),
            e => io::Error::from(e).to_string(),
        })
    })?;
    let name = name.to_owned();
    PortNet::start("net-tap", Tap { fd, name }, capture, tell)
}

fn attach(name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = Request {
        name: [0; NAME],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    // One byte at least stays zero.
    for (to, from) in request.name[..NAME - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `Request` is laid out as, and keeps no pointer.
    unsafe { ioctl(&fd, Setter::<TUNSETIFF, Request>::new(request)) }?;
    let size = NetHeader::LEN as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int and keeps no pointer.
    unsafe { ioctl(&fd, Setter::<TUNSETVNETHDRSZ, c_int>::new(size)) }?;
    // SAFETY: TUNSETOFFLOAD takes its bits as the argument itself and touches no memory.
    unsafe { ioctl(&fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS)) }?;
    Ok(fd)
}

impl Port for Tap {
    const OFFLOADS: bool = true;

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn send(&mut self, header: &NetHeader, frame: &[u8]) -> io::Result<bool> {
        let bytes = header.to_bytes();
        let parts = [IoSlice::new(&bytes), IoSlice::new(frame)];
        match rustix::io::writev(&self.fd, &parts) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // The device is gone.
            Err(e @ (Errno::BADFD | Errno::NODEV)) => Err(e.into()),
            // The interface is down, or this frame is not to its taste: lost, as on a wire.
            Err(_) => Ok(true),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(NetHeader, Range<usize>)>> {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(n) => Ok(buffer
                .first_chunk()
                .filter(|_| n >= NetHeader::LEN)
                .map(|b| (NetHeader::from_bytes(b), NetHeader::LEN..n))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn gone(&self, _why: &io::Error) -> String {
        format!(
            "the tap interface {} is gone; the guest's link is down",
            self.name
        )
    }
}
