//! The indirect-branch translation cache: guest RIP to host entry, read by translated code at every
//! return, indirect jump and cross-page branch.
//!
//! One for each view, so that a mode can never be entered through another mode's entry
//! (ENGINE-REVIEW F3); the tag is the full 64-bit RIP. 2^16 entries of two words, the RIP and the host
//! address. It lies just below the view's read table, so that rL reaches it. An RIP stands in the entry
//! that its low 16 bits name, or, where that is taken, in the one of bits 6 to 21: two branch targets that
//! are both in use seldom share both.

use crate::hash::IntMap;
use crate::lazy::LazyArray;
use std::sync::Arc;

pub(crate) const ENTRIES: usize = 1 << 16;
/// Bytes of the table.
pub(crate) const BYTES: usize = 16 * ENTRIES;
/// How far an RIP is shifted right for its second entry.
pub(crate) const SECOND: u8 = 6;
/// Fills after which everything is forgotten.
const FILL_LIMIT: usize = 1 << 17;

/// The entries in which an RIP may stand.
pub(crate) const fn slots(rip: u64) -> (u16, u16) {
    (rip as u16, rip.rotate_right(SECOND as u32) as u16)
}

/// One cache.
#[derive(Debug)]
pub(crate) struct Ibtc {
    /// The view's words; the first `2 * ENTRIES` are the cache's.
    words: Arc<LazyArray>,
    /// Slots filled, by guest page, with whether the page was global at every fill.
    by_page: IntMap<u64, (bool, Vec<u16>)>,
    /// Slots filled, by physical page of the code.
    by_phys: IntMap<u32, Vec<u16>>,
    miss: u64,
    /// Fills since the last whole flush: bounds the lists.
    fills: usize,
}

impl Ibtc {
    /// An empty cache at the start of `words`; `miss` is the host address where a branch to an unknown RIP
    /// goes.
    pub(crate) fn new(words: Arc<LazyArray>, miss: u64) -> Self {
        // The tag of an empty entry, zero, is that of RIP 0, whose two entries are number 0.
        words.set(1, miss);
        Self {
            words,
            by_page: IntMap::default(),
            by_phys: IntMap::default(),
            miss,
            fills: 0,
        }
    }

    /// The entry for `rip`: the first if it is empty or has it, else the second.
    fn choose(&self, rip: u64) -> u16 {
        let (first, second) = slots(rip);
        if [0, rip].contains(&self.words.get(2 * usize::from(first))) {
            first
        } else {
            second
        }
    }

    /// Remembers where `rip` is translated.
    pub(crate) fn fill(&mut self, rip: u64, host: u64, phys: u32, global: bool) {
        // Only this vCPU's thread reads and writes its caches, and not at the same time.
        if self.fills >= FILL_LIMIT {
            self.flush(false);
        }
        let slot = self.choose(rip);
        let at = 2 * usize::from(slot);
        self.fills += 1;
        self.words.set(at, rip);
        self.words.set(at + 1, host);
        self.note(rip >> 12, slot, phys, global);
    }

    fn note(&mut self, page: u64, slot: u16, phys: u32, global: bool) {
        let page = self
            .by_page
            .entry(page)
            .or_insert_with(|| (true, Vec::new()));
        page.0 &= global;
        page.1.push(slot);
        self.by_phys.entry(phys).or_default().push(slot);
    }

    /// [`Self::fill`] put in code that continues on the next linear page and on physical page
    /// `second`, which is `global` or not: it goes with those too.
    pub(crate) fn also(&mut self, rip: u64, second: u32, global: bool) {
        let slot = self.choose(rip);
        self.note((rip >> 12).wrapping_add(1), slot, second, global);
    }

    /// The host entry for `rip`, if it is there.
    #[cfg(test)]
    pub(crate) fn get(&self, rip: u64) -> Option<u64> {
        let (first, second) = slots(rip);
        [first, second].into_iter().find_map(|slot| {
            let at = 2 * usize::from(slot);
            (self.words.get(at) == rip && self.words.get(at + 1) != self.miss)
                .then(|| self.words.get(at + 1))
        })
    }

