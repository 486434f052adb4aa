//! Input from outside, held back until the driver of a deterministic run hands it over.

use mimeo_bus::{StreamDevice, StreamHost};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes that wait at most; more waits at the host side.
const CAPACITY: usize = 4096;

#[derive(Default)]
struct Inner {
    waiting: Mutex<Vec<u8>>,
    arrived: Condvar,
    device: OnceLock<Arc<dyn StreamDevice>>,
    host: OnceLock<Arc<dyn StreamHost>>,
}

/// Stands between a device and its host side: output goes straight through, input waits for
/// [`HeldInput::hand_over`].
///
/// Lock order: `waiting` is a leaf; neither end is called with it held.
#[derive(Clone, Default)]
pub struct HeldInput(Arc<Inner>);

struct Receiver(Arc<Inner>);

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldInput {
    /// Stands before `host`.
    #[must_use]
    pub fn new(host: Arc<dyn StreamHost>) -> Self {
        let this = Self::default();
        let _ = this.0.host.set(host.clone());
        host.connect(Arc::new(Receiver(this.0.clone())));
        this
    }

    /// Gives the device what waits, as far as it has room.
    pub fn hand_over(&self) {
        let Some(device) = self.0.device.get() else {
            return;
        };
        let bytes = self.0.lock().clone();
        if bytes.is_empty() {
            return;
        }
        let taken = device.input(&bytes).min(bytes.len());
        self.0.lock().drain(..taken);
        if let Some(host) = self.0.host.get()
            && taken > 0
        {
            host.input_wanted();
        }
    }

    /// Waits a while for input; whether some has come.
    #[must_use]
    pub fn wait(&self, at_most: std::time::Duration) -> bool {
        let waiting = self.0.lock();
        let (waiting, _) = self
            .0
            .arrived
            .wait_timeout_while(waiting, at_most, |w| w.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        !waiting.is_empty()
    }
}

impl StreamHost for HeldInput {
    fn write(&self, bytes: &[u8]) -> usize {
        self.0.host.get().map_or(bytes.len(), |h| h.write(bytes))
    }

    /// The device is offered the rest at the next boundary anyway.
    fn input_wanted(&self) {}

    fn connect(&self, device: Arc<dyn StreamDevice>) {
        let _ = self.0.device.set(device);
    }
}

impl StreamDevice for Receiver {
    fn input(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.0.lock();
        let n = bytes.len().min(CAPACITY - waiting.len().min(CAPACITY));
        waiting.extend_from_slice(&bytes[..n]);
        self.0.arrived.notify_all();
        n
    }

    fn output_ready(&self) {
        if let Some(device) = self.0.device.get() {
            device.output_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Guest(Mutex<Vec<u8>>);
    impl StreamDevice for Guest {
        fn input(&self, bytes: &[u8]) -> usize {
            let n = bytes.len().min(2);
            self.0.lock().unwrap().extend_from_slice(&bytes[..n]);
            n
        }
        fn output_ready(&self) {}
    }

    #[test]
    fn input_waits_for_the_boundary() {
        let held = HeldInput::new(Arc::new(mimeo_bus::NullStream));
        let guest = Arc::new(Guest::default());
        held.connect(guest.clone());
        let receiver = Receiver(held.0.clone());
        assert_eq!(receiver.input(b"abc"), 3);
        assert!(guest.0.lock().unwrap().is_empty());
        assert!(held.wait(std::time::Duration::ZERO));
        held.hand_over();
        assert_eq!(*guest.0.lock().unwrap(), b"ab");
        held.hand_over();
        assert_eq!(*guest.0.lock().unwrap(), b"abc");
        assert!(!held.wait(std::time::Duration::ZERO));
        assert_eq!(receiver.input(&[0; 2 * CAPACITY]), CAPACITY);
    }
}
