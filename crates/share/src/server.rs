//! The 9P2000.L server: fids, dispatch, file operations.
//!
//! Message numbers and layouts: Linux `include/net/9p/9p.h` and the diod project's protocol text.

use crate::attr::{getattr, qid, setattr, statfs};
use crate::tree::as_bytes;
use crate::wire::{Fields, Reply};
use crate::{Node, Tree, dir};
use mimeo_bus::MessageServer;
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::HashMap;

const RLERROR: u8 = 7;
/// The largest message that is ever agreed on, in bytes.
const MAX_MSIZE: u32 = 512 * 1024;
/// Fids of one client; each holds one or two descriptors.
const MAX_FIDS: usize = 4096;
/// Names in one Twalk (9P2000 `walk`).
const MAX_WALK: u16 = 16;
const READ_OVERHEAD: u32 = 11;

#[derive(Debug)]
struct Fid {
    node: Node,
    open: Option<OwnedFd>,
}

/// A 9P2000.L server for one client.
#[derive(Debug)]
pub struct NineP {
    tree: Tree,
    fids: HashMap<u32, Fid>,
    msize: u32,
}

/// Linux's open flags as 9P2000.L carries them (the x86 numbers), the harmless ones only.
pub(crate) fn open_flags(bits: u32) -> OFlags {
    let mut flags = match bits & 3 {
        0 => OFlags::RDONLY,
        1 => OFlags::WRONLY,
        _ => OFlags::RDWR,
    };
    for (bit, flag) in [
        (0o200, OFlags::EXCL),
        (0o1000, OFlags::TRUNC),
        (0o2000, OFlags::APPEND),
        (0o10000, OFlags::DSYNC),
        (0o200_000, OFlags::DIRECTORY),
    ] {
        if bits & bit != 0 {
            flags |= flag;
        }
    }
    flags
}

impl NineP {
    /// Serves `tree`.
    #[must_use]
    pub fn new(tree: Tree) -> Self {
        Self {
            tree,
            fids: HashMap::new(),
            msize: MAX_MSIZE,
        }
    }

    /// The message size in force: no request or reply is longer, in bytes.
    #[must_use]
    pub fn msize(&self) -> u32 {
        self.msize
    }

    /// Answers one message (with its size field). Whatever the bytes are, the answer is a well-formed
    /// reply, at worst an error.
    pub fn handle(&mut self, request: &[u8]) -> Vec<u8> {
        let mut f = Fields(request);
        let head = f.u32().and_then(|size| Ok((size, f.u8()?, f.u16()?)));
        let (size, kind, tag) = head.unwrap_or((0, 0, 0xffff));
        let mut reply = Reply::start(kind.wrapping_add(1), tag);
        let result = if size as usize != request.len() || size > self.msize {
            Err(Errno::PROTO)
        } else {
            self.dispatch(kind, f, &mut reply)
        };
        if let Err(error) = result {
            reply = Reply::start(RLERROR, tag);
            reply.u32(error.raw_os_error().unsigned_abs());
        }
        reply.finish()
    }

