//! The word through which other threads reach a vCPU.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::Duration;

/// Bits of a vCPU's event word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBits(pub u32);

impl EventBits {
    /// The interrupt controller has a deliverable maskable interrupt (level: it clears it itself).
    pub const INTR: Self = Self(1 << 0);
    /// A non-maskable interrupt (edge: the engine clears it when it latches the NMI).
    pub const NMI: Self = Self(1 << 1);
    /// INIT (edge).
    pub const INIT: Self = Self(1 << 2);
    /// A start-up IPI; its vector is in bits 8 to 15 (edge).
    pub const SIPI: Self = Self(1 << 3);
    /// `run` must return [`crate::Exit::Stopped`] soon (edge).
    pub const STOP: Self = Self(1 << 4);
    /// Something the engine itself asked for (a flush by another vCPU); private to engines.
    pub const ENGINE: Self = Self(1 << 5);

    /// Whether any bit of `other` is set in `self`.
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

type Kick = Box<dyn Fn() + Send + Sync>;

/// A vCPU's event word: set by devices, other vCPUs and the control plane, read by its engine.
///
/// Lock order: `sleep` is a leaf; no other lock is taken while it is held.
#[derive(Default)]
pub struct VcpuEvents {
    bits: AtomicU32,
    sleep: Mutex<()>,
    wake: Condvar,
    kick: OnceLock<Kick>,
}

impl std::fmt::Debug for VcpuEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("VcpuEvents").field(&self.pending()).finish()
    }
}

impl VcpuEvents {
    /// The pending bits.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> EventBits {
        EventBits(self.bits.load(Ordering::Acquire))
    }

    /// Sets bits, wakes a sleeping vCPU and kicks a running one out of translated code.
    pub fn raise(&self, bits: EventBits) {
        let old = self.bits.fetch_or(bits.0, Ordering::SeqCst);
        if old & bits.0 != bits.0 {
            drop(
                self.sleep
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
            );
            self.wake.notify_all();
            if let Some(kick) = self.kick.get() {
                kick();
            }
        }
    }

    /// Raises a SIPI with its vector. A SIPI that arrives while one is pending replaces it.
    pub fn raise_sipi(&self, vector: u8) {
        let set = EventBits::SIPI.0 | (u32::from(vector) << 8);
        let _ = self
            .bits
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |b| {
                Some((b & !0xff00 & !EventBits::SIPI.0) | (set & 0xff00))
            });
        self.raise(EventBits(EventBits::SIPI.0));
    }

    /// Clears bits; gives those of them that were set (and, with SIPI, the vector in bits 8 to 15).
    pub fn take(&self, bits: EventBits) -> EventBits {
        let mask = if bits.any(EventBits::SIPI) {
            bits.0 | 0xff00
        } else {
            bits.0
        };
        EventBits(self.bits.fetch_and(!mask, Ordering::SeqCst) & mask)
    }

    /// Sleeps until a bit of `mask` is pending or `timeout` has passed. HLT is this.
    pub fn wait(&self, mask: EventBits, timeout: Option<Duration>) {
        let mut guard = self
            .sleep
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let deadline = timeout.map(|t| std::time::Instant::now() + t);
        while !self.pending().any(mask) {
            guard = match deadline {
                None => self
                    .wake
                    .wait(guard)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(d) => {
                    let left = d.saturating_duration_since(std::time::Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    self.wake
                        .wait_timeout(guard, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Registers how to interrupt this vCPU while it runs translated code. Once per vCPU.
    pub fn set_kick(&self, kick: Kick) {
        let _ = self.kick.set(kick);
    }
}
