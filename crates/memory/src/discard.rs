//! Giving guest memory back to the host.

use crate::tracker::RegionTracker;
use crate::{GuestMemory, PAGE_SIZE, RegionKind};
use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::bitmap::Bitmap;

impl GuestMemory {
    /// Gives the whole pages of RAM in `gpa..gpa + len` back to the host: they read as zero until the
    /// guest writes to them again, and take no memory. What is not RAM, and parts of pages, stay as
    /// they are. Counts as a write for everybody who watches memory. Gives the number of bytes.
    pub fn discard(&self, gpa: u64, len: u64) -> u64 {
        let Some(end) = gpa.checked_add(len) else {
            return 0;
        };
        let mut done = 0;
        for r in self.regions.iter().filter(|r| r.kind == RegionKind::Ram) {
            let first = gpa.max(r.gpa).next_multiple_of(PAGE_SIZE);
            let last = end.min(r.gpa + r.len) & !(PAGE_SIZE - 1);
            if first >= last {
                continue;
            }
            let (offset, len) = (first - r.gpa, last - first);
            let base = r.first_page as u64 * PAGE_SIZE;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Where the host cannot (it always can for its own memory files), nothing is given back.
            if fallocate(&self.file, flags, base + offset, len).is_err() {
                continue;
            }
            let tracker = RegionTracker {
                tracker: self.tracker.clone(),
                base: base as usize,
            };
            // Inside the region, whose length fits.
            tracker.mark_dirty(offset as usize, len as usize);
            done += len;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegionSpec;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn whole_pages_go_back_and_read_as_zero() {
        let region = |gpa, len, kind| RegionSpec { gpa, len, kind };
        let m = GuestMemory::new(&[
            region(0, 0x4000, RegionKind::Ram),
            region(0x4000, 0x1000, RegionKind::Rom),
            region(0x10_0000, 0x4000, RegionKind::Ram),
        ])
        .unwrap();
        for gpa in [0, 0x10_0000] {
            m.write(gpa, &[0xaa; 0x4000]).unwrap();
        }
        m.write(0x4000, &[0xaa; 0x1000]).unwrap();
        let blocks = || m.file().metadata().unwrap().blocks();
        let before = blocks();
        let version = m.tracker().mark_code(2, 0, 16);
        // From the middle of page 1 over ROM and a hole into page 1 of the second part.
        assert_eq!(m.discard(0x1800, 0x10_0000), 0x2000 + 0x1000);
        assert_eq!(before - blocks(), 3 * 8);
        assert_ne!(m.tracker().version(2), version);
        let at = |gpa| m.read_u64(gpa).unwrap() as u8;
        assert_eq!([0x1ff8, 0x2000, 0x3ff8, 0x4000].map(at), [0xaa, 0, 0, 0xaa]);
        assert_eq!([0x10_0000, 0x10_1000].map(at), [0, 0xaa]);
        assert_eq!(m.discard(u64::MAX - 10, 100), 0);
        assert_eq!(m.discard(0x5000, 0x1000), 0);
    }
}
