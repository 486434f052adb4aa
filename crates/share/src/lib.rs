//! Host folders served to guests.
//!
//! [`Tree`] is a folder that nothing leads out of: every path is resolved by the kernel below the
//! folder's own descriptor (`openat2` with `RESOLVE_IN_ROOT`, `RESOLVE_NO_MAGICLINKS`), one component
//! at a time and without following symbolic links, so that neither `..`, nor a link, nor a rename in
//! mid-walk can reach outside. [`NineP`] serves a tree by 9P2000.L, the protocol of Linux's `9p` file
//! system, [`Fuse`] by FUSE, that of `virtiofs`; they know no transport: bytes in, bytes out.
//!
//! Deliberately not modelled: extended attributes (EOPNOTSUPP), byte-range locks between guests (a
//! lock always succeeds: one guest, one client), device nodes and set-id bits (refused or stripped:
//! a guest's root is not the host's).
//!
//! A folder that goes away while it is shared answers with errors (ENOENT, ESTALE).
//!
//! Thread rule: a server belongs to one thread; two servers may share a folder.

mod attr;
mod change;
mod dir;
mod fuse;
mod server;
mod tree;
mod wire;

pub use fuse::Fuse;
pub use server::NineP;
pub use tree::{Node, ShareError, Tree};
