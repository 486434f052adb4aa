//! Treaddir.

use crate::Node;
use crate::Tree;
use crate::attr::qid;
use crate::wire::Reply;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::Errno;
use std::mem::MaybeUninit;

/// Appends entries from `offset` on, at most `count` bytes of them. `offset` is a cookie of an earlier
/// entry, or 0; the host's file system checks it.
pub(crate) fn read(
    tree: &Tree,
    node: &Node,
    fd: &OwnedFd,
    offset: u64,
    count: usize,
    reply: &mut Reply,
) -> Result<(), Errno> {
    rustix::fs::seek(fd, SeekFrom::Start(offset))?;
    let mut buf = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(fd, &mut buf);
    let start = reply.0.len();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if reply.0.len() - start + 24 + name.len() > count {
            break;
        }
        // `..` of the root is the root: the guest learns nothing of what is above.
        match tree.step(node, name).and_then(|n| n.stat()) {
            Ok(stat) => qid(reply, &stat),
            // It went away, or may not be looked at: the name and a qid by inode must do.
            Err(_) => {
                reply.u8(if entry.file_type() == FileType::Directory {
                    0x80
                } else {
                    0
                });
                reply.u32(0);
                reply.u64(entry.ino());
            }
        }
        reply.u64(entry.next_entry_cookie());
        reply.u8(match entry.file_type() {
            FileType::Fifo => 1,
            FileType::CharacterDevice => 2,
            FileType::Directory => 4,
            FileType::BlockDevice => 6,
            FileType::RegularFile => 8,
            FileType::Symlink => 10,
            FileType::Socket => 12,
            FileType::Unknown => 0,
        });
        reply.string(name);
    }
    Ok(())
}
