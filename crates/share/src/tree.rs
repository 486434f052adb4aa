//! A folder that nothing leads out of.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It cannot be opened as a folder.
    #[error("cannot share {path}: {source}; name an existing folder that you may read")]
    Open {
        /// The folder.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The kernel is too old.
    #[error(
        "cannot share {path}: this kernel has no openat2 (Linux 5.6), without which a share cannot be confined"
    )]
    NoOpenat2 {
        /// The folder.
        path: String,
    },
}

/// Bits of a mode that a guest may not set on the host: set-user-ID, set-group-ID.
const SET_ID: u32 = 0o6000;

/// A shared folder.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    read_only: bool,
}

/// A file, folder or link of a [`Tree`]: a descriptor that grants nothing but identity (`O_PATH`), and
/// the path by which it was reached.
#[derive(Debug)]
pub struct Node {
    fd: OwnedFd,
    /// Relative to the root; empty for the root.
    path: PathBuf,
}

impl Node {
    /// The `O_PATH` descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path by which it was reached, from the root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Attributes of the node itself (a link's own, not its target's).
    ///
    /// # Errors
    /// The system's.
    pub fn stat(&self) -> Result<Stat, Errno> {
        rustix::fs::fstat(&self.fd)
    }

    pub(crate) fn is_dir(&self) -> Result<bool, Errno> {
        Ok(FileType::from_raw_mode(self.stat()?.st_mode) == FileType::Directory)
    }
}

/// A single name of a path: not empty, no slash, no NUL, not `.` or `..`.
pub(crate) fn plain_name(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        n if n.contains(&b'/') || n.contains(&0) => Err(Errno::INVAL),
        n if n.len() > 255 => Err(Errno::NAMETOOLONG),
        n => Ok(n),
    }
}

fn as_path(name: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name))
}

fn not_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

