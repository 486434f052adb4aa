//! INTx: shared, level-triggered lines.

use mimeo_bus::{IrqLine, IrqSink};
use std::sync::{Arc, Mutex, PoisonError};

/// The number of lines that the host bridge has.
pub(super) const LINES: usize = 4;

/// Joins the INTA pins of the 32 slots to four lines: a line is asserted while any of its pins is.
pub struct IntxRouter {
    /// Which slots assert.
    pins: Mutex<u32>,
    lines: [IrqLine; LINES],
}

impl IntxRouter {
    /// Slot `n` leads to `lines[n % 4]`.
    pub fn new(lines: [IrqLine; LINES]) -> Arc<Self> {
        Arc::new(Self {
            pins: Mutex::new(0),
            lines,
        })
    }

    /// The pin of `slot`, 0 to 31.
    #[must_use]
    pub fn pin(self: &Arc<Self>, slot: u8) -> IntxLine {
        IntxLine(IrqLine::new(self.clone(), u32::from(slot & 31)))
    }
}

/// A slot's INTA pin.
#[derive(Debug, Clone)]
pub struct IntxLine(pub IrqLine);

impl IrqSink for IntxRouter {
    fn set_level(&self, pin: u32, level: bool) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1 << (pin & 31);
        *pins = if level { *pins | bit } else { *pins & !bit };
        let line = pin as usize % LINES;
        // The slots `line`, `line + 4`, ...
        let any = *pins & (0x1111_1111 << line) != 0;
        self.lines[line].set(any);
    }
}
