//! Saving and restoring one component.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// A saved state that cannot be the state of this device (a damaged or hostile snapshot, or one of
/// another machine). The device is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the saved state of {device} is not valid: {what}; the snapshot is damaged or of another machine"
)]
pub struct RestoreError {
    /// The device's name.
    pub device: &'static str,
    /// What is wrong with the state.
    pub what: &'static str,
}

impl RestoreError {
    /// `Ok` when `valid`, else the error.
    ///
    /// # Errors
    /// When `valid` is false.
    pub fn unless(
        valid: bool,
        device: &'static str,
        what: &'static str,
    ) -> Result<(), RestoreError> {
        if valid {
            Ok(())
        } else {
            Err(RestoreError { device, what })
        }
    }
}

/// A component whose state can be taken out and put back.
///
/// Saved times are VM time: a board restores the clock before the devices. Restoring a device puts
/// back the levels that it *drives* without driving them: interrupt controllers save the levels that
/// they *see*, so nothing is an edge. Host resources (files, sockets) are not part of the state.
pub trait SaveRestore {
    /// The state: plain data with a version in its name (`Uart16550V1`).
    type Saved: Serialize + DeserializeOwned + Clone + PartialEq + Debug;

    /// The state now.
    fn save(&self) -> Self::Saved;

    /// Replaces the state.
    ///
    /// # Errors
    /// [`RestoreError`] when the state is impossible; the device is unchanged then.
    fn restore(&mut self, saved: &Self::Saved) -> Result<(), RestoreError>;
}
