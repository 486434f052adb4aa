//! A stream in memory, for tests and for programs that talk to a guest.

use mimeo_bus::{StreamDevice, StreamHost};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

#[derive(Default)]
struct State {
    output: Vec<u8>,
    input: VecDeque<u8>,
    /// The device may have room.
    wanted: bool,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    device: OnceLock<Arc<dyn StreamDevice>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the device its input, as it has room.
    fn feed(&self) {
        loop {
            let state = self.lock();
            let mut state = self
                .changed
                .wait_while(state, |s| !s.closing && (s.input.is_empty() || !s.wanted))
                .unwrap_or_else(PoisonError::into_inner);
            if state.closing {
                return;
            }
            let Some(device) = self.device.get() else {
                state.wanted = false;
                continue;
            };
            state.wanted = false;
            let bytes: Vec<u8> = state.input.iter().copied().collect();
            drop(state);
            let taken = device.input(&bytes);
            let mut state = self.lock();
            state.input.drain(..taken);
            // With all taken, the next bytes may be tried; otherwise the device calls.
            state.wanted |= taken == bytes.len();
        }
    }
}

/// Keeps everything that the guest sends; gives it what [`Self::send`] is called with, as it reads.
#[derive(Default)]
pub struct MemoryStream {
    shared: Arc<Shared>,
    thread: OnceLock<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl std::fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryStream")
    }
}

impl MemoryStream {
    /// Queues bytes for the guest.
    pub fn send(&self, bytes: &[u8]) {
        self.shared.lock().input.extend(bytes);
        self.shared.changed.notify_all();
    }

    /// Everything that the guest has sent so far.
    #[must_use]
    pub fn output(&self) -> Vec<u8> {
        self.shared.lock().output.clone()
    }

    /// Waits until the guest has sent `text` at or after byte `from` of its output; gives the
    /// position behind it, or `None` when `timeout` passed first.
    #[must_use]
    pub fn wait_for(&self, text: &[u8], from: usize, timeout: Duration) -> Option<usize> {
        let find = |output: &[u8]| {
            let tail = output.get(from..)?;
            if text.is_empty() {
                return Some(from);
            }
            let at = tail.windows(text.len()).position(|w| w == text)?;
            Some(from + at + text.len())
        };
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), timeout, |s| find(&s.output).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&state.output)
    }
}

impl StreamHost for MemoryStream {
    fn write(&self, bytes: &[u8]) -> usize {
        self.shared.lock().output.extend(bytes);
        self.shared.changed.notify_all();
        bytes.len()
    }

    fn input_wanted(&self) {
        self.shared.lock().wanted = true;
        self.shared.changed.notify_all();
    }

    fn connect(&self, device: Arc<dyn StreamDevice>) {
        if self.shared.device.set(device).is_err() {
            return;
        }
        self.input_wanted();
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("memory-stream".into())
            .spawn(move || shared.feed());
        // Without a thread the guest gets no input, which a test sees.
        let _ = self.thread.set(Mutex::new(thread.ok()));
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        let thread = self.thread.take().map(Mutex::into_inner);
        if let Some(Ok(Some(thread))) = thread {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes two bytes at a time, and echoes them to the stream.
    struct Echo(Mutex<Option<std::sync::Weak<MemoryStream>>>);

    impl StreamDevice for Echo {
        fn input(&self, bytes: &[u8]) -> usize {
            let n = bytes.len().min(2);
            let stream = self.0.lock().unwrap().clone().unwrap().upgrade();
            if let Some(stream) = stream {
                stream.write(&bytes[..n]);
                if n < bytes.len() {
                    stream.input_wanted();
                }
            }
            n
        }
        fn output_ready(&self) {}
    }

    #[test]
    fn what_is_sent_arrives_in_order_as_the_device_has_room() {
        let stream = Arc::new(MemoryStream::default());
        let echo = Echo(Mutex::new(Some(Arc::downgrade(&stream))));
        stream.send(b"early ");
        stream.connect(Arc::new(echo));
        let wait = Duration::from_secs(60);
        assert_eq!(stream.wait_for(b"early", 0, wait), Some(5));
        stream.send(b"bird bird");
        assert_eq!(stream.wait_for(b"bird", 10, wait), Some(15));
        assert_eq!(stream.output(), b"early bird bird");
        assert_eq!(stream.wait_for(b"x", 0, Duration::ZERO), None);
    }
}
