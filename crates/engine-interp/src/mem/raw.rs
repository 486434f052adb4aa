//! The raw access to guest pages. The only unsafe code of the memory side.
#![expect(
    unsafe_code,
    reason = "raw access to guest memory shared with other vCPUs"
)]

use super::Width;
use mimeo_memory::PagePtr;
use std::sync::atomic::{AtomicU64, Ordering};

/// A page that a TLB entry or a walk gave: alive as long as the `GuestMemory` of the `Cpu`, which
/// holds an `Arc` of it, and made only by `Cpu`'s own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostPage(pub(super) PagePtr);

impl HostPage {
    /// Loads `T` at `offset`; the access must lie in the page.
    #[inline(always)]
    pub(super) fn load<T: Width>(self, offset: usize) -> T {
        let offset = offset & 4095;
        debug_assert!(offset + T::BYTES <= 4096);
        // SAFETY: the memory is alive (type's documentation); callers have excluded page straddles.
        // Even a straddle would stay inside the region or its guard.
        T::trunc(unsafe {
            match T::BYTES {
                1 => u64::from(self.0.load_u8(offset)),
                2 => u64::from(self.0.load_u16(offset)),
                4 => u64::from(self.0.load_u32(offset)),
                _ => self.0.load_u64(offset),
            }
        })
    }

    /// Stores `T` at `offset`; the access must lie in the page. The caller reports the write.
    #[inline(always)]
    pub(super) fn store<T: Width>(self, offset: usize, v: T) {
        let offset = offset & 4095;
        debug_assert!(offset + T::BYTES <= 4096);
        let v = v.zext();
        // SAFETY: as for `load`.
        unsafe {
            match T::BYTES {
                1 => self.0.store_u8(offset, v as u8),
                2 => self.0.store_u16(offset, v as u16),
                4 => self.0.store_u32(offset, v as u32),
                _ => self.0.store_u64(offset, v),
            }
        }
    }

    /// Compare-and-exchange at a naturally aligned offset.
    #[inline]
    pub(super) fn cas<T: Width>(self, offset: usize, old: T, new: T) -> Result<T, T> {
        let offset = offset & 4095;
        let (o, n) = (old.zext(), new.zext());
        // SAFETY: as for `load`; alignment is asserted inside.
        let r = unsafe {
            match T::BYTES {
                1 => self
                    .0
                    .cas_u8(offset, o as u8, n as u8)
                    .map(u64::from)
                    .map_err(u64::from),
                2 => self
                    .0
                    .cas_u16(offset, o as u16, n as u16)
                    .map(u64::from)
                    .map_err(u64::from),
                4 => self
                    .0
                    .cas_u32(offset, o as u32, n as u32)
                    .map(u64::from)
                    .map_err(u64::from),
                _ => self.0.cas_u64(offset, o, n),
            }
        };
        r.map(T::trunc).map_err(T::trunc)
    }

    /// Compare-and-exchange of 16 bytes at an offset that is a multiple of 16.
    pub(super) fn cas16(self, offset: usize, old: u128, new: u128) -> Result<u128, u128> {
        assert!(offset.is_multiple_of(16) && offset < 4096);
        let p = self.0.as_ptr().wrapping_add(offset);
        cas16_at(p, old, new)
    }

    /// Copies bytes out; `offset + buf.len() <= 4096`.
    #[inline]
    pub(super) fn read(self, offset: usize, buf: &mut [u8]) {
        assert!(offset <= 4096 && buf.len() <= 4096 - offset);
        // SAFETY: inside the page by the assertion; `buf` is the monitor's own. Concurrent writers
        // can tear the bytes, as they can on hardware.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.0.as_ptr().add(offset).cast_const(),
                buf.as_mut_ptr(),
                buf.len(),
            );
        }
    }

    /// Copies bytes in; `offset + buf.len() <= 4096`. The caller reports the write.
    #[inline]
    pub(super) fn write(self, offset: usize, buf: &[u8]) {
        assert!(offset <= 4096 && buf.len() <= 4096 - offset);
        // SAFETY: as for `read`.
        unsafe {
            std::ptr::copy_nonoverlapping(buf.as_ptr(), self.0.as_ptr().add(offset), buf.len());
        }
    }

    /// Copies `len` bytes between pages as if byte by byte upwards with the source read first
    /// (memmove); the caller has excluded overlaps for which that differs from the guest's order.
    #[inline]
    pub(super) fn copy_to(self, offset: usize, to: Self, to_offset: usize, len: usize) {
        assert!(offset <= 4096 && len <= 4096 - offset);
        assert!(to_offset <= 4096 && len <= 4096 - to_offset);
        // SAFETY: both ranges are inside their pages; `copy` allows overlap.
        unsafe {
            std::ptr::copy(
                self.0.as_ptr().add(offset).cast_const(),
                to.0.as_ptr().add(to_offset),
                len,
            );
        }
    }

    /// Fills `len` bytes with one byte.
    #[inline]
    pub(super) fn fill(self, offset: usize, value: u8, len: usize) {
        assert!(offset <= 4096 && len <= 4096 - offset);
        // SAFETY: inside the page.
        unsafe { std::ptr::write_bytes(self.0.as_ptr().add(offset), value, len) };
    }
}

/// CMPXCHG16B by hand: where the build's target lacks the feature, the standard library's form
/// becomes a call of a library that is not linked.
///
/// # Safety
/// `p` is aligned to 16 bytes and valid; the CPU has CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn exchange16(p: *mut u8, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller's promise; RBX, which the compiler reserves, is put back.
    unsafe {
        std::arch::asm!(
            "xchg {t}, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, {t}",
            t = inout(reg) new as u64 => _,
            in("rdi") p,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(low) | u128::from(high) << 64
}

#[cfg(target_arch = "x86_64")]
fn cas16_at(p: *mut u8, old: u128, new: u128) -> Result<u128, u128> {
    if std::arch::is_x86_feature_detected!("cmpxchg16b") {
        // SAFETY: 16-byte aligned and inside a live page by the caller; the CPU has the instruction.
        let was = unsafe { exchange16(p, old, new) };
        return if was == old { Ok(was) } else { Err(was) };
    }
    cas16_halves(p, old, new)
}

#[cfg(not(target_arch = "x86_64"))]
fn cas16_at(p: *mut u8, old: u128, new: u128) -> Result<u128, u128> {
    cas16_halves(p, old, new)
}

/// Where the host has no 16-byte exchange (the first 64-bit processors): two halves, not atomic against
/// other vCPUs.
fn cas16_halves(p: *mut u8, old: u128, new: u128) -> Result<u128, u128> {
    let half = p.cast::<AtomicU64>();
    // SAFETY: 16-byte aligned and inside a live page by the caller.
    let (lo, hi) = unsafe { (&*half, &*half.add(1)) };
    let was = u128::from(lo.load(Ordering::SeqCst)) | u128::from(hi.load(Ordering::SeqCst)) << 64;
    if was != old {
        return Err(was);
    }
    lo.store(new as u64, Ordering::SeqCst);
    hi.store((new >> 64) as u64, Ordering::SeqCst);
    Ok(was)
}
