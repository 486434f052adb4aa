//! Networks: the host's side of network cards.
//!
//! Each of them is a [`mimeo_bus::NetBackend`] with a thread of its own that takes the guest's frames
//! out of the card and puts frames into it.
//!
//! - [`UserNet`] needs no privilege: a NAT in the process, whose far side is ordinary sockets of the
//!   host.
//! - [`PcapWriter`] records what passes.

mod error;
mod mac;
mod pcap;
mod rules;
mod user;
mod waker;

pub use error::{NetError, Tell};
pub use mac::{Mac, MacError};
pub use pcap::{Capture, PcapWriter};
pub use rules::{IpNet, Policy, Publish, RuleError, Transport};
pub use user::{UserNet, UserNetConfig};
