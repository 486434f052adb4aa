//! Landlock (Linux's Documentation/userspace-api/landlock.rst).

use crate::JailError;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest rights that we know and take away; older kernels take what they know.
const ABI_USED: ABI = ABI::V6;

/// Takes the file system and TCP away from the calling thread and from those that it starts later.
/// Files that are open stay usable.
///
/// # Errors
/// [`JailError::NoLandlock`], [`JailError::Landlock`]; nothing has changed then.
pub fn restrict_files() -> Result<(), JailError> {
    let status = apply().map_err(|e| JailError::Landlock(e.to_string()))?;
    match status {
        RulesetStatus::NotEnforced => Err(JailError::NoLandlock),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn apply() -> Result<RulesetStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_USED))?
        .handle_access(AccessNet::from_all(ABI_USED))?
        .scope(Scope::from_all(ABI_USED))?
        .create()?;
    Ok(ruleset.no_new_privs(true).restrict_self()?.ruleset)
}