    fn dispatch(&mut self, kind: u8, mut f: Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let f = &mut f;
        match kind {
            8 => statfs(self.node(f.u32()?)?, r),
            12 => self.lopen(f, r),
            14 => self.lcreate(f, r),
            16 => self.symlink(f, r),
            18 => self.mknod(f, r),
            20 => self.rename(f),
            22 => {
                let target = self.tree.read_link(self.node(f.u32()?)?)?;
                r.string(&target);
                Ok(())
            }
            24 => getattr(self.node(f.u32()?)?, r),
            26 => setattr(&self.tree, self.node(f.u32()?)?, f),
            30 | 32 => Err(Errno::OPNOTSUPP), // extended attributes
            40 => self.readdir(f, r),
            50 => self.fsync(f),
            52 => {
                self.node(f.u32()?)?;
                r.u8(0); // lock granted: there is no other client
                Ok(())
            }
            54 => self.getlock(f, r),
            70 => {
                let (dir, node) = (f.u32()?, f.u32()?);
                self.tree
                    .link(self.node(node)?, self.node(dir)?, f.string()?)
            }
            72 => self.mkdir(f, r),
            74 => self.renameat(f),
            76 => {
                let dir = self.node(f.u32()?)?;
                let name = f.string()?;
                const AT_REMOVEDIR: u32 = 0x200;
                self.tree.unlink(dir, name, f.u32()? & AT_REMOVEDIR != 0)
            }
            100 => self.version(f, r),
            102 => Err(Errno::OPNOTSUPP), // no authentication
            104 => self.attach(f, r),
            108 => Ok(()), // flush: nothing is ever in flight
            110 => self.walk(f, r),
            116 => self.read(f, r),
            118 => self.write(f, r),
            120 => self.fids.remove(&f.u32()?).map(drop).ok_or(Errno::BADF),
            122 => self.remove(f),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn fid(&self, fid: u32) -> Result<&Fid, Errno> {
        self.fids.get(&fid).ok_or(Errno::BADF)
    }

    fn node(&self, fid: u32) -> Result<&Node, Errno> {
        Ok(&self.fid(fid)?.node)
    }

    fn open_fd(&self, fid: u32) -> Result<&OwnedFd, Errno> {
        self.fid(fid)?.open.as_ref().ok_or(Errno::BADF)
    }

    fn insert(&mut self, fid: u32, node: Node) -> Result<(), Errno> {
        if self.fids.contains_key(&fid) {
            return Err(Errno::INVAL);
        }
        if self.fids.len() >= MAX_FIDS {
            return Err(Errno::MFILE);
        }
        self.fids.insert(fid, Fid { node, open: None });
        Ok(())
    }

    fn version(&mut self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let msize = f.u32()?;
        let version = f.string()?;
        self.fids.clear();
        if msize < 4096 {
            return Err(Errno::INVAL);
        }
        self.msize = msize.min(MAX_MSIZE);
        r.u32(self.msize);
        let known = version == b"9P2000.L";
        r.string(if known { b"9P2000.L" } else { b"unknown" });
        Ok(())
    }

    fn attach(&mut self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let fid = f.u32()?;
        let node = self.tree.root_node()?;
        qid(r, &node.stat()?);
        self.insert(fid, node)
    }

    fn walk(&mut self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (from, to, count) = (f.u32()?, f.u32()?, f.u16()?);
        if count > MAX_WALK {
            return Err(Errno::INVAL);
        }
        let start = self.fid(from)?;
        if start.open.is_some() {
            return Err(Errno::BADF);
        }
        let mut node = self.tree.duplicate(&start.node)?;
        let mut qids = Reply::default();
        let mut walked = 0;
        for i in 0..count {
            let name = f.string()?;
            let next = self.tree.step(&node, name).and_then(|n| Ok((n.stat()?, n)));
            match next {
                Ok((stat, next)) => {
                    qid(&mut qids, &stat);
                    node = next;
                    walked += 1;
                }
                // The first name must exist; a later one ends the walk short, without a new fid.
                Err(error) if i == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if walked == count {
            if from == to {
                self.fids.remove(&from);
            }
            self.insert(to, node)?;
        }
        r.u16(walked);
        r.0.extend_from_slice(&qids.0);
        Ok(())
    }

    fn lopen(&mut self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (fid, flags) = (f.u32()?, open_flags(f.u32()?));
        let entry = self.fids.get_mut(&fid).ok_or(Errno::BADF)?;
        if entry.open.is_some() {
            return Err(Errno::BADF);
        }
        let fd = self.tree.open_node(&entry.node, flags - OFlags::EXCL)?;
        qid(r, &rustix::fs::fstat(&fd)?);
        r.u32(0); // iounit: the client's choice
        entry.open = Some(fd);
        Ok(())
    }

    fn lcreate(&mut self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (fid, name, flags, mode) = (f.u32()?, f.string()?, f.u32()?, f.u32()?);
        let entry = self.fids.get_mut(&fid).ok_or(Errno::BADF)?;
        if entry.open.is_some() {
            return Err(Errno::BADF);
        }
        let (node, fd) = self
            .tree
            .create(&entry.node, name, open_flags(flags), mode)?;
        qid(r, &rustix::fs::fstat(&fd)?);
        r.u32(0);
        *entry = Fid {
            node,
            open: Some(fd),
        };
        Ok(())
    }

    fn made(r: &mut Reply, node: &Node) -> Result<(), Errno> {
        qid(r, &node.stat()?);
        Ok(())
    }

    fn symlink(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (dir, name, target) = (f.u32()?, f.string()?, f.string()?);
        Self::made(r, &self.tree.symlink(self.node(dir)?, name, target)?)
    }

    fn mknod(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (dir, name, mode) = (f.u32()?, f.string()?, f.u32()?);
        Self::made(r, &self.tree.mknod(self.node(dir)?, name, mode)?)
    }

    fn mkdir(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (dir, name, mode) = (f.u32()?, f.string()?, f.u32()?);
        Self::made(r, &self.tree.mkdir(self.node(dir)?, name, mode)?)
    }

    fn rename(&mut self, f: &mut Fields<'_>) -> Result<(), Errno> {
        let (fid, dir, name) = (f.u32()?, f.u32()?, f.string()?);
        let (from, old) = self.tree.parent(self.node(fid)?)?;
        let to = self.tree.duplicate(self.node(dir)?)?;
        self.move_name(&from, as_bytes(&old), &to, name)
    }

    fn renameat(&mut self, f: &mut Fields<'_>) -> Result<(), Errno> {
        let (from, old, to, new) = (f.u32()?, f.string()?, f.u32()?, f.string()?);
        let (from, to) = (
            self.tree.duplicate(self.node(from)?)?,
            self.tree.duplicate(self.node(to)?)?,
        );
        self.move_name(&from, old, &to, new)
    }

    /// Renames and tells every fid below the old name where it is now.
    fn move_name(&mut self, from: &Node, old: &[u8], to: &Node, new: &[u8]) -> Result<(), Errno> {
        self.tree.rename(from, old, to, new, RenameFlags::empty())?;
        let (old, new) = (Tree::child_path(from, old), Tree::child_path(to, new));
        for fid in self.fids.values_mut() {
            Tree::moved(&mut fid.node, &old, &new);
        }
        Ok(())
    }

    fn remove(&mut self, f: &mut Fields<'_>) -> Result<(), Errno> {
        // Tremove clunks the fid even when it fails.
        let fid = self.fids.remove(&f.u32()?).ok_or(Errno::BADF)?;
        let (dir, name) = self.tree.parent(&fid.node)?;
        self.tree.unlink(&dir, as_bytes(&name), fid.node.is_dir()?)
    }

    fn readdir(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (fid, offset, count) = (f.u32()?, f.u64()?, f.u32()?);
        let count = count.min(self.msize - READ_OVERHEAD) as usize;
        r.u32(0);
        let start = r.0.len();
        dir::read(
            &self.tree,
            self.node(fid)?,
            self.open_fd(fid)?,
            offset,
            count,
            r,
        )?;
        let len = (r.0.len() - start) as u32;
        r.0[start - 4..start].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    fn read(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (fid, offset, count) = (f.u32()?, f.u64()?, f.u32()?);
        let count = count.min(self.msize - READ_OVERHEAD) as usize;
        let fd = self.open_fd(fid)?;
        r.u32(0);
        let start = r.0.len();
        r.0.resize(start + count, 0);
        let n = rustix::io::pread(fd, &mut r.0[start..], offset)?;
        r.0.truncate(start + n);
        r.0[start - 4..start].copy_from_slice(&(n as u32).to_le_bytes());
        Ok(())
    }

    fn write(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        let (fid, offset, count) = (f.u32()?, f.u64()?, f.u32()?);
        let data = f.bytes(count as usize)?;
        self.tree.writable()?;
        let n = rustix::io::pwrite(self.open_fd(fid)?, data, offset)?;
        r.u32(n as u32);
        Ok(())
    }

    fn fsync(&self, f: &mut Fields<'_>) -> Result<(), Errno> {
        let fid = f.u32()?;
        // Older clients send no `datasync` field.
        let data_only = f.u32().unwrap_or(0) != 0;
        let fd = self.open_fd(fid)?;
        if data_only {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }
    }

    /// Tgetlock: nobody else holds a lock, so the range is free.
    fn getlock(&self, f: &mut Fields<'_>, r: &mut Reply) -> Result<(), Errno> {
        self.node(f.u32()?)?;
        const F_UNLCK: u8 = 2;
        let _kind = f.u8()?;
        let (start, length, process, client) = (f.u64()?, f.u64()?, f.u32()?, f.string()?);
        r.u8(F_UNLCK);
        r.u64(start);
        r.u64(length);
        r.u32(process);
        r.string(client);
        Ok(())
    }
}

impl MessageServer for NineP {
    /// A reply that does not fit into `room` becomes an error; without room for that, nothing comes.
    fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let reply = NineP::handle(self, request);
        if reply.len() <= room {
            return reply;
        }
        let tag = request
            .get(5..7)
            .map_or(0xffff, |t| u16::from_le_bytes([t[0], t[1]]));
        let mut error = Reply::start(RLERROR, tag);
        error.u32(Errno::MSGSIZE.raw_os_error().unsigned_abs());
        let error = error.finish();
        if error.len() <= room {
            error
        } else {
            Vec::new()
        }
    }

    fn reset(&mut self) {
        self.fids.clear();
        self.msize = MAX_MSIZE;
    }
}
