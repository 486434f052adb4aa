//! The guest-physical memory of one VM.

use crate::PAGE_SIZE;
use crate::bus_lock::BusLock;
use crate::host::{self, GuardedMapping, PagePtr};
use crate::tracker::{PageTracker, RegionTracker};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// What a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Readable and writable.
    Ram,
    /// Readable by the guest; its writes go to [`CpuIo::mmio_write`](../mimeo_vcpu/trait.CpuIo.html).
    Rom,
}

/// One region to be created.
#[derive(Debug, Clone)]
pub struct RegionSpec {
    /// First guest-physical address, a multiple of 4096.
    pub gpa: u64,
    /// Length in bytes, a multiple of 4096, not zero.
    pub len: u64,
    /// RAM or ROM.
    pub kind: RegionKind,
}

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region is empty, unaligned, beyond 2^52 or overlaps its neighbour.
    #[error(
        "guest memory region {0:#x}+{1:#x} is empty, not page-aligned, too high or overlaps another"
    )]
    BadRegion(u64, u64),
    /// The host refused the memory.
    #[error("cannot reserve {0} MB of guest memory: {1}; try a smaller -m")]
    Host(u64, std::io::Error),
    /// The address range is not (all) RAM or ROM.
    #[error("guest-physical {0:#x}+{1:#x} is not in guest memory")]
    OutOfRange(u64, u64),
}

#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) gpa: u64,
    pub(crate) len: u64,
    pub(crate) kind: RegionKind,
    pub(crate) mapping: GuardedMapping,
    pub(crate) first_page: usize,
}

/// A page as [`GuestMemory::page`] finds it.
#[derive(Debug, Clone, Copy)]
pub struct PageInfo {
    /// Where it is in the monitor.
    pub ptr: PagePtr,
    /// Index for [`PageTracker`].
    pub index: usize,
    /// RAM (guest writes go straight in) rather than ROM.
    pub writable: bool,
}

/// Guest RAM and ROM. See the crate's documentation for its rules.
#[derive(Debug)]
pub struct GuestMemory {
    vm: GuestMemoryMmap<RegionTracker>,
    pub(crate) regions: Vec<Region>,
    pub(crate) tracker: Arc<PageTracker>,
    pub(crate) file: File,
    bus_lock: Arc<BusLock>,
}

impl GuestMemory {
    /// Creates zeroed memory.
    ///
    /// # Errors
    /// [`MemoryError::BadRegion`] for regions that make no sense, [`MemoryError::Host`] when the host
    /// cannot reserve that much.
    pub fn new(specs: &[RegionSpec]) -> Result<Self, MemoryError> {
        let mut specs = specs.to_vec();
        specs.sort_by_key(|s| s.gpa);
        let mut end = 0;
        let mut total = 0u64;
        for (i, s) in specs.iter().enumerate() {
            let bad = s.len == 0
                || s.gpa % PAGE_SIZE != 0
                || s.len % PAGE_SIZE != 0
                || (i > 0 && s.gpa < end)
                || s.gpa.checked_add(s.len).is_none_or(|e| e > 1 << 52);
            if bad {
                return Err(MemoryError::BadRegion(s.gpa, s.len));
            }
            end = s.gpa + s.len;
            total += s.len;
        }
        let host_error = |e| MemoryError::Host(total >> 20, e);
        let file = host::memfd(c"mimeo-guest", total).map_err(host_error)?;
        let pages = usize::try_from(total / PAGE_SIZE)
            .map_err(|_| host_error(std::io::ErrorKind::OutOfMemory.into()))?;
        let tracker = Arc::new(PageTracker::new(pages));
        let (mut regions, mut vm_regions, mut offset) = (Vec::new(), Vec::new(), 0u64);
        for s in &specs {
            // `total` fits usize, so every part of it does.
            let (len, base) = (s.len as usize, offset as usize);
            let mapping = GuardedMapping::new(&file, offset, len).map_err(host_error)?;
            let region = host::vm_region(
                &mapping,
                len,
                RegionTracker {
                    tracker: tracker.clone(),
                    base,
                },
            )
            .map_err(|e| host_error(std::io::Error::other(e)))?;
            let region = GuestRegionMmap::new(region, GuestAddress(s.gpa))
                .ok_or(MemoryError::BadRegion(s.gpa, s.len))?;
            vm_regions.push(region);
            regions.push(Region {
                gpa: s.gpa,
                len: s.len,
                kind: s.kind,
                mapping,
                first_page: base / PAGE_SIZE as usize,
            });
            offset += s.len;
        }
        let vm = GuestMemoryMmap::from_regions(vm_regions)
            .map_err(|e| host_error(std::io::Error::other(e)))?;
        Ok(Self {
            vm,
            regions,
            tracker,
            file,
            bus_lock: Arc::default(),
        })
    }

