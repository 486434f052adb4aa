//! A set of interrupt vectors: IRR, ISR or TMR.

use serde::{Deserialize, Serialize};

/// 256 bits, one a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// The highest vector in the set.
    #[inline]
    #[must_use]
    pub fn highest(&self) -> Option<u8> {
        (0..4u8).rev().find_map(|i| {
            let word = self.0[usize::from(i)];
            // A set bit has an index below 64, so the sum fits.
            (word != 0).then(|| i * 64 + (63 - word.leading_zeros() as u8))
        })
    }

    /// Whether `vector` is in the set.
    #[inline]
    #[must_use]
    pub const fn has(&self, vector: u8) -> bool {
        self.0[(vector >> 6) as usize] & (1 << (vector & 63)) != 0
    }

    /// Adds `vector`.
    #[inline]
    pub const fn set(&mut self, vector: u8) {
        self.0[(vector >> 6) as usize] |= 1 << (vector & 63);
    }

    /// Removes `vector`.
    #[inline]
    pub const fn clear(&mut self, vector: u8) {
        self.0[(vector >> 6) as usize] &= !(1 << (vector & 63));
    }

    /// The register `index` (0 to 7) of 32 vectors, lowest first.
    #[must_use]
    pub const fn word(&self, index: u32) -> u32 {
        (self.0[(index / 2 % 4) as usize] >> (index % 2 * 32)) as u32
    }
}
