//! The files that a client knows by number.
//!
//! Each is held by an `O_PATH` descriptor while there are not too many; the descriptors of the
//! oldest are closed, and such a file is found again by its path and recognised by its number.

use crate::tree::joined;
use crate::{Node, Tree};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

/// The root's number.
pub(super) const ROOT: u64 = 1;
/// Files that a client may know.
const MOST: usize = 1 << 18;
/// Bytes of their paths.
const MOST_PATHS: usize = 64 << 20;
/// Descriptors for them; at least two, since some requests name two.
const MOST_HELD: usize = 512;

/// Device and inode number on the host.
type Key = (u64, u64);

#[derive(Debug)]
enum Held {
    Open(Node),
    Closed(PathBuf),
}

#[derive(Debug)]
struct Inode {
    held: Held,
    key: Key,
    /// How often the client was told of it and has not forgotten.
    lookups: u64,
}

impl Inode {
    fn path(&self) -> &Path {
        match &self.held {
            Held::Open(node) => node.path(),
            Held::Closed(path) => path,
        }
    }

    /// If it is at `old` or below, it is at `new` now or below; `bytes` counts all paths' lengths.
    fn moved(&mut self, old: &Path, new: &Path, bytes: &mut usize) {
        let before = self.path().as_os_str().len();
        match &mut self.held {
            Held::Open(node) => Tree::moved(node, old, new),
            Held::Closed(path) => {
                if let Ok(rest) = path.strip_prefix(old) {
                    *path = joined(new, rest);
                }
            }
        }
        *bytes = *bytes - before + self.path().as_os_str().len();
    }
}

#[derive(Debug)]
pub(super) struct Inodes {
    by_id: HashMap<u64, Inode>,
    by_key: HashMap<Key, u64>,
    /// Those that are held open, the oldest first; some may be gone.
    held: VecDeque<u64>,
    next: u64,
    path_bytes: usize,
}

fn key(stat: &Stat) -> Key {
    (stat.st_dev, stat.st_ino)
}

impl Inodes {
    pub(super) fn new(tree: &Tree) -> Result<Self, Errno> {
        let node = tree.root_node()?;
        let key = key(&node.stat()?);
        let root = Inode {
            held: Held::Open(node),
            key,
            lookups: 1,
        };
        Ok(Self {
            by_id: HashMap::from([(ROOT, root)]),
            by_key: HashMap::from([(key, ROOT)]),
            held: VecDeque::new(),
            next: ROOT + 1,
            path_bytes: 0,
        })
    }

    /// Forgets everything but the root.
    pub(super) fn clear(&mut self) {
        self.by_id.retain(|&id, _| id == ROOT);
        self.by_key.retain(|_, id| *id == ROOT);
        self.held.clear();
        self.path_bytes = 0;
    }

    /// The client has forgotten `n` look-ups of `id`.
    pub(super) fn forget(&mut self, id: u64, n: u64) {
        let Some(inode) = self.by_id.get_mut(&id).filter(|_| id != ROOT) else {
            return;
        };
        inode.lookups = inode.lookups.saturating_sub(n);
        if inode.lookups == 0
            && let Some(inode) = self.by_id.remove(&id)
        {
            self.path_bytes -= inode.path().as_os_str().len();
            self.by_key.remove(&inode.key);
        }
    }

    /// The client is told of `node`: its number.
    pub(super) fn enter(&mut self, node: Node, stat: &Stat) -> Result<u64, Errno> {
        let key = key(stat);
        let len = node.path().as_os_str().len();
        if let Some(&id) = self.by_key.get(&key)
            && let Some(inode) = self.by_id.get_mut(&id)
        {
            inode.lookups += 1;
            if id != ROOT {
                // The newest name is the one that is most likely still there.
                self.path_bytes -= inode.path().as_os_str().len();
                self.path_bytes += len;
                if let Held::Closed(_) = inode.held {
                    self.held.push_back(id);
                }
                inode.held = Held::Open(node);
                self.close_oldest();
            }
            return Ok(id);
        }
        if self.by_id.len() >= MOST || self.path_bytes + len > MOST_PATHS {
            return Err(Errno::NFILE);
        }
        let id = self.next;
        self.next += 1;
        let inode = Inode {
            held: Held::Open(node),
            key,
            lookups: 1,
        };
        self.by_id.insert(id, inode);
        self.by_key.insert(key, id);
        self.path_bytes += len;
        self.held.push_back(id);
        self.close_oldest();
        Ok(id)
    }

    fn close_oldest(&mut self) {
        while self.held.len() > MOST_HELD {
            let Some(id) = self.held.pop_front() else {
                return;
            };
            if let Some(inode) = self.by_id.get_mut(&id) {
                inode.held = Held::Closed(inode.path().to_owned());
            }
        }
    }

    /// The file with number `id`.
    pub(super) fn node(&mut self, tree: &Tree, id: u64) -> Result<&Node, Errno> {
        self.hold(tree, id)?;
        self.held(id)
    }

    /// Makes sure that `id` is held open.
    pub(super) fn hold(&mut self, tree: &Tree, id: u64) -> Result<(), Errno> {
        let inode = self.by_id.get_mut(&id).ok_or(Errno::STALE)?;
        if let Held::Closed(path) = &inode.held {
            let node = tree.node(path.clone())?;
            if key(&node.stat()?) != inode.key {
                return Err(Errno::STALE);
            }
            inode.held = Held::Open(node);
            self.held.push_back(id);
            self.close_oldest();
        }
        Ok(())
    }

    /// A file after [`Self::hold`], with at most one other held since.
    pub(super) fn held(&self, id: u64) -> Result<&Node, Errno> {
        match &self.by_id.get(&id).ok_or(Errno::STALE)?.held {
            Held::Open(node) => Ok(node),
            Held::Closed(_) => Err(Errno::STALE),
        }
    }

    /// What `stat` describes has moved from `old` to `new`, and with a folder everything in it.
    pub(super) fn moved(&mut self, stat: &Stat, old: &Path, new: &Path) {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            for inode in self.by_id.values_mut() {
                inode.moved(old, new, &mut self.path_bytes);
            }
        } else if let Some(id) = self.by_key.get(&key(stat))
            && let Some(inode) = self.by_id.get_mut(id)
        {
            inode.moved(old, new, &mut self.path_bytes);
        }
    }
}
