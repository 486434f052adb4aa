//! 16550A UART.
//!
//! Models: TL16C550C/PC16550D datasheets (registers, 16-byte FIFOs, trigger levels, character
//! timeout, interrupt priorities, loopback, modem status deltas, break and error bits) as a PC wires
//! it: a 1.8432 MHz clock, OUT2 gates the interrupt line. Not modelled: the time that characters
//! take on the wire (a character has left as soon as the host takes it; the divisor sets the
//! character timeout only), DMA mode's pins, and line noise (errors arise in loopback only).
//!
//! The other end honours RTS (TIA-232 flow control) and never overruns: input waits at the host
//! until the guest asserts RTS and there is room, so that nothing typed or piped before the guest's
//! driver is ready is lost in its probing. Output that the host refuses stays in the transmit FIFO,
//! and THRE stays clear.
//!
//! Locks: this device's, then the interrupt controller's or the host side's.

use mimeo_bus::{
    Clock, IrqLine, Nanos, PortDevice, RestoreError, SaveRestore, StreamHost, StreamModel,
    TimedModel,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Depth of both FIFOs, in characters.
const FIFO: usize = 16;
/// The clock that the baud rate generator divides, in Hz, over 16 (one bit time at divisor 1).
const BIT_CLOCK: u64 = 1_843_200 / 16;

mod ier {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMITTER: u8 = 2;
    pub const LINE: u8 = 4;
    pub const MODEM: u8 = 8;
}
mod lcr {
    pub const BREAK: u8 = 0x40;
    pub const DLAB: u8 = 0x80;
}
mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    pub const OUT2: u8 = 8;
    pub const LOOP: u8 = 0x10;
}
mod lsr {
    pub const DATA: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const FRAMING: u8 = 8;
    pub const BREAK: u8 = 0x10;
    pub const THRE: u8 = 0x20;
    pub const TEMT: u8 = 0x40;
    pub const FIFO_ERROR: u8 = 0x80;
    pub const ERRORS: u8 = 0x1e;
}
mod msr {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
    /// CTS, DSR and DCD changed; RI went away.
    pub const DELTA: [(u8, u8); 3] = [(CTS, 1), (DSR, 2), (DCD, 8)];
    pub const RI_TRAILING: u8 = 4;
}

/// Saved state of a 16550A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart16550V1 {
    /// Divisor latch.
    pub divisor: u16,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register: bit 0 and the trigger level.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Modem status register.
    pub msr: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Overrun, as LSR will show it.
    pub overrun: bool,
    /// Received characters with their LSR error bits, oldest first.
    pub received: Vec<(u8, u8)>,
    /// Error bits of the character at the head of the FIFO that LSR has not shown yet.
    pub head_errors: u8,
    /// Characters that the host has not taken yet, oldest first.
    pub transmit: Vec<u8>,
    /// The transmitter-empty interrupt is pending.
    pub thre_pending: bool,
    /// When the character timeout is due (VM time).
    pub timeout_at: Option<Nanos>,
    /// The character timeout has come.
    pub timeout: bool,
    /// The interrupt line's level.
    pub irq: bool,
    /// The host was refused input.
    pub input_refused: bool,
}

/// The register model.
pub struct Uart16550 {
    s: Uart16550V1,
    clock: Arc<dyn Clock>,
    irq: IrqLine,
    host: Arc<dyn StreamHost>,
}

impl Uart16550 {
    /// A UART after power-up.
    pub fn new(clock: Arc<dyn Clock>, irq: IrqLine, host: Arc<dyn StreamHost>) -> Self {
        Self {
            s: Uart16550V1 {
                divisor: 1,
                ier: 0,
                fcr: 0,
                lcr: 0,
                mcr: 0,
                msr: msr::CTS | msr::DSR | msr::DCD,
                scratch: 0,
                overrun: false,
                received: Vec::new(),
                head_errors: 0,
                transmit: Vec::new(),
                thre_pending: false,
                timeout_at: None,
                timeout: false,
                irq: false,
                input_refused: false,
            },
            clock,
            irq,
            host,
        }
    }

    /// Master reset: all but the divisor latch, the scratch register and the receiver buffer.
    pub fn reset(&mut self) {
        let s = &mut self.s;
        (s.ier, s.fcr, s.lcr, s.mcr) = (0, 0, 0, 0);
        s.msr = msr::CTS | msr::DSR | msr::DCD;
        (s.overrun, s.head_errors, s.thre_pending) = (false, 0, false);
        s.transmit.clear();
        self.clear_receiver();
        self.update();
    }

    fn fifos(&self) -> bool {
        self.s.fcr & 1 != 0
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if self.fifos() {
            [1, 4, 8, 14][usize::from(self.s.fcr >> 6)]
        } else {
            1
        }
    }

    /// Bit times of one character on the wire: start, data, parity and stop bits.
    fn character_bits(&self) -> u64 {
        let parity = u64::from(self.s.lcr >> 3 & 1);
        let stop = 1 + u64::from(self.s.lcr >> 2 & 1);
        1 + 5 + u64::from(self.s.lcr & 3) + parity + stop
    }

