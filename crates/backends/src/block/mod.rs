//! Disks on the host.

mod pool;
mod raw;

pub use raw::{DiskError, RawDisk};
