//! Networks at the other end of a file descriptor: one thread that moves frames between it and the card.

use crate::waker::Waker;
use crate::{Capture, NetError, Tell};
use mimeo_bus::{MAX_FRAME, NetBackend, NetCard, NetHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Frames of each direction between two looks at the other.
const BATCH: usize = 64;
/// Room for a frame with its header.
const BUFFER: usize = MAX_FRAME + NetHeader::LEN;

/// What carries frames. Nothing here waits.
pub(crate) trait Port: Send + 'static {
    /// Whether it takes frames that ask for something.
    const OFFLOADS: bool;

    /// What becomes readable and writable.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends a frame; false when it cannot take one now. An error is the network's end.
    fn send(&mut self, header: &NetHeader, frame: &[u8]) -> io::Result<bool>;

    /// Takes the next frame into `buffer` and says where it is; `None` when there is none. An error is
    /// the network's end.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(NetHeader, Range<usize>)>>;

    /// Something is still to be sent that was accepted before.
    fn is_sending(&self) -> bool {
        false
    }

    /// How the person is told of the end.
    fn gone(&self, why: &io::Error) -> String;
}

/// A running network. Dropping it ends its thread.
pub struct PortNet {
    waker: Arc<Waker>,
    offloads: bool,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for PortNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortNet(offloads {})", self.offloads)
    }
}

impl PortNet {
    /// Starts the thread.
    pub(crate) fn start<P: Port>(
        name: &str,
        port: P,
        capture: Capture,
        tell: Tell,
    ) -> Result<Self, NetError> {
        let waker = Waker::new().map_err(NetError::Host)?;
        let mover = Mover {
            waker: waker.clone(),
            port,
            capture,
            tell,
            buffer: vec![0; BUFFER],
            held: None,
        };
        let thread = std::thread::Builder::new().name(name.into());
        let thread = Some(thread.spawn(move || mover.run()).map_err(NetError::Host)?);
        Ok(Self {
            waker,
            offloads: P::OFFLOADS,
            thread,
        })
    }
}

impl NetBackend for PortNet {
    fn attach(&self, card: Arc<dyn NetCard>) {
        self.waker.attach(card);
    }

    fn kick(&self) {
        self.waker.wake();
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn offloads(&self) -> bool {
        self.offloads
    }
}

impl Drop for PortNet {
    fn drop(&mut self) {
        self.waker.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Everything that the thread owns.
struct Mover<P> {
    waker: Arc<Waker>,
    port: P,
    capture: Capture,
    tell: Tell,
    buffer: Vec<u8>,
    /// A frame in the buffer that the card had no room for.
    held: Option<(NetHeader, Range<usize>)>,
}

/// What to wait for, or not.
struct Round {
    /// There is more at the port.
    more_in: bool,
    /// There is more in the card.
    more_out: bool,
    /// The port takes nothing now.
    blocked: bool,
}

impl<P: Port> Mover<P> {
    /// Works until it is told to stop.
    fn run(mut self) {
        while !self.waker.stopped() {
            let Some(card) = self.waker.card().cloned() else {
                self.wait_for_bell();
                continue;
            };
            match self.round(&*card) {
                Ok(round) => self.wait(&round),
                Err(why) => {
                    (self.tell)(&self.port.gone(&why));
                    card.set_link(false);
                    return self.idle(&*card);
                }
            }
        }
    }

    /// Moves a batch each way.
    fn round(&mut self, card: &dyn NetCard) -> io::Result<Round> {
        let more_in = self.bring_in(card)?;
        let (mut blocked, mut failed) = (false, None);
        let (port, capture) = (&mut self.port, &mut self.capture);
        let more_out = card.transmit(BATCH, &mut |header, frame| {
            match port.send(header, frame) {
                Ok(true) => capture.frame(frame),
                Ok(false) => blocked = true,
                Err(e) => failed = Some(e),
            }
            !blocked && failed.is_none()
        });
        self.capture.flush();
        match failed {
            Some(e) => Err(e),
            None => Ok(Round {
                more_in,
                more_out,
                blocked,
            }),
        }
    }

    /// Brings frames to the card; true while there may be more that it has room for.
    fn bring_in(&mut self, card: &dyn NetCard) -> io::Result<bool> {
        let mut more = true;
        for _ in 0..BATCH {
            if self.held.is_none() {
                self.held = self.port.receive(&mut self.buffer)?;
            }
            let Some((header, place)) = self.held.take() else {
                more = false;
                break;
            };
            let frame = &self.buffer[place.clone()];
            if !card.receive(&header, frame) {
                self.held = Some((header, place));
                more = false;
                break;
            }
            self.capture.frame(frame);
        }
        card.flush();
        Ok(more)
    }

    fn wait(&self, round: &Round) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.held.is_none());
        flags.set(PollFlags::OUT, round.blocked || self.port.is_sending());
        let mut fds = [
            PollFd::new(self.waker.bell(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.port.fd(), flags),
        ];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let at_once = round.more_in || round.more_out && !round.blocked;
        // A port that has ended says so at every look: without a wish to read, only the bell counts.
        let fds = if flags.is_empty() {
            &mut fds[..1]
        } else {
            &mut fds[..]
        };
        // Interrupted or not: everything is looked at again.
        let _ = poll(fds, at_once.then_some(&now));
        if !fds[0].revents().is_empty() {
            self.waker.heard();
        }
    }

    fn wait_for_bell(&self) {
        let mut fds = [PollFd::new(self.waker.bell(), PollFlags::IN)];
        let _ = poll(&mut fds, None);
        self.waker.heard();
    }

    /// After the end: what the guest still sends is taken and goes nowhere.
    fn idle(&self, card: &dyn NetCard) {
        while !self.waker.stopped() {
            while card.transmit(BATCH, &mut |_, _| true) {}
            self.wait_for_bell();
        }
    }
}
