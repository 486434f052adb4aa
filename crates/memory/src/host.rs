//! The host side: memfd, reservations with guards, raw page access, the process-wide barrier.
//!
//! The only unsafe code of this crate. Reason: mapping memory and reading it while a guest may be
//! writing it cannot be expressed in safe Rust.
#![expect(
    unsafe_code,
    reason = "mmap, and raw access to memory shared with running guests"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// Inaccessible bytes before and after each region.
pub(crate) const GUARD: usize = 64 * 1024;

/// A file in memory of `len` bytes, not executable, sealed against shrinking.
pub(crate) fn memfd(name: &CStr, len: u64) -> io::Result<File> {
    const MFD_NOEXEC_SEAL: libc::c_uint = 8;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: `name` is a NUL-terminated string; the call touches nothing else.
    let mut fd = unsafe { libc::memfd_create(name.as_ptr(), flags | MFD_NOEXEC_SEAL) };
    if fd < 0 {
        // Kernels before 6.3 do not know MFD_NOEXEC_SEAL.
        // SAFETY: as above.
        fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    // SAFETY: plain fcntl on our own descriptor. Failure only loses a safety net.
    unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    Ok(file)
}

/// A shared mapping of part of a file with guards around it. Unmapped on drop.
#[derive(Debug)]
pub(crate) struct GuardedMapping {
    reserve: NonNull<u8>,
    reserve_len: usize,
    ptr: NonNull<u8>,
}

// SAFETY: the mapping is plain shared memory; all access goes through raw pointers whose users
// accept concurrent modification.
unsafe impl Send for GuardedMapping {}
// SAFETY: as above.
unsafe impl Sync for GuardedMapping {}

impl GuardedMapping {
    /// Maps `len` bytes (a multiple of 4096) of `file` at `offset`.
    pub(crate) fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let reserve_len = len
            .checked_add(2 * GUARD)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh reservation at an address of the kernel's choosing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserve_len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: GUARD < reserve_len, so the result is inside the reservation.
        let at = unsafe { base.cast::<u8>().add(GUARD) };
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: replaces pages of the reservation that we own and nobody uses yet.
        let mapped = unsafe {
            libc::mmap(
                at.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: unmaps our own reservation, which nobody uses.
            unsafe { libc::munmap(base, reserve_len) };
            return Err(error);
        }
        // SAFETY: advice on our own mapping. Keeps guest RAM out of core dumps.
        unsafe { libc::madvise(at.cast(), len, libc::MADV_DONTDUMP) };
        let (Some(reserve), Some(ptr)) = (NonNull::new(base.cast()), NonNull::new(at)) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        Ok(Self {
            reserve,
            reserve_len,
            ptr,
        })
    }

    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Where `len` bytes at `offset` are, if all of them are in the mapping.
    fn inside(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.reserve_len - 2 * GUARD);
        end.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.ptr.as_ptr().wrapping_add(offset))
    }

    /// Reads `len` bytes of `file` from `at` on to `offset` of the mapping.
    pub(crate) fn read_file(
        &self,
        file: &File,
        at: u64,
        offset: usize,
        len: usize,
    ) -> io::Result<()> {
        let to = self.inside(offset, len)?;
        whole(len, at, io::ErrorKind::UnexpectedEof, |done, left, at| {
            // SAFETY: `inside` has checked that `to..to + len` is in the mapping, and `done + left`
            // is `len`; the kernel writes there as a running guest may at any time.
            unsafe { libc::pread(file.as_raw_fd(), to.add(done).cast(), left, at) }
        })
    }

    /// Writes `len` bytes from `offset` of the mapping to `file` from `at` on.
    pub(crate) fn write_file(
        &self,
        file: &File,
        at: u64,
        offset: usize,
        len: usize,
    ) -> io::Result<()> {
        let from = self.inside(offset, len)?;
        whole(len, at, io::ErrorKind::WriteZero, |done, left, at| {
            // SAFETY: as for reading; the kernel only reads.
            unsafe { libc::pwrite(file.as_raw_fd(), from.add(done).cast(), left, at) }
        })
    }
}

