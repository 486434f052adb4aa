//! The reset control register and port 92h.

use super::{PowerRequest, PowerSink};
use mimeo_bus::{PortDevice, RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

/// Saved state of the reset control register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlV1 {
    /// The register, without bit 2.
    pub value: u8,
}

/// Port CF9h: bit 1 chooses a hard reset, bit 2 going from 0 to 1 resets, bit 3 asks for a power
/// cycle. All of them reset the whole machine here.
pub struct ResetControl {
    s: ResetControlV1,
    sink: PowerSink,
}

impl ResetControl {
    /// The register after power-up.
    #[must_use]
    pub fn new(sink: PowerSink) -> Self {
        Self {
            s: ResetControlV1::default(),
            sink,
        }
    }

    /// RESET.
    pub fn reset(&mut self) {
        self.s = ResetControlV1::default();
    }
}

impl PortDevice for ResetControl {
    fn port_read(&mut self, _offset: u16, _size: u8) -> u32 {
        u32::from(self.s.value)
    }

    fn port_write(&mut self, _offset: u16, _size: u8, value: u32) {
        // Bit 2 is never seen set: the machine that set it is gone.
        self.s.value = value as u8 & 0xa;
        if value & 4 != 0 {
            (self.sink)(PowerRequest::Reset("port cf9h"));
        }
    }
}

impl SaveRestore for ResetControl {
    type Saved = ResetControlV1;

    fn save(&self) -> ResetControlV1 {
        self.s
    }

    fn restore(&mut self, saved: &ResetControlV1) -> Result<(), RestoreError> {
        let valid = saved.value & !0xa == 0;
        RestoreError::unless(valid, "the reset control register", "reserved bits are set")?;
        self.s = *saved;
        Ok(())
    }
}

/// Saved state of port 92h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port92V1 {
    /// The register: bit 0 reset, bit 1 A20.
    pub value: u8,
}

/// Port 92h: bit 0 going from 0 to 1 resets the processors, bit 1 is the A20 gate.
pub struct Port92 {
    s: Port92V1,
    sink: PowerSink,
}

impl Port92 {
    /// The register after power-up, with A20 open as firmware leaves it.
    #[must_use]
    pub fn new(sink: PowerSink) -> Self {
        Self {
            s: Port92V1 { value: 2 },
            sink,
        }
    }

    /// RESET.
    pub fn reset(&mut self) {
        self.s.value = 2;
    }
}

impl PortDevice for Port92 {
    fn port_read(&mut self, _offset: u16, _size: u8) -> u32 {
        u32::from(self.s.value)
    }

    fn port_write(&mut self, _offset: u16, _size: u8, value: u32) {
        let rises = value as u8 & !self.s.value & 1 != 0;
        self.s.value = value as u8 & 3;
        if rises {
            (self.sink)(PowerRequest::Reset("port 92h"));
        }
    }
}

impl SaveRestore for Port92 {
    type Saved = Port92V1;

    fn save(&self) -> Port92V1 {
        self.s
    }

    fn restore(&mut self, saved: &Port92V1) -> Result<(), RestoreError> {
        RestoreError::unless(saved.value < 4, "port 92h", "reserved bits are set")?;
        self.s = *saved;
        Ok(())
    }
}