    /// Four character times (datasheet: FIFO interrupt mode operation).
    fn timeout_time(&self) -> Nanos {
        let divisor = u64::from(self.s.divisor.max(1));
        4 * self.character_bits() * divisor * 1_000_000_000 / BIT_CLOCK
    }

    /// Starts the character timeout anew after a character came or went.
    fn restart_timeout(&mut self) {
        self.s.timeout = false;
        let waits = self.fifos() && !self.s.received.is_empty();
        self.s.timeout_at = waits.then(|| self.clock.now().saturating_add(self.timeout_time()));
    }

    fn clear_receiver(&mut self) {
        self.s.received.clear();
        self.s.head_errors = 0;
        self.restart_timeout();
        self.input_wanted();
    }

    fn input_wanted(&mut self) {
        if std::mem::take(&mut self.s.input_refused) {
            self.host.input_wanted();
        }
    }

    fn lsr(&self) -> u8 {
        let s = &self.s;
        let mut value = s.head_errors;
        if !s.received.is_empty() {
            value |= lsr::DATA;
        }
        if s.overrun {
            value |= lsr::OVERRUN;
        }
        if s.transmit.is_empty() {
            value |= lsr::THRE | lsr::TEMT;
        }
        if self.fifos() && (s.head_errors != 0 || s.received.iter().skip(1).any(|c| c.1 != 0)) {
            value |= lsr::FIFO_ERROR;
        }
        value
    }

    /// The interrupt identification: the highest-priority pending interrupt.
    fn iir(&self) -> u8 {
        let s = &self.s;
        if s.ier & ier::LINE != 0 && self.lsr() & lsr::ERRORS != 0 {
            6
        } else if s.ier & ier::RECEIVED != 0 && s.received.len() >= self.trigger() {
            4
        } else if s.ier & ier::RECEIVED != 0 && s.timeout {
            0xc
        } else if s.ier & ier::TRANSMITTER != 0 && s.thre_pending {
            2
        } else if s.ier & ier::MODEM != 0 && s.msr & 0xf != 0 {
            0
        } else {
            1
        }
    }

    fn update(&mut self) {
        // In loopback the OUT2 pin is inactive, and with it a PC's interrupt line.
        let gate = self.s.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2;
        let level = gate && self.iir() != 1;
        if level != self.s.irq {
            self.s.irq = level;
            self.irq.set(level);
        }
    }

    /// A character arrives with its error bits.
    fn receive(&mut self, character: u8, errors: u8) {
        if self.s.received.len() >= self.depth() {
            self.s.overrun = true;
            if !self.fifos() {
                // Without FIFOs the new character takes the old one's place.
                self.s.received[0] = (character, errors);
                self.s.head_errors = errors;
            }
        } else {
            if self.s.received.is_empty() {
                self.s.head_errors = errors;
            }
            self.s.received.push((character, errors));
        }
        self.restart_timeout();
    }

    fn take_received(&mut self) -> u8 {
        if self.s.received.is_empty() {
            return 0;
        }
        let (character, _) = self.s.received.remove(0);
        self.s.head_errors = self.s.received.first().map_or(0, |c| c.1);
        self.restart_timeout();
        self.input_wanted();
        character
    }

    fn drain(&mut self) {
        if !self.s.transmit.is_empty() {
            let taken = self.host.write(&self.s.transmit).min(self.s.transmit.len());
            self.s.transmit.drain(..taken);
            self.s.thre_pending |= self.s.transmit.is_empty();
        }
    }

    fn transmit(&mut self, character: u8) {
        self.s.thre_pending = false;
        if self.s.mcr & mcr::LOOP != 0 {
            let mask = 0xff >> (3 - (self.s.lcr & 3));
            self.receive(character & mask, 0);
            self.s.thre_pending = true;
        } else {
            if self.s.transmit.len() < self.depth() {
                self.s.transmit.push(character);
            }
            self.drain();
        }
    }

    /// The modem inputs as the control outputs and loopback leave them.
    fn update_modem(&mut self) {
        let m = self.s.mcr;
        let inputs = if m & mcr::LOOP == 0 {
            msr::CTS | msr::DSR | msr::DCD
        } else {
            [
                (mcr::RTS, msr::CTS),
                (mcr::DTR, msr::DSR),
                (mcr::OUT1, msr::RI),
                (mcr::OUT2, msr::DCD),
            ]
            .iter()
            .filter(|(out, _)| m & out != 0)
            .fold(0, |sum, (_, input)| sum | input)
        };
        let changed = (self.s.msr ^ inputs) & 0xf0;
        let mut deltas = self.s.msr & 0xf;
        for (input, delta) in msr::DELTA {
            if changed & input != 0 {
                deltas |= delta;
            }
        }
        if changed & msr::RI != 0 && inputs & msr::RI == 0 {
            deltas |= msr::RI_TRAILING;
        }
        self.s.msr = inputs | deltas;
    }

