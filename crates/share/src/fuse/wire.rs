//! FUSE's encoding.

use crate::wire::{Fields, Reply};
use rustix::fs::{Stat, StatFs};
use rustix::io::Errno;

/// Seconds for which names and attributes are valid in the guest.
const VALID: u64 = 1;

/// What a request begins with.
pub(super) struct Header {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
}

pub(super) fn header(f: &mut Fields<'_>) -> Result<Header, Errno> {
    let (len, opcode) = (f.u32()?, f.u32()?);
    let (unique, node) = (f.u64()?, f.u64()?);
    // User, group, process, padding.
    f.bytes(16)?;
    Ok(Header {
        len,
        opcode,
        unique,
        node,
    })
}

/// A name with its NUL.
pub(super) fn name<'a>(f: &mut Fields<'a>) -> Result<&'a [u8], Errno> {
    let end = f.0.iter().position(|&b| b == 0).ok_or(Errno::PROTO)?;
    let name = f.bytes(end)?;
    f.bytes(1)?;
    Ok(name)
}

/// `fuse_attr`.
fn attr(r: &mut Reply, s: &Stat) {
    for v in [
        s.st_ino,
        s.st_size.cast_unsigned(),
        s.st_blocks.cast_unsigned(),
    ] {
        r.u64(v);
    }
    for v in [s.st_atime, s.st_mtime, s.st_ctime] {
        r.u64(v as u64);
    }
    for v in [s.st_atime_nsec, s.st_mtime_nsec, s.st_ctime_nsec] {
        r.u32(v as u32);
    }
    r.u32(s.st_mode);
    r.u32(u32::try_from(s.st_nlink).unwrap_or(u32::MAX));
    r.u32(s.st_uid);
    r.u32(s.st_gid);
    // Device nodes are not passed through, but their numbers may be seen (new_encode_dev).
    let (major, minor) = (rustix::fs::major(s.st_rdev), rustix::fs::minor(s.st_rdev));
    r.u32((minor & 0xff) | (major << 8) | (minor & !0xff) << 12);
    r.u32(s.st_blksize as u32);
    r.u32(0);
}

/// `fuse_attr_out`.
pub(super) fn attr_out(r: &mut Reply, s: &Stat) {
    r.u64(VALID);
    r.u32(0);
    r.u32(0);
    attr(r, s);
}

/// `fuse_entry_out`; node 0 means that nothing is known of the entry.
pub(super) fn entry_out(r: &mut Reply, node: u64, s: Option<&Stat>) {
    r.u64(node);
    r.u64(0);
    let Some(s) = s else {
        r.0.extend([0; 112]);
        return;
    };
    r.u64(VALID);
    r.u64(VALID);
    r.u32(0);
    r.u32(0);
    attr(r, s);
}

/// `fuse_kstatfs`.
pub(super) fn put_statfs(r: &mut Reply, s: &StatFs) {
    for v in [s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree] {
        r.u64(v);
    }
    r.u32(s.f_bsize as u32);
    r.u32(255);
    r.u32(s.f_frsize as u32);
    r.0.extend([0; 28]);
}