/// Repeats `step` (bytes done, bytes left, file offset) until `len` bytes are done; `none` is the
/// error when nothing more comes.
fn whole(
    len: usize,
    at: u64,
    none: io::ErrorKind,
    step: impl Fn(usize, usize, libc::off_t) -> isize,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = at
            .checked_add(done as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let at = libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        match step(done, len - done, at) {
            0 => return Err(none.into()),
            // A number of bytes.
            n if n > 0 => done += n as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Drop for GuardedMapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` reserved; `GuestMemory` outlives every user (its
        // documentation makes that the users' duty).
        unsafe { libc::munmap(self.reserve.as_ptr().cast(), self.reserve_len) };
    }
}

/// Makes `len` bytes at `ptr` a `vm-memory` region without giving up ownership.
pub(crate) fn vm_region(
    mapping: &GuardedMapping,
    len: usize,
    tracker: crate::tracker::RegionTracker,
) -> Result<vm_memory::MmapRegion<crate::tracker::RegionTracker>, vm_memory::mmap::MmapRegionError>
{
    // SAFETY: the mapping covers `len` bytes and is kept alive by the `GuestMemory` that also owns
    // the region built here.
    unsafe {
        vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(len, tracker)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_raw_mmap_pointer(mapping.ptr().as_ptr())
            .build()
    }
}

/// Where one 4 KB page of guest memory stands in the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagePtr(NonNull<u8>);

// SAFETY: a plain address; using it is unsafe and has its own rules.
unsafe impl Send for PagePtr {}
// SAFETY: as above.
unsafe impl Sync for PagePtr {}

macro_rules! access {
    ($load:ident, $store:ident, $cas:ident, $int:ty, $atomic:ty) => {
        /// Loads with x86's ordinary ordering. Any alignment; single-copy atomic when aligned.
        ///
        /// # Safety
        /// The [`crate::GuestMemory`] is alive and `offset + size <= 4096`.
        #[inline]
        #[must_use]
        pub unsafe fn $load(self, offset: usize) -> $int {
            debug_assert!(offset + size_of::<$int>() <= 4096);
            // SAFETY: inside the page by the caller's promise; the memory is always readable.
            unsafe {
                let p = self.0.as_ptr().add(offset);
                if p.addr() % size_of::<$int>() == 0 {
                    (*p.cast::<$atomic>()).load(Ordering::Acquire)
                } else {
                    p.cast::<$int>().read_unaligned()
                }
            }
        }

        /// Stores with x86's ordinary ordering. Any alignment; single-copy atomic when aligned.
        ///
        /// # Safety
        /// The [`crate::GuestMemory`] is alive, `offset + size <= 4096`, and the caller then looks at
        /// [`crate::PageTracker::watched`].
        #[inline]
        pub unsafe fn $store(self, offset: usize, value: $int) {
            debug_assert!(offset + size_of::<$int>() <= 4096);
            // SAFETY: as for the load.
            unsafe {
                let p = self.0.as_ptr().add(offset);
                if p.addr() % size_of::<$int>() == 0 {
                    (*p.cast::<$atomic>()).store(value, Ordering::Release);
                } else {
                    p.cast::<$int>().write_unaligned(value);
                }
            }
        }

        /// Compare-and-exchange, sequentially consistent; the offset must be naturally aligned.
        ///
        /// # Errors
        /// The value that was there instead.
        ///
        /// # Safety
        /// As for the store.
        #[inline]
        pub unsafe fn $cas(self, offset: usize, old: $int, new: $int) -> Result<$int, $int> {
            assert!(offset % size_of::<$int>() == 0 && offset < 4096);
            // SAFETY: aligned and inside the page.
            unsafe {
                (*self.0.as_ptr().add(offset).cast::<$atomic>()).compare_exchange(
                    old,
                    new,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                )
            }
        }
    };
}

impl PagePtr {
    pub(crate) fn new(ptr: NonNull<u8>) -> Self {
        Self(ptr)
    }

    /// The host address of the page's first byte.
    #[inline]
    #[must_use]
    pub fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }

    access!(load_u8, store_u8, cas_u8, u8, AtomicU8);
    access!(load_u16, store_u16, cas_u16, u16, AtomicU16);
    access!(load_u32, store_u32, cas_u32, u32, AtomicU32);
    access!(load_u64, store_u64, cas_u64, u64, AtomicU64);
}

static EXPEDITED: AtomicBool = AtomicBool::new(false);
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: libc::c_int = 8;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 16;

fn membarrier(cmd: libc::c_int) -> bool {
    // SAFETY: membarrier takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, cmd, 0, 0) == 0 }
}

/// Registers this process for expedited barriers. Idempotent.
pub(crate) fn register_barrier() {
    if membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) {
        EXPEDITED.store(true, Ordering::Relaxed);
    }
}

/// Every other thread of the process executes a full memory barrier before this returns
/// (membarrier(2)); where the host has no such call, only this thread does.
pub(crate) fn process_barrier() {
    fence(Ordering::SeqCst);
    if EXPEDITED.load(Ordering::Relaxed) {
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    } else {
        membarrier(MEMBARRIER_CMD_GLOBAL);
    }
}
