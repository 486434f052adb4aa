//! Router advertisements (RFC 4861, 4.2; RFC 8106 for the name server): how the guest comes to its IPv6
//! address, its router and its name server.

use super::config::{PREFIX6, UserNetConfig};
use std::net::Ipv6Addr;
use std::time::Duration;

/// Type of a router solicitation and of an advertisement.
pub(super) const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// Neighbour solicitation, and where its target stands.
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
/// "Other configuration" is to be had by DHCPv6.
const FLAG_OTHER: u8 = 0x40;
/// On-link, and for address configuration.
const PREFIX_FLAGS: u8 = 0xc0;
/// Seconds for which an advertisement is good.
const LIFETIME: u16 = 9000;
const PREFERRED: u32 = 14_400;
const VALID: u32 = 86_400;

/// How often one is sent unasked.
pub(super) const INTERVAL: Duration = Duration::from_secs(1800);
/// All nodes on the link.
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The target of a neighbour solicitation.
pub(super) fn target(message: &[u8]) -> Option<Ipv6Addr> {
    let bytes: &[u8; 16] = message.get(8..24)?.first_chunk()?;
    (message[0] == NEIGHBOUR_SOLICITATION).then(|| (*bytes).into())
}

/// The advertisement, without its checksum.
pub(super) fn advertisement(config: &UserNetConfig, mac: [u8; 6]) -> Vec<u8> {
    let mut m = vec![ADVERTISEMENT, 0, 0, 0, 64, FLAG_OTHER];
    m.extend(LIFETIME.to_be_bytes());
    // Reachable and retransmission times: unspecified.
    m.extend([0; 8]);
    // Our link-layer address; the MTU.
    m.extend([1, 1]);
    m.extend(mac);
    m.extend([5, 1, 0, 0]);
    m.extend(u32::from(config.mtu).to_be_bytes());
    // The prefix.
    m.extend([3, 4, PREFIX6, PREFIX_FLAGS]);
    m.extend(VALID.to_be_bytes());
    m.extend(PREFERRED.to_be_bytes());
    m.extend([0; 4]);
    m.extend(&config.gateway6.octets()[..8]);
    m.extend([0; 8]);
    // The name server.
    m.extend([25, 3, 0, 0]);
    m.extend(u32::from(LIFETIME).to_be_bytes());
    m.extend(config.dns6.octets());
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_has_its_options() {
        let m = advertisement(&UserNetConfig::default(), [2, 0, 0, 0, 0, 1]);
        let mut at = 16;
        let mut kinds = Vec::new();
        while at < m.len() {
            kinds.push(m[at]);
            at += 8 * usize::from(m[at + 1]);
        }
        assert_eq!((kinds, at), (vec![1, 5, 3, 25], m.len()));
        assert_eq!(target(&m), None);
        assert_eq!(target(&[135, 0, 0]), None);
    }
}