impl Tree {
    /// Opens `path` for sharing.
    ///
    /// # Errors
    /// [`ShareError`] when it is not a folder that this user may open, or the kernel is too old.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ShareError> {
        let shown = || path.display().to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| ShareError::Open {
            path: shown(),
            source: e.into(),
        })?;
        let tree = Self { root, read_only };
        match tree.root_node() {
            Ok(_) => Ok(tree),
            Err(Errno::NOSYS) => Err(ShareError::NoOpenat2 { path: shown() }),
            Err(e) => Err(ShareError::Open {
                path: shown(),
                source: e.into(),
            }),
        }
    }

    /// Whether every change is refused with EROFS.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// EROFS on a read-only share.
    pub(crate) fn writable(&self) -> Result<(), Errno> {
        if self.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    /// The folder's descriptor (`O_PATH`), for rules about it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Everything that was written is on the medium when this returns.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(self.open_node(&self.root_node()?, OFlags::RDONLY)?)
    }

    /// What is at `path`, from the root.
    pub(crate) fn node(&self, path: PathBuf) -> Result<Node, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(
            &self.root,
            not_empty(&path),
            flags,
            Mode::empty(),
            // O_PATH with O_NOFOLLOW may end at a link; NO_SYMLINKS would forbid that.
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?;
        Ok(Node { fd, path })
    }

    /// The folder itself.
    ///
    /// # Errors
    /// The system's, when the folder has gone.
    pub fn root_node(&self) -> Result<Node, Errno> {
        self.node(PathBuf::new())
    }

    /// Another handle to the same node.
    pub(crate) fn duplicate(&self, node: &Node) -> Result<Node, Errno> {
        Ok(Node {
            fd: rustix::io::fcntl_dupfd_cloexec(&node.fd, 0)?,
            path: node.path.clone(),
        })
    }

    /// One step from `dir`: a plain name, `.` or `..` (which stays at the root).
    ///
    /// # Errors
    /// ENOENT and the system's others; EINVAL for a name with a slash.
    pub fn step(&self, dir: &Node, name: &[u8]) -> Result<Node, Errno> {
        match name {
            b"." => self.duplicate(dir),
            b".." => {
                let mut path = dir.path.clone();
                path.pop();
                self.node(path)
            }
            name => {
                let name = as_path(plain_name(name)?);
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = rustix::fs::openat2(&dir.fd, name, flags, Mode::empty(), resolve)?;
                Ok(Node {
                    fd,
                    path: dir.path.join(name),
                })
            }
        }
    }

    /// Opens the node's contents. Only regular files and folders open: a guest must not reach the
    /// host's devices, pipes and sockets.
    ///
    /// # Errors
    /// EROFS, EPERM for special files, ELOOP for links, ESTALE when the name now leads elsewhere.
    pub fn open_node(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes {
            self.writable()?;
        }
        let before = node.stat()?;
        match FileType::from_raw_mode(before.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::PERM),
        }
        // Truncation must wait until the file is known to be the right one.
        let open = (flags - OFlags::TRUNC) | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(
            &self.root,
            not_empty(&node.path),
            open,
            Mode::empty(),
            CONFINED,
        )?;
        let after = rustix::fs::fstat(&fd)?;
        if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
            return Err(Errno::STALE);
        }
        if flags.contains(OFlags::TRUNC) {
            rustix::fs::ftruncate(&fd, 0)?;
        }
        Ok(fd)
    }

    /// Creates a regular file and opens it.
    ///
    /// # Errors
    /// EROFS, EEXIST and the system's others.
    pub fn create(
        &self,
        dir: &Node,
        name: &[u8],
        flags: OFlags,
        mode: u32,
    ) -> Result<(Node, OwnedFd), Errno> {
        self.writable()?;
        let name = as_path(plain_name(name)?);
        let open = (flags | OFlags::CREATE | OFlags::EXCL) - OFlags::TRUNC;
        let open = open | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&dir.fd, name, open, guest_mode(mode), resolve) {
            Ok(fd) => Ok((self.step(dir, as_bytes(name))?, fd)),
            // What is there already is opened as everything that is there: nothing special is.
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let node = self.step(dir, as_bytes(name))?;
                let fd = self.open_node(&node, flags)?;
                Ok((node, fd))
            }
            Err(e) => Err(e),
        }
    }

    /// Creates a folder.
    ///
    /// # Errors
    /// EROFS, EEXIST and the system's others.
    pub fn mkdir(&self, dir: &Node, name: &[u8], mode: u32) -> Result<Node, Errno> {
        self.writable()?;
        rustix::fs::mkdirat(&dir.fd, as_path(plain_name(name)?), guest_mode(mode))?;
        self.step(dir, name)
    }

    /// Creates a symbolic link; its target is any text, and never followed here.
    ///
    /// # Errors
    /// EROFS, EEXIST and the system's others.
    pub fn symlink(&self, dir: &Node, name: &[u8], target: &[u8]) -> Result<Node, Errno> {
        self.writable()?;
        rustix::fs::symlinkat(as_path(target), &dir.fd, as_path(plain_name(name)?))?;
        self.step(dir, name)
    }

    /// Creates a named pipe or socket node; device nodes are refused.
    ///
    /// # Errors
    /// EPERM for devices, EROFS, EEXIST and the system's others.
    pub fn mknod(&self, dir: &Node, name: &[u8], mode: u32) -> Result<Node, Errno> {
        self.writable()?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(
            kind,
            FileType::Fifo | FileType::Socket | FileType::RegularFile
        ) {
            return Err(Errno::PERM);
        }
        rustix::fs::mknodat(
            &dir.fd,
            as_path(plain_name(name)?),
            kind,
            guest_mode(mode),
            0,
        )?;
        self.step(dir, name)
    }

    /// Hard link `name` in `dir` to `node`.
    ///
    /// # Errors
    /// EROFS, ESTALE when `node`'s name now leads elsewhere, and the system's others.
    pub fn link(&self, node: &Node, dir: &Node, name: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        let (parent, old) = self.parent(node)?;
        let name = as_path(plain_name(name)?);
        rustix::fs::linkat(&parent.fd, &old, &dir.fd, name, AtFlags::empty())?;
        let (made, wanted) = (self.step(dir, as_bytes(name))?.stat()?, node.stat()?);
        if (made.st_dev, made.st_ino) != (wanted.st_dev, wanted.st_ino) {
            rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty())?;
            return Err(Errno::STALE);
        }
        Ok(())
    }

    /// Renames; an existing target is replaced as rename(2) does, unless `flags` say otherwise.
    ///
    /// # Errors
    /// EROFS and the system's.
    pub fn rename(
        &self,
        from: &Node,
        old: &[u8],
        to: &Node,
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        self.writable()?;
        let (old, new) = (as_path(plain_name(old)?), as_path(plain_name(new)?));
        if flags.is_empty() {
            return rustix::fs::renameat(&from.fd, old, &to.fd, new);
        }
        rustix::fs::renameat_with(&from.fd, old, &to.fd, new, flags)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// EROFS and the system's.
    pub fn unlink(&self, dir: &Node, name: &[u8], remove_dir: bool) -> Result<(), Errno> {
        self.writable()?;
        let flags = if remove_dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(&dir.fd, as_path(plain_name(name)?), flags)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL when it is none, and the system's.
    pub fn read_link(&self, node: &Node) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&node.fd, "", Vec::new())?.into_bytes())
    }

    /// The folder that holds `node` and the node's name in it.
    ///
    /// # Errors
    /// EBUSY for the root.
    pub fn parent(&self, node: &Node) -> Result<(Node, PathBuf), Errno> {
        let name = PathBuf::from(node.path.file_name().ok_or(Errno::BUSY)?);
        let mut path = node.path.clone();
        path.pop();
        Ok((self.node(path)?, name))
    }

    /// Tells a node that it (or a folder above it) has moved from `old` to `new`.
    pub(crate) fn moved(node: &mut Node, old: &Path, new: &Path) {
        if let Ok(rest) = node.path.strip_prefix(old) {
            node.path = joined(new, rest);
        }
    }

    /// The path of `name` in `dir`, as nodes remember it.
    pub(crate) fn child_path(dir: &Node, name: &[u8]) -> PathBuf {
        dir.path.join(as_path(name))
    }
}

/// `rest` below `base`; `base` itself when there is no rest (a join would end it with a slash).
pub(crate) fn joined(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() {
        base.to_owned()
    } else {
        base.join(rest)
    }
}

pub(crate) fn as_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

/// The permission bits that a guest may give a file of the host's.
pub(crate) fn guest_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777 & !SET_ID)
}
