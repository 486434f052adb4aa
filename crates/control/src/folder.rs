//! One VM's state folder.
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked by the VM's process as long as it lives |
//! | `vm.json` | [`RecordV1`] |
//! | `end.json` | [`EndV1`], empty until then |
//! | `control` | the control socket |
//! | `vsock` | the socket of the vsock device, unless another was named |
//! | `console.log` | what the guest said on its serial port |
//! | `monitor.log` | what a detached monitor said |

use crate::{ControlError, EndV1, RecordV1, now, start_time};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of a record that are read at most.
const LONGEST: u64 = 1 << 20;

/// The folder of the VM that this process runs. The lock is held until this is dropped.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// Open already: a jailed process opens nothing.
    end: File,
    _lock: File,
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), ControlError> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(ControlError::io(path))
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Plain structs of strings and numbers cannot fail.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

impl Folder {
    /// In the new directory `dir`.
    pub(crate) fn claim(dir: &Path, record: &RecordV1) -> Result<Self, ControlError> {
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(ControlError::io(&path))?;
        lock.lock().map_err(ControlError::io(&path))?;
        let end = dir.join("end.json");
        let end = File::create(&end).map_err(ControlError::io(&end))?;
        let folder = Self {
            dir: dir.to_owned(),
            end,
            _lock: lock,
        };
        folder.write(record)?;
        Ok(folder)
    }

    /// Writes the record anew.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, record: &RecordV1) -> Result<(), ControlError> {
        write_new(&self.dir.join("vm.json"), &json(record))
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates one of its files, for reading and appending.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&self, name: &str) -> Result<File, ControlError> {
        let path = self.dir.join(name);
        File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .map_err(ControlError::io(&path))
    }

    /// Says how the VM ended. A full disk leaves the end unsaid, which reads as a violent one.
    pub fn end(&self, status: u8, how: &str) {
        let end = EndV1 {
            version: 1,
            status,
            how: how.to_owned(),
            time: now(),
        };
        let _ = (&self.end).write_all(&json(&end));
    }
}

/// A folder as others see it.
#[derive(Debug, Clone)]
pub struct Seen {
    dir: PathBuf,
}

impl Seen {
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Whether its process lives.
    #[must_use]
    pub fn running(&self) -> bool {
        match File::open(self.dir.join("lock")) {
            Ok(lock) => matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let mut bytes = Vec::new();
        let file = File::open(self.dir.join(name)).ok()?;
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// What it says of the VM; `None` when its process did not come so far.
    #[must_use]
    pub fn record(&self) -> Option<RecordV1> {
        self.read("vm.json").filter(|r: &RecordV1| r.version == 1)
    }

    /// How the VM ended; `None` while it runs and when it was killed.
    #[must_use]
    pub fn end(&self) -> Option<EndV1> {
        self.read("end.json").filter(|e: &EndV1| e.version == 1)
    }

    /// Waits until its process has ended.
    ///
    /// # Errors
    /// The file system's.
    pub fn wait(&self) -> Result<(), ControlError> {
        let path = self.dir.join("lock");
        match File::open(&path) {
            Ok(lock) => lock.lock_shared().map_err(ControlError::io(&path)),
            // Removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(ControlError::io(&path)(e)),
        }
    }

    /// Sends a signal to its process, and to no other that may have got its number.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], or the system's.
    pub fn signal(&self, signal: Signal) -> Result<(), ControlError> {
        let gone = || ControlError::NotRunning(self.name());
        let record = self.record().ok_or_else(gone)?;
        let pid = Pid::from_raw(record.pid).ok_or_else(gone)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // The descriptor holds on to one process: the right one, if its start is the right one.
        if !self.running() || start_time(record.pid) != Some(record.pid_start) {
            return Err(gone());
        }
        pidfd_send_signal(&fd, signal).map_err(|e| ControlError::io(&self.dir)(e.into()))
    }
}
