//! Networks: the host's side of network cards.
//!
//! Each of them is a [`mimeo_bus::NetBackend`] with a thread of its own that takes the guest's frames
//! out of the card and puts frames into it.
//!
//! - [`UserNet`] needs no privilege: a NAT in the process, whose far side is ordinary sockets of the
//!   host.
//! - [`tap`] is an existing tap interface of the host's, [`switch`] a switch that the user's machines
//!   share, [`passt`] Debian's passt.
//! - [`PcapWriter`] records what passes.

mod error;
mod mac;
mod passt;
mod pcap;
mod port;
mod rules;
pub mod switch;
mod tap;
mod user;
mod waker;

pub use error::{NetError, Tell};
pub use mac::{Mac, MacError};
pub use passt::passt;
pub use pcap::{Capture, PcapWriter};
pub use port::PortNet;
pub use rules::{IpNet, Policy, Publish, RuleError, Transport};
pub use tap::tap;
pub use user::{UserNet, UserNetConfig};
