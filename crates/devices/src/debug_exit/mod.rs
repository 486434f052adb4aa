//! A port that ends the VM with a status that the guest chooses: QEMU's `isa-debug-exit`.
//!
//! Models: QEMU's device of that name (a write of `v` of any size ends the emulator with status
//! `(v << 1) | 1`; reads give 0). Where it is bound, and how wide, is the board's choice (test
//! kernels use port F4h, four bytes).

use mimeo_bus::PortDevice;

/// The register model. It has no state.
pub struct DebugExit {
    exit: Box<dyn FnMut(u32) + Send>,
}

impl DebugExit {
    /// `exit` is called with `(v << 1) | 1`, on the thread of the vCPU that wrote.
    pub fn new(exit: Box<dyn FnMut(u32) + Send>) -> Self {
        Self { exit }
    }
}

impl PortDevice for DebugExit {
    fn port_read(&mut self, _offset: u16, _size: u8) -> u32 {
        0
    }

    fn port_write(&mut self, _offset: u16, _size: u8, value: u32) {
        (self.exit)(value << 1 | 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_write_gives_an_odd_status() {
        let (send, got) = mpsc::channel();
        let mut d = DebugExit::new(Box::new(move |s| send.send(s).unwrap()));
        assert_eq!(d.port_read(0, 4), 0);
        assert!(got.try_recv().is_err());
        d.port_write(0, 1, 0x10);
        d.port_write(2, 4, 0);
        assert_eq!(got.try_iter().collect::<Vec<_>>(), [0x21, 1]);
    }
}
