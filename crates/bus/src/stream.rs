//! Byte streams between a device (serial port, console) and the host.
//!
//! Lock order: device, then host side. A host side calls [`StreamDevice`] without holding a lock of
//! its own; a device may call [`StreamHost`] with its own lock held.

use crate::{Timed, TimedModel};
use std::sync::Arc;

/// The host's side of a byte stream, as a device sees it. Never blocks.
pub trait StreamHost: Send + Sync {
    /// Takes bytes that the guest sent, as many as there is room for; gives their number. When that
    /// is fewer than offered, [`StreamDevice::output_ready`] is called once there is room.
    fn write(&self, bytes: &[u8]) -> usize;

    /// The device, which had refused input, has room again.
    fn input_wanted(&self);

    /// Registers the device at the other end. Once, before the VM runs.
    fn connect(&self, device: Arc<dyn StreamDevice>);
}

/// The device's side of a byte stream, as its host side sees it.
pub trait StreamDevice: Send + Sync {
    /// Takes bytes for the guest, as many as there is room for; gives their number. When that is
    /// fewer than offered, [`StreamHost::input_wanted`] is called once there is room.
    fn input(&self, bytes: &[u8]) -> usize;

    /// The host side, which had refused output, has room again.
    fn output_ready(&self);

    /// The terminal at the host's end has this many columns and rows. Devices that cannot tell the
    /// guest ignore it.
    fn resized(&self, columns: u16, rows: u16) {
        let _ = (columns, rows);
    }
}

/// A register model with a byte stream; wrapped in [`crate::Timed`] it is a [`StreamDevice`].
pub trait StreamModel: Send {
    /// As [`StreamDevice::input`].
    fn input(&mut self, bytes: &[u8]) -> usize;

    /// As [`StreamDevice::output_ready`].
    fn output_ready(&mut self);
}

impl<D: StreamModel + TimedModel + 'static> StreamDevice for Timed<D> {
    fn input(&self, bytes: &[u8]) -> usize {
        self.lock().input(bytes)
    }

    fn output_ready(&self) {
        self.lock().output_ready();
    }
}

/// A host side that takes everything and sends nothing.
#[derive(Debug, Default)]
pub struct NullStream;

impl StreamHost for NullStream {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn input_wanted(&self) {}

    fn connect(&self, _device: Arc<dyn StreamDevice>) {}
}
