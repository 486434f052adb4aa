//! One serial port for many: the monitor's own terminal if it has one, whoever is attached through
//! the control socket, and a log.
//!
//! The guest waits for the monitor's own terminal as it always does; it never waits for the log or
//! for somebody attached: whoever does not read is cut off. The log is bounded: of what is longer
//! than [`LOG`], the older half is dropped.
//!
//! Locks: the state's is a leaf; no device and no host side is called with it held.

use mimeo_bus::{StreamDevice, StreamHost};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes of the log that are kept at least, once there are so many; twice as many are kept at most.
pub const LOG: u64 = 4 << 20;
/// Bytes that wait for the log's file or for a reader.
const BACKLOG: usize = 1 << 20;

#[derive(Default)]
struct State {
    /// For the log.
    log: VecDeque<u8>,
    /// For each reader; `None`: it was too slow.
    readers: BTreeMap<u64, Option<VecDeque<u8>>>,
    next_reader: u64,
    /// The device has room for input again.
    wanted: bool,
}

/// The many ends of a serial port.
pub struct Console {
    primary: Arc<dyn StreamHost>,
    device: OnceLock<Arc<dyn StreamDevice>>,
    state: Mutex<State>,
    wake: OwnedFd,
    woken: AtomicBool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

impl Console {
    /// With `primary`, the monitor's own end.
    ///
    /// # Errors
    /// The system refuses an eventfd.
    pub fn new(primary: Arc<dyn StreamHost>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            primary,
            device: OnceLock::new(),
            state: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            woken: AtomicBool::new(false),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable when there is something for the server to do.
    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // Full (2^64 - 2 wakes unread) is as good as written.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// The wake has been seen.
    pub(crate) fn awake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        self.woken.store(false, Ordering::Release);
    }

    /// A new reader, by number.
    pub(crate) fn attach(&self) -> u64 {
        let mut state = self.lock();
        let number = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(number, Some(VecDeque::new()));
        number
    }

    pub(crate) fn detach(&self, reader: u64) {
        self.lock().readers.remove(&reader);
    }

    /// Number of readers.
    pub(crate) fn readers(&self) -> usize {
        self.lock().readers.len()
    }

    /// What has come for a reader; `None` when it was too slow and has to go.
    pub(crate) fn take(&self, reader: u64) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let queue = state.readers.get_mut(&reader)?.as_mut()?;
        Some(queue.drain(..).collect())
    }

    /// Whether the device may take input since the last call.
    pub(crate) fn take_wanted(&self) -> bool {
        std::mem::take(&mut self.lock().wanted)
    }

    /// Offers input to the device; gives the number of bytes that it took.
    pub(crate) fn input(&self, bytes: &[u8]) -> usize {
        self.device
            .get()
            .map_or(0, |d| d.input(bytes).min(bytes.len()))
    }

    /// Whether there is something for the log.
    pub(crate) fn log_waits(&self) -> bool {
        !self.lock().log.is_empty()
    }

    /// Appends to the log, which has `len` bytes, what has come for it. (The length is kept and not
    /// asked for: a jailed process may not ask.)
    pub(crate) fn write_log(&self, file: &File, len: &mut u64) -> io::Result<()> {
        let bytes: Vec<u8> = self.lock().log.drain(..).collect();
        if bytes.is_empty() {
            return Ok(());
        }
        if *len > 2 * LOG {
            let mut kept = vec![0; LOG as usize];
            file.read_exact_at(&mut kept, *len - LOG)?;
            file.set_len(0)?;
            write_at_end(file, &kept)?;
            *len = LOG;
        }
        *len += bytes.len() as u64;
        write_at_end(file, &bytes)
    }
}

/// The file was opened for appending.
fn write_at_end(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut file, bytes)
}

impl StreamHost for Console {
    fn write(&self, bytes: &[u8]) -> usize {
        let n = self.primary.write(bytes).min(bytes.len());
        let bytes = &bytes[..n];
        let mut state = self.lock();
        let room = BACKLOG.saturating_sub(state.log.len());
        state.log.extend(&bytes[..n.min(room)]);
        for queue in state.readers.values_mut() {
            match queue {
                Some(q) if q.len() + n <= BACKLOG => q.extend(bytes),
                slow => *slow = None,
            }
        }
        drop(state);
        self.wake();
        n
    }

    fn input_wanted(&self) {
        self.primary.input_wanted();
        self.lock().wanted = true;
        self.wake();
    }

    fn connect(&self, device: Arc<dyn StreamDevice>) {
        self.primary.connect(device.clone());
        let _ = self.device.set(device);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mimeo_bus::NullStream;

    #[test]
    fn readers_get_what_comes_after_them_and_the_slow_one_is_cut_off() {
        let c = Console::new(Arc::new(NullStream)).unwrap();
        assert_eq!(c.write(b"early"), 5);
        let (fast, slow) = (c.attach(), c.attach());
        c.write(b"hello");
        assert_eq!(c.take(fast).unwrap(), b"hello");
        let piece = vec![0; BACKLOG / 4];
        for _ in 0..5 {
            assert_eq!(c.write(&piece), piece.len());
            assert!(c.take(fast).is_some());
        }
        assert_eq!(c.take(slow), None);
        c.detach(slow);
        assert_eq!(c.readers(), 1);
    }

    #[test]
    fn the_log_keeps_the_newest() {
        let path = std::env::temp_dir().join(format!("mimeo-log-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .unwrap();
        let c = Console::new(Arc::new(NullStream)).unwrap();
        let mut len = 0;
        c.write(b"first words\n");
        c.write_log(&file, &mut len).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first words\n");
        let piece = vec![b'x'; 512 * 1024];
        for _ in 0..40 {
            c.write(&piece);
            c.write_log(&file, &mut len).unwrap();
        }
        c.write(b"last words\n");
        c.write_log(&file, &mut len).unwrap();
        let log = std::fs::read(&path).unwrap();
        assert!(log.len() as u64 <= 2 * LOG + (1 << 20), "{}", log.len());
        assert!(log.len() as u64 >= LOG);
        assert!(log.ends_with(b"xxlast words\n"));
        std::fs::remove_file(&path).unwrap();
    }
}
