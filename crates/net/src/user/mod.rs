//! The user network: a NAT in the process.
//!
//! The guest sees an Ethernet with a router, a name server, DHCP, and for IPv6 router advertisements
//! and stateless DHCPv6; the addresses are those that QEMU's users know (10.0.2.0/24 and fec0::/64:
//! router .2, name server .3, guest .15). The guest's TCP connections end in this process (smoltcp)
//! and go on as sockets of the host; a connection is accepted only once the host's is made, so that a
//! refused one is refused to the guest. UDP goes through one connected socket a conversation, echo
//! requests through unprivileged ICMP sockets where the host's `net.ipv4.ping_group_range` allows them.
//!
//! Documents: RFC 791, 792, 768, 826, 2131 and 2132, 9293; for IPv6 RFC 8200, 4443, 4861, 8106, 8415.
//! Not modelled: IP fragments, ICMP errors but unreachable UDP ports, multicast, name service over anything
//! but the host's first resolver.
//!
//! One thread does everything: it takes frames out of the card, lets smoltcp work on them where they
//! lie, and puts frames into the card, TCP's up to 64 KB long. Everything a guest can make us keep is
//! bounded: connections, conversations, queues.

mod config;
mod dhcp;
mod dhcp6;
mod engine;
mod frames;
mod icmp;
mod link;
mod ra;
mod resolver;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

pub use config::UserNetConfig;

use crate::waker::Waker;
use crate::{Capture, NetError, Tell};
use engine::Engine;
use mimeo_bus::{NetBackend, NetCard};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running user network. Dropping it closes all connections and ends its thread.
pub struct UserNet {
    waker: Arc<Waker>,
    mtu: u16,
    published: Vec<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for UserNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "UserNet(mtu {}, published {:?})",
            self.mtu, self.published
        )
    }
}

impl UserNet {
    /// Opens the published ports and starts the network's thread. `capture` records every frame; `tell`
    /// is called once when the guest is refused the host.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn start(config: UserNetConfig, capture: Capture, tell: Tell) -> Result<Self, NetError> {
        config.check()?;
        let waker = Waker::new().map_err(NetError::Host)?;
        let mtu = config.mtu;
        let engine = Engine::new(config, waker.clone(), capture, tell)?;
        let published = engine.published();
        let thread = std::thread::Builder::new().name("net-user".into());
        let thread = Some(thread.spawn(move || engine.run()).map_err(NetError::Host)?);
        Ok(Self {
            waker,
            mtu,
            published,
            thread,
        })
    }

    /// The host addresses of the published ports, in the order of the configuration, with the ports
    /// that the host chose.
    #[must_use]
    pub fn published(&self) -> &[SocketAddr] {
        &self.published
    }
}

impl NetBackend for UserNet {
    fn attach(&self, card: Arc<dyn NetCard>) {
        self.waker.attach(card);
    }

    fn kick(&self) {
        self.waker.wake();
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn offloads(&self) -> bool {
        true
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.waker.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
