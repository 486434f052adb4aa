//! What a network card and a network know of each other.

use std::sync::Arc;

/// The network's way to the card. Called on the network's own thread, under no lock of it.
pub trait FrameSink: Send + Sync {
    /// Hands over one Ethernet frame without its check sequence; all checksums in it are right. False:
    /// the card has no buffer now; it calls [`NetBackend::ready`] when it has one, and is then given the
    /// same frame again.
    fn frame(&self, frame: &[u8]) -> bool;
}

/// The card's way to the network. None of the calls waits.
pub trait NetBackend: Send + Sync {
    /// Sends one Ethernet frame without its check sequence. IPv4's checksum must be right; those of
    /// TCP and UDP are not looked at where the network ends in this process. A frame may be longer than
    /// the MTU when it is a TCP segment that the guest left for the card to cut (up to 64 KB). A full
    /// network drops the frame, as networks do.
    fn send(&self, frame: &[u8]);

    /// Says where frames for the guest go. The last one wins; `None` drops them.
    fn attach(&self, sink: Option<Arc<dyn FrameSink>>);

    /// The card has buffers again.
    fn ready(&self);

    /// The largest IP packet that the network takes, in bytes.
    fn mtu(&self) -> u16;
}

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
    #[error("cannot set up the user network: {0}")]
    Host(std::io::Error),
    /// The configuration makes no sense.
    #[error("the user network's {0}")]
    Config(&'static str),
}
