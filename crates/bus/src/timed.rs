//! Binding of a register model that acts at certain times.

use crate::{IrqSink, LineModel, MmioDevice, Nanos, PortDevice, Timer, TimerHandle, TimerService};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A register model that wants to be told when a moment has come.
pub trait TimedModel: Send {
    /// The next moment at which [`Self::due`] must be called, in VM time; `None` when there is none.
    fn deadline(&self) -> Option<Nanos>;

    /// The time is `now`. May be called early or late: the model looks at the time.
    fn due(&mut self, now: Nanos);
}

struct Inner<D> {
    model: D,
    armed: Option<Nanos>,
}

/// A [`TimedModel`] with its timer: after each access the timer is set to the model's deadline.
///
/// Lock order: this lock, then whatever the model's lines lead to, then the timer service's.
pub struct Timed<D> {
    inner: Mutex<Inner<D>>,
    timer: OnceLock<Box<dyn TimerHandle>>,
}

impl<D> std::fmt::Debug for Timed<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Timed")
    }
}

impl<D: TimedModel + 'static> Timed<D> {
    /// Binds `model` to a timer of `timers`.
    pub fn new(model: D, timers: &dyn TimerService) -> Arc<Self> {
        let this = Arc::new(Self {
            inner: Mutex::new(Inner { model, armed: None }),
            timer: OnceLock::new(),
        });
        let target = Arc::new(Due(Arc::downgrade(&this)));
        let _ = this.timer.set(timers.timer(target));
        drop(this.lock());
        this
    }

    /// The model, locked; the timer follows when the guard is dropped.
    pub fn lock(&self) -> TimedGuard<'_, D> {
        TimedGuard {
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            timer: self.timer.get().map(AsRef::as_ref),
        }
    }
}

/// Access to the model of a [`Timed`].
pub struct TimedGuard<'a, D: TimedModel> {
    inner: MutexGuard<'a, Inner<D>>,
    timer: Option<&'a dyn TimerHandle>,
}

impl<D: TimedModel> Deref for TimedGuard<'_, D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.inner.model
    }
}

impl<D: TimedModel> DerefMut for TimedGuard<'_, D> {
    fn deref_mut(&mut self) -> &mut D {
        &mut self.inner.model
    }
}

impl<D: TimedModel> Drop for TimedGuard<'_, D> {
    fn drop(&mut self) {
        let want = self.inner.model.deadline();
        if want != self.inner.armed
            && let Some(timer) = self.timer
        {
            self.inner.armed = want;
            match want {
                Some(at) => timer.arm(at),
                None => timer.cancel(),
            }
        }
    }
}

struct Due<D>(std::sync::Weak<Timed<D>>);

impl<D: TimedModel + 'static> Timer for Due<D> {
    fn expired(&self, now: Nanos) {
        if let Some(timed) = self.0.upgrade() {
            let mut guard = timed.lock();
            // The timer is idle now, whatever it was set to: arm it again even for the same moment.
            guard.inner.armed = None;
            guard.due(now);
        }
    }
}

impl<D: TimedModel + LineModel + 'static> IrqSink for Timed<D> {
    fn set_level(&self, pin: u32, level: bool) {
        self.lock().set_line(pin, level);
    }
}

/// A [`Timed`] device on a port or MMIO bus.
#[derive(Debug)]
pub struct TimedBinding<D>(pub Arc<Timed<D>>);

impl<D: TimedModel + PortDevice + 'static> PortDevice for TimedBinding<D> {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        self.0.lock().port_read(offset, size)
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        self.0.lock().port_write(offset, size, value);
    }
}

impl<D: TimedModel + MmioDevice + 'static> MmioDevice for TimedBinding<D> {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        self.0.lock().mmio_read(offset, size)
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        self.0.lock().mmio_write(offset, size, value);
    }
}
