//! Requests about names.

use super::wire::{entry_out, name};
use super::{Fuse, op};
use crate::tree::plain_name;
use crate::wire::{Fields, Reply};
use crate::{Node, Tree};
use rustix::fs::RenameFlags;
use rustix::io::Errno;

impl Fuse {
    /// Tells the client of `node`.
    pub(super) fn entry(&mut self, node: Node, r: &mut Reply) -> Result<(), Errno> {
        let stat = node.stat()?;
        let id = self.inodes.enter(node, &stat)?;
        entry_out(r, id, Some(&stat));
        Ok(())
    }

    pub(super) fn lookup(&mut self, dir: u64, name: &[u8], r: &mut Reply) -> Result<(), Errno> {
        let name = plain_name(name)?;
        let node = self.tree.step(self.inodes.node(&self.tree, dir)?, name)?;
        self.entry(node, r)
    }

    pub(super) fn make(
        &mut self,
        opcode: u32,
        dir: u64,
        f: &mut Fields<'_>,
        r: &mut Reply,
    ) -> Result<(), Errno> {
        let tree = &self.tree;
        let dir = self.inodes.node(tree, dir)?;
        // The client has applied its umask.
        let node = match opcode {
            op::MKDIR => {
                let mode = f.u32()?;
                f.u32()?;
                tree.mkdir(dir, name(f)?, mode)?
            }
            op::MKNOD => {
                let mode = f.u32()?;
                f.bytes(12)?;
                tree.mknod(dir, name(f)?, mode)?
            }
            _ => {
                let link = name(f)?;
                tree.symlink(dir, link, name(f)?)?
            }
        };
        self.entry(node, r)
    }

    pub(super) fn link(
        &mut self,
        dir: u64,
        f: &mut Fields<'_>,
        r: &mut Reply,
    ) -> Result<(), Errno> {
        let (old, new) = (f.u64()?, name(f)?);
        self.inodes.hold(&self.tree, old)?;
        self.inodes.hold(&self.tree, dir)?;
        let (node, dir_node) = (self.inodes.held(old)?, self.inodes.held(dir)?);
        self.tree.link(node, dir_node, new)?;
        self.lookup(dir, new, r)
    }

    pub(super) fn rename(
        &mut self,
        opcode: u32,
        dir: u64,
        f: &mut Fields<'_>,
    ) -> Result<(), Errno> {
        let to = f.u64()?;
        let flags = if opcode == op::RENAME2 {
            let flags = f.u32()?;
            f.u32()?;
            flags
        } else {
            0
        };
        // An exchange of two names is not offered: nobody misses it.
        let flags = RenameFlags::from_bits(flags)
            .filter(|f| RenameFlags::NOREPLACE.contains(*f))
            .ok_or(Errno::INVAL)?;
        let (old, new) = (name(f)?, name(f)?);
        let tree = &self.tree;
        self.inodes.hold(tree, dir)?;
        self.inodes.hold(tree, to)?;
        let (from, to) = (self.inodes.held(dir)?, self.inodes.held(to)?);
        tree.rename(from, old, to, new, flags)?;
        let (old_path, new_path) = (Tree::child_path(from, old), Tree::child_path(to, new));
        if let Ok(stat) = tree.step(to, new).and_then(|n| n.stat()) {
            self.inodes.moved(&stat, &old_path, &new_path);
        }
        Ok(())
    }
}
