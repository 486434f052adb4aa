//! What can go wrong with VMs by name.

use std::path::{Path, PathBuf};

/// A command about a VM cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Not a name.
    #[error(
        "`{0}` is not a name for a machine: use letters, digits, `_`, `.` and `-`, at most 63, a letter or digit first"
    )]
    Name(String),
    /// A running VM has it.
    #[error(
        "the name {0} is in use by a running machine: choose another, or end that one with mimeo stop {0}"
    )]
    InUse(String),
    /// Nobody has it.
    #[error("there is no machine {name}{others}; mimeo ps -a lists them")]
    Unknown {
        /// The name.
        name: String,
        /// A hint, or nothing.
        others: String,
    },
    /// It has ended.
    #[error("the machine {0} does not run: mimeo start {0} starts it again")]
    NotRunning(String),
    /// It runs.
    #[error("the machine {0} runs: stop it first (mimeo stop {0}), or use mimeo rm -f {0}")]
    Running(String),
    /// The folder of somebody else.
    #[error(
        "{0} belongs to another user or others may write to it: set XDG_RUNTIME_DIR to a directory of your own"
    )]
    NotOurs(PathBuf),
    /// No place for state folders.
    #[error(
        "there is no place for machines' state: set XDG_RUNTIME_DIR or HOME to a directory of your own"
    )]
    NoPlace,
    /// A file of a state folder.
    #[error(
        "{path}: {cause}; machines' state is kept there (XDG_RUNTIME_DIR chooses another place)"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The VM's process does not answer as it should.
    #[error("the machine {name} does not answer: {cause}; mimeo kill {name} ends it")]
    NoAnswer {
        /// The name.
        name: String,
        /// Why.
        cause: std::io::Error,
    },
    /// The VM's process says no.
    #[error("{0}")]
    Refused(String),
}

impl ControlError {
    /// For `map_err` on an operation with `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |cause| Self::Io {
            path: path.to_owned(),
            cause,
        }
    }
}