    fn clear(words: &LazyArray, slot: u16, miss: u64) {
        let at = 2 * usize::from(slot);
        words.set(at, 0);
        words.set(at + 1, miss);
    }

    /// Forgets everything (`keep_global`: but what global pages hold).
    pub(crate) fn flush(&mut self, keep_global: bool) {
        let (words, miss) = (&self.words, self.miss);
        self.by_page.retain(|_, (global, slots)| {
            let keep = keep_global && *global;
            if !keep {
                for slot in slots {
                    Self::clear(words, *slot, miss);
                }
            }
            keep
        });
        if !keep_global {
            self.by_phys.clear();
            self.fills = 0;
        }
    }

    /// Forgets the branches into one linear page.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        if let Some((_, slots)) = self.by_page.remove(&(linear >> 12)) {
            for slot in slots {
                Self::clear(&self.words, slot, self.miss);
            }
        }
    }

    /// Forgets the branches into one physical page.
    pub(crate) fn flush_phys(&mut self, page: u32) {
        if let Some(slots) = self.by_phys.remove(&page) {
            for slot in slots {
                Self::clear(&self.words, slot, self.miss);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Ibtc {
        Ibtc::new(Arc::new(LazyArray::new(2 * ENTRIES).unwrap()), 99)
    }

    #[test]
    fn fills_and_flushes() {
        let mut c = cache();
        c.fill(0x40_1000, 7, 1, false);
        c.fill(0xffff_ffff_8100_0010, 8, 2, true);
        assert_eq!(c.get(0x40_1000), Some(7));
        assert_eq!(c.get(0x1_0040_1000), None);
        c.flush(true);
        assert_eq!(c.get(0x40_1000), None);
        assert_eq!(c.get(0xffff_ffff_8100_0010), Some(8));
        c.flush_phys(2);
        assert_eq!(c.get(0xffff_ffff_8100_0010), None);
    }

    /// What spans into a page is flushed with it; what else is global in either page stays.
    #[test]
    fn a_spanning_entry_goes_with_the_page_that_is_not_global() {
        let mut c = cache();
        c.fill(0x1_0010, 6, 1, true);
        c.fill(0x1_0ffe, 7, 1, true);
        c.also(0x1_0ffe, 2, true);
        c.fill(0x1_1010, 8, 2, true);
        c.flush(true);
        assert_eq!(
            [0x1_0010, 0x1_0ffe, 0x1_1010].map(|rip| c.get(rip)),
            [Some(6), Some(7), Some(8)]
        );
        c.fill(0x1_1ffe, 9, 2, true);
        c.also(0x1_1ffe, 3, false);
        c.flush(true);
        assert_eq!((c.get(0x1_1ffe), c.get(0x1_1010)), (None, Some(8)));
        c.flush_page(0x1_1000);
        assert_eq!((c.get(0x1_0ffe), c.get(0x1_0010)), (None, Some(6)));
    }

    #[test]
    fn two_targets_with_the_same_low_bits_are_both_kept() {
        let mut c = cache();
        c.fill(0x41_1230, 7, 1, false);
        c.fill(0x42_1230, 8, 2, false);
        assert_eq!((c.get(0x41_1230), c.get(0x42_1230)), (Some(7), Some(8)));
        c.flush_page(0x42_1000);
        assert_eq!((c.get(0x41_1230), c.get(0x42_1230)), (Some(7), None));
        c.flush_phys(1);
        assert_eq!(c.get(0x41_1230), None);
    }

    #[test]
    fn address_zero_is_never_found_by_accident() {
        let mut c = cache();
        assert_eq!(slots(0), (0, 0));
        assert_eq!(c.get(0), None);
        assert_eq!((c.words.get(0), c.words.get(1)), (0, 99));
        c.fill(0x1_0000, 7, 1, false);
        c.flush(false);
        assert_eq!((c.words.get(0), c.words.get(1)), (0, 99));
    }
}
