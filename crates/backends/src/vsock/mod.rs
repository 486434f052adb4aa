//! The host's side of a vsock device: connections between sockets of the guest and Unix sockets.
//!
//! Models: VIRTIO 1.2, 5.10.6 (connections, credit, shutdown), and on the host the convention that
//! Firecracker has set: a program connects to the socket PATH, writes `CONNECT PORT\n` and, when the
//! guest listens on that port, reads `OK PORT\n` (the port on the host's side) before the guest's
//! bytes; a guest that connects to port P of the host reaches the socket `PATH_P`.
//!
//! Thread: one, `vsock`, does all input and output of sockets. The device's threads only move bytes
//! to and from buffers under the table's lock. Buffers are bounded by the credit that is given: a
//! guest that sends more than it may loses the connection.

mod connector;
mod table;
#[cfg(test)]
mod tests;
mod worker;

pub use connector::{Connector, ConnectorEnd, connector, serve_connector};

use mimeo_bus::{VsockDevice, VsockHeader, VsockHost};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use table::Table;

/// What the thread and the device share.
struct Shared {
    table: Mutex<Table>,
    device: OnceLock<Arc<dyn VsockDevice>>,
    wake: OwnedFd,
    /// The thread was woken and has not looked yet.
    woken: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // Full (2^64 - 2 wakes unread) is as good as written.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// The host's side of one guest's vsock device. Dropping it ends the thread and all connections.
pub struct VsockMux {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for VsockMux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VsockMux")
    }
}

impl VsockMux {
    /// For the guest with address `cid` (3 or more, below 2^32 - 1). Programs of the host connect to
    /// `listener`; `connector` reaches the host's sockets for the guest, without one the guest's
    /// connections are refused.
    ///
    /// # Errors
    /// The system refuses an eventfd or the thread.
    pub fn new(
        cid: u64,
        listener: UnixListener,
        connector: Option<Connector>,
    ) -> io::Result<Arc<Self>> {
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(cid)),
            device: OnceLock::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            woken: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let worker = worker::Worker::new(shared.clone(), listener, connector);
        let thread = std::thread::Builder::new()
            .name("vsock".into())
            .spawn(move || worker.run())?;
        Ok(Arc::new(Self {
            shared,
            thread: Some(thread),
        }))
    }
}

impl Drop for VsockMux {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl VsockHost for VsockMux {
    fn has_room(&self) -> bool {
        self.shared.lock().has_room()
    }

    fn guest_sent(&self, header: &VsockHeader, payload: Vec<u8>) {
        self.shared.lock().guest_sent(header, &payload);
        self.shared.wake();
    }

    fn has_packet(&self) -> bool {
        self.shared.lock().has_packet()
    }

    fn next_packet(&self, most: usize) -> Option<(VsockHeader, Vec<u8>)> {
        let (packet, wake) = self.shared.lock().next_packet(most);
        if wake {
            self.shared.wake();
        }
        packet
    }

    fn driver(&self, present: bool) {
        self.shared.lock().set_driver(present);
        self.shared.wake();
    }

    fn connect(&self, device: Arc<dyn VsockDevice>) {
        let _ = self.shared.device.set(device);
    }
}
