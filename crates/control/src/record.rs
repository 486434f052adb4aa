//! What a state folder says of its VM.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Written when the name is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordV1 {
    /// Version of this record: 1.
    pub version: u32,
    /// The VM's name.
    pub name: String,
    /// Its process.
    pub pid: i32,
    /// When that process started, in clock ticks since the host's boot (proc(5), stat, field 22).
    pub pid_start: u64,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// What it runs, for people: a guest's name or a kernel's file.
    pub guest: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// The arguments of `mimeo run` that start the same again.
    pub arguments: Vec<String>,
    /// The directory that relative paths in them mean.
    pub directory: PathBuf,
    /// Nobody wants the folder once the VM has ended.
    pub remove: bool,
    /// The socket of its vsock device, if it has one.
    pub vsock: Option<PathBuf>,
}

/// Written when the VM ends by itself or by its monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndV1 {
    /// Version of this record: 1.
    pub version: u32,
    /// The exit status of `mimeo run`.
    pub status: u8,
    /// How it ended, in a word or two.
    pub how: String,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// When process `pid` started (field 22 of its stat); `None` when there is none.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_start() {
        let own = std::process::id() as i32;
        assert!(start_time(own).unwrap() > 0);
        assert_eq!(start_time(own), start_time(own));
        assert_eq!(start_time(-1), None);
    }
}
