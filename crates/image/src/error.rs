//! What can go wrong while an image is prepared.

use std::path::{Path, PathBuf};

/// What a person can do when the package client does not help.
const INSTEAD: &str = "or give a kernel yourself: mimeo run --kernel FILE --initrd FILE";

/// Why an image could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The host has no apt.
    #[error(
        "{0} is not installed, and the quickstart image comes from Debian's packages; use a Debian-like host, {INSTEAD}"
    )]
    NoPackageClient(&'static str),
    /// No kernel package under any name that we know.
    #[error("apt knows no package {0}; check /etc/apt/sources.list, {INSTEAD}")]
    NoPackage(String),
    /// A command failed.
    #[error("{command} failed: {message}; check the network and /etc/apt, {INSTEAD}")]
    Command {
        /// The command and its main argument.
        command: String,
        /// The last lines that it wrote.
        message: String,
    },
    /// A package does not hold what it should.
    #[error("the package {package} holds no {what}; {INSTEAD}")]
    Missing {
        /// The package's file.
        package: String,
        /// What was looked for.
        what: &'static str,
    },
    /// No place for the cache.
    #[error("neither XDG_CACHE_HOME nor HOME is set; set one, so that the image can be cached")]
    NoCache,
    /// A file of the cache.
    #[error(
        "{path}: {cause}; check that the cache directory is writable and has 100 MB free (XDG_CACHE_HOME chooses another)"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
}

impl ImageError {
    /// For `map_err` on an operation with `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |cause| Self::Io {
            path: path.to_owned(),
            cause,
        }
    }
}
