//! What can go wrong, and how the person hears of it.

use std::sync::Arc;

/// Tells the person something while the machine runs: a sentence without a full stop. Called from a
/// network's thread.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// Why a network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A published port is taken or may not be used.
    #[error("cannot listen on {address} for --publish: {cause}; choose another host port")]
    Publish {
        /// Host address and port.
        address: std::net::SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The host refused something basic.
    #[error("cannot set up the network: {0}")]
    Host(std::io::Error),
    /// A tap interface that cannot be used.
    #[error("the tap interface {name} {why}")]
    Tap {
        /// Its name.
        name: String,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// passt cannot be used.
    #[error("passt {0}")]
    Passt(String),
    /// A switch cannot be joined.
    #[error(transparent)]
    Switch(#[from] crate::switch::SwitchError),
    /// The configuration makes no sense.
    #[error("the user network's {0}")]
    Config(&'static str),
}
