//! File contents straight into guest memory and out of it, without a copy in between.

use crate::guest::Region;
use crate::tracker::RegionTracker;
use crate::{GuestMemory, PAGE_SIZE, RegionKind};
use std::fs::File;
use std::io;
use vm_memory::bitmap::Bitmap;

impl GuestMemory {
    /// Does `part` for each region's share of `len` bytes at `gpa`: region, offset in it, length, bytes
    /// that came before.
    fn parts(
        &self,
        gpa: u64,
        len: usize,
        mut part: impl FnMut(&Region, usize, usize, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0u64;
        while done < len as u64 {
            let at = gpa.checked_add(done).ok_or(io::ErrorKind::InvalidInput)?;
            let region = self.region(at).ok_or(io::ErrorKind::InvalidInput)?;
            let offset = at - region.gpa;
            let n = (len as u64 - done).min(region.len - offset);
            // Inside a mapping, whose length fits.
            part(region, offset as usize, n as usize, done)?;
            done += n;
        }
        Ok(())
    }

    /// Reads `len` bytes of `file` from `at` on into RAM at `gpa`; counts as a device's write.
    ///
    /// # Errors
    /// The host's; UnexpectedEof when the file ends before, InvalidInput when a part is not RAM. A
    /// part may have been read then.
    pub fn read_file(&self, file: &File, at: u64, gpa: u64, len: usize) -> io::Result<()> {
        self.parts(gpa, len, |region, offset, n, done| {
            if region.kind != RegionKind::Ram {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let read = region.mapping.read_file(file, at + done, offset, n);
            let tracker = RegionTracker {
                tracker: self.tracker.clone(),
                base: region.first_page * PAGE_SIZE as usize,
            };
            // Also after a failure: some bytes may have come.
            tracker.mark_dirty(offset, n);
            read
        })
    }

    /// Writes `len` bytes of RAM or ROM from `gpa` on to `file` at `at`.
    ///
    /// # Errors
    /// The host's; InvalidInput when a part is not guest memory. A part may have been written then.
    pub fn write_file(&self, file: &File, at: u64, gpa: u64, len: usize) -> io::Result<()> {
        self.parts(gpa, len, |region, offset, n, done| {
            region.mapping.write_file(file, at + done, offset, n)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegionSpec;
    use std::io::{Read, Seek, Write};

    #[test]
    fn files_go_in_and_out_across_regions() {
        let region = |gpa, len, kind| RegionSpec { gpa, len, kind };
        let m = GuestMemory::new(&[
            region(0, 0x1000, RegionKind::Ram),
            region(0x1000, 0x1000, RegionKind::Ram),
            region(0x2000, 0x1000, RegionKind::Rom),
        ])
        .unwrap();
        let path = std::env::temp_dir().join(format!("mimeo-transfer-{}", std::process::id()));
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let bytes: Vec<u8> = (0..600).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let version = m.tracker().mark_code(1, 0, 16);
        m.read_file(&file, 100, 0xf80, 400).unwrap();
        let mut back = [0; 400];
        m.read(0xf80, &mut back).unwrap();
        assert_eq!(back, bytes[100..500]);
        assert_ne!(m.tracker().version(1), version);
        m.write_file(&file, 1000, 0xf80, 400).unwrap();
        file.seek(io::SeekFrom::Start(1000)).unwrap();
        file.read_exact(&mut back).unwrap();
        assert_eq!(back, bytes[100..500]);
        let kind = |r: io::Result<()>| r.unwrap_err().kind();
        assert_eq!(
            kind(m.read_file(&file, 1300, 0, 200)),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            kind(m.read_file(&file, 0, 0x1f00, 0x200)),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(m.write_file(&file, 0, 0x2f00, 0x200)),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(m.read_file(&file, 0, u64::MAX - 5, 10)),
            io::ErrorKind::InvalidInput
        );
    }
}
