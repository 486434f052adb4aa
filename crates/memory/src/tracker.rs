//! Which pages hold translated code, and which were written since the dirty log was last read.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use vm_memory::bitmap::{Bitmap, WithBitmapSlice};

/// The page holds decoded or translated code.
const CODE: u8 = 1;
/// The dirty log wants to hear of the next write.
const LOG: u8 = 2;

/// Told of every write into a cache line that holds code, after the write has been made and the
/// page's version has been bumped. Runs on the writer's thread, under no lock of the tracker.
pub trait CodeWriteHook: Send + Sync {
    /// Bytes `offset..offset + len` of page `page` (a page index of [`crate::GuestMemory`]) changed.
    fn code_written(&self, page: usize, offset: usize, len: usize);

    /// From now on writes to `page` (`None`: to every page) have to be reported again: rights to write
    /// without a report are to be taken back before this returns. Called by whoever reads or starts
    /// the dirty log.
    fn watch_again(&self, _page: Option<usize>) {}
}

/// Told of every write that did not come from a vCPU: device DMA, paravirtual clock pages, loaders.
/// Deterministic recording logs them. Runs on the writer's thread, after the write.
pub trait DeviceWriteObserver: Send + Sync {
    /// Bytes `offset..offset + len` of page `page` changed; the range lies within the page.
    fn device_wrote(&self, page: usize, offset: usize, len: usize);
}

/// Per-page state of guest memory, indexed by page number (dense over all regions).
pub struct PageTracker {
    flags: Box<[AtomicU8]>,
    versions: Box<[AtomicU32]>,
    /// One bit for each 64-byte line that holds code.
    code_lines: Box<[AtomicU64]>,
    dirty: Box<[AtomicU64]>,
    /// One bit for each word of `dirty` that may not be zero.
    dirty_words: Box<[AtomicU64]>,
    logging: AtomicBool,
    hook: OnceLock<Arc<dyn CodeWriteHook>>,
    observer: OnceLock<Arc<dyn DeviceWriteObserver>>,
}

impl fmt::Debug for PageTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageTracker({} pages)", self.flags.len())
    }
}

fn zeroed<T: Default>(n: usize) -> Box<[T]> {
    (0..n).map(|_| T::default()).collect()
}

/// The lines of a page that `offset..offset + len` touches, one bit each.
fn line_mask(offset: usize, len: usize) -> u64 {
    let first = (offset / 64).min(63);
    let last = ((offset + len.max(1) - 1) / 64).min(63);
    (u64::MAX >> (63 - (last - first))) << first
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit as usize)
    })
}

impl PageTracker {
    pub(crate) fn new(pages: usize) -> Self {
        crate::host::register_barrier();
        Self {
            flags: zeroed(pages),
            versions: zeroed(pages),
            code_lines: zeroed(pages),
            dirty: zeroed(pages.div_ceil(64)),
            dirty_words: zeroed(pages.div_ceil(64 * 64)),
            logging: AtomicBool::new(false),
            hook: OnceLock::new(),
            observer: OnceLock::new(),
        }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.flags.len()
    }

    /// Whether a write to `page` must be reported with [`Self::written`]. One relaxed load: cheap
    /// enough for every store. Look *after* the store.
    #[inline]
    #[must_use]
    pub fn watched(&self, page: usize) -> bool {
        self.flags[page].load(Ordering::Relaxed) != 0
    }

    /// The version of a page's code; changes with every write into a line that holds code.
    #[inline]
    #[must_use]
    pub fn version(&self, page: usize) -> u32 {
        self.versions[page].load(Ordering::Acquire)
    }

    /// Whether the page holds code that somebody decoded.
    #[must_use]
    pub fn is_code(&self, page: usize) -> bool {
        self.flags[page].load(Ordering::Acquire) & CODE != 0
    }

    /// Declares that bytes `offset..offset + len` of `page` are about to be decoded; gives the version
    /// to store with the result. Call it *before* reading the bytes: the process-wide barrier inside
    /// makes every other thread's earlier store visible to the read, and its later ones see the mark.
    /// (A translator whose write path can hold an address across the mark needs its own revocation
    /// on top.)
    pub fn mark_code(&self, page: usize, offset: usize, len: usize) -> u32 {
        let version = self.version(page);
        let mask = line_mask(offset, len);
        let had = self.code_lines[page].fetch_or(mask, Ordering::SeqCst);
        let flags = self.flags[page].fetch_or(CODE, Ordering::SeqCst);
        if had & mask != mask || flags & CODE == 0 {
            crate::host::process_barrier();
        }
        version
    }

