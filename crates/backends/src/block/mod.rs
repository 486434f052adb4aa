//! Disks on the host: raw files and block devices, qcow2 with backing files, throw-away layers.
//!
//! Every disk is worked on by threads of its own ([`bus::BlockBackend`](mimeo_bus::BlockBackend)); a
//! failure of the host reaches the guest as an I/O error, and the person once for each kind.

mod images;
mod layered;
mod open;
mod pool;
mod raw;
mod report;
#[cfg(test)]
mod testing;

pub use images::{ImageInfo, convert_image, create_image, image_info};

use layered::Layered;
use mimeo_bus::BlockBackend;
use open::OpenImage;
use pool::{Pool, Work};
use raw::Raw;
use report::{OnError, Reported};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Requests of a disk that are worked on at a time.
const THREADS: usize = 2;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl DiskFormat {
    /// The format that a file's name tells: `.qcow2` is qcow2, everything else raw. The contents do
    /// not decide: a guest writes those, and could make a raw image look like a qcow2 one that names
    /// any file of the host's.
    #[must_use]
    pub fn of_name(path: &Path) -> Self {
        if path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("qcow2"))
        {
            Self::Qcow2
        } else {
            Self::Raw
        }
    }
}

impl FromStr for DiskFormat {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!(
                "there is no disk format `{s}`: choose raw or qcow2"
            )),
        }
    }
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened or used.
    #[error("cannot use the disk image {path}: {source}")]
    Open {
        /// Its path.
        path: String,
        /// The system's answer, or what is wrong with the image.
        source: io::Error,
    },
    /// Somebody else writes to it.
    #[error(
        "the disk image {0} is in use by another program; stop that, or open it read-only (,ro) or with a throw-away layer (,snapshot) everywhere"
    )]
    InUse(String),
    /// Its length is not a number of sectors.
    #[error(
        "the disk image {path} is {len} bytes long, which is not a multiple of 512; is it a disk image?"
    )]
    Length {
        /// Its path.
        path: String,
        /// Its length.
        len: u64,
    },
    /// It looks like qcow2, and nobody said so.
    #[error(
        "the disk image {0} begins like a qcow2 image, but its name does not say so; add format=qcow2 (or format=raw, if the guest is to see the bytes as they are)"
    )]
    Ambiguous(String),
    /// The layer for a snapshot cannot be made.
    #[error(
        "cannot make a throw-away layer for {path} in {dir}: {source}; set TMPDIR to a folder with room"
    )]
    Snapshot {
        /// The image.
        path: String,
        /// The folder for temporary files.
        dir: String,
        /// The system's answer.
        source: io::Error,
    },
    /// An image to be made is there already.
    #[error("{0} exists already; remove it, or choose another name")]
    Exists(String),
    /// An image to be made without a size.
    #[error("{0}: an image without a backing file needs a size, such as 8G")]
    NoSize(String),
    /// Only a format with layers can have a backing file.
    #[error("{0}: a raw image cannot have a backing file; use qcow2")]
    RawBacking(String),
}

impl DiskError {
    fn open(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Open {
            path: path.display().to_string(),
            source: source.into(),
        }
    }
}

/// How a disk is to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// The image file or block device.
    pub file: PathBuf,
    /// Its format; by its name when none is given.
    pub format: Option<DiskFormat>,
    /// Writes are refused.
    pub read_only: bool,
    /// Writes go into an unnamed temporary file and are gone afterwards.
    pub snapshot: bool,
}

struct Disk {
    // Dropped first: its threads use the work.
    pool: Pool,
    capacity: u64,
    read_only: bool,
}

impl BlockBackend for Disk {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, request: mimeo_bus::BlockRequest) {
        self.pool.submit(request);
    }
}

/// A disk whose files are open and locked, and whose threads have not started: between the two the
/// process can give up the file system (crate `jail`).
pub struct OpenDisk {
    work: Arc<dyn Work>,
    capacity: u64,
    read_only: bool,
    path: PathBuf,
}

impl std::fmt::Debug for OpenDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "OpenDisk({}, {} bytes)",
            self.path.display(),
            self.capacity
        )
    }
}

impl OpenDisk {
    /// Opens the image and everything that it refers to. `on_error` is told of failures while the
    /// VM runs, once for each kind.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(options: &DiskOptions, on_error: OnError) -> Result<Self, DiskError> {
        let path = &options.file;
        let writes = !options.read_only && !options.snapshot;
        let image = OpenImage::open(path, writes)?;
        let format = image.format(options.format)?;
        let (work, capacity): (Arc<dyn Work>, u64) = match (format, options.snapshot) {
            (DiskFormat::Raw, false) => {
                let raw = Raw::new(image)?;
                let capacity = raw.len();
                (Arc::new(Reported::new(raw, on_error)), capacity)
            }
            (format, snapshot) => {
                let mut layered = Layered::new(image, format, writes)?;
                if snapshot {
                    layered = layered.throw_away(path)?;
                }
                let capacity = layered.len();
                (Arc::new(Reported::new(layered, on_error)), capacity)
            }
        };
        Ok(Self {
            work,
            capacity,
            read_only: options.read_only,
            path: path.clone(),
        })
    }

    /// Starts the threads, each of which does `first` (cages itself) before anything else.
    ///
    /// # Errors
    /// [`DiskError::Open`] when the host gives none.
    pub fn start(
        self,
        first: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Arc<dyn BlockBackend>, DiskError> {
        let pool =
            Pool::new(THREADS, &self.work, &first).map_err(|e| DiskError::open(&self.path, e))?;
        Ok(Arc::new(Disk {
            pool,
            capacity: self.capacity,
            read_only: self.read_only,
        }))
    }
}
