//! The linear addend tables: a vCPU's software TLB that translated code reads directly.
//!
//! A view is a pair of tables, read and write, of 2^36 words each: word `va[47:12]` holds
//! `host page - guest page`, or zero when there is no such right (or no translation yet). Zero is
//! what untouched anonymous memory reads as, so an absent page is always safe; every site tests for
//! it. A word is filled only with the rights of the view's privilege, and the write word only when the
//! page is RAM, dirty already, and watched by nobody (no translated code, no dirty log).
//!
//! The tables have TLB semantics (SDM vol. 3, 5.10): they are per vCPU, and only that vCPU's own
//! maintenance flushes them, save for the revocation of write words when a page becomes code.

use crate::lazy::LazyArray;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;

/// Words in one table.
pub(crate) const ENTRIES: usize = 1 << 36;
/// Words before the read table: the view's branch cache.
const CACHE: usize = 2 * crate::ibtc::ENTRIES;
/// Where the write table begins.
const WRITE: usize = CACHE + ENTRIES;
/// Bytes from the read table to the write table: the GS base of vCPU threads.
pub(crate) const WRITE_DISTANCE: u64 = (ENTRIES as u64) * 8;
/// Fills of one view before it is flushed as a whole.
const LOG_LIMIT: usize = 1 << 16;
/// Pages of table memory (each for 2 MB of linear addresses; read and write count as one) that one
/// view may touch before they are given back to the host.
const PAGE_LIMIT: usize = 2048;

/// The table index of a linear address.
pub(crate) const fn index(linear: u64) -> usize {
    (linear << 16 >> 28) as usize
}

/// Takes back one write right in a view's words.
pub(crate) fn revoke(words: &LazyArray, i: usize) {
    words.swap(WRITE + i, 0);
}

/// One pair of tables, with the view's branch cache just below.
#[derive(Debug)]
pub(crate) struct View {
    words: Arc<LazyArray>,
    /// Indices filled from global pages, and the others.
    global: Vec<u64>,
    local: Vec<u64>,
    /// Pages of table memory touched, by `index / 512`.
    touched: HashSet<u32>,
    /// The newest table page, to keep most fills away from the set.
    last: u32,
}