    /// Reports a write of `len` bytes at `offset` of `page` (within the page) that has been made.
    #[cold]
    pub fn written(&self, page: usize, offset: usize, len: usize) {
        let flags = self.flags[page].load(Ordering::SeqCst);
        if flags & LOG != 0 {
            self.mark_dirty(page);
        }
        if flags & CODE != 0
            && self.code_lines[page].load(Ordering::SeqCst) & line_mask(offset, len) != 0
        {
            // Unmark first: a concurrent decoder marks again and then reads the new bytes.
            self.code_lines[page].store(0, Ordering::SeqCst);
            self.flags[page].fetch_and(!CODE, Ordering::SeqCst);
            self.versions[page].fetch_add(1, Ordering::SeqCst);
            if let Some(hook) = self.hook.get() {
                hook.code_written(page, offset, len);
            }
        }
    }

    fn mark_dirty(&self, page: usize) {
        self.flags[page].fetch_and(!LOG, Ordering::SeqCst);
        let word = page / 64;
        self.dirty[word].fetch_or(1 << (page % 64), Ordering::SeqCst);
        self.dirty_words[word / 64].fetch_or(1 << (word % 64), Ordering::SeqCst);
    }

    /// Whether the dirty log wants to hear of the next write to `page`.
    #[must_use]
    pub fn logged(&self, page: usize) -> bool {
        self.flags[page].load(Ordering::Acquire) & LOG != 0
    }

    /// Somebody is about to get the right to write to `page` without reporting each write: the page counts
    /// as written. `false`: it holds code, and every write must be reported. The right must be taken
    /// back on [`CodeWriteHook::watch_again`], and the caller has to look at [`Self::watched`] once more
    /// after it has handed the right out.
    #[must_use]
    pub fn grant(&self, page: usize) -> bool {
        let flags = self.flags[page].load(Ordering::SeqCst);
        if flags & CODE != 0 {
            return false;
        }
        if flags & LOG != 0 {
            self.mark_dirty(page);
        }
        true
    }

    /// Registers the one listener for writes to code (the translator's).
    ///
    /// # Errors
    /// Gives the hook back when there is one already.
    pub fn set_code_write_hook(
        &self,
        hook: Arc<dyn CodeWriteHook>,
    ) -> Result<(), Arc<dyn CodeWriteHook>> {
        self.hook.set(hook)
    }

    /// Registers the one observer of device writes (the recorder's).
    ///
    /// # Errors
    /// Gives the observer back when there is one already.
    pub fn set_device_write_observer(
        &self,
        observer: Arc<dyn DeviceWriteObserver>,
    ) -> Result<(), Arc<dyn DeviceWriteObserver>> {
        self.observer.set(observer)
    }

    /// Starts the dirty log (all pages clean).
    pub fn start_dirty_log(&self) {
        for word in &self.dirty {
            word.store(0, Ordering::SeqCst);
        }
        for flag in &self.flags {
            flag.fetch_or(LOG, Ordering::SeqCst);
        }
        self.logging.store(true, Ordering::SeqCst);
        self.watch_again(None);
        crate::host::process_barrier();
    }

    fn watch_again(&self, page: Option<usize>) {
        if let Some(hook) = self.hook.get() {
            hook.watch_again(page);
        }
    }

    /// Ends the dirty log.
    pub fn stop_dirty_log(&self) {
        self.logging.store(false, Ordering::SeqCst);
        for flag in &self.flags {
            flag.fetch_and(!LOG, Ordering::SeqCst);
        }
    }

    /// Whether the dirty log is on.
    #[must_use]
    pub fn dirty_logging(&self) -> bool {
        self.logging.load(Ordering::SeqCst)
    }

