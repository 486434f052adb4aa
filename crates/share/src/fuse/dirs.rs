//! READDIR and READDIRPLUS.

use super::wire::entry_out;
use super::{Fuse, MOST_DATA};
use crate::wire::{Fields, Reply};
use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::Errno;
use std::mem::MaybeUninit;

/// Bytes of an entry before its name.
const DIRENT: usize = 24;
/// Bytes that READDIRPLUS puts before each.
const ENTRY: usize = 128;

/// d_type as getdents(2) has it.
fn kind(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}

impl Fuse {
    pub(super) fn readdir(
        &mut self,
        dir: u64,
        plus: bool,
        f: &mut Fields<'_>,
        room: usize,
        r: &mut Reply,
    ) -> Result<(), Errno> {
        let (handle, offset, size) = (f.u64()?, f.u64()?, f.u32()?);
        let room = (size.min(MOST_DATA) as usize).min(room);
        let fd = self.open.get(&handle).ok_or(Errno::BADF)?;
        rustix::fs::seek(fd, SeekFrom::Start(offset))?;
        self.inodes.hold(&self.tree, dir)?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(fd, &mut buffer);
        let start = r.0.len();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let len = (DIRENT + name.len()).next_multiple_of(8) + if plus { ENTRY } else { 0 };
            if r.0.len() - start + len > room {
                break;
            }
            if plus {
                let known = match name {
                    b"." | b".." => None,
                    // It went away, or may not be looked at: the client asks when it needs to know.
                    _ => match self.tree.step(self.inodes.held(dir)?, name) {
                        Ok(node) => node.stat().ok().map(|stat| (node, stat)),
                        Err(_) => None,
                    },
                };
                let known = known
                    .and_then(|(node, stat)| Some((self.inodes.enter(node, &stat).ok()?, stat)));
                // Entering may have closed the folder's descriptor.
                self.inodes.hold(&self.tree, dir)?;
                match known {
                    Some((id, stat)) => entry_out(r, id, Some(&stat)),
                    None => entry_out(r, 0, None),
                }
            }
            r.u64(entry.ino());
            r.u64(entry.next_entry_cookie());
            // At most 255.
            r.u32(name.len() as u32);
            r.u32(kind(entry.file_type()));
            r.0.extend_from_slice(name);
            let padded = (r.0.len() - start).next_multiple_of(8);
            r.0.resize(start + padded, 0);
        }
        Ok(())
    }
}
