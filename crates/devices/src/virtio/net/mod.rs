//! Network card (5.1).
//!
//! One pair of queues and the control queue. Checksum and segmentation offload for TCP over IPv4 and
//! IPv6 both ways, mergeable receive buffers, receive filter (modes, addresses, VLANs), the link's
//! state. What one side asks for and the other does not do is done here in software ([`offload`]), so
//! the features do not depend on the network behind the card. Not modelled: several pairs of queues
//! (one thread serves the network anyhow), UDP segmentation, RSS and hash reports, interrupt
//! coalescing, announcements, standby.
//!
//! The network's thread works on the queues ([`NetCard`]); the driver's notifications wake it.
//!
//! Locks: transmit, then receive, then the interrupts'. A network may hand over frames while it takes
//! some. A reset waits for a batch to end, no longer.

mod card;
mod filter;
mod offload;
#[cfg(test)]
mod tests;

pub use filter::{FilterV1, Mac};

use super::{DeviceV1, Driver, Interrupts, VirtQueue, VirtioDevice};
use card::{Active, Card, lock};
use mimeo_bus::{NetBackend, RestoreError};
use mimeo_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: usize = 2;
/// Bytes of a command that are looked at: two full tables of addresses and more.
const COMMAND: usize = 4096;

mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// What [`command::GUEST_OFFLOADS`](super::command) can switch.
    pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
}

/// Commands that are not the filter's.
mod command {
    pub const GUEST_OFFLOADS: u8 = 5;
    pub const GUEST_OFFLOADS_SET: u8 = 0;
    /// Classes: receive modes, addresses, VLANs.
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
}

/// Saved state of a network card, beside the common part. Frames on their way are lost, as on a wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioNetV1 {
    /// The receive filter.
    pub filter: FilterV1,
    /// The offloads that the driver wants to be given, as feature bits.
    pub offloads: u64,
    /// The driver's features that the control queue depends on.
    pub features: u64,
}

/// A network card.
pub struct VirtioNet {
    mac: Mac,
    backend: Arc<dyn NetBackend>,
    card: Arc<Card>,
    control: Option<(VirtQueue, Arc<GuestMemory>, Arc<Interrupts>)>,
    features: u64,
}

/// A locally administered unicast address is anything with bit 1 set and bit 0 clear in the first byte.
const fn unicast(mac: Mac) -> bool {
    mac[0] & 1 == 0
}

impl VirtioNet {
    /// A card with the address `mac` (made unicast if it is not) on the network `backend`.
    #[must_use]
    pub fn new(mut mac: Mac, backend: Arc<dyn NetBackend>) -> Self {
        if !unicast(mac) {
            mac[0] &= !1;
        }
        let card = Card::new(mac, backend.offloads());
        backend.attach(card.clone());
        Self {
            mac,
            backend,
            card,
            control: None,
            features: 0,
        }
    }

    /// Carries out one command (5.1.6.5); whether that went well.
    fn command(&self, bytes: &[u8]) -> bool {
        let [class, command, data @ ..] = bytes else {
            return false;
        };
        let needs = match (*class, *command) {
            (command::RX, 0 | 1) => feature::CTRL_RX,
            (command::RX, _) => feature::CTRL_RX_EXTRA,
            (command::MAC, 1) => feature::CTRL_MAC_ADDR,
            (command::MAC, _) => feature::CTRL_RX,
            (command::VLAN, _) => feature::CTRL_VLAN,
            (command::GUEST_OFFLOADS, _) => feature::CTRL_GUEST_OFFLOADS,
            _ => return false,
        };
        if self.features & needs == 0 {
            return false;
        }
        let mut rx = lock(&self.card.rx);
        if *class != command::GUEST_OFFLOADS {
            return rx.filter.command(*class, *command, data);
        }
        let Some(wanted) = data.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
            return false;
        };
        let possible = self.features & feature::GUEST_OFFLOADS;
        let ok = *command == command::GUEST_OFFLOADS_SET && wanted & !possible == 0;
        if ok {
            rx.offloads = wanted;
        }
        ok
    }

    fn run_control(&mut self) {
        let Some((mut queue, memory, interrupts)) = self.control.take() else {
            return;
        };
        let mut work = || loop {
            while let Some(mut chain) = queue.pop()? {
                let mut bytes = [0; COMMAND];
                let n = chain.readable.read(&memory, &mut bytes);
                let ack = chain.writable.take_back(1).ok_or(super::Broken)?;
                ack.write(&memory, &[u8::from(!self.command(&bytes[..n]))]);
                queue.push(chain.head, 1)?;
            }
            if queue.wants_interrupt()? {
                interrupts.used(CONTROL);
            }
            if !queue.want_notification()? {
                return Ok::<(), super::Broken>(());
            }
        };
        if work().is_err() {
            interrupts.needs_reset();
        }
        self.control = Some((queue, memory, interrupts));
    }
}

impl VirtioDevice for VirtioNet {
    fn id(&self) -> u16 {
        1
    }

    fn class(&self) -> [u8; 3] {
        [2, 0, 0]
    }

