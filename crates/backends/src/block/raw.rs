//! A disk that is a file (or block device), byte for byte.
//!
//! A flush is `fdatasync`, so what a guest has flushed survives a crash of the host, too.

use super::DiskError;
use super::open::OpenImage;
use super::pool::Work;
use mimeo_bus::{BlockOperation, BlockRequest};
use mimeo_memory::GuestMemory;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are moved at a time.
const CHUNK: usize = 256 * 1024;

/// A raw disk image.
pub(super) struct Raw {
    file: File,
    len: u64,
}

impl Raw {
    pub(super) fn new(image: OpenImage) -> Result<Self, DiskError> {
        let len = image.len;
        if len == 0 || len % 512 != 0 {
            let path = image.path.display().to_string();
            return Err(DiskError::Length { path, len });
        }
        Ok(Self {
            file: image.file,
            len,
        })
    }

    /// Its size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, mut at: u64, memory: &GuestMemory, data: &[(u64, u32)]) -> io::Result<()> {
        for &(gpa, len) in data {
            memory.read_file(&self.file, at, gpa, len as usize)?;
            at += u64::from(len);
        }
        Ok(())
    }

    fn write(&self, mut at: u64, memory: &GuestMemory, data: &[(u64, u32)]) -> io::Result<()> {
        for &(gpa, len) in data {
            memory.write_file(&self.file, at, gpa, len as usize)?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Makes a range read as zero.
    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        let flags = if unmap {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        if len == 0 || fallocate(&self.file, flags, at, len).is_ok() {
            return Ok(());
        }
        // File systems without such ranges get zeroes.
        let zeroes = vec![0; CHUNK];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(CHUNK as u64);
            // At most CHUNK.
            self.file.write_all_at(&zeroes[..n as usize], at + done)?;
            done += n;
        }
        Ok(())
    }

    fn perform(&self, request: &BlockRequest) -> io::Result<()> {
        let memory = &request.memory;
        match &request.operation {
            BlockOperation::Read { at } => self.read(*at, memory, &request.data),
            BlockOperation::Write { at, durable } => {
                self.write(*at, memory, &request.data)?;
                if *durable {
                    self.file.sync_data()
                } else {
                    Ok(())
                }
            }
            BlockOperation::Flush => self.file.sync_data(),
            BlockOperation::Discard { ranges } => {
                for &(at, len) in ranges {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    // A hint: where the file system cannot, nothing happens.
                    let _ = fallocate(&self.file, flags, at, len);
                }
                Ok(())
            }
            BlockOperation::WriteZeroes { ranges, unmap } => ranges
                .iter()
                .try_for_each(|&(at, len)| self.zero(at, len, *unmap)),
        }
    }
}

impl Work for Raw {
    fn run(&self, request: &BlockRequest) -> io::Result<()> {
        self.perform(request)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Image, fails, open, run};
    use super::super::{DiskOptions, OpenDisk};
    use super::*;
    use mimeo_bus::BlockDone;
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};

    #[test]
    fn reads_writes_and_zeroes() {
        let image = Image::new("raw", 1 << 20);
        let disk = image.open(false).unwrap();
        let memory = Arc::new(GuestMemory::ram(2 << 20).unwrap());
        assert_eq!(disk.capacity(), 1 << 20);
        run(
            &disk,
            &memory,
            BlockOperation::Read { at: 512 },
            &[(100, 512), (5000, 1024)],
        )
        .unwrap();
        let mut b = [0; 1024];
        memory.read(5000, &mut b).unwrap();
        assert_eq!((b[0], b[511], b[512], b[1023]), (3, 3, 4, 4));
        memory.write(0, &vec![0xaa; 1 << 20]).unwrap();
        let all = [(0u64, 1u32 << 20)];
        run(
            &disk,
            &memory,
            BlockOperation::Write {
                at: 0,
                durable: true,
            },
            &all,
        )
        .unwrap();
        assert_eq!((image.byte(0), image.byte((1 << 20) - 1)), (0xaa, 0xaa));
        for (unmap, at) in [(true, 4096), (false, 65536)] {
            let ranges = vec![(at, 4096)];
            run(
                &disk,
                &memory,
                BlockOperation::WriteZeroes { ranges, unmap },
                &[],
            )
            .unwrap();
            let (first, end) = (at as usize, at as usize + 4096);
            let around = [first - 1, first, end - 1, end].map(|i| image.byte(i));
            assert_eq!(around, [0xaa, 0, 0, 0xaa]);
        }
        let ranges = vec![(0, 512)];
        run(&disk, &memory, BlockOperation::Discard { ranges }, &[]).unwrap();
        run(&disk, &memory, BlockOperation::Flush, &[]).unwrap();
    }

    #[test]
    fn a_truncated_image_is_an_error_for_the_guest_and_a_message() {
        let image = Image::new("truncated", 8192);
        let (send, told) = channel();
        let send = Mutex::new(send);
        let hook = Box::new(move |e: &io::Error| send.lock().unwrap().send(e.kind()).unwrap());
        let options = DiskOptions {
            file: image.0.clone(),
            format: None,
            read_only: false,
            snapshot: false,
        };
        let disk = OpenDisk::open(&options, hook)
            .unwrap()
            .start(Arc::new(|| ()))
            .unwrap();
        let memory = Arc::new(GuestMemory::ram(8192).unwrap());
        File::options()
            .write(true)
            .open(&image.0)
            .unwrap()
            .set_len(4096)
            .unwrap();
        for _ in 0..3 {
            let read = BlockOperation::Read { at: 4096 };
            assert!(run(&disk, &memory, read, &[(0, 512)]).is_err());
        }
        drop(disk);
        assert_eq!(
            told.iter().collect::<Vec<_>>(),
            [io::ErrorKind::UnexpectedEof]
        );
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_with_a_reason() {
        let image = Image::new("locked", 4096);
        let first = image.open(false).unwrap();
        let error = fails(image.open(true)).to_string();
        assert!(error.contains("in use"), "{error}");
        drop(first);
        let readers = [image.open(true).unwrap(), image.open(true).unwrap()];
        assert!(matches!(image.open(false), Err(DiskError::InUse(_))));
        drop(readers);
        let odd = Image::new("odd", 1000);
        assert!(matches!(
            odd.open(true),
            Err(DiskError::Length { len: 1000, .. })
        ));
        for path in ["/nonexistent", "/tmp"] {
            let error = fails(open(Path::new(path), true, None, false));
            assert!(error.to_string().contains(path));
        }
    }

    #[test]
    fn requests_that_wait_are_done_before_the_disk_goes() {
        let image = Image::new("drop", 4096);
        let disk = image.open(false).unwrap();
        let memory = Arc::new(GuestMemory::ram(4096).unwrap());
        let (send, ended) = channel();
        for _ in 0..50 {
            let send = send.clone();
            disk.submit(BlockRequest {
                operation: BlockOperation::Read { at: 0 },
                memory: memory.clone(),
                data: vec![(0, 512)],
                done: BlockDone::new(Box::new(move |r| send.send(r.is_ok()).unwrap())),
            });
        }
        drop(disk);
        assert_eq!(ended.try_iter().filter(|ok| *ok).count(), 50);
    }
}
