//! Interrupt lines.

use std::sync::{Arc, Mutex, PoisonError};

/// Where lines end: an interrupt controller (or a router of the board).
///
/// A level of `true` means asserted, whatever the voltage: the polarity of a wire is the board's
/// (and its firmware tables') affair.
pub trait IrqSink: Send + Sync {
    /// The level of `pin` is now `level`. Edge-triggered inputs act on the rising change.
    fn set_level(&self, pin: u32, level: bool);
}

/// One wired line: a device drives it, and knows neither number nor controller.
#[derive(Clone)]
pub struct IrqLine {
    sink: Option<Arc<dyn IrqSink>>,
    pin: u32,
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "IrqLine({})",
            if self.sink.is_some() {
                self.pin.to_string()
            } else {
                "open".into()
            }
        )
    }
}

impl IrqLine {
    /// A line to `pin` of `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self {
            sink: Some(sink),
            pin,
        }
    }

    /// A line that leads nowhere.
    #[must_use]
    pub const fn unconnected() -> Self {
        Self { sink: None, pin: 0 }
    }

    /// Drives the line to a level. Must be called without locks that the sink may need.
    pub fn set(&self, level: bool) {
        if let Some(sink) = &self.sink {
            sink.set_level(self.pin, level);
        }
    }

    /// A rising edge followed by a falling one.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A register model with lines going in; wrapped in a lock it is an [`IrqSink`].
pub trait LineModel: Send {
    /// As [`IrqSink::set_level`].
    fn set_line(&mut self, pin: u32, level: bool);
}

impl<D: LineModel> IrqSink for Mutex<D> {
    fn set_level(&self, pin: u32, level: bool) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_line(pin, level);
    }
}