    fn features(&self) -> u64 {
        use feature::*;
        let mtu = if self.backend.mtu().is_some() { MTU } else { 0 };
        mtu | CSUM
            | GUEST_OFFLOADS
            | CTRL_GUEST_OFFLOADS
            | MAC
            | HOST_TSO4
            | HOST_TSO6
            | HOST_ECN
            | MRG_RXBUF
            | STATUS
            | CTRL_VQ
            | CTRL_RX
            | CTRL_VLAN
            | CTRL_RX_EXTRA
            | CTRL_MAC_ADDR
    }

    /// Feature bit requirements (5.1.3.1).
    fn accepts(&self, features: u64) -> bool {
        use feature::*;
        let has = |bits| features & bits != 0;
        let needs = |bits, one_of| !has(bits) || has(one_of);
        needs(GUEST_TSO4 | GUEST_TSO6, GUEST_CSUM)
            && needs(GUEST_ECN, GUEST_TSO4 | GUEST_TSO6)
            && needs(HOST_TSO4 | HOST_TSO6, CSUM)
            && needs(HOST_ECN, HOST_TSO4 | HOST_TSO6)
            && needs(
                CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS,
                CTRL_VQ,
            )
    }

    fn queue_sizes(&self) -> &[u16] {
        &[512, 256, 64]
    }

    fn config(&self) -> Vec<u8> {
        let mut c = self.mac.to_vec();
        let up = u16::from(self.card.link.load(Ordering::SeqCst));
        c.extend(up.to_le_bytes());
        c.extend(1u16.to_le_bytes());
        c.extend(self.backend.mtu().unwrap_or(0).to_le_bytes());
        c
    }

    fn activate(&mut self, driver: Driver) {
        let Driver {
            memory,
            mut queues,
            features,
            interrupts,
        } = driver;
        let mut take = |i: usize| queues.get_mut(i).and_then(Option::take);
        self.features = features;
        let active = |queue: VirtQueue| Active {
            queue,
            memory: memory.clone(),
            interrupts: interrupts.clone(),
            features,
        };
        let rx_queue = take(RECEIVE.into());
        let tx_queue = take(TRANSMIT.into());
        self.control = take(CONTROL).map(|q| (q, memory.clone(), interrupts.clone()));
        *self.card.interrupts() = Some(interrupts.clone());
        lock(&self.card.tx).active = tx_queue.map(active);
        let mut rx = lock(&self.card.rx);
        rx.filter = FilterV1::new(self.mac, features & feature::CTRL_VLAN != 0);
        rx.offloads = features & feature::GUEST_OFFLOADS;
        rx.active = rx_queue.map(active);
        drop(rx);
        self.backend.kick();
    }

    fn notify(&mut self, queue: u16) {
        match queue {
            // Buffers matter only to a network that had too few.
            RECEIVE => {
                if self.card.starved.swap(false, Ordering::SeqCst) {
                    self.backend.kick();
                }
            }
            TRANSMIT => self.backend.kick(),
            _ => self.run_control(),
        }
    }

    fn reset(&mut self) {
        self.control = None;
        self.features = 0;
        *self.card.interrupts() = None;
        lock(&self.card.tx).clear();
        lock(&self.card.rx).clear(self.mac);
        // What waited for buffers is to be thrown away.
        self.backend.kick();
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        let back = |q: &VirtQueue, held: usize| {
            let (available, used) = q.position();
            // Held chains are fewer than a ring has.
            (available.wrapping_sub(held as u16), used)
        };
        let rx = lock(&self.card.rx);
        let receive = rx.active.as_ref().map(|a| back(&a.queue, rx.held.len()));
        drop(rx);
        let tx = lock(&self.card.tx);
        let held = usize::from(tx.held.is_some());
        let transmit = tx.active.as_ref().map(|a| back(&a.queue, held));
        let control = self.control.as_ref().map(|(q, ..)| q.position());
        if receive.is_none() && transmit.is_none() && control.is_none() {
            return Vec::new();
        }
        [receive, transmit, control]
            .map(Option::unwrap_or_default)
            .to_vec()
    }

    fn set_paused(&mut self, paused: bool) {
        lock(&self.card.tx).paused = paused;
        lock(&self.card.rx).paused = paused;
        self.backend.kick();
    }

    fn save(&self) -> DeviceV1 {
        let rx = lock(&self.card.rx);
        DeviceV1::Net(VirtioNetV1 {
            filter: rx.filter.clone(),
            offloads: rx.offloads,
            features: self.features,
        })
    }

    fn restore(&mut self, saved: &DeviceV1) -> Result<(), RestoreError> {
        let check = |ok, what| RestoreError::unless(ok, "a network card", what);
        let DeviceV1::Net(saved) = saved else {
            return check(false, "it is of another kind of device");
        };
        check(saved.filter.valid(), "its filter is too long")?;
        let possible = saved.features & feature::GUEST_OFFLOADS;
        let within = saved.features == self.features && saved.offloads & !possible == 0;
        check(within, "it uses features that the driver has not chosen")?;
        let mut rx = lock(&self.card.rx);
        rx.filter.clone_from(&saved.filter);
        rx.offloads = saved.offloads;
        Ok(())
    }
}
