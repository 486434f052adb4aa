//! Keyboard controller of a PC with nothing plugged in.
//!
//! Models: the 8042 as PC/AT and PS/2 chipsets program it (IBM PS/2 technical reference, keyboard
//! and auxiliary device controller; Intel 8042 behind it): status, command byte, controller RAM,
//! self-test, interface tests, output port with the A20 gate, output pulses (the reset that kernels
//! use), both ports' enables. Neither port has a device: what is sent to one is answered at once by
//! FEh with the time-out bit, as by a real controller. Not modelled: the password, the input port's
//! jumpers; A20 is remembered, but memory is never masked by it.
//!
//! Offsets: 0 is port 60h, 4 is port 64h.
//!
//! Locks: this device's, then that of what its lines lead to.

use crate::power::{PowerRequest, PowerSink};
use mimeo_bus::{IrqLine, PortDevice, RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

mod status {
    pub const OUTPUT_FULL: u8 = 1;
    pub const SYSTEM: u8 = 4;
    pub const COMMAND: u8 = 8;
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX: u8 = 0x20;
    pub const TIMEOUT: u8 = 0x40;
}
/// The command byte (controller RAM byte 0).
mod command {
    pub const KEYBOARD_IRQ: u8 = 1;
    pub const AUX_IRQ: u8 = 2;
    pub const SYSTEM: u8 = 4;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const AUX_OFF: u8 = 0x20;
}
/// The output port: bit 0 low resets the processors, bit 1 is the A20 gate.
mod output {
    pub const RUN: u8 = 1;
    pub const A20: u8 = 2;
    pub const AUX_FULL: u8 = 0x20;
    pub const KEYBOARD_FULL: u8 = 0x10;
}

/// Saved state of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042V1 {
    /// The 32 bytes of controller RAM; byte 0 is the command byte.
    pub ram: [u8; 32],
    /// The output port.
    pub output: u8,
    /// The byte that waits at port 60h, with its status bits (AUX, time-out).
    pub data: Option<(u8, u8)>,
    /// The command whose parameter the next write to port 60h is.
    pub pending: Option<u8>,
    /// The last write was to port 64h.
    pub last_was_command: bool,
    /// Levels of the keyboard's and the auxiliary port's lines.
    pub irq: [bool; 2],
}

/// The register model.
pub struct I8042 {
    s: I8042V1,
    lines: [IrqLine; 2],
    sink: PowerSink,
}

impl I8042 {
    /// The controller after power-up; `keyboard` is IRQ 1 of a PC, `aux` IRQ 12.
    #[must_use]
    pub fn new(keyboard: IrqLine, aux: IrqLine, sink: PowerSink) -> Self {
        let mut ram = [0; 32];
        ram[0] = command::KEYBOARD_OFF | command::AUX_OFF;
        Self {
            s: I8042V1 {
                ram,
                output: output::RUN | output::A20,
                data: None,
                pending: None,
                last_was_command: false,
                irq: [false; 2],
            },
            lines: [keyboard, aux],
            sink,
        }
    }

    /// RESET.
    pub fn reset(&mut self) {
        self.s.ram = [0; 32];
        self.s.ram[0] = command::KEYBOARD_OFF | command::AUX_OFF;
        self.s.output = output::RUN | output::A20;
        (self.s.data, self.s.pending) = (None, None);
        self.s.last_was_command = false;
        self.update();
    }

    fn update(&mut self) {
        let full = self
            .s
            .data
            .map(|(_, bits)| usize::from(bits & status::AUX != 0));
        for (port, enable) in [(0, command::KEYBOARD_IRQ), (1, command::AUX_IRQ)] {
            let level = full == Some(port) && self.s.ram[0] & enable != 0;
            if level != self.s.irq[port] {
                self.s.irq[port] = level;
                self.lines[port].set(level);
            }
        }
    }

    fn answer(&mut self, byte: u8, bits: u8) {
        self.s.data = Some((byte, bits));
    }

    fn status(&self) -> u8 {
        let data = match self.s.data {
            Some((_, bits)) => status::OUTPUT_FULL | bits,
            None => 0,
        };
        let system = if self.s.ram[0] & command::SYSTEM != 0 {
            status::SYSTEM
        } else {
            0
        };
        let last = if self.s.last_was_command {
            status::COMMAND
        } else {
            0
        };
        data | system | last | status::UNLOCKED
    }

    fn write_output(&mut self, value: u8, means: &'static str) {
        self.s.output = value;
        if value & output::RUN == 0 {
            self.s.output |= output::RUN;
            (self.sink)(PowerRequest::Reset(means));
        }
    }

