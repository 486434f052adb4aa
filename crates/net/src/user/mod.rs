//! The user network: a NAT in the process.
//!
//! The guest sees an Ethernet with a router, a name server and a DHCP server (by default 10.0.2.2,
//! 10.0.2.3; the guest is 10.0.2.15). Its TCP connections end in this process ([smoltcp]) and go on as
//! sockets of the host; a connection is accepted only once the host's is made, so that a refused one
//! is refused to the guest. UDP goes through one connected socket a conversation, echo requests
//! through unprivileged ICMP sockets where the host's `net.ipv4.ping_group_range` allows them.
//!
//! Documents: RFC 791, 792, 768, 826, 2131 and 2132, 9293. Not modelled: IPv6, IP fragments, ICMP
//! errors towards the guest, name service over anything but the host's first resolver.
//!
//! One thread does everything; the card's calls put frames into a bounded queue and wake it.
//! Everything a guest can make us keep is bounded: connections, conversations, queues.

mod dhcp;
mod engine;
mod frames;
mod icmp;
mod link;
mod resolver;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use crate::{FrameSink, NetBackend, NetError, PcapWriter, Policy, Publish};
use engine::Engine;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::BufWriter;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Frames from the guest that may wait.
const INBOX: usize = 1024;
/// The longest frame that a card may send: a TCP segment of 64 KB and its headers.
const MAX_FRAME: usize = 65_550;

/// How the network shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNetConfig {
    /// The guest's address, which DHCP gives out.
    pub guest: Ipv4Addr,
    /// The router's.
    pub gateway: Ipv4Addr,
    /// The name server's.
    pub dns: Ipv4Addr,
    /// Bits of the network's prefix, 8 to 29.
    pub prefix: u8,
    /// The largest IP packet, 576 to 65521.
    pub mtu: u16,
    /// What the guest may reach.
    pub policy: Policy,
    /// Ports of the host that lead into the guest.
    pub publish: Vec<Publish>,
    /// The host's resolver; `None`: the first of /etc/resolv.conf.
    pub resolver: Option<SocketAddr>,
    /// The name that DHCP gives to the guest.
    pub hostname: Option<String>,
}

impl Default for UserNetConfig {
    fn default() -> Self {
        Self {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            prefix: 24,
            mtu: 1500,
            policy: Policy::default(),
            publish: Vec::new(),
            resolver: None,
            hostname: None,
        }
    }
}

impl UserNetConfig {
    fn check(&self) -> Result<(), NetError> {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
        let network = |a: Ipv4Addr| u32::from(a) & mask;
        let host = |a: Ipv4Addr| u32::from(a) & !mask;
        let all = [self.guest, self.gateway, self.dns];
        if !(8..=29).contains(&self.prefix) {
            return Err(NetError::Config("prefix must have 8 to 29 bits"));
        }
        if !(576..=65521).contains(&self.mtu) {
            return Err(NetError::Config("MTU must be 576 to 65521"));
        }
        let usable = |a| network(a) == network(self.guest) && host(a) != 0 && host(a) != !mask;
        if !all.into_iter().all(usable) {
            return Err(NetError::Config("addresses must lie in one network"));
        }
        if self.guest == self.gateway || self.guest == self.dns || self.gateway == self.dns {
            return Err(NetError::Config("addresses must differ"));
        }
        Ok(())
    }
}

/// What the card's calls and the thread share. Lock order: each is a leaf.
struct Shared {
    inbox: Mutex<VecDeque<Vec<u8>>>,
    sink: Mutex<Option<Arc<dyn FrameSink>>>,
    wake: OwnedFd,
    stop: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake anyhow.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn take_inbox(&self) -> VecDeque<Vec<u8>> {
        std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sink(&self) -> Option<Arc<dyn FrameSink>> {
        self.sink
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A running user network. Dropping it closes all connections and ends its thread.
pub struct UserNet {
    shared: Arc<Shared>,
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
    /// Opens the published ports and starts the network's thread. `capture` records every frame.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn start(
        config: UserNetConfig,
        capture: Option<PcapWriter<BufWriter<File>>>,
    ) -> Result<Self, NetError> {
        config.check()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            sink: Mutex::default(),
            wake: wake.map_err(|e| NetError::Host(e.into()))?,
            stop: AtomicBool::new(false),
        });
        let mtu = config.mtu;
        let engine = Engine::new(config, shared.clone(), capture)?;
        let published = engine.published();
        let thread = std::thread::Builder::new().name("net-user".into());
        let thread = Some(thread.spawn(move || engine.run()).map_err(NetError::Host)?);
        Ok(Self {
            shared,
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
    fn send(&self, frame: &[u8]) {
        if frame.len() > MAX_FRAME {
            return;
        }
        let mut inbox = self
            .shared
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if inbox.len() >= INBOX {
            return;
        }
        inbox.push_back(frame.to_vec());
        let first = inbox.len() == 1;
        drop(inbox);
        // The thread takes all that wait, so only the first frame has to wake it.
        if first {
            self.shared.wake();
        }
    }

    fn attach(&self, sink: Option<Arc<dyn FrameSink>>) {
        *self
            .shared
            .sink
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = sink;
        self.shared.wake();
    }

    fn ready(&self) {
        self.shared.wake();
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
