//! What a card lets through to its guest: the receive filter that the driver sets over the control
//! queue (VIRTIO 1.2, 5.1.6.5).

use serde::{Deserialize, Serialize};

/// A hardware address.
pub type Mac = [u8; 6];

/// Addresses in each table; of more, all are let through.
const TABLE: usize = 64;

/// Commands: class, then command.
mod command {
    pub const RX: u8 = 0;
    pub const RX_PROMISCUOUS: u8 = 0;
    pub const RX_ALL_MULTICAST: u8 = 1;
    pub const RX_ALL_UNICAST: u8 = 2;
    pub const RX_NO_MULTICAST: u8 = 3;
    pub const RX_NO_UNICAST: u8 = 4;
    pub const RX_NO_BROADCAST: u8 = 5;
    pub const MAC: u8 = 1;
    pub const MAC_TABLE_SET: u8 = 0;
    pub const MAC_ADDRESS_SET: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const VLAN_ADD: u8 = 0;
    pub const VLAN_DELETE: u8 = 1;
}

/// The filter's state; saved as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterV1 {
    /// The card's own address.
    pub mac: Mac,
    /// Everything passes.
    pub promiscuous: bool,
    /// Multicast passes.
    pub all_multicast: bool,
    /// Unicast passes.
    pub all_unicast: bool,
    /// No multicast passes.
    pub no_multicast: bool,
    /// No unicast passes.
    pub no_unicast: bool,
    /// No broadcast passes.
    pub no_broadcast: bool,
    /// There were more (unicast, multicast) addresses than the tables hold: all pass.
    pub overflow: (bool, bool),
    /// Further unicast addresses that pass.
    pub unicast: Vec<Mac>,
    /// Multicast addresses that pass.
    pub multicast: Vec<Mac>,
    /// VLANs that pass, a bit each; `None`: all (not filtered).
    pub vlans: Option<Vec<u64>>,
}

impl FilterV1 {
    /// As after a reset: everything passes until the driver says otherwise, but VLANs only where it
    /// has not undertaken to name them.
    pub(super) fn new(mac: Mac, vlans: bool) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            overflow: (false, false),
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: vlans.then(|| vec![0; 64]),
        }
    }

    /// Whether a saved filter can be one of ours.
    pub(super) fn valid(&self) -> bool {
        let tables = self.unicast.len() <= TABLE && self.multicast.len() <= TABLE;
        tables && self.vlans.as_ref().is_none_or(|v| v.len() == 64)
    }

    /// Whether a frame passes.
    pub(super) fn passes(&self, frame: &[u8]) -> bool {
        let Some(&to) = frame.first_chunk::<6>() else {
            return false;
        };
        if self.promiscuous {
            return true;
        }
        if let (Some(vlans), [0x81, 0x00, high, low, ..]) =
            (&self.vlans, frame.get(12..).unwrap_or(&[]))
        {
            let id = usize::from(high & 15) << 8 | usize::from(*low);
            if vlans.get(id / 64).is_none_or(|w| w >> (id % 64) & 1 == 0) {
                return false;
            }
        }
        if to == [0xff; 6] {
            return !self.no_broadcast;
        }
        if to[0] & 1 != 0 {
            let all = self.all_multicast || self.overflow.1;
            return !self.no_multicast && (all || self.multicast.contains(&to));
        }
        let all = self.all_unicast || self.overflow.0;
        !self.no_unicast && (all || to == self.mac || self.unicast.contains(&to))
    }

    /// Carries out a command of the driver's; false when there is no such command.
    pub(super) fn command(&mut self, class: u8, command: u8, data: &[u8]) -> bool {
        match class {
            command::RX => data.first().is_some_and(|&on| self.mode(command, on != 0)),
            command::MAC => match command {
                command::MAC_TABLE_SET => self.set_tables(data).is_some(),
                command::MAC_ADDRESS_SET => {
                    data.first_chunk::<6>().map(|m| self.mac = *m).is_some()
                }
                _ => false,
            },
            command::VLAN => match data.first_chunk::<2>() {
                Some(id) => self.vlan(command, u16::from_le_bytes(*id)),
                None => false,
            },
            _ => false,
        }
    }

    fn mode(&mut self, command: u8, on: bool) -> bool {
        let mode = match command {
            command::RX_PROMISCUOUS => &mut self.promiscuous,
            command::RX_ALL_MULTICAST => &mut self.all_multicast,
            command::RX_ALL_UNICAST => &mut self.all_unicast,
            command::RX_NO_MULTICAST => &mut self.no_multicast,
            command::RX_NO_UNICAST => &mut self.no_unicast,
            command::RX_NO_BROADCAST => &mut self.no_broadcast,
            _ => return false,
        };
        *mode = on;
        true
    }

    fn set_tables(&mut self, data: &[u8]) -> Option<()> {
        let (unicast, rest) = table(data)?;
        let (multicast, _) = table(rest)?;
        // Too many to be remembered: all pass, which a driver has to expect anyhow.
        self.overflow = (unicast.len() > TABLE, multicast.len() > TABLE);
        self.unicast = unicast.iter().take(TABLE).copied().collect();
        self.multicast = multicast.iter().take(TABLE).copied().collect();
        Some(())
    }

    fn vlan(&mut self, command: u8, id: u16) -> bool {
        let bit = 1u64 << (id % 64);
        let word = self
            .vlans
            .as_mut()
            .and_then(|v| v.get_mut(usize::from(id / 64)));
        match (word, command) {
            (Some(w), command::VLAN_ADD) => *w |= bit,
            (Some(w), command::VLAN_DELETE) => *w &= !bit,
            _ => return false,
        }
        true
    }
}