    fn command(&mut self, byte: u8) {
        self.s.pending = None;
        match byte {
            0x20..=0x3f => self.answer(self.s.ram[usize::from(byte & 31)], 0),
            0x60..=0x7f | 0xd1..=0xd4 => self.s.pending = Some(byte),
            // No password is installed.
            0xa4 => self.answer(0xf1, 0),
            0xa7 => self.s.ram[0] |= command::AUX_OFF,
            0xa8 => self.s.ram[0] &= !command::AUX_OFF,
            // The clock and data lines of both interfaces are good.
            0xa9 | 0xab => self.answer(0, 0),
            0xaa => {
                self.s.ram[0] |= command::SYSTEM;
                self.answer(0x55, 0);
            }
            0xad => self.s.ram[0] |= command::KEYBOARD_OFF,
            0xae => self.s.ram[0] &= !command::KEYBOARD_OFF,
            0xc0 => self.answer(0x80, 0),
            0xd0 => {
                let full = match self.s.data {
                    Some((_, bits)) if bits & status::AUX != 0 => output::AUX_FULL,
                    Some(_) => output::KEYBOARD_FULL,
                    None => 0,
                };
                self.answer(self.s.output & 0xcf | full, 0);
            }
            // Zero bits of the low half are pulsed; bit 0 is the processors' reset.
            0xf0..=0xff if byte & 1 == 0 => {
                (self.sink)(PowerRequest::Reset("keyboard controller"));
            }
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        match self.s.pending.take() {
            Some(c @ 0x60..=0x7f) => self.s.ram[usize::from(c & 31)] = byte,
            Some(0xd1) => self.write_output(byte, "keyboard controller"),
            Some(0xd2) => self.answer(byte, 0),
            Some(0xd3) => self.answer(byte, status::AUX),
            Some(0xd4) => {
                self.s.ram[0] &= !command::AUX_OFF;
                self.answer(0xfe, status::AUX | status::TIMEOUT);
            }
            // For the keyboard, which is not there. Sending enables its port.
            _ => {
                self.s.ram[0] &= !command::KEYBOARD_OFF;
                self.answer(0xfe, status::TIMEOUT);
            }
        }
    }
}

/// The ports are one byte wide; the high bytes of wider writes are ignored.
impl PortDevice for I8042 {
    fn port_read(&mut self, offset: u16, _size: u8) -> u32 {
        let value = match offset {
            0 => {
                let byte = self.s.data.take().map_or(0, |(byte, _)| byte);
                self.update();
                byte
            }
            4 => self.status(),
            _ => 0xff,
        };
        u32::from(value)
    }

    fn port_write(&mut self, offset: u16, _size: u8, value: u32) {
        match offset {
            0 => {
                self.s.last_was_command = false;
                self.data(value as u8);
            }
            4 => {
                self.s.last_was_command = true;
                self.command(value as u8);
            }
            _ => {}
        }
        self.update();
    }
}

impl SaveRestore for I8042 {
    type Saved = I8042V1;

    fn save(&self) -> I8042V1 {
        self.s.clone()
    }

    fn restore(&mut self, saved: &I8042V1) -> Result<(), RestoreError> {
        let bits = saved.data.map_or(0, |(_, bits)| bits);
        RestoreError::unless(
            bits & !(status::AUX | status::TIMEOUT) == 0,
            "the keyboard controller",
            "impossible status bits are set",
        )?;
        self.s = saved.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lines;
    use std::sync::{Arc, Mutex};

    fn controller() -> (I8042, Arc<Lines>, Arc<Mutex<u32>>) {
        let lines = Arc::new(Lines::default());
        let resets = Arc::new(Mutex::new(0));
        let count = resets.clone();
        let c = I8042::new(
            IrqLine::new(lines.clone(), 1),
            IrqLine::new(lines.clone(), 12),
            Arc::new(move |_| *count.lock().unwrap() += 1),
        );
        (c, lines, resets)
    }

    fn ask(c: &mut I8042, command: u32) -> u32 {
        c.port_write(4, 1, command);
        assert_eq!(c.port_read(4, 1) & 1, 1);
        c.port_read(0, 1)
    }

    #[test]
    fn self_test_and_interface_tests() {
        let (mut c, ..) = controller();
        assert_eq!(c.port_read(4, 1), 0x10);
        assert_eq!(ask(&mut c, 0xaa), 0x55);
        assert_eq!(c.port_read(4, 1), 0x1c);
        assert_eq!((ask(&mut c, 0xab), ask(&mut c, 0xa9)), (0, 0));
        assert_eq!(ask(&mut c, 0x20), 0x34);
        c.port_write(4, 1, 0xa8);
        c.port_write(4, 1, 0xae);
        assert_eq!(ask(&mut c, 0x20), 0x04);
        c.port_write(4, 1, 0x65);
        c.port_write(0, 1, 0x77);
        assert_eq!(ask(&mut c, 0x25), 0x77);
    }

    #[test]
    fn absent_devices_time_out_with_their_interrupt() {
        let (mut c, lines, _) = controller();
        c.port_write(4, 1, 0x60);
        c.port_write(0, 1, 0x33);
        c.port_write(0, 1, 0xf2);
        assert!(lines.level(1) && !lines.level(12));
        assert_eq!(c.port_read(4, 1) & 0x61, 0x41);
        assert_eq!(c.port_read(0, 1), 0xfe);
        assert!(!lines.level(1));
        c.port_write(4, 1, 0xd4);
        c.port_write(0, 1, 0xf2);
        assert!(lines.level(12));
        assert_eq!(c.port_read(4, 1) & 0x61, 0x61);
        assert_eq!((c.port_read(0, 1), c.port_read(4, 1) & 1), (0xfe, 0));
    }

    #[test]
    fn output_port_and_reset() {
        let (mut c, _, resets) = controller();
        assert_eq!(ask(&mut c, 0xd0), 3);
        c.port_write(4, 1, 0xd1);
        c.port_write(0, 1, 1);
        assert_eq!(ask(&mut c, 0xd0), 1);
        assert_eq!(*resets.lock().unwrap(), 0);
        c.port_write(4, 1, 0xff);
        assert_eq!(*resets.lock().unwrap(), 0, "FFh pulses nothing");
        c.port_write(4, 1, 0xfe);
        c.port_write(4, 1, 0xd1);
        c.port_write(0, 1, 2);
        assert_eq!(*resets.lock().unwrap(), 2);
        c.port_write(4, 1, 0xd3);
        c.port_write(0, 1, 0x42);
        assert_eq!((c.port_read(4, 1) & 0x21, c.port_read(0, 1)), (0x21, 0x42));
    }
}
