//! What a card's calls and a network's thread share.

use mimeo_bus::NetCard;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The thread's bell, its card, and the wish that it ends.
pub(crate) struct Waker {
    card: OnceLock<Arc<dyn NetCard>>,
    bell: OwnedFd,
    stop: AtomicBool,
}

impl Waker {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            card: OnceLock::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
        }))
    }

    /// The first card stays.
    pub(crate) fn attach(&self, card: Arc<dyn NetCard>) {
        let _ = self.card.set(card);
        self.wake();
    }

    pub(crate) fn card(&self) -> Option<&Arc<dyn NetCard>> {
        self.card.get()
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake anyhow.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// What to wait for.
    pub(crate) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// The bell has been heard.
    pub(crate) fn heard(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