impl View {
    /// Reserves address space for one view: 1 TB and 1 MB, no memory.
    ///
    /// # Errors
    /// The host's, when the process may not reserve that much.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            words: Arc::new(LazyArray::new(CACHE + 2 * ENTRIES)?),
            global: Vec::new(),
            local: Vec::new(),
            touched: HashSet::new(),
            last: u32::MAX,
        })
    }

    /// The tables, for other vCPUs' revocations.
    pub(crate) fn words(&self) -> Arc<LazyArray> {
        self.words.clone()
    }

    /// Address of the read table.
    pub(crate) fn address(&self) -> u64 {
        self.words.address() + 8 * CACHE as u64
    }

    /// Fills the read word, and the write word if `write`. True if the view had to be flushed to
    /// stay within its budget.
    pub(crate) fn fill(&mut self, linear: u64, addend: u64, write: bool, global: bool) -> bool {
        let i = index(linear);
        let mut flushed = false;
        let page = (i / 512) as u32;
        if page != self.last {
            self.last = page;
            if !self.touched.contains(&page) {
                if self.touched.len() >= PAGE_LIMIT {
                    self.release();
                    flushed = true;
                }
                self.touched.insert(page);
            }
        }
        if self.global.len() + self.local.len() >= LOG_LIMIT {
            self.flush_all();
            flushed = true;
        }
        if self.words.get(CACHE + i) == 0 && self.words.get(WRITE + i) == 0 {
            if global {
                self.global.push(i as u64);
            } else {
                self.local.push(i as u64);
            }
        }
        self.words.set(CACHE + i, addend);
        if write {
            self.words.swap(WRITE + i, addend);
        }
        flushed
    }

    fn clear(&self, i: usize) {
        self.words.set(CACHE + i, 0);
        self.words.set(WRITE + i, 0);
    }

    /// Takes back the write right of one entry.
    pub(crate) fn revoke_write(&self, i: usize) {
        revoke(&self.words, i);
    }

    /// Takes back every write right.
    pub(crate) fn revoke_writes(&self) {
        for &i in self.global.iter().chain(&self.local) {
            self.words.set(WRITE + i as usize, 0);
        }
    }

    /// Forgets everything.
    pub(crate) fn flush_all(&mut self) {
        for i in std::mem::take(&mut self.global) {
            self.clear(i as usize);
        }
        self.flush_local();
    }

    /// Forgets everything but global pages.
    pub(crate) fn flush_local(&mut self) {
        let mut local = std::mem::take(&mut self.local);
        for &i in &local {
            self.clear(i as usize);
        }
        local.clear();
        self.local = local;
    }

    /// Forgets one page.
    pub(crate) fn flush_page(&self, linear: u64) {
        let i = index(linear);
        if self.touched.contains(&((i / 512) as u32)) {
            self.clear(i);
        }
    }

    /// Forgets the 2 MB around `linear`.
    pub(crate) fn flush_2m(&self, linear: u64) {
        let first = index(linear) & !511;
        if self.touched.contains(&((first / 512) as u32)) {
            for i in first..first + 512 {
                self.clear(i);
            }
        }
    }

    /// Forgets everything and gives the tables' memory back.
    pub(crate) fn release(&mut self) {
        self.global.clear();
        self.local.clear();
        for page in self.touched.drain() {
            let first = page as usize * 512;
            self.words.release(CACHE + first, 512);
            self.words.release(WRITE + first, 512);
        }
        self.last = u32::MAX;
    }

    /// Pages of table memory in use.
    pub(crate) fn pages(&self) -> u64 {
        self.touched.len() as u64 * 2
    }

    #[cfg(test)]
    pub(crate) fn words_at(&self, linear: u64) -> (u64, u64) {
        let i = index(linear);
        (self.words.get(CACHE + i), self.words.get(WRITE + i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_bounded_and_keeps_both_halves_apart() {
        assert_eq!(index(0xfff), 0);
        assert_eq!(index(0x7fff_ffff_ffff), (1 << 35) - 1);
        assert_eq!(index(0xffff_8000_0000_0000), 1 << 35);
        assert_eq!(index(u64::MAX), ENTRIES - 1);
        assert!(index(0x1234_8000_0000_0000) < ENTRIES);
    }

    #[test]
    fn fills_and_flushes() {
        let mut v = View::new().unwrap();
        v.fill(0x1000, 0x7000, true, false);
        v.fill(0xffff_8000_0000_2000, 0x9000, false, true);
        assert_eq!(v.words_at(0x1fff), (0x7000, 0x7000));
        assert_eq!(v.words_at(0xffff_8000_0000_2000), (0x9000, 0));
        v.flush_local();
        assert_eq!(v.words_at(0x1000), (0, 0));
        assert_eq!(v.words_at(0xffff_8000_0000_2000), (0x9000, 0));
        v.flush_2m(0xffff_8000_0000_0000);
        assert_eq!(v.words_at(0xffff_8000_0000_2000), (0, 0));
        v.fill(0x1000, 0x7000, true, false);
        v.revoke_write(index(0x1000));
        assert_eq!(v.words_at(0x1000), (0x7000, 0));
        v.release();
        assert_eq!(v.words_at(0x1000), (0, 0));
    }

    #[test]
    fn a_stride_walk_stays_within_the_budget() {
        let mut v = View::new().unwrap();
        for n in 0..3 * PAGE_LIMIT as u64 {
            v.fill(n << 21, 0x1000, true, false);
            assert!(v.pages() <= 2 * PAGE_LIMIT as u64);
        }
    }
}
