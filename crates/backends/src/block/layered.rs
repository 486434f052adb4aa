//! Images in layers: qcow2 with its backing files, and throw-away layers on any image, through the
//! `imago` crate.
//!
//! A flush writes the tables that `imago` holds back and then waits for the medium. `imago` orders
//! its writes so that an image of which only some have arrived is whole: what was allocated and is
//! not referred to yet is lost space, never wrong data.

use super::open::{BackingGate, OpenImage};
use super::pool::Work;
use super::{DiskError, DiskFormat};
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use mimeo_bus::{BlockOperation, BlockRequest};
use std::io;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Bytes that are moved at a time.
const CHUNK: usize = 256 * 1024;

/// Moves `data`'s bytes, `CHUNK` at a time: `each` gets the position on the disk, the address in the
/// guest and the buffer.
fn each_piece(
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

/// Guest memory that is not there: devices have checked it, so this does not happen.
fn guest(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(e)
}

/// An image through `imago`.
pub(super) struct Layered {
    /// Exclusive for discards: they break mappings that others may be using.
    access: RwLock<FormatAccess<Storage>>,
    len: u64,
}

/// Opens `image` with all that it refers to.
pub(super) fn access(
    image: OpenImage,
    format: DiskFormat,
    write: bool,
) -> io::Result<FormatAccess<Storage>> {
    let storage = image.into_storage(write)?;
    Ok(match format {
        DiskFormat::Raw => {
            let raw = Raw::builder(storage).write(write);
            FormatAccess::new(raw.open(DenyImplicitOpenGate::default())?)
        }
        DiskFormat::Qcow2 => {
            let qcow2 = Qcow2::<Storage>::builder(storage).write(write);
            FormatAccess::new(qcow2.open(BackingGate::default())?)
        }
    })
}

/// Whether a disk of `len` bytes can be had.
fn check_len(path: &Path, len: u64) -> Result<(), DiskError> {
    if len == 0 || len % 512 != 0 {
        let path = path.display().to_string();
        return Err(DiskError::Length { path, len });
    }
    Ok(())
}

impl Layered {
    pub(super) fn new(
        image: OpenImage,
        format: DiskFormat,
        write: bool,
    ) -> Result<Self, DiskError> {
        let path = image.path.clone();
        let access = access(image, format, write).map_err(|e| DiskError::open(&path, e))?;
        check_len(&path, access.size())?;
        Ok(Self {
            len: access.size(),
            access: RwLock::new(access),
        })
    }

    /// Puts a layer on top that takes all writes and has no name.
    pub(super) fn throw_away(self, path: &Path) -> Result<Self, DiskError> {
        let len = self.len;
        let base = self
            .access
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let layer = || -> io::Result<FormatAccess<Storage>> {
            let storage = Storage::try_from(tempfile::tempfile()?)?;
            let new = Qcow2::<Storage>::create_builder(storage).size(len);
            let image = new.create_open(DenyImplicitOpenGate::default(), |storage| {
                Ok(Qcow2::<Storage>::builder(storage).backing(Some(base)))
            })?;
            Ok(FormatAccess::new(image))
        };
        let access = layer().map_err(|source| DiskError::Snapshot {
            path: path.display().to_string(),
            dir: std::env::temp_dir().display().to_string(),
            source,
        })?;
        Ok(Self {
            access: RwLock::new(access),
            len,
        })
    }

    /// Its size as the guest sees it, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self) -> io::Result<()> {
        let access = self.shared();
        access.flush()?;
        access.sync()
    }

    fn discard(&self, ranges: &[(u64, u64)]) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        ranges
            .iter()
            .filter(|r| r.1 != 0)
            .try_for_each(|&(at, len)| access.discard_to_zero(at, len))
    }
}