    /// Takes the pages written since the last call (one bit a page) and starts over for them.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<u64> {
        let mut taken = vec![0; self.dirty.len()];
        self.collect_dirty(|page| taken[page / 64] |= 1 << (page % 64));
        crate::host::process_barrier();
        taken
    }

    /// Gives each page written since the last call and starts over for it. Costs little when few were
    /// written. As [`Self::take_dirty`], but without its barrier: for callers that know that nobody writes
    /// meanwhile.
    pub fn collect_dirty(&self, mut each: impl FnMut(usize)) {
        for (i, summary) in self.dirty_words.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for word in bits(summary.swap(0, Ordering::SeqCst)).map(|b| i * 64 + b) {
                let Some(dirty) = self.dirty.get(word) else {
                    continue;
                };
                for page in bits(dirty.swap(0, Ordering::SeqCst)).map(|b| word * 64 + b) {
                    if let Some(flag) = self.flags.get(page) {
                        flag.fetch_or(LOG, Ordering::SeqCst);
                        self.watch_again(Some(page));
                        each(page);
                    }
                }
            }
        }
    }
}

/// The part of a [`PageTracker`] that belongs to one region, as `vm-memory` wants it: every write
/// made through `vm-memory` (virtio queues, device DMA) is reported.
#[derive(Debug, Clone)]
pub struct RegionTracker {
    pub(crate) tracker: Arc<PageTracker>,
    /// Byte offset of this view in the dense page space.
    pub(crate) base: usize,
}

impl<'a> WithBitmapSlice<'a> for RegionTracker {
    type S = Self;
}

impl vm_memory::bitmap::BitmapSlice for RegionTracker {}

impl Bitmap for RegionTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // Order the write that was just made before the look at the flags.
        fence(Ordering::SeqCst);
        let (mut at, end) = (self.base + offset, self.base + offset + len);
        while at < end {
            let page = at / 4096;
            let n = (end - at).min(4096 - at % 4096);
            if page < self.tracker.pages() && self.tracker.watched(page) {
                self.tracker.written(page, at % 4096, n);
            }
            if let Some(observer) = self.tracker.observer.get() {
                observer.device_wrote(page, at % 4096, n);
            }
            at += n;
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = (self.base + offset) / 4096;
        self.tracker
            .dirty
            .get(page / 64)
            .is_some_and(|w| w.load(Ordering::SeqCst) & (1 << (page % 64)) != 0)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            tracker: self.tracker.clone(),
            base: self.base + offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_range() {
        assert_eq!(line_mask(0, 1), 1);
        assert_eq!(line_mask(63, 2), 3);
        assert_eq!(line_mask(0, 4096), u64::MAX);
        assert_eq!(line_mask(4095, 1), 1 << 63);
    }

    #[test]
    fn write_beside_code_keeps_the_version_and_write_into_it_changes_it() {
        let t = PageTracker::new(2);
        let v = t.mark_code(1, 128, 10);
        assert!(t.watched(1) && !t.watched(0));
        t.written(1, 0, 64);
        assert_eq!(t.version(1), v);
        t.written(1, 126, 4);
        assert_ne!(t.version(1), v);
        assert!(!t.watched(1));
    }

    #[test]
    fn a_right_to_write_counts_as_a_write_and_is_taken_back() {
        struct Seen(std::sync::Mutex<Vec<Option<usize>>>);
        impl CodeWriteHook for Seen {
            fn code_written(&self, _: usize, _: usize, _: usize) {}
            fn watch_again(&self, page: Option<usize>) {
                self.0.lock().unwrap().push(page);
            }
        }
        let t = PageTracker::new(5000);
        let seen = Arc::new(Seen(Default::default()));
        assert!(t.set_code_write_hook(seen.clone()).is_ok());
        t.start_dirty_log();
        assert!(t.logged(4999) && t.grant(4999) && !t.logged(4999));
        t.mark_code(7, 0, 8);
        assert!(!t.grant(7));
        let mut pages = Vec::new();
        t.collect_dirty(|p| pages.push(p));
        assert_eq!(pages, [4999]);
        assert!(t.logged(4999));
        assert_eq!(*seen.0.lock().unwrap(), [None, Some(4999)]);
    }

    #[test]
    fn dirty_log_reports_each_page_once() {
        let t = PageTracker::new(70);
        t.start_dirty_log();
        assert!(t.watched(69));
        t.written(69, 0, 1);
        assert!(!t.watched(69));
        assert_eq!(t.take_dirty(), vec![0, 1 << 5]);
        assert!(t.watched(69));
        assert_eq!(t.take_dirty(), vec![0, 0]);
    }
}
