//! A disk that is a file (or block device), byte for byte.
//!
//! A flush is `fdatasync`, so what a guest has flushed survives a crash of the host, too. The file
//! is locked against a second writer. A failure of the host reaches the guest as an I/O error, and
//! the person once for each kind through the hook.

use super::pool::{Pool, Work};
use mimeo_bus::{BlockBackend, BlockOperation, BlockRequest};
use mimeo_memory::GuestMemory;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are moved at a time.
const CHUNK: usize = 256 * 1024;
/// Requests that are worked on at a time.
const THREADS: usize = 2;

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened or used.
    #[error("cannot use the disk image {path}: {source}")]
    Open {
        /// Its path.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody else writes to it.
    #[error(
        "the disk image {0} is in use by another program; stop that, or open it read-only (,ro)"
    )]
    InUse(String),
    /// Its length is not a number of sectors.
    #[error(
        "the disk image {path} is {len} bytes long, which is not a multiple of 512; is it a raw image?"
    )]
    Length {
        /// Its path.
        path: String,
        /// Its length.
        len: u64,
    },
}

/// Told of failures of the host, once for each kind of failure.
type OnError = Box<dyn Fn(&io::Error) + Send + Sync>;

struct Raw {
    file: File,
    len: u64,
    on_error: OnError,
    told: Mutex<Vec<io::ErrorKind>>,
}

/// A raw disk image.
pub struct RawDisk {
    // Dropped first: its threads use the file.
    pool: Pool,
    raw: Arc<Raw>,
    read_only: bool,
}

impl std::fmt::Debug for RawDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawDisk({} bytes)", self.raw.len)
    }
}

impl RawDisk {
    /// Opens the image at `path`. `on_error` is told of failures while the VM runs.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(path: &Path, read_only: bool, on_error: OnError) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        let open = |source| DiskError::Open {
            path: name.clone(),
            source,
        };
        let mut file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(open)?;
        if file.metadata().map_err(open)?.is_dir() {
            return Err(open(io::ErrorKind::IsADirectory.into()));
        }
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN) => return Err(DiskError::InUse(name)),
            Err(e) => return Err(open(e.into())),
        }
        // The length of block devices, too.
        let len = file.seek(SeekFrom::End(0)).map_err(open)?;
        if len == 0 || len % 512 != 0 {
            return Err(DiskError::Length { path: name, len });
        }
        let raw = Arc::new(Raw {
            file,
            len,
            on_error,
            told: Mutex::default(),
        });
        let pool = Pool::new(THREADS, &raw).map_err(open)?;
        Ok(Self {
            pool,
            raw,
            read_only,
        })
    }
}

impl BlockBackend for RawDisk {
    fn capacity(&self) -> u64 {
        self.raw.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, request: BlockRequest) {
        self.pool.submit(request);
    }
}

/// Moves `data`'s bytes, `CHUNK` at a time: `each` gets the position on the disk, the address in the
/// guest and the buffer.
fn pieces(
    mut at: u64,
    data: &[(u64, u32)],
    mut each: impl FnMut(u64, u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let most = data.iter().map(|&(_, len)| len as usize).max().unwrap_or(0);
    let mut buffer = vec![0; most.min(CHUNK)];
    for &(mut gpa, len) in data {
        let mut left = len as usize;
        while left > 0 {
            let n = left.min(CHUNK);
            each(at, gpa, &mut buffer[..n])?;
            (at, gpa, left) = (at + n as u64, gpa + n as u64, left - n);
        }
    }
    Ok(())
}

fn no_memory(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(e)
}

impl Raw {
    fn read(&self, at: u64, memory: &GuestMemory, data: &[(u64, u32)]) -> io::Result<()> {
        pieces(at, data, |at, gpa, buffer| {
            self.file.read_exact_at(buffer, at)?;
            memory.write(gpa, buffer).map_err(no_memory)
        })
    }

    fn write(&self, at: u64, memory: &GuestMemory, data: &[(u64, u32)]) -> io::Result<()> {
        pieces(at, data, |at, gpa, buffer| {
            memory.read(gpa, buffer).map_err(no_memory)?;
            self.file.write_all_at(buffer, at)
        })
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
        let result = self.perform(request);
        if let Err(e) = &result {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if !told.contains(&e.kind()) {
                told.push(e.kind());
                drop(told);
                (self.on_error)(e);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mimeo_bus::BlockDone;
    use std::path::PathBuf;
    use std::sync::mpsc::channel;

    /// A file that goes away with the test.
    struct Image(PathBuf);

    impl Image {
        fn new(name: &str, len: usize) -> Self {
            let path = std::env::temp_dir().join(format!("mimeo-{name}-{}", std::process::id()));
            let bytes: Vec<u8> = (0..len)
                .map(|i| ((i / 512) as u8).wrapping_add(1))
                .collect();
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }

        fn open(&self, read_only: bool) -> Result<RawDisk, DiskError> {
            RawDisk::open(&self.0, read_only, Box::new(|_| {}))
        }

        fn byte(&self, at: usize) -> u8 {
            std::fs::read(&self.0).unwrap()[at]
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn run(
        disk: &RawDisk,
        memory: &Arc<GuestMemory>,
        operation: BlockOperation,
        data: &[(u64, u32)],
    ) -> io::Result<()> {
        let (send, ended) = channel();
        disk.submit(BlockRequest {
            operation,
            memory: memory.clone(),
            data: data.to_vec(),
            done: BlockDone::new(Box::new(move |r| send.send(r).unwrap())),
        });
        ended.recv().unwrap()
    }

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
        let disk = RawDisk::open(&image.0, false, hook).unwrap();
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
        let error = image.open(true).unwrap_err().to_string();
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
            let error = RawDisk::open(Path::new(path), true, Box::new(|_| {})).unwrap_err();
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