impl Work for Layered {
    fn run(&self, request: &BlockRequest) -> io::Result<()> {
        let (memory, data) = (&request.memory, &request.data);
        match &request.operation {
            BlockOperation::Read { at } => {
                let access = self.shared();
                each_piece(*at, data, |at, gpa, buffer| {
                    access.read(&mut *buffer, at)?;
                    memory.write(gpa, buffer).map_err(guest)
                })
            }
            BlockOperation::Write { at, durable } => {
                let access = self.shared();
                each_piece(*at, data, |at, gpa, buffer| {
                    memory.read(gpa, buffer).map_err(guest)?;
                    access.write(&*buffer, at)
                })?;
                drop(access);
                if *durable { self.flush() } else { Ok(()) }
            }
            BlockOperation::Flush => self.flush(),
            BlockOperation::Discard { ranges } => self.discard(ranges),
            BlockOperation::WriteZeroes {
                ranges,
                unmap: true,
            } => self.discard(ranges),
            BlockOperation::WriteZeroes { ranges, .. } => {
                let access = self.shared();
                ranges
                    .iter()
                    .filter(|r| r.1 != 0)
                    .try_for_each(|&(at, len)| access.write_zeroes(at, len))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Image, fails, open, run};
    use super::super::{create_image, image_info};
    use super::*;
    use mimeo_bus::BlockBackend;
    use mimeo_memory::GuestMemory;
    use std::sync::Arc;

    type Disk = Arc<dyn BlockBackend>;

    fn memory() -> Arc<GuestMemory> {
        Arc::new(GuestMemory::ram(1 << 20).unwrap())
    }

    fn fill(disk: &Disk, at: u64, len: u32, byte: u8) -> io::Result<()> {
        let memory = memory();
        memory.write(0, &vec![byte; len as usize]).unwrap();
        let durable = false;
        run(
            disk,
            &memory,
            BlockOperation::Write { at, durable },
            &[(0, len)],
        )
    }

    fn sector(disk: &Disk, at: u64) -> Vec<u8> {
        let memory = memory();
        run(disk, &memory, BlockOperation::Read { at }, &[(4096, 512)]).unwrap();
        let mut bytes = vec![0; 512];
        memory.read(4096, &mut bytes).unwrap();
        bytes
    }

    fn qcow2(name: &str, size: Option<u64>, backing: Option<&Image>) -> Image {
        let image = Image::absent(&format!("{name}.qcow2"));
        let backing = backing.map(|b| (b.0.as_path(), None));
        create_image(&image.0, DiskFormat::Qcow2, size, backing).unwrap();
        image
    }

    #[test]
    fn writes_go_into_the_upper_layer_only() {
        let base = Image::new("base", 1 << 20);
        let top = qcow2("top", None, Some(&base));
        let info = image_info(&top.0, None).unwrap();
        assert_eq!((info.format, info.size), (DiskFormat::Qcow2, 1 << 20));
        assert_eq!(info.backing.unwrap().1.as_deref(), Some("raw"));
        let disk = top.open(false).unwrap();
        assert_eq!(disk.capacity(), 1 << 20);
        assert_eq!(sector(&disk, 1024), [3; 512]);
        fill(&disk, 1024, 512, 0xaa).unwrap();
        assert_eq!(sector(&disk, 1024), [0xaa; 512]);
        // The rest of the cluster has come along.
        assert_eq!(sector(&disk, 1536), [4; 512]);
        let ranges = vec![(0, 65536)];
        run(
            &disk,
            &memory(),
            BlockOperation::WriteZeroes {
                ranges,
                unmap: true,
            },
            &[],
        )
        .unwrap();
        assert_eq!(sector(&disk, 512), [0; 512]);
        let ranges = vec![(65536, 512)];
        run(
            &disk,
            &memory(),
            BlockOperation::WriteZeroes {
                ranges,
                unmap: false,
            },
            &[],
        )
        .unwrap();
        assert_eq!(sector(&disk, 65536), [0; 512]);
        assert_eq!(sector(&disk, 66048), [130; 512]);
        drop(disk);
        assert_eq!(base.byte(1024), 3);
        let disk = top.open(true).unwrap();
        assert_eq!(sector(&disk, 65536), [0; 512]);
        assert_eq!(sector(&disk, 66048), [130; 512]);
    }

    #[test]
    fn what_was_flushed_is_there_after_a_crash() {
        let image = qcow2("crash", Some(64 << 20), None);
        let disk = image.open(false).unwrap();
        for i in 0..64u64 {
            fill(&disk, i << 20, 4096, i as u8 + 1).unwrap();
        }
        run(&disk, &memory(), BlockOperation::Flush, &[]).unwrap();
        fill(&disk, 4096, 4096, 0xff).unwrap();
        // As a process leaves it that is killed: a copy of the file as it is now.
        let left = Image::absent("left.qcow2");
        std::fs::copy(&image.0, &left.0).unwrap();
        let disk = left.open(false).unwrap();
        for i in 0..64u64 {
            assert_eq!(sector(&disk, i << 20), [i as u8 + 1; 512]);
        }
        fill(&disk, 8192, 4096, 0xee).unwrap();
        assert_eq!(sector(&disk, 0), [1; 512]);
    }

    #[test]
    fn a_snapshot_leaves_the_image_alone_and_can_be_had_twice() {
        let base = Image::new("shared", 1 << 20);
        let top = qcow2("shared", None, Some(&base));
        for file in [&base, &top] {
            let before = std::fs::read(&file.0).unwrap();
            let disks = [(); 2].map(|()| open(&file.0, false, None, true).unwrap());
            for (i, disk) in disks.iter().enumerate() {
                assert!(!disk.read_only());
                fill(disk, 512, 1024, 0x40 + i as u8).unwrap();
                run(disk, &memory(), BlockOperation::Flush, &[]).unwrap();
            }
            for (i, disk) in disks.iter().enumerate() {
                assert_eq!(sector(disk, 512), [0x40 + i as u8; 512]);
                assert_eq!(sector(disk, 1536), [4; 512]);
            }
            assert_eq!(std::fs::read(&file.0).unwrap(), before);
        }
        // Whoever writes wants it alone.
        let reader = open(&base.0, true, None, false).unwrap();
        assert!(matches!(fails(base.open(false)), DiskError::InUse(_)));
        drop(reader);
    }

    #[test]
    fn broken_chains_are_refused_with_the_reason() {
        let base = Image::new("gone", 1 << 20);
        let top = qcow2("orphan", None, Some(&base));
        drop(base);
        let error = fails(top.open(false)).to_string();
        assert!(
            error.contains("orphan") && error.contains("gone"),
            "{error}"
        );
        // It can still be described.
        assert!(image_info(&top.0, None).unwrap().backing.is_some());
        // Two that are each other's backing file.
        let one = qcow2("one", Some(1 << 20), None);
        let two = qcow2("two", None, Some(&one));
        std::fs::remove_file(&one.0).unwrap();
        let _one = qcow2("one", None, Some(&two));
        let error = fails(two.open(true)).to_string();
        assert!(error.contains("loop"), "{error}");
    }

    #[test]
    fn corrupt_headers_are_refused() {
        let good = qcow2("corrupt", Some(1 << 20), None);
        let bytes = std::fs::read(&good.0).unwrap();
        // Version, cluster size, L1's place, refcount table's place.
        for (at, with) in [(4, 9u8), (20, 0xff), (40, 0x7f), (48, 0x7f)] {
            let mut bad = bytes.clone();
            bad[at] = with;
            std::fs::write(&good.0, bad).unwrap();
            let opened = good.open(false);
            assert!(opened.is_err(), "a header with {with:#x} at {at} was taken");
        }
        std::fs::write(&good.0, &bytes[..40]).unwrap();
        assert!(good.open(false).is_err());
    }

    #[test]
    fn the_contents_do_not_decide_what_a_file_is() {
        let image = qcow2("name", Some(1 << 20), None);
        let other = Image::absent("name.img");
        std::fs::copy(&image.0, &other.0).unwrap();
        let error = fails(other.open(false)).to_string();
        assert!(error.contains("format=qcow2"), "{error}");
        let disk = open(&other.0, false, Some(DiskFormat::Qcow2), false).unwrap();
        assert_eq!(disk.capacity(), 1 << 20);
    }
}
