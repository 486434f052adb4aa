//! Initial RAM disks and boot modules: files that are copied into guest memory as they are.

use crate::BootError;
use mimeo_memory::GuestMemory;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// One initial RAM disk (Linux) or module (Multiboot, PVH).
#[derive(Debug)]
pub struct Module {
    name: String,
    /// The module's own command line, for the protocols that have one.
    cmdline: Option<String>,
    len: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(File),
    Bytes(Vec<u8>),
}

const REMEDY: &str = "give --initrd a file that exists and can be read";

impl Module {
    /// Opens a file; its contents go into guest memory piecewise when the kernel is loaded.
    ///
    /// # Errors
    /// [`BootError::Read`].
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let read = |cause| BootError::Read {
            name: name.clone(),
            cause,
            remedy: REMEDY,
        };
        let mut file = File::open(path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        if meta.is_dir() {
            return Err(read(io::ErrorKind::IsADirectory.into()));
        }
        if meta.is_file() {
            let len = meta.len();
            let source = Source::File(file);
            return Ok(Self {
                name,
                cmdline: None,
                len,
                source,
            });
        }
        // A pipe or a device has no length.
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(read)?;
        Ok(Self::from_bytes(name, bytes))
    }

    /// A module whose contents are at hand.
    #[must_use]
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            cmdline: None,
            len: bytes.len() as u64,
            source: Source::Bytes(bytes),
        }
    }

    /// Adds the module's own command line (Multiboot, PVH; Linux has none).
    #[must_use]
    pub fn with_cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = Some(cmdline.into());
        self
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Its own command line.
    pub(crate) fn cmdline(&self) -> Option<&str> {
        self.cmdline.as_deref()
    }

    /// The string that goes with it: the name, and its command line if it has one.
    pub(crate) fn string(&self) -> String {
        match &self.cmdline {
            Some(c) => format!("{} {c}", self.name),
            None => self.name.clone(),
        }
    }

    /// Copies the contents to `gpa`.
    pub(crate) fn copy_to(&self, mem: &GuestMemory, gpa: u64) -> Result<(), BootError> {
        let mut file = match &self.source {
            Source::Bytes(b) => return Ok(mem.write(gpa, b)?),
            Source::File(f) => f,
        };
        let read = |cause| BootError::Read {
            name: self.name.clone(),
            cause,
            remedy: "leave the file alone while the machine starts",
        };
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.len).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < self.len {
            let n = chunk
                .len()
                .min(usize::try_from(self.len - done).unwrap_or(CHUNK));
            file.read_exact(&mut chunk[..n]).map_err(read)?;
            mem.write(gpa + done, &chunk[..n])?;
            done += n as u64;
        }
        Ok(())
    }
}
