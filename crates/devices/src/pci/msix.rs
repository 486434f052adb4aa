//! MSI-X (PCI 3.0, 6.8.2): the table, the pending bits, and the capability's message control.

use mimeo_bus::RestoreError;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where message-signalled interrupts go: the local APICs.
pub trait MsiSink: Send + Sync {
    /// A write of `data` to `address`.
    fn message(&self, address: u64, data: u32);
}

impl MsiSink for crate::apic::ApicBus {
    fn message(&self, address: u64, data: u32) {
        self.send_msi(address, data);
    }
}

/// Message control: MSI-X is enabled; all vectors are masked.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: masked.
const MASKED: u32 = 1;
/// The most vectors that one function has here.
const MOST: usize = 64;
/// Where the pending bits begin in the BAR.
const PENDING: u64 = 0x800;

/// One vector: address, data, vector control.
type Entry = (u64, u32, u32);

/// Saved state of a function's MSI-X.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixV1 {
    /// (address, data, vector control) of each vector.
    pub table: Vec<(u64, u32, u32)>,
    /// Pending bits.
    pub pending: u64,
    /// Message control, bits 14 and 15.
    pub control: u16,
}

/// A function's MSI-X. Shared between the function and the threads that complete its work.
///
/// Its lock is held while a message is sent: device, this, APIC.
pub struct Msix {
    state: Mutex<MsixV1>,
    sink: Arc<dyn MsiSink>,
}

impl Msix {
    /// Bytes of the BAR that holds table and pending bits.
    pub const BAR_SIZE: u64 = 0x1000;
    /// Capability ID.
    pub const CAPABILITY: u8 = 0x11;

    /// `vectors` masked vectors, 1 to 64.
    pub fn new(vectors: usize, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let vectors = vectors.clamp(1, MOST);
        Arc::new(Self {
            state: Mutex::new(MsixV1 {
                table: vec![(0, 0, MASKED); vectors],
                pending: 0,
                control: 0,
            }),
            sink,
        })
    }

    fn lock(&self) -> MutexGuard<'_, MsixV1> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capability's body and its writable bits, for a table in BAR `bar`.
    #[must_use]
    pub fn capability(&self, bar: u8) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        let last = self.lock().table.len() - 1;
        body[..2].copy_from_slice(&(last as u16).to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        let pending = PENDING as u32 | u32::from(bar);
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Message control was written.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.control = control & (ENABLE | FUNCTION_MASK);
        self.flush(&mut state);
    }

    /// Whether MSI-X is enabled (INTx is not used then).
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.lock().control & ENABLE != 0
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        // At most 64.
        self.lock().table.len() as u16
    }

    /// Sends the message of `vector`, or keeps it pending while that is masked. Without effect for a
    /// vector that does not exist (FFFFh: none) and while MSI-X is disabled.
    pub fn trigger(&self, vector: u16) {
        let mut state = self.lock();
        if usize::from(vector) < state.table.len() && state.control & ENABLE != 0 {
            state.pending |= 1 << vector;
            self.flush(&mut state);
        }
    }

    /// Sends what is pending and not masked.
    fn flush(&self, state: &mut MsixV1) {
        if state.pending == 0 || state.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return;
        }
        for (i, &(address, data, control)) in state.table.iter().enumerate() {
            if state.pending & (1 << i) != 0 && control & MASKED == 0 {
                state.pending &= !(1 << i);
                self.sink.message(address, data);
            }
        }
    }

    /// A load from the BAR. The table wants aligned accesses of 4 or 8 bytes; others read as zero.
    #[must_use]
    pub fn bar_read(&self, offset: u64, size: u8) -> u64 {
        let word = |at: u64| u64::from(self.read_word(at));
        match size {
            4 if offset & 3 == 0 => word(offset),
            8 if offset & 7 == 0 => word(offset) | word(offset + 4) << 32,
            _ => 0,
        }
    }

    fn read_word(&self, offset: u64) -> u32 {
        let state = self.lock();
        if offset >= PENDING {
            return match offset - PENDING {
                0 => state.pending as u32,
                4 => (state.pending >> 32) as u32,
                _ => 0,
            };
        }
        let entry = state.table.get((offset / 16) as usize);
        entry.map_or(0, |&(address, data, control)| match offset % 16 / 4 {
            0 => address as u32,
            1 => (address >> 32) as u32,
            2 => data,
            _ => control,
        })
    }

    /// A store to the BAR. The pending bits are read-only.
    pub fn bar_write(&self, offset: u64, size: u8, value: u64) {
        match size {
            4 if offset & 3 == 0 => self.write_word(offset, value as u32),
            8 if offset & 7 == 0 => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }

    fn write_word(&self, offset: u64, value: u32) {
        let mut state = self.lock();
        if offset >= PENDING {
            return;
        }
        let Some(entry) = state.table.get_mut((offset / 16) as usize) else {
            return;
        };
        let (low, high) = (entry.0 as u32, (entry.0 >> 32) as u32);
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        match offset % 16 / 4 {
            0 => entry.0 = join(value & !3, high),
            1 => entry.0 = join(low, value),
            2 => entry.1 = value,
            _ => entry.2 = value & MASKED,
        }
        self.flush(&mut state);
    }

    /// RESET.
    pub fn reset(&self) {
        let mut state = self.lock();
        let masked: Entry = (0, 0, MASKED);
        state.table.fill(masked);
        (state.pending, state.control) = (0, 0);
    }

    /// The state now.
    #[must_use]
    pub fn save(&self) -> MsixV1 {
        self.lock().clone()
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// [`RestoreError`] when it has another number of vectors.
    pub fn restore(&self, saved: &MsixV1) -> Result<(), RestoreError> {
        let mut state = self.lock();
        let vectors = state.table.len();
        let valid = saved.table.len() == vectors
            && (vectors == MOST || saved.pending >> vectors == 0)
            && saved.control & !(ENABLE | FUNCTION_MASK) == 0;
        RestoreError::unless(valid, "MSI-X", "it is of another function")?;
        state.clone_from(saved);
        Ok(())
    }
}
