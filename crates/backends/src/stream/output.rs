//! A bounded queue of bytes that a thread of its own writes out.

use mimeo_bus::StreamDevice;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that wait for a slow reader before the guest has to wait.
const CAPACITY: usize = 64 * 1024;
/// How long the end waits for a reader that does not read.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Told of the first failure of the output; what is written later is thrown away.
pub(super) type OnError = Box<dyn Fn(&io::Error) + Send>;

struct State {
    bytes: VecDeque<u8>,
    /// The device was refused and waits.
    refused: bool,
    closing: bool,
    /// The thread has written everything and ended.
    done: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    device: OnceLock<Arc<dyn StreamDevice>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next bytes to write; `None` when there will be no more.
    fn next(&self) -> Option<(Vec<u8>, bool)> {
        let mut state = self.lock();
        while state.bytes.is_empty() {
            if state.closing {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = state.bytes.drain(..).collect();
        Some((bytes, std::mem::take(&mut state.refused)))
    }

    fn run(&self, mut to: impl Write, on_error: &OnError) {
        let mut failed = false;
        while let Some((bytes, refused)) = self.next() {
            if refused && let Some(device) = self.device.get() {
                device.output_ready();
            }
            if !failed && let Err(e) = to.write_all(&bytes).and_then(|()| to.flush()) {
                failed = true;
                on_error(&e);
            }
        }
        self.lock().done = true;
        self.changed.notify_all();
    }
}

/// The queue and its thread.
pub(super) struct Output {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    pub(super) fn new(to: impl Write + Send + 'static, on_error: OnError) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                bytes: VecDeque::new(),
                refused: false,
                closing: false,
                done: false,
            }),
            changed: Condvar::new(),
            device: OnceLock::new(),
        });
        let runner = shared.clone();
        let thread = std::thread::Builder::new()
            .name("serial-out".into())
            .spawn(move || runner.run(to, &on_error))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn connect(&self, device: Arc<dyn StreamDevice>) {
        let _ = self.shared.device.set(device);
    }

    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared.lock();
        let n = bytes.len().min(CAPACITY - state.bytes.len());
        state.bytes.extend(&bytes[..n]);
        state.refused |= n < bytes.len();
        drop(state);
        self.shared.changed.notify_all();
        n
    }

    /// Writes out what is queued, unless the reader is stuck, and ends the thread.
    pub(super) fn close(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        self.shared.changed.notify_all();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, LAST_WORDS, |s| !s.done)
            .unwrap_or_else(PoisonError::into_inner);
        let done = state.done;
        drop(state);
        if let Some(thread) = self.thread.take().filter(|_| done) {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Slow {
        started: Sender<()>,
        go: std::sync::mpsc::Receiver<()>,
        got: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.started.send(()).unwrap();
            self.go.recv().unwrap();
            self.got.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Ready(Mutex<Sender<()>>);

    impl StreamDevice for Ready {
        fn input(&self, _: &[u8]) -> usize {
            0
        }
        fn output_ready(&self) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }

    #[test]
    fn a_slow_reader_makes_the_device_wait_and_nothing_is_lost() {
        let (started, has_started) = channel();
        let (go, gate) = channel();
        let (ready, is_ready) = channel();
        let got = Arc::new(Mutex::new(Vec::new()));
        let slow = Slow {
            started,
            go: gate,
            got: got.clone(),
        };
        let out = Output::new(slow, Box::new(|e| panic!("{e}"))).unwrap();
        out.connect(Arc::new(Ready(Mutex::new(ready))));
        assert_eq!(out.write(b"a"), 1);
        has_started.recv().unwrap();
        assert_eq!(out.write(&vec![b'b'; CAPACITY + 5]), CAPACITY);
        assert_eq!(out.write(b"c"), 0);
        assert!(is_ready.try_recv().is_err());
        go.send(()).unwrap();
        is_ready.recv().unwrap();
        assert_eq!(out.write(b"d"), 1);
        go.send(()).unwrap();
        go.send(()).unwrap();
        drop(out);
        let got = got.lock().unwrap();
        assert_eq!(
            (got.len(), got[0], got[CAPACITY + 1]),
            (CAPACITY + 2, b'a', b'd')
        );
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failure_is_told_once_and_the_guest_goes_on() {
        let (send, told) = channel();
        let out = Output::new(Broken, Box::new(move |e| send.send(e.kind()).unwrap())).unwrap();
        assert_eq!(out.write(b"x"), 1);
        assert_eq!(told.recv().unwrap(), io::ErrorKind::StorageFull);
        for _ in 0..4 {
            assert_eq!(out.write(b"y"), 1);
        }
        drop(out);
        assert!(told.recv().is_err());
    }
}
