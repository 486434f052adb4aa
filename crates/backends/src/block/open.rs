//! Opening and locking image files.
//!
//! One writer or many readers: flock(2) on every file of a chain of images, exclusive where it is
//! written, shared elsewhere.

use super::{DiskError, DiskFormat};
use imago::FormatAccess;
use imago::file::File as Storage;
use imago::format::builder::FormatDriverBuilder;
use imago::format::gate::ImplicitOpenGate;
use imago::storage::StorageOpenOptions;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a qcow2 image begins with.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Images in a chain of backing files at the most: a loop would have no end.
const MOST_BACKING: u32 = 64;

/// An image file: open, locked, of known length.
pub(super) struct OpenImage {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) len: u64,
}

/// Opens a file and locks it; `None` where another program has it.
fn open_locked(path: &Path, write: bool) -> io::Result<Option<File>> {
    let file = File::options().read(true).write(write).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let lock = if write {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match flock(&file, lock) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl OpenImage {
    pub(super) fn open(path: &Path, write: bool) -> Result<Self, DiskError> {
        let failed = |e| DiskError::open(path, e);
        let file = open_locked(path, write).map_err(failed)?;
        let mut file = file.ok_or_else(|| DiskError::InUse(path.display().to_string()))?;
        // The length of block devices, too.
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            len,
        })
    }

    /// The format that was asked for, or the one that the name tells.
    pub(super) fn format(&self, wanted: Option<DiskFormat>) -> Result<DiskFormat, DiskError> {
        if let Some(format) = wanted {
            return Ok(format);
        }
        let format = DiskFormat::of_name(&self.path);
        let mut magic = [0; 4];
        let looks = self.file.read_exact_at(&mut magic, 0).is_ok() && magic == QCOW2_MAGIC;
        if looks && format == DiskFormat::Raw {
            return Err(DiskError::Ambiguous(self.path.display().to_string()));
        }
        Ok(format)
    }

    /// As `imago` takes it.
    pub(super) fn into_storage(self, write: bool) -> io::Result<Storage> {
        let options = StorageOpenOptions::new().filename(&self.path).write(write);
        Storage::from_open_file(self.file, options)
    }
}

/// Opens what an image's header refers to: read-only, locked, a bounded number of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BackingGate {
    depth: u32,
}

impl ImplicitOpenGate<Storage> for BackingGate {
    fn open_format<F: FormatDriverBuilder<Storage>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<Storage>> {
        let depth = self.depth + 1;
        if depth > MOST_BACKING {
            return Err(io::Error::other(format!(
                "more than {MOST_BACKING} images in a chain of backing files: is there a loop?"
            )));
        }
        Ok(FormatAccess::new(
            builder.write(false).open(Self { depth })?,
        ))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        let path = options
            .get_filename()
            .ok_or_else(|| io::Error::other("a reference without a file name"))?;
        let file = open_locked(path, false)?
            .ok_or_else(|| io::Error::other("another program writes to it; stop that one first"))?;
        // External data files of a writable image would have to be written.
        if options.get_writable() {
            return Err(io::Error::other(
                "images with external data files are not supported",
            ));
        }
        Storage::from_open_file(file, options)
    }
}