    fn write_fcr(&mut self, value: u8) {
        // Changing the enable bit clears both FIFOs; without it the other bits are not written.
        let toggled = (self.s.fcr ^ value) & 1 != 0;
        let clears = if value & 1 != 0 { value } else { 0 };
        if toggled || clears & 2 != 0 {
            self.clear_receiver();
        }
        if toggled || clears & 4 != 0 {
            self.s.thre_pending |= !self.s.transmit.is_empty();
            self.s.transmit.clear();
        }
        self.s.fcr = if value & 1 != 0 { value & 0xc9 } else { 0 };
    }

    fn write_lcr(&mut self, value: u8) {
        let began = value & !self.s.lcr & lcr::BREAK != 0;
        self.s.lcr = value;
        if began && self.s.mcr & mcr::LOOP != 0 {
            self.receive(0, lsr::BREAK | lsr::FRAMING);
        }
    }

    fn write_ier(&mut self, value: u8) {
        let new = value & 0xf;
        if new & !self.s.ier & ier::TRANSMITTER != 0 && self.s.transmit.is_empty() {
            self.s.thre_pending = true;
        }
        self.s.ier = new;
    }

    /// Reads register `offset`, 0 to 7.
    pub fn read(&mut self, offset: u16) -> u8 {
        let latch = self.s.lcr & lcr::DLAB != 0;
        let [low, high] = self.s.divisor.to_le_bytes();
        let value = match offset & 7 {
            0 if latch => low,
            0 => self.take_received(),
            1 if latch => high,
            1 => self.s.ier,
            2 => {
                let iir = self.iir();
                if iir == 2 {
                    self.s.thre_pending = false;
                }
                iir | if self.fifos() { 0xc0 } else { 0 }
            }
            3 => self.s.lcr,
            4 => self.s.mcr,
            5 => {
                let value = self.lsr();
                self.s.overrun = false;
                self.s.head_errors = 0;
                value
            }
            6 => {
                let value = self.s.msr;
                self.s.msr &= 0xf0;
                value
            }
            _ => self.s.scratch,
        };
        self.update();
        value
    }

    /// Writes register `offset`, 0 to 7.
    pub fn write(&mut self, offset: u16, value: u8) {
        let latch = self.s.lcr & lcr::DLAB != 0;
        let [low, high] = self.s.divisor.to_le_bytes();
        match offset & 7 {
            0 if latch => self.s.divisor = u16::from_le_bytes([value, high]),
            0 => self.transmit(value),
            1 if latch => self.s.divisor = u16::from_le_bytes([low, value]),
            1 => self.write_ier(value),
            2 => self.write_fcr(value),
            3 => self.write_lcr(value),
            4 => {
                self.s.mcr = value & 0x1f;
                self.update_modem();
                if self.s.mcr & (mcr::LOOP | mcr::RTS) == mcr::RTS {
                    self.input_wanted();
                }
            }
            7 => self.s.scratch = value,
            // LSR and MSR are for factory tests.
            _ => {}
        }
        self.update();
    }
}

impl StreamModel for Uart16550 {
    fn input(&mut self, bytes: &[u8]) -> usize {
        // In loopback the receiver is cut off from its pin and RTS is inactive.
        let room = if self.s.mcr & (mcr::LOOP | mcr::RTS) == mcr::RTS {
            self.depth().saturating_sub(self.s.received.len())
        } else {
            0
        };
        let n = room.min(bytes.len());
        for &b in &bytes[..n] {
            self.receive(b, 0);
        }
        self.s.input_refused |= n < bytes.len();
        self.update();
        n
    }

    fn output_ready(&mut self) {
        self.drain();
        self.update();
    }
}

impl TimedModel for Uart16550 {
    fn deadline(&self) -> Option<Nanos> {
        self.s.timeout_at
    }

    fn due(&mut self, now: Nanos) {
        if self.s.timeout_at.is_some_and(|at| at <= now) {
            self.s.timeout_at = None;
            self.s.timeout = true;
            self.update();
        }
    }
}

/// Registers are one byte wide; wider accesses see consecutive registers, as on a PC's ISA bus.
impl PortDevice for Uart16550 {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        (0..u16::from(size.min(4))).fold(0, |value, i| {
            value | u32::from(self.read(offset.wrapping_add(i))) << (8 * i)
        })
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        for i in 0..u16::from(size.min(4)) {
            self.write(offset.wrapping_add(i), (value >> (8 * i)) as u8);
        }
    }
}

impl SaveRestore for Uart16550 {
    type Saved = Uart16550V1;

    fn save(&self) -> Uart16550V1 {
        self.s.clone()
    }

    fn restore(&mut self, saved: &Uart16550V1) -> Result<(), RestoreError> {
        let check = |ok, what| RestoreError::unless(ok, "a 16550A", what);
        let depth = if saved.fcr & 1 != 0 { FIFO } else { 1 };
        check(
            saved.received.len() <= depth && saved.transmit.len() <= depth,
            "a FIFO is longer than its depth",
        )?;
        let errors = saved
            .received
            .iter()
            .fold(saved.head_errors, |a, c| a | c.1);
        check(
            saved.mcr < 0x20 && saved.ier < 0x10 && errors & !(lsr::ERRORS & !lsr::OVERRUN) == 0,
            "reserved bits are set",
        )?;
        self.s = saved.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