/// A table of addresses in front of other data: their number, then they.
fn table(data: &[u8]) -> Option<(&[Mac], &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count))
        .ok()?
        .checked_mul(6)?;
    let (all, rest) = rest.split_at_checked(bytes)?;
    Some((all.as_chunks::<6>().0, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: Mac = [0x52, 0x54, 0, 9, 9, 9];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn to(mac: Mac, kind: [u8; 4]) -> Vec<u8> {
        [&mac[..], &[0; 6], &kind, &[0; 46]].concat()
    }

    fn ip(mac: Mac) -> Vec<u8> {
        to(mac, [8, 0, 0x45, 0])
    }

    #[test]
    fn modes_and_tables() {
        let mut f = FilterV1::new(OWN, false);
        assert!(f.passes(&ip(OTHER)), "everything passes at first");
        assert!(f.command(0, 0, &[0]));
        assert!(f.passes(&ip(OWN)) && f.passes(&ip([0xff; 6])));
        assert!(!f.passes(&ip(OTHER)) && !f.passes(&ip(GROUP)));
        let tables = [&[1, 0, 0, 0][..], &OTHER, &[1, 0, 0, 0], &GROUP].concat();
        assert!(f.command(1, 0, &tables));
        assert!(f.passes(&ip(OTHER)) && f.passes(&ip(GROUP)));
        for (mode, frame) in [(3, ip(GROUP)), (4, ip(OWN)), (5, ip([0xff; 6]))] {
            assert!(f.command(0, mode, &[1]));
            assert!(!f.passes(&frame), "{mode}");
            assert!(f.command(0, mode, &[0]));
            assert!(f.passes(&frame), "{mode}");
        }
        assert!(f.command(1, 1, &[2; 6]));
        assert!(f.passes(&ip([2; 6])) && !f.passes(&ip(OWN)));
        assert!(!f.passes(&[0; 5]));
    }

    #[test]
    fn vlans_are_named() {
        let mut f = FilterV1::new(OWN, true);
        f.command(0, 0, &[0]);
        let tagged = to(OWN, [0x81, 0, 0x20, 7]);
        assert!(!f.passes(&tagged));
        assert!(f.command(2, 0, &[7, 0]) && f.passes(&tagged));
        assert!(f.command(2, 1, &[7, 0]) && !f.passes(&tagged));
        assert!(!f.command(2, 0, &[0, 0x10]), "there are 4096");
        assert!(!FilterV1::new(OWN, false).command(2, 0, &[7, 0]));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut f = FilterV1::new(OWN, true);
        for (class, command, data) in [
            (0, 6, &[1][..]),
            (0, 0, &[]),
            (1, 0, &[0xff, 0xff, 0xff, 0xff, 0, 0]),
            (1, 0, &[0; 7]),
            (1, 1, &[0; 5]),
            (1, 2, &[0; 64]),
            (2, 2, &[0, 0]),
            (3, 0, &[0; 64]),
        ] {
            assert!(!f.command(class, command, data), "{class} {command}");
        }
        let many = [&[65, 0, 0, 0][..], &[2; 65 * 6], &[0, 0, 0, 0]].concat();
        assert!(f.command(1, 0, &many) && f.unicast.len() == 64);
        f.command(0, 0, &[0]);
        assert!(f.passes(&ip(OTHER)), "too many to know");
        assert!(f.command(1, 0, &[0; 8]) && !f.passes(&ip(OTHER)));
    }
}
