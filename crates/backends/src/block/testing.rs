//! Images and requests for tests.

use super::{DiskError, DiskFormat, DiskOptions, OpenDisk};
use mimeo_bus::{BlockBackend, BlockDone, BlockOperation, BlockRequest};
use mimeo_memory::GuestMemory;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

/// A file that goes away with the test: sector n is full of the byte n + 1.
pub(super) struct Image(pub(super) PathBuf);

impl Image {
    pub(super) fn new(name: &str, len: usize) -> Self {
        let image = Self::absent(name);
        let bytes: Vec<u8> = (0..len)
            .map(|i| ((i / 512) as u8).wrapping_add(1))
            .collect();
        std::fs::write(&image.0, bytes).unwrap();
        image
    }

    /// A name only.
    pub(super) fn absent(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("mimeo-{}-{name}", std::process::id())))
    }

    pub(super) fn open(&self, read_only: bool) -> Result<Arc<dyn BlockBackend>, DiskError> {
        open(&self.0, read_only, None, false)
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        std::fs::read(&self.0).unwrap()[at]
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn open(
    path: &Path,
    read_only: bool,
    format: Option<DiskFormat>,
    snapshot: bool,
) -> Result<Arc<dyn BlockBackend>, DiskError> {
    let options = DiskOptions {
        file: path.to_owned(),
        format,
        read_only,
        snapshot,
    };
    OpenDisk::open(&options, Box::new(|_| {}))?.start(Arc::new(|| ()))
}

/// The error that opening ends with.
pub(super) fn fails(opened: Result<Arc<dyn BlockBackend>, DiskError>) -> DiskError {
    opened.err().expect("this cannot be a disk")
}

pub(super) fn run(
    disk: &Arc<dyn BlockBackend>,
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
