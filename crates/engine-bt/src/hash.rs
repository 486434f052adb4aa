//! A hash for integer keys that nobody outside chooses freely enough to make collisions worth while:
//! physical page numbers, addresses of code that really was executed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map from small integer keys.
pub(crate) type IntMap<K, V> = HashMap<K, V, BuildHasherDefault<IntHasher>>;

/// Multiply and fold.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IntHasher(u64);

impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }

    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }

    fn write_u64(&mut self, v: u64) {
        let x = u128::from(self.0 ^ v) * 0x9e37_79b9_7f4a_7c15;
        self.0 = x as u64 ^ (x >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_keys_spread() {
        let hash = |v: u64| {
            let mut h = IntHasher::default();
            h.write_u64(v);
            h.finish()
        };
        // hashbrown takes the bucket from the low bits and a tag from the top seven.
        for shift in [0, 12, 32] {
            let low: std::collections::HashSet<u64> =
                (0..1000u64).map(|n| hash(n << shift) & 0xffff).collect();
            assert!(low.len() > 900, "{shift}: {}", low.len());
        }
    }
}
