//! Networks: the host's side of network cards.
//!
//! A card hands Ethernet frames to a [`NetBackend`] and is handed frames through its [`FrameSink`].
//! [`UserNet`] is the network that needs no privilege: a NAT in the process, whose far side is
//! ordinary sockets of the host. [`PcapWriter`] records what passes.

mod backend;
mod pcap;
mod rules;
mod user;

pub use backend::{FrameSink, NetBackend, NetError};
pub use pcap::PcapWriter;
pub use rules::{Ipv4Net, Policy, Publish, RuleError, Transport};
pub use user::{UserNet, UserNetConfig};
