//! A FUSE server on a [`Tree`], for the virtio file system device.
//!
//! Facts: Linux's `include/uapi/linux/fuse.h`, protocol 7.31 (virtio 1.2, 5.11 asks for 7.31).
//! Names and attributes are valid for a second in the guest; data is checked against size and time of
//! modification at each open. Not modelled: extended attributes and ACLs, locks (they are the
//! guest's own), write-back caching, DAX, ioctl, poll, unnamed temporary files.

mod data;
mod dirs;
mod inodes;
mod names;
mod wire;

use crate::change::{Changes, Time};
use crate::wire::{Fields, Reply};
use crate::{ShareError, Tree};
use inodes::Inodes;
use mimeo_bus::MessageServer;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::HashMap;
use wire::{attr_out, header, name, put_statfs};

/// Bytes of a request's header.
const HEADER_IN: usize = 40;
/// Bytes of a reply's header.
const HEADER_OUT: usize = 16;
/// Bytes of data in one request.
const MOST_DATA: u32 = 1 << 20;
/// Files and folders that a client may have open.
const MOST_OPEN: usize = 8192;

/// Flags of INIT that are wanted, where the client offers them: parallel reads, O_TRUNC in open,
/// writes of more than a page, fresh data after a change outside, attributes with names, parallel
/// look-ups, long requests, cached link targets.
const WANTED: u32 =
    1 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 23;

mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}

/// A FUSE server for one client.
#[derive(Debug)]
pub struct Fuse {
    tree: Tree,
    inodes: Inodes,
    open: HashMap<u64, OwnedFd>,
    next_handle: u64,
    /// INIT has been answered.
    ready: bool,
}

impl Fuse {
    /// Serves `tree`.
    ///
    /// # Errors
    /// [`ShareError::Open`] when the folder has gone.
    pub fn new(tree: Tree) -> Result<Self, ShareError> {
        let inodes = Inodes::new(&tree).map_err(|e| ShareError::Open {
            path: "the shared folder".into(),
            source: e.into(),
        })?;
        Ok(Self {
            tree,
            inodes,
            open: HashMap::new(),
            next_handle: 1,
            ready: false,
        })
    }

