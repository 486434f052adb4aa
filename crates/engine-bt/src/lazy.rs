//! Large zeroed arrays that cost host memory only where they are touched.
#![expect(
    unsafe_code,
    reason = "anonymous NORESERVE mappings, shared between threads as atomics"
)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Mappings that exist now, in the whole process.
static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// How many arrays exist now: each is one mapping of the host's.
pub(crate) fn mappings() -> usize {
    MAPPINGS.load(Ordering::Relaxed)
}

/// An anonymous, private, zero-filled mapping of `len` 64-bit words. Unmapped on drop.
#[derive(Debug)]
pub(crate) struct LazyArray {
    ptr: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the words are atomics; the mapping lives as long as the value.
unsafe impl Send for LazyArray {}
// SAFETY: as above.
unsafe impl Sync for LazyArray {}

impl LazyArray {
    /// Reserves `len` words, page-aligned. No memory is committed.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(8).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh mapping at an address of the kernel's choosing.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: our own mapping; failure only makes core dumps larger.
        unsafe { libc::madvise(p, bytes, libc::MADV_DONTDUMP) };
        MAPPINGS.fetch_add(1, Ordering::Relaxed);
        NonNull::new(p.cast())
            .map(|ptr| Self { ptr, len })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Address of the first word.
    pub(crate) fn address(&self) -> u64 {
        self.ptr.as_ptr() as u64
    }

    #[inline]
    fn word(&self, i: usize) -> &AtomicU64 {
        assert!(i < self.len);
        // SAFETY: in range (asserted), aligned, mapped while `self` lives, and only ever accessed
        // atomically (by Rust) or by single aligned loads (by translated code).
        unsafe { self.ptr.add(i).as_ref() }
    }

    /// Reads a word.
    #[inline]
    pub(crate) fn get(&self, i: usize) -> u64 {
        self.word(i).load(Ordering::Acquire)
    }

    /// Writes a word.
    #[inline]
    pub(crate) fn set(&self, i: usize, v: u64) {
        self.word(i).store(v, Ordering::Release);
    }

    /// Exchanges a word, sequentially consistent.
    #[inline]
    pub(crate) fn swap(&self, i: usize, v: u64) -> u64 {
        self.word(i).swap(v, Ordering::SeqCst)
    }

    /// Compare and exchange, sequentially consistent; the word that was there.
    #[inline]
    pub(crate) fn compare_exchange(&self, i: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.word(i)
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
    }

    /// Gives the pages that hold words `from..from + n` back to the host: they read as zero again.
    /// Both ends must be multiples of 512.
    pub(crate) fn release(&self, from: usize, n: usize) {
        assert!(from.is_multiple_of(512) && n.is_multiple_of(512) && from + n <= self.len);
        // SAFETY: whole pages inside our own mapping, which stays mapped; concurrent atomic reads
        // see either the old or zero words.
        unsafe {
            libc::madvise(
                self.ptr.as_ptr().add(from).cast(),
                n * 8,
                libc::MADV_DONTNEED,
            );
        }
    }
}

impl Drop for LazyArray {
    fn drop(&mut self) {
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: unmaps exactly what `new` mapped.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len * 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_start_as_zero_and_release_zeroes_them() {
        let a = LazyArray::new(1 << 30).unwrap();
        a.set(512, 7);
        a.set((1 << 30) - 1, 9);
        assert_eq!((a.get(0), a.get(512), a.get((1 << 30) - 1)), (0, 7, 9));
        a.release(512, 512);
        assert_eq!(a.get(512), 0);
        assert_eq!(a.compare_exchange(3, 0, 4), Ok(0));
        assert_eq!(a.compare_exchange(3, 0, 5), Err(4));
    }
}
