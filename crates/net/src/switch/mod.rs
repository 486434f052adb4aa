//! A virtual switch that joins the machines of one user.
//!
//! A process of its own ([`serve`]), which the first machine starts and which ends a moment after the
//! last has left, so that the death of any machine leaves the others connected. Machines and switch
//! meet at a Unix socket of packets: a member first says which VLAN it belongs to, is answered with one
//! byte, and from then on each packet is a [`NetHeader`](mimeo_bus::NetHeader) and a frame.
//!
//! Documents: IEEE 802.1Q (learning, ageing, VLAN tags). Not modelled: spanning trees (members cannot
//! make loops but through their own bridges; flooding is limited), priorities.
//!
//! Fairness: each member is read a little in turn; each destination has a bounded queue for every
//! source and serves them in turn; frames to all are limited per second. Who floods or hangs loses its
//! own frames.

mod fdb;
mod member;
mod port;
mod server;
mod tag;
#[cfg(test)]
mod tests;

pub use port::{SwitchError, join, listen};
pub use server::serve;

/// The first bytes that a member sends; the version is in them. Its VLAN follows, two bytes, 0 for none.
const HELLO: &[u8; 8] = b"mimeosw1";
/// The answer to it.
const WELCOME: u8 = b'!';
