//! Canonical linear addresses (SDM vol. 1, 3.3.7.1).

/// Number of linear-address bits with 4-level paging.
pub const BITS_4_LEVEL: u32 = 48;
/// Number of linear-address bits with 5-level paging.
pub const BITS_5_LEVEL: u32 = 57;

/// Whether `address` is canonical: bits 63 to `bits`-1 are all alike. `bits` is 48, or 57 when
/// CR4.LA57 is set.
#[inline]
#[must_use]
pub const fn is_canonical(address: u64, la57: bool) -> bool {
    let shift = 64 - if la57 { BITS_5_LEVEL } else { BITS_4_LEVEL };
    (((address << shift) as i64) >> shift) as u64 == address
}

/// Whether all of `len` bytes from `address` are canonical. A range that wraps from the highest
/// address to zero stays canonical; a range that enters the hole does not. `len` is at least 1.
#[inline]
#[must_use]
pub const fn range_is_canonical(address: u64, len: u64, la57: bool) -> bool {
    is_canonical(address, la57) && is_canonical(address.wrapping_add(len - 1), la57)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_of_both_widths() {
        for (bits, la57) in [(48, false), (57, true)] {
            let half = 1u64 << (bits - 1);
            for (a, ok) in [
                (0, true),
                (half - 1, true),
                (half, false),
                (half.wrapping_neg() - 1, false),
                (half.wrapping_neg(), true),
                (u64::MAX, true),
            ] {
                assert_eq!(is_canonical(a, la57), ok, "{a:#x} with {bits} bits");
            }
            assert!(range_is_canonical(half - 8, 8, la57));
            assert!(!range_is_canonical(half - 7, 8, la57));
            assert!(range_is_canonical(u64::MAX, 2, la57));
        }
    }
}
