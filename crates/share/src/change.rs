//! Changes of attributes, for both protocols.

use crate::tree::guest_mode;
use crate::{Node, Tree};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Time {
    /// It stays.
    #[default]
    Omit,
    /// The host's now.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

impl Time {
    fn spec(self) -> Result<Timespec, Errno> {
        let (tv_sec, tv_nsec) = match self {
            Self::Omit => (0, UTIME_OMIT),
            Self::Now => (0, UTIME_NOW),
            Self::At(_, nsec) if nsec >= 1_000_000_000 => return Err(Errno::INVAL),
            Self::At(sec, nsec) => (sec, nsec.into()),
        };
        Ok(Timespec { tv_sec, tv_nsec })
    }
}

/// What is to be changed; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Time,
    pub modified: Time,
}

impl Tree {
    /// Changes attributes of `node`; `open` is a descriptor of it that can be written, if there is
    /// one. A change of owner that the host refuses to this user is passed over: a guest's root is
    /// not the host's, and its `tar` shall not fail for that.
    pub(crate) fn change(
        &self,
        node: &Node,
        open: Option<BorrowedFd<'_>>,
        changes: &Changes,
    ) -> Result<(), Errno> {
        self.writable()?;
        let times = Timestamps {
            last_access: changes.accessed.spec()?,
            last_modification: changes.modified.spec()?,
        };
        if changes.uid.is_some() || changes.gid.is_some() {
            // All ones means no change (chown(2)).
            let uid = changes.uid.filter(|&u| u != u32::MAX).map(Uid::from_raw);
            let gid = changes.gid.filter(|&g| g != u32::MAX).map(Gid::from_raw);
            match rustix::fs::chownat(node.fd(), "", uid, gid, AtFlags::EMPTY_PATH) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(mode) = changes.mode {
            self.change_mode(node, mode)?;
        }
        if let Some(size) = changes.size {
            match open {
                Some(fd) => rustix::fs::ftruncate(fd, size)?,
                None => rustix::fs::ftruncate(self.open_node(node, OFlags::WRONLY)?, size)?,
            }
        }
        if (changes.accessed, changes.modified) != (Time::Omit, Time::Omit) {
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(node.fd(), "", &times, flags)?;
        }
        Ok(())
    }

    fn change_mode(&self, node: &Node, mode: u32) -> Result<(), Errno> {
        // A link has no mode of its own on Linux; a special file is not opened.
        let kind = FileType::from_raw_mode(node.stat()?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::OPNOTSUPP);
        }
        let fd = self
            .open_node(node, OFlags::RDONLY)
            .or_else(|_| self.open_node(node, OFlags::WRONLY))?;
        rustix::fs::fchmod(fd.as_fd(), guest_mode(mode))
    }
}
