//! Guest images: the quickstart image and its cache.
//!
//! [`debian`] gives a kernel and an initial RAM disk that boot to a shell, made from packages that the
//! host's own package client fetches as an ordinary user; [`debian_root`] a root file system of
//! packages, configured in a machine of Mimeo's own. Nothing here needs root, and nothing is
//! written outside of Mimeo's directory in the user's cache.

mod apt;
mod cache;
mod cpio;
mod debian;
mod error;
mod initramfs;
mod modules;
mod root;
mod undo_ignore;

pub use cpio::Cpio;
pub use debian::{DebianOptions, Flavour, QuickImage, Terminal, debian};
pub use error::ImageError;
pub use root::{INSTALL_COMMANDS, INSTALLED, Installation, Installer, debian_root};

/// What a preparation is doing, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A step of unknown length begins.
    Step(&'a str),
    /// A download goes on.
    Bytes {
        /// The package.
        what: &'a str,
        /// Bytes that have arrived.
        done: u64,
        /// Bytes in all; 0 when unknown.
        total: u64,
    },
    /// Something that is counted goes on.
    Count {
        /// What.
        what: &'a str,
        /// How many are done.
        done: u64,
        /// How many there are.
        total: u64,
    },
    /// All is prepared.
    Done,
}
