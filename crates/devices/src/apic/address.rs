//! How an APIC is addressed, readable without its lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// What others need to know of an APIC to address it, readable without its lock.
#[derive(Debug, Default)]
pub(super) struct Address {
    /// LDR in bits 0 to 31, DFR's model in 32 to 35, enabled 36, x2APIC 37.
    word: AtomicU64,
    /// The base of the MMIO window; 1 when closed.
    window: AtomicU64,
}

/// One look at an [`Address`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Addressed(u64);

impl Addressed {
    pub(super) const fn enabled(self) -> bool {
        self.0 & (1 << 36) != 0
    }

    pub(super) const fn x2apic(self) -> bool {
        self.0 & (1 << 37) != 0
    }

    /// Whether a logical destination means this APIC (SDM vol. 3, 12.6.2.2 and 12.12.10.2).
    pub(super) const fn logical(self, dest: u32, wide: bool) -> bool {
        let ldr = self.0 as u32;
        if self.x2apic() {
            if wide && dest == u32::MAX {
                return true;
            }
            return dest >> 16 == ldr >> 16 && dest & ldr & 0xffff != 0;
        }
        let ldr = ldr >> 24;
        if dest == 0xff || (wide && dest == u32::MAX) {
            return true;
        }
        if (self.0 >> 32) & 0xf == 0xf {
            return dest & ldr & 0xff != 0 && dest <= 0xff;
        }
        dest <= 0xff && dest >> 4 == ldr >> 4 && dest & ldr & 0xf != 0
    }
}

impl Address {
    pub(super) fn set(&self, ldr: u32, dfr: u32, on: bool, x2apic: bool, window: Option<u64>) {
        let word = u64::from(ldr)
            | u64::from(dfr >> 28) << 32
            | u64::from(on) << 36
            | u64::from(x2apic) << 37;
        self.word.store(word, Ordering::Release);
        self.window.store(window.unwrap_or(1), Ordering::Release);
    }

    pub(super) fn get(&self) -> Addressed {
        Addressed(self.word.load(Ordering::Acquire))
    }

    pub(super) fn window(&self) -> Option<u64> {
        Some(self.window.load(Ordering::Acquire)).filter(|&w| w != 1)
    }
}
