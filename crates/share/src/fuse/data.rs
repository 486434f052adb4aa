//! Requests about the contents of files.

use super::wire::{entry_out, name};
use super::{Fuse, HEADER_OUT, MOST_DATA, op};
use crate::server::open_flags;
use crate::wire::{Fields, Reply};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

/// `fuse_open_out`.
fn open_out(r: &mut Reply, handle: u64) {
    r.u64(handle);
    r.u32(0);
    r.u32(0);
}

/// The flags for a file: the client says where to append.
fn file_flags(bits: u32) -> OFlags {
    open_flags(bits) - OFlags::APPEND
}

impl Fuse {
    pub(super) fn open(
        &mut self,
        opcode: u32,
        node: u64,
        f: &mut Fields<'_>,
        r: &mut Reply,
    ) -> Result<(), Errno> {
        let flags = file_flags(f.u32()?) - OFlags::EXCL;
        let flags = if opcode == op::OPENDIR {
            OFlags::RDONLY | OFlags::DIRECTORY
        } else {
            flags
        };
        let node = self.inodes.node(&self.tree, node)?;
        let fd = self.tree.open_node(node, flags)?;
        let handle = self.keep(fd)?;
        open_out(r, handle);
        Ok(())
    }

    pub(super) fn create(
        &mut self,
        dir: u64,
        f: &mut Fields<'_>,
        r: &mut Reply,
    ) -> Result<(), Errno> {
        let (flags, mode) = (f.u32()?, f.u32()?);
        f.u64()?;
        let name = name(f)?;
        let dir = self.inodes.node(&self.tree, dir)?;
        let (node, fd) = self.tree.create(dir, name, file_flags(flags), mode)?;
        let stat = node.stat()?;
        let handle = self.keep(fd)?;
        match self.inodes.enter(node, &stat) {
            Ok(id) => entry_out(r, id, Some(&stat)),
            Err(e) => {
                self.open.remove(&handle);
                return Err(e);
            }
        }
        open_out(r, handle);
        Ok(())
    }

    pub(super) fn read(&self, f: &mut Fields<'_>, room: usize, r: &mut Reply) -> Result<(), Errno> {
        let (handle, offset, size) = (f.u64()?, f.u64()?, f.u32()?);
        // At most a megabyte.
        let size = (size.min(MOST_DATA) as usize).min(room);
        let fd = self.file(handle)?;
        r.0.resize(HEADER_OUT + size, 0);
        let mut done = 0;
        while done < size {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match rustix::io::pread(fd, &mut r.0[HEADER_OUT + done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        r.0.truncate(HEADER_OUT + done);
        Ok(())
    }

    pub(super) fn write(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (handle, offset, size) = (f.u64()?, f.u64()?, f.u32()?);
        f.bytes(20)?;
        let data = f.bytes(size as usize)?;
        self.tree.writable()?;
        let fd = self.file(handle)?;
        let mut done = 0;
        while done < data.len() {
            let at = offset.checked_add(done as u64).ok_or(Errno::FBIG)?;
            match rustix::io::pwrite(fd, &data[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        // Below 2^32: a request is.
        r.u32(done as u32);
        r.u32(0);
        Ok(())
    }

    pub(super) fn fsync(&self, f: &mut Fields<'_>) -> Result<(), Errno> {
        let (handle, flags) = (f.u64()?, f.u32()?);
        let fd = self.file(handle)?;
        if flags & 1 != 0 {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }
    }

    pub(super) fn fallocate(&self, f: &mut Fields<'_>) -> Result<(), Errno> {
        let (handle, offset, length, mode) = (f.u64()?, f.u64()?, f.u64()?, f.u32()?);
        self.tree.writable()?;
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits(mode)
            .filter(|m| known.contains(*m))
            .ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(self.file(handle)?, mode, offset, length)
    }

    pub(super) fn lseek(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (handle, offset, whence) = (f.u64()?, f.u64()?, f.u32()?);
        // The others are the client's own affair.
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        r.u64(rustix::fs::seek(self.file(handle)?, to)?);
        Ok(())
    }

    pub(super) fn copy_file_range(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (from, mut from_at, _node) = (f.u64()?, f.u64()?, f.u64()?);
        let (to, mut to_at, len, flags) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
        self.tree.writable()?;
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        // A piece at a time, so that other requests do not wait long: the client asks again.
        let len = len.min(16 << 20) as usize;
        let (from, to) = (self.file(from)?, self.file(to)?);
        let n = rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len)?;
        r.u32(n as u32);
        r.u32(0);
        Ok(())
    }
}
