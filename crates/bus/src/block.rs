//! Disks as devices see them.

use mimeo_memory::GuestMemory;
use std::io;
use std::sync::Arc;

/// What is to be done. Positions and lengths are in bytes, multiples of 512 and within the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockOperation {
    /// Read from `at` into the data pieces.
    Read {
        /// Where.
        at: u64,
    },
    /// Write the data pieces to `at`.
    Write {
        /// Where.
        at: u64,
        /// It must be on the medium before it is done.
        durable: bool,
    },
    /// Everything whose write was done before must be on the medium before this is done.
    Flush,
    /// The ranges (position, length) are not needed any more: a hint.
    Discard {
        /// The ranges.
        ranges: Vec<(u64, u64)>,
    },
    /// The ranges (position, length) must read as zero.
    WriteZeroes {
        /// The ranges.
        ranges: Vec<(u64, u64)>,
        /// The space may be given back.
        unmap: bool,
    },
}

type Callback = Box<dyn FnOnce(io::Result<()>) + Send>;

/// How a request ends. Dropping it unused ends the request with an error, so that none is lost.
pub struct BlockDone(Option<Callback>);

impl BlockDone {
    /// Calls `callback` at the end, on whichever thread that happens.
    #[must_use]
    pub fn new(callback: Callback) -> Self {
        Self(Some(callback))
    }

    /// The request ends.
    pub fn finish(mut self, result: io::Result<()>) {
        if let Some(callback) = self.0.take() {
            callback(result);
        }
    }
}

impl Drop for BlockDone {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(io::ErrorKind::Interrupted.into()));
        }
    }
}

/// A request to a disk.
pub struct BlockRequest {
    /// What.
    pub operation: BlockOperation,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Where the data is in it: (address, length), checked by the device.
    pub data: Vec<(u64, u32)>,
    /// How it ends.
    pub done: BlockDone,
}

/// The host's side of a disk.
pub trait BlockBackend: Send + Sync {
    /// Its size in bytes.
    fn capacity(&self) -> u64;

    /// Writes are refused.
    fn read_only(&self) -> bool;

    /// Takes a request. Never blocks on I/O, and does not end the request before it returns (the
    /// device's lock is held): it does the work on other threads and in any order.
    fn submit(&self, request: BlockRequest);
}
