//! The indirect-branch translation cache: guest RIP to host entry, read by translated code at every
//! return, indirect jump and cross-page branch.
//!
//! One for each view, so that a mode can never be entered through another mode's entry
//! (ENGINE-REVIEW F3); the tag is the full 64-bit RIP. 2^16 entries of two words, by the low 16
//! bits of RIP: the tag as `!RIP` (so that one LEA tells a match without touching flags) and the host
//! address.

use crate::hash::IntMap;
use crate::lazy::LazyArray;
use std::io;

const ENTRIES: usize = 1 << 16;
/// Fills after which everything is forgotten.
const FILL_LIMIT: usize = 1 << 17;

/// One cache.
#[derive(Debug)]
pub(crate) struct Ibtc {
    words: LazyArray,
    /// Slots filled, by guest page, with whether the page was global.
    by_page: IntMap<u64, (bool, Vec<u16>)>,
    /// Slots filled, by physical page of the code.
    by_phys: IntMap<u32, Vec<u16>>,
    miss: u64,
    /// Fills since the last whole flush: bounds the lists.
    fills: usize,
}

impl Ibtc {
    /// An empty cache; `miss` is the host address where a branch to an unknown RIP goes.
    pub(crate) fn new(miss: u64) -> io::Result<Self> {
        let words = LazyArray::new(2 * ENTRIES)?;
        // The tag of an empty slot, zero, is that of RIP = 2^64 - 1.
        words.set(2 * (ENTRIES - 1) + 1, miss);
        Ok(Self {
            words,
            by_page: IntMap::default(),
            by_phys: IntMap::default(),
            miss,
            fills: 0,
        })
    }

    /// Address of the first entry.
    pub(crate) fn address(&self) -> u64 {
        self.words.address()
    }

    /// Remembers where `rip` is translated.
    pub(crate) fn fill(&mut self, rip: u64, host: u64, phys: u32, global: bool) {
        let slot = rip as u16;
        let at = 2 * usize::from(slot);
        // Only this vCPU's thread reads and writes its caches, and not at the same time.
        if self.fills >= FILL_LIMIT {
            self.flush(false);
        }
        self.fills += 1;
        self.words.set(at, !rip);
        self.words.set(at + 1, host);
        let page = self.by_page.entry(rip >> 12).or_default();
        page.0 = global;
        page.1.push(slot);
        self.by_phys.entry(phys).or_default().push(slot);
    }

    /// [`Self::fill`] put in code that continues on the next linear page and on physical page
    /// `second`: it goes with those too.
    pub(crate) fn also(&mut self, rip: u64, second: u32) {
        let slot = rip as u16;
        let page = self.by_page.entry((rip >> 12).wrapping_add(1)).or_default();
        page.0 = false;
        page.1.push(slot);
        self.by_phys.entry(second).or_default().push(slot);
    }

    /// The host entry for `rip`, if it is there.
    #[cfg(test)]
    pub(crate) fn get(&self, rip: u64) -> Option<u64> {
        let at = 2 * usize::from(rip as u16);
        (self.words.get(at) == !rip && self.words.get(at + 1) != self.miss)
            .then(|| self.words.get(at + 1))
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

    #[test]
    fn fills_and_flushes() {
        let mut c = Ibtc::new(99).unwrap();
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

    #[test]
    fn the_last_address_is_never_found_by_accident() {
        let c = Ibtc::new(99).unwrap();
        assert_eq!(c.words.get(2 * 0xffff), !u64::MAX);
        assert_eq!(c.words.get(2 * 0xffff + 1), 99);
    }
}
