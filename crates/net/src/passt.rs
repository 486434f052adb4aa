//! Debian's passt (passt(1)): a NAT in a process of its own, spoken with over a Unix stream socket in
//! which each frame follows its length, a 32-bit big-endian number (as QEMU's stream netdev).

use crate::port::{Port, PortNet};
use crate::{Capture, NetError, Tell};
use mimeo_bus::{MAX_FRAME, NetHeader};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes of a length.
const LENGTH: usize = 4;
/// What is read at once.
const INBOX: usize = 4 * (MAX_FRAME + LENGTH);

/// A stream of frames.
struct Passt {
    stream: UnixStream,
    /// What was read: the bytes `start..end` are not looked at yet.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// The rest of a frame that the socket took in part.
    outbox: Vec<u8>,
}

/// Connects to the passt that listens at `socket`, or starts one.
///
/// # Errors
/// [`NetError::Passt`] when there is none.
pub fn passt(socket: Option<&Path>, capture: Capture, tell: Tell) -> Result<PortNet, NetError> {
    let stream = match socket {
        Some(path) => UnixStream::connect(path)
            .map_err(|e| NetError::Passt(format!("does not answer at {}: {e}", path.display())))?,
        None => spawn()?,
    };
    stream.set_nonblocking(true).map_err(NetError::Host)?;
    let port = Passt::new(stream);
    PortNet::start("net-passt", port, capture, tell)
}

/// Starts passt at one end of a pair of sockets; it ends when the other is closed.
fn spawn() -> Result<UnixStream, NetError> {
    let host = |e: Errno| NetError::Host(e.into());
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(host)?;
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(host)?;
    let fd = theirs.as_raw_fd().to_string();
    let mut command = Command::new("passt");
    command
        .args(["--foreground", "--quiet", "--one-off", "--fd", &fd])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match command.spawn() {
        // Its end is seen at the socket.
        Ok(_) => Ok(ours.into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(NetError::Passt(
            "is not installed; on Debian: apt install passt".into(),
        )),
        Err(e) => Err(NetError::Passt(format!("cannot be started: {e}"))),
    }
}

impl Passt {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            inbox: vec![0; INBOX],
            start: 0,
            end: 0,
            outbox: Vec::new(),
        }
    }

    /// Sends what is left; true when nothing is.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.outbox.is_empty() {
            match rustix::io::write(&self.stream, &self.outbox) {
                Ok(n) => drop(self.outbox.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// The next whole frame in the inbox.
    fn next(&mut self) -> io::Result<Option<Range<usize>>> {
        let Some(length) = self.inbox[self.start..self.end].first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other("it sent a frame that is too long"));
        }
        let begin = self.start + LENGTH;
        if self.end - begin < length {
            return Ok(None);
        }
        self.start = begin + length;
        Ok(Some(begin..self.start))
    }
}

impl Port for Passt {
    const OFFLOADS: bool = false;

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn send(&mut self, _header: &NetHeader, frame: &[u8]) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        // Frames are far below 4 GB.
        let length = (frame.len() as u32).to_be_bytes();
        let parts = [IoSlice::new(&length), IoSlice::new(frame)];
        match rustix::io::writev(&self.stream, &parts) {
            Ok(n) => {
                let whole = length.iter().chain(frame).skip(n);
                self.outbox.extend(whole);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(NetHeader, Range<usize>)>> {
        self.flush()?;
        loop {
            if let Some(place) = self.next()? {
                let n = place.len();
                buffer[..n].copy_from_slice(&self.inbox[place]);
                return Ok(Some((NetHeader::default(), 0..n)));
            }
            self.inbox.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            // Plain calls, which the jail lets through for every machine.
            match rustix::io::read(&self.stream, &mut self.inbox[self.end..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.end += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn is_sending(&self) -> bool {
        !self.outbox.is_empty()
    }

    fn gone(&self, why: &io::Error) -> String {
        format!("passt has ended ({why}); the guest's link is down")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (Passt, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        (Passt::new(a), b)
    }

    #[test]
    fn frames_follow_their_lengths() {
        let (mut p, mut peer) = pair();
        assert!(p.send(&NetHeader::default(), b"frame").unwrap());
        let mut got = [0; 9];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"\0\0\0\x05frame");
        // In pieces, and two at once.
        let mut buffer = vec![0; MAX_FRAME];
        peer.write_all(b"\0\0").unwrap();
        assert!(p.receive(&mut buffer).unwrap().is_none());
        peer.write_all(b"\0\x03abc\0\0\0\x01d").unwrap();
        assert_eq!(p.receive(&mut buffer).unwrap().unwrap().1, 0..3);
        assert_eq!(buffer[..3], *b"abc");
        assert_eq!(p.receive(&mut buffer).unwrap().unwrap().1, 0..1);
        assert!(p.receive(&mut buffer).unwrap().is_none());
        drop(peer);
        assert!(p.receive(&mut buffer).is_err());
    }

    #[test]
    fn a_full_socket_takes_a_frame_in_parts() {
        let (mut p, mut peer) = pair();
        let frame = vec![7; 60_000];
        let mut sent = 0;
        while p.send(&NetHeader::default(), &frame).unwrap() {
            sent += 1;
        }
        assert!(sent > 0 && p.is_sending());
        let mut all = vec![0; sent * (frame.len() + 4)];
        let reader = std::thread::spawn(move || {
            peer.read_exact(&mut all).unwrap();
            all
        });
        while !p.flush().unwrap() {
            std::thread::yield_now();
        }
        let all = reader.join().unwrap();
        for one in all.chunks(60_004) {
            assert_eq!(one[..4], 60_000u32.to_be_bytes());
            assert!(one[4..] == frame);
        }
    }

    #[test]
    fn an_endless_frame_ends_it() {
        let (mut p, mut peer) = pair();
        peer.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(p.receive(&mut [0; MAX_FRAME]).is_err());
    }
}
