//! The monitor's own cage, put on after set-up: a guest that breaks out of its machine finds
//! itself in a process that can do next to nothing.
//!
//! - [`restrict_files`]: Landlock; the calling thread and the threads it starts afterwards can no
//!   longer reach the file system (except for shared folders, where they are told so), nor connect or bind TCP sockets, nor signal other processes.
//! - [`restrict_calls`]: `no_new_privs` and a seccomp allow-list for all threads of the process.
//!   What is not on the list fails with EPERM; starting programs, tracing and the like end the
//!   process.
//!
//! Both are best effort: where the host has not got a part, the error says so in one sentence and
//! the rest is in force.

mod calls;
mod files;

pub use calls::{Calls, restrict_calls};
pub use files::{Folder, Removable, restrict_files, restrict_files_except};

/// A wall that could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel has no Landlock, or it is switched off.
    #[error("the host has no Landlock: file access is limited by seccomp alone")]
    NoLandlock,
    /// The Landlock ruleset was refused.
    #[error("Landlock could not be applied ({0}): file access is limited by seccomp alone")]
    Landlock(String),
    /// The seccomp filter was refused.
    #[error("the seccomp filter could not be applied ({0}): system calls are not limited")]
    Seccomp(String),
}