    /// RAM of `len` bytes from address 0, for tests and simple boards.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn ram(len: u64) -> Result<Self, MemoryError> {
        Self::new(&[RegionSpec {
            gpa: 0,
            len,
            kind: RegionKind::Ram,
        }])
    }

    /// The same memory as `vm-memory`'s types, for `virtio-queue` and its like. Writes are tracked.
    #[must_use]
    pub fn vm(&self) -> &GuestMemoryMmap<RegionTracker> {
        &self.vm
    }

    /// The tracker of writes.
    #[inline]
    #[must_use]
    pub fn tracker(&self) -> &Arc<PageTracker> {
        &self.tracker
    }

    /// What makes split locks atomic.
    #[must_use]
    pub fn bus_lock(&self) -> &Arc<BusLock> {
        &self.bus_lock
    }

    /// The memfd that backs all regions, in address order without gaps.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// (address, length, kind) of every region, in address order.
    pub fn regions(&self) -> impl Iterator<Item = (u64, u64, RegionKind)> {
        self.regions.iter().map(|r| (r.gpa, r.len, r.kind))
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.regions
            .iter()
            .filter(|r| r.kind == RegionKind::Ram)
            .map(|r| r.len)
            .sum()
    }

    pub(crate) fn region(&self, gpa: u64) -> Option<&Region> {
        let i = self.regions.partition_point(|r| r.gpa <= gpa);
        let r = &self.regions[i.checked_sub(1)?];
        (gpa - r.gpa < r.len).then_some(r)
    }

    /// The page that holds `gpa`, if it is RAM or ROM.
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<PageInfo> {
        let r = self.region(gpa)?;
        let offset = ((gpa - r.gpa) & !(PAGE_SIZE - 1)) as usize;
        // The offset is inside the mapping, so the pointer is not null and does not wrap.
        let ptr = r.mapping.ptr().as_ptr().wrapping_add(offset);
        Some(PageInfo {
            ptr: PagePtr::new(std::ptr::NonNull::new(ptr)?),
            index: r.first_page + offset / PAGE_SIZE as usize,
            writable: r.kind == RegionKind::Ram,
        })
    }

    /// The guest-physical address of page `index` (the inverse of [`Self::page`]).
    #[must_use]
    pub fn page_address(&self, index: usize) -> Option<u64> {
        let i = self.regions.partition_point(|r| r.first_page <= index);
        let r = &self.regions[i.checked_sub(1)?];
        let offset = (index - r.first_page) as u64 * PAGE_SIZE;
        (offset < r.len).then_some(r.gpa + offset)
    }

    /// Reads bytes; the range must lie in RAM or ROM (regions that touch count as one).
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len() as u64;
        self.vm
            .read_slice(buf, GuestAddress(gpa))
            .map_err(|_| MemoryError::OutOfRange(gpa, len))
    }

    /// Writes bytes, ROM included (loaders and firmware set-up); tracked like every write.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), MemoryError> {
        self.vm
            .write_slice(buf, GuestAddress(gpa))
            .map_err(|_| MemoryError::OutOfRange(gpa, buf.len() as u64))
    }

    /// Reads a little-endian u64; `None` outside RAM and ROM or across a page.
    #[inline]
    #[must_use]
    #[expect(unsafe_code, reason = "raw access to a page of ours")]
    pub fn read_u64(&self, gpa: u64) -> Option<u64> {
        let offset = (gpa % PAGE_SIZE) as usize;
        let page = self.page(gpa).filter(|_| offset <= 4088)?;
        // SAFETY: `self` is alive and the offset leaves eight bytes in the page.
        Some(unsafe { page.ptr.load_u64(offset) })
    }

    /// Reads a little-endian u32; `None` outside RAM and ROM or across a page.
    #[inline]
    #[must_use]
    #[expect(unsafe_code, reason = "raw access to a page of ours")]
    pub fn read_u32(&self, gpa: u64) -> Option<u32> {
        let offset = (gpa % PAGE_SIZE) as usize;
        let page = self.page(gpa).filter(|_| offset <= 4092)?;
        // SAFETY: `self` is alive and the offset leaves four bytes in the page.
        Some(unsafe { page.ptr.load_u32(offset) })
    }

    /// Compare-and-exchange of an aligned u64 in RAM (page-table accessed and dirty bits).
    ///
    /// `Some(true)`: exchanged. `Some(false)`: another value was there. `None`: not RAM, or unaligned.
    #[must_use]
    #[expect(unsafe_code, reason = "raw access to a page of ours")]
    pub fn cas_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool> {
        let page = self
            .page(gpa)
            .filter(|p| p.writable && gpa.is_multiple_of(8))?;
        let offset = (gpa % PAGE_SIZE) as usize;
        // SAFETY: `self` is alive, the offset is aligned and inside the page.
        let done = unsafe { page.ptr.cas_u64(offset, old, new) }.is_ok();
        self.after_store(page.index, offset, 8);
        Some(done)
    }

    /// Compare-and-exchange of an aligned u32 in RAM. As [`Self::cas_u64`].
    #[must_use]
    #[expect(unsafe_code, reason = "raw access to a page of ours")]
    pub fn cas_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool> {
        let page = self
            .page(gpa)
            .filter(|p| p.writable && gpa.is_multiple_of(4))?;
        let offset = (gpa % PAGE_SIZE) as usize;
        // SAFETY: `self` is alive, the offset is aligned and inside the page.
        let done = unsafe { page.ptr.cas_u32(offset, old, new) }.is_ok();
        self.after_store(page.index, offset, 4);
        Some(done)
    }

    /// What every writer through a [`PagePtr`] calls after its store.
    #[inline]
    pub fn after_store(&self, page: usize, offset: usize, len: usize) {
        if self.tracker.watched(page) {
            fence(Ordering::SeqCst);
            self.tracker.written(page, offset, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_checked() {
        let ram = |gpa, len| RegionSpec {
            gpa,
            len,
            kind: RegionKind::Ram,
        };
        assert!(GuestMemory::new(&[ram(0, 0)]).is_err());
        assert!(GuestMemory::new(&[ram(1, 4096)]).is_err());
        assert!(GuestMemory::new(&[ram(0, 8192), ram(4096, 4096)]).is_err());
        assert!(GuestMemory::new(&[ram(1 << 52, 4096)]).is_err());
    }

    #[test]
    fn pages_reads_and_writes() {
        let m = GuestMemory::new(&[
            RegionSpec {
                gpa: 0,
                len: 8192,
                kind: RegionKind::Ram,
            },
            RegionSpec {
                gpa: 0x10_0000,
                len: 4096,
                kind: RegionKind::Rom,
            },
        ])
        .unwrap();
        m.write(4090, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let mut b = [0; 8];
        m.read(4090, &mut b).unwrap();
        assert_eq!(b, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(m.write(8190, &[0; 4]).is_err());
        assert!(m.page(8192).is_none());
        let rom = m.page(0x10_0fff).unwrap();
        assert_eq!((rom.index, rom.writable), (2, false));
        assert_eq!(m.page_address(2), Some(0x10_0000));
        assert_eq!(m.page_address(3), None);
        assert_eq!(m.read_u64(4089), None);
        assert_eq!(m.cas_u64(4096, m.read_u64(4096).unwrap(), 9), Some(true));
        assert_eq!(m.read_u64(4096), Some(9));
        assert_eq!(m.cas_u64(0x10_0000, 0, 1), None);
    }

    #[test]
    fn device_writes_reach_the_tracker() {
        let m = GuestMemory::ram(8192).unwrap();
        let v = m.tracker().mark_code(1, 0, 16);
        m.write(4095, &[1, 2]).unwrap();
        assert_ne!(m.tracker().version(1), v);
    }
}
