//! Landlock (Linux's Documentation/userspace-api/landlock.rst).

use crate::JailError;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::os::fd::BorrowedFd;

/// The newest rights that we know and take away; older kernels take what they know.
const ABI_USED: ABI = ABI::V6;

/// A folder that stays reachable.
#[derive(Debug, Clone, Copy)]
pub struct Folder<'a> {
    /// A descriptor of it; `O_PATH` is enough.
    pub fd: BorrowedFd<'a>,
    /// Nothing in it can be changed.
    pub read_only: bool,
}

impl Folder<'_> {
    /// What may be done in it: everything that a file server does; no programs, no device nodes.
    fn rights(&self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        if self.read_only {
            return read;
        }
        read | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::RemoveDir
            | AccessFs::RemoveFile
            | AccessFs::MakeDir
            | AccessFs::MakeReg
            | AccessFs::MakeSock
            | AccessFs::MakeFifo
            | AccessFs::MakeSym
            | AccessFs::Refer
    }
}

/// A folder that may be removed with the files in it, and nothing else be done there: a machine's
/// own state.
#[derive(Debug, Clone, Copy)]
pub struct Removable<'a> {
    /// The folder that it is in.
    pub parent: BorrowedFd<'a>,
    /// The folder itself.
    pub folder: BorrowedFd<'a>,
}

/// Takes the file system, except for `folders`, and TCP away from the calling thread and from those
/// that it starts later. Files that are open stay usable.
///
/// # Errors
/// [`JailError::NoLandlock`], [`JailError::Landlock`]; nothing has changed then.
pub fn restrict_files(folders: &[Folder<'_>]) -> Result<(), JailError> {
    restrict(folders, None)
}

/// As [`restrict_files`] without folders, but for what is `removable`.
///
/// # Errors
/// As [`restrict_files`].
pub fn restrict_files_except(removable: Removable<'_>) -> Result<(), JailError> {
    restrict(&[], Some(removable))
}

fn restrict(folders: &[Folder<'_>], removable: Option<Removable<'_>>) -> Result<(), JailError> {
    let status = apply(folders, removable).map_err(|e| JailError::Landlock(e.to_string()))?;
    match status {
        RulesetStatus::NotEnforced => Err(JailError::NoLandlock),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn apply(
    folders: &[Folder<'_>],
    removable: Option<Removable<'_>>,
) -> Result<RulesetStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_USED))?
        .handle_access(AccessNet::from_all(ABI_USED))?
        .scope(Scope::from_all(ABI_USED))?
        .create()?;
    for folder in folders {
        ruleset = ruleset.add_rule(PathBeneath::new(folder.fd, folder.rights()))?;
    }
    if let Some(r) = removable {
        // Directories that are not empty stay: only the own folder's files can be removed.
        ruleset = ruleset
            .add_rule(PathBeneath::new(r.parent, AccessFs::RemoveDir))?
            .add_rule(PathBeneath::new(r.folder, AccessFs::RemoveFile))?;
    }
    Ok(ruleset.no_new_privs(true).restrict_self()?.ruleset)
}