    /// Answers one request with at most `room` bytes; with none where FUSE has no reply. Whatever the
    /// bytes are, what comes is a well-formed reply.
    pub fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let Ok(h) = header(&mut Fields(request)) else {
            return Vec::new();
        };
        let whole = usize::try_from(h.len).is_ok_and(|l| l == request.len());
        let body = Fields(request.get(HEADER_IN..).unwrap_or(&[]));
        match h.opcode {
            op::FORGET | op::BATCH_FORGET if whole => {
                self.forget(h.opcode, h.node, body);
                return Vec::new();
            }
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return Vec::new(),
            _ => {}
        }
        if room < HEADER_OUT {
            return Vec::new();
        }
        let mut reply = Reply(vec![0; HEADER_OUT]);
        let result = if !whole {
            Err(Errno::PROTO)
        } else if !self.ready && h.opcode != op::INIT {
            Err(Errno::IO)
        } else {
            self.dispatch(h.opcode, h.node, body, room - HEADER_OUT, &mut reply)
        };
        // Nothing that was asked for may be cut: an entry in half would be taken for one.
        let fits = if reply.0.len() > room {
            Err(Errno::INVAL)
        } else {
            Ok(())
        };
        let result = result.and(fits);
        let error = match result {
            Ok(()) => 0,
            Err(e) => {
                reply.0.truncate(HEADER_OUT);
                -e.raw_os_error()
            }
        };
        let len = reply.0.len() as u32;
        reply.0[..4].copy_from_slice(&len.to_le_bytes());
        reply.0[4..8].copy_from_slice(&error.to_le_bytes());
        reply.0[8..16].copy_from_slice(&h.unique.to_le_bytes());
        reply.0
    }

    fn dispatch(
        &mut self,
        opcode: u32,
        node: u64,
        mut f: Fields<'_>,
        room: usize,
        r: &mut Reply,
    ) -> Result<(), Errno> {
        let f = &mut f;
        match opcode {
            op::INIT => self.init(f, r),
            op::DESTROY => {
                self.forget_all();
                Ok(())
            }
            op::LOOKUP => {
                let name = name(f)?;
                self.lookup(node, name, r)
            }
            op::GETATTR => self.getattr(node, f, r),
            op::SETATTR => self.setattr(node, f, r),
            op::READLINK => {
                let target = self.tree.read_link(self.inodes.node(&self.tree, node)?)?;
                r.0.extend(target);
                Ok(())
            }
            op::SYMLINK | op::MKNOD | op::MKDIR => self.make(opcode, node, f, r),
            op::LINK => self.link(node, f, r),
            op::UNLINK | op::RMDIR => {
                let name = name(f)?;
                let dir = self.inodes.node(&self.tree, node)?;
                self.tree.unlink(dir, name, opcode == op::RMDIR)
            }
            op::RENAME | op::RENAME2 => self.rename(opcode, node, f),
            op::STATFS => {
                put_statfs(
                    r,
                    &rustix::fs::fstatfs(self.inodes.node(&self.tree, node)?.fd())?,
                );
                Ok(())
            }
            op::OPEN | op::OPENDIR => self.open(opcode, node, f, r),
            op::CREATE => self.create(node, f, r),
            op::RELEASE | op::RELEASEDIR => {
                self.open.remove(&f.u64()?);
                Ok(())
            }
            op::READ => self.read(f, room, r),
            op::WRITE => self.write(f, r),
            op::FSYNC | op::FSYNCDIR => self.fsync(f),
            op::SYNCFS => self.tree.sync(),
            op::FALLOCATE => self.fallocate(f),
            op::LSEEK => self.lseek(f, r),
            op::COPY_FILE_RANGE => self.copy_file_range(f, r),
            op::READDIR | op::READDIRPLUS => {
                self.readdir(node, opcode == op::READDIRPLUS, f, room, r)
            }
            // The client remembers and does without: flush, access, extended attributes, locks, ioctl.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&mut self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        const MAJOR: u32 = 7;
        const MINOR: u32 = 31;
        let (major, minor) = (f.u32()?, f.u32()?);
        let (readahead, flags) = (f.u32()?, f.u32()?);
        if major < MAJOR || (major == MAJOR && minor < 27) {
            return Err(Errno::PROTO);
        }
        self.forget_all();
        self.ready = true;
        r.u32(MAJOR);
        r.u32(MINOR.min(if major > MAJOR { MINOR } else { minor }));
        r.u32(readahead.min(MOST_DATA));
        r.u32(flags & WANTED);
        // Requests in the background, and how many of them are a congestion.
        r.u16(64);
        r.u16(48);
        r.u32(MOST_DATA);
        // Granularity of times, in nanoseconds.
        r.u32(1);
        // Pages in a request.
        r.u16((MOST_DATA / 4096) as u16);
        r.0.extend([0; 34]);
        Ok(())
    }

    fn forget_all(&mut self) {
        self.open.clear();
        self.inodes.clear();
        self.ready = false;
    }

    fn forget(&mut self, opcode: u32, node: u64, mut f: Fields<'_>) {
        if opcode == op::FORGET {
            if let Ok(n) = f.u64() {
                self.inodes.forget(node, n);
            }
            return;
        }
        let Ok(count) = f.u32().and_then(|c| f.u32().map(|_| c)) else {
            return;
        };
        for _ in 0..count {
            // Ends with the request, whatever the count says.
            let (Ok(node), Ok(n)) = (f.u64(), f.u64()) else {
                return;
            };
            self.inodes.forget(node, n);
        }
    }

    fn file(&self, handle: u64) -> Result<BorrowedFd<'_>, Errno> {
        Ok(self.open.get(&handle).ok_or(Errno::BADF)?.as_fd())
    }

    /// Keeps an open file; gives its handle.
    fn keep(&mut self, fd: OwnedFd) -> Result<u64, Errno> {
        if self.open.len() >= MOST_OPEN {
            return Err(Errno::NFILE);
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.open.insert(handle, fd);
        Ok(handle)
    }

    fn getattr(&mut self, node: u64, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        const FH: u32 = 1;
        let flags = f.u32()?;
        f.u32()?;
        let handle = f.u64()?;
        // Through an open file, where there is one: it may have no name any more.
        let stat = match self.open.get(&handle) {
            Some(fd) if flags & FH != 0 => rustix::fs::fstat(fd)?,
            _ => self.inodes.node(&self.tree, node)?.stat()?,
        };
        attr_out(r, &stat);
        Ok(())
    }

    fn setattr(&mut self, node: u64, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let valid = f.u32()?;
        f.u32()?;
        let (handle, size) = (f.u64()?, f.u64()?);
        f.u64()?;
        let (atime, mtime, _ctime) = (f.u64()?, f.u64()?, f.u64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (f.u32()?, f.u32()?, f.u32()?);
        let mode = f.u32()?;
        f.u32()?;
        let (uid, gid) = (f.u32()?, f.u32()?);
        let has = |bit: u32| valid & 1 << bit != 0;
        let time = |set, now, sec: u64, nsec| match (has(set), has(now)) {
            (false, _) => Time::Omit,
            (true, true) => Time::Now,
            (true, false) => Time::At(sec.cast_signed(), nsec),
        };
        let changes = Changes {
            mode: has(0).then_some(mode),
            uid: has(1).then_some(uid),
            gid: has(2).then_some(gid),
            size: has(3).then_some(size),
            accessed: time(4, 7, atime, atime_ns),
            modified: time(5, 8, mtime, mtime_ns),
        };
        let open = self.open.get(&handle).filter(|_| has(6));
        let node = self.inodes.node(&self.tree, node)?;
        self.tree.change(node, open.map(AsFd::as_fd), &changes)?;
        attr_out(r, &node.stat()?);
        Ok(())
    }
}

impl MessageServer for Fuse {
    fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        Fuse::handle(self, request, room)
    }

    fn reset(&mut self) {
        self.forget_all();
    }
}
