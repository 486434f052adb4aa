//! Failures of the host, told once for each kind.

use super::pool::Work;
use mimeo_bus::BlockRequest;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Told of failures of the host, once for each kind of failure.
pub(super) type OnError = Box<dyn Fn(&io::Error) + Send + Sync>;

/// A work whose failures somebody is told of.
pub(super) struct Reported<W> {
    work: W,
    on_error: OnError,
    told: Mutex<Vec<io::ErrorKind>>,
}

impl<W: Work> Reported<W> {
    pub(super) fn new(work: W, on_error: OnError) -> Self {
        Self {
            work,
            on_error,
            told: Mutex::default(),
        }
    }
}

impl<W: Work> Work for Reported<W> {
    fn run(&self, request: &BlockRequest) -> io::Result<()> {
        let result = self.work.run(request);
        if let Err(e) = &result {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if !told.contains(&e.kind()) {
                told.push(e.kind());
                drop(told);
                (self.on_error)(e);
            }
        }
        result
    }
}
