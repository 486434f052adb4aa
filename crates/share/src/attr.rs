//! Attributes: Tgetattr, Tsetattr, qids.

use crate::change::{Changes, Time};
use crate::wire::{Fields, Reply};
use crate::{Node, Tree};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

/// Fields that a getattr reply carries: everything up to blocks.
const GETATTR_BASIC: u64 = 0x7ff;

/// A qid: what identifies a file to the client (9P2000 `intro`): type, version, path.
pub(crate) fn qid(reply: &mut Reply, stat: &Stat) {
    reply.u8(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => 0x80,
        FileType::Symlink => 0x02,
        _ => 0,
    });
    // The version changes with the contents; clients use it for cache validity only.
    let mtime = (stat.st_mtime as u64) ^ (stat.st_mtime_nsec << 20) ^ (stat.st_size as u64);
    reply.u32(mtime as u32);
    // Inode numbers of several file systems below one share are told apart by the device.
    reply.u64(stat.st_ino ^ stat.st_dev.rotate_right(16));
}

pub(crate) fn getattr(node: &Node, reply: &mut Reply) -> Result<(), Errno> {
    let s = node.stat()?;
    reply.u64(GETATTR_BASIC);
    qid(reply, &s);
    reply.u32(s.st_mode);
    reply.u32(s.st_uid);
    reply.u32(s.st_gid);
    reply.u64(s.st_nlink);
    reply.u64(s.st_rdev);
    reply.u64(s.st_size as u64);
    reply.u64(s.st_blksize as u64);
    reply.u64(s.st_blocks as u64);
    for (sec, nsec) in [
        (s.st_atime as u64, s.st_atime_nsec),
        (s.st_mtime as u64, s.st_mtime_nsec),
        (s.st_ctime as u64, s.st_ctime_nsec),
        (0, 0), // birth time
    ] {
        reply.u64(sec);
        reply.u64(nsec);
    }
    reply.u64(0); // generation
    reply.u64(0); // data version
    Ok(())
}

// Bits of Tsetattr's `valid` (Linux, include/net/9p/9p.h).
const MODE: u32 = 1;
const UID: u32 = 2;
const GID: u32 = 4;
const SIZE: u32 = 8;
const ATIME: u32 = 0x10;
const MTIME: u32 = 0x20;
const ATIME_SET: u32 = 0x80;
const MTIME_SET: u32 = 0x100;

pub(crate) fn setattr(tree: &Tree, node: &Node, f: &mut Fields<'_>) -> Result<(), Errno> {
    let valid = f.u32()?;
    let (mode, uid, gid, size) = (f.u32()?, f.u32()?, f.u32()?, f.u64()?);
    let mut time = |set: u32, explicit: u32| -> Result<Time, Errno> {
        let (sec, nsec) = (f.u64()?, f.u64()?);
        Ok(if valid & set == 0 {
            Time::Omit
        } else if valid & explicit == 0 {
            Time::Now
        } else {
            let nsec = u32::try_from(nsec).map_err(|_| Errno::INVAL)?;
            Time::At(sec.cast_signed(), nsec)
        })
    };
    let changes = Changes {
        mode: (valid & MODE != 0).then_some(mode),
        uid: (valid & UID != 0).then_some(uid),
        gid: (valid & GID != 0).then_some(gid),
        size: (valid & SIZE != 0).then_some(size),
        accessed: time(ATIME, ATIME_SET)?,
        modified: time(MTIME, MTIME_SET)?,
    };
    tree.change(node, None, &changes)
}

pub(crate) fn statfs(node: &Node, reply: &mut Reply) -> Result<(), Errno> {
    let s = rustix::fs::fstatfs(node.fd())?;
    const V9FS_MAGIC: u32 = 0x0102_1997;
    reply.u32(V9FS_MAGIC);
    reply.u32(s.f_bsize as u32);
    for v in [s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, 0] {
        reply.u64(v);
    }
    reply.u32(255);
    Ok(())
}
