//! What a guest may reach, and which of its ports the host offers.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A `--publish` value.
    #[error(
        "{0}: a published port is [HOSTADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp], for example 8080:80"
    )]
    Publish(String),
    /// A network.
    #[error("{0}: a network is ADDRESS or ADDRESS/BITS, for example 192.168.0.0/16")]
    Net(String),
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// TCP or UDP.
    pub transport: Transport,
    /// The host's address and port; port 0 lets the host choose.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

impl FromStr for Publish {
    type Err = RuleError;

    /// `[HOSTADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]`; only this host can connect unless an address is
    /// given (`0.0.0.0` for all).
    fn from_str(s: &str) -> Result<Self, RuleError> {
        let bad = || RuleError::Publish(s.to_owned());
        let (ports, transport) = match s.rsplit_once('/') {
            None => (s, Transport::Tcp),
            Some((p, "tcp")) => (p, Transport::Tcp),
            Some((p, "udp")) => (p, Transport::Udp),
            Some(_) => return Err(bad()),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((a, p)) => {
                let a = a.trim_start_matches('[').trim_end_matches(']');
                (a.parse().map_err(|_| bad())?, p)
            }
        };
        let guest_port = guest.parse().ok().filter(|&p| p != 0).ok_or_else(bad)?;
        let host = SocketAddr::new(address, host.parse().map_err(|_| bad())?);
        Ok(Self {
            transport,
            host,
            guest_port,
        })
    }
}

/// A network of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Net {
    address: Ipv4Addr,
    bits: u8,
}

impl Ipv4Net {
    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(self, a: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
        (u32::from(a) ^ u32::from(self.address)) & mask == 0
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Ipv4Net {
    type Err = RuleError;

    fn from_str(s: &str) -> Result<Self, RuleError> {
        let bad = || RuleError::Net(s.to_owned());
        let (address, bits) = s.split_once('/').unwrap_or((s, "32"));
        let address = address.parse().map_err(|_| bad())?;
        let bits = bits.parse().ok().filter(|&b| b <= 32).ok_or_else(bad)?;
        Ok(Self { address, bits })
    }
}

/// Where a guest's packets may go. Without any rule: everywhere but to the host itself and to
/// link-local addresses (cloud providers keep credentials there).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// The gateway's address leads to the host's loopback.
    pub allow_host: bool,
    /// Nothing outside may be reached save what `allow` says.
    pub deny_all: bool,
    /// Networks that may be reached although another rule says otherwise.
    pub allow: Vec<Ipv4Net>,
    /// Networks that may not be reached.
    pub deny: Vec<Ipv4Net>,
}

impl Policy {
    /// Whether an address outside may be reached.
    #[must_use]
    pub fn permits(&self, a: Ipv4Addr) -> bool {
        let never = a.is_loopback() || a.is_multicast() || a.is_broadcast() || a.octets()[0] == 0;
        if never {
            return false;
        }
        if self.allow.iter().any(|n| n.contains(a)) {
            return true;
        }
        !(self.deny_all || a.is_link_local() || self.deny.iter().any(|n| n.contains(a)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports() {
        let p: Publish = "8080:80".parse().unwrap();
        assert_eq!((p.transport, p.guest_port), (Transport::Tcp, 80));
        assert_eq!(p.host, "127.0.0.1:8080".parse().unwrap());
        let p: Publish = "0.0.0.0:53:5353/udp".parse().unwrap();
        assert_eq!(
            (p.transport, p.host.to_string().as_str()),
            (Transport::Udp, "0.0.0.0:53")
        );
        let p: Publish = "[::1]:0:22/tcp".parse().unwrap();
        assert_eq!(p.host.to_string(), "[::1]:0");
        for bad in [
            "",
            "80",
            "80:0",
            "x:80",
            "80:65536",
            "1.2.3:80:80",
            "80:80/sctp",
        ] {
            let e = bad.parse::<Publish>().unwrap_err().to_string();
            assert!(e.contains("8080:80"), "{bad}: {e}");
        }
    }

    #[test]
    fn networks_and_policy() {
        let net = |s: &str| s.parse::<Ipv4Net>().unwrap();
        let a = |s: &str| s.parse::<Ipv4Addr>().unwrap();
        assert!(net("10.0.0.0/8").contains(a("10.255.1.2")));
        assert!(!net("10.0.0.0/8").contains(a("11.0.0.0")));
        assert!(net("0.0.0.0/0").contains(a("1.2.3.4")));
        assert!(net("1.2.3.4").contains(a("1.2.3.4")) && !net("1.2.3.4").contains(a("1.2.3.5")));
        assert!("1.2.3.4/33".parse::<Ipv4Net>().is_err());
        let mut p = Policy::default();
        assert!(p.permits(a("93.184.216.34")));
        for never in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
        ] {
            assert!(!p.permits(a(never)), "{never}");
        }
        p.deny = vec![net("192.168.0.0/16")];
        p.allow = vec![net("192.168.1.1"), net("127.0.0.0/8")];
        assert!(!p.permits(a("192.168.2.1")) && p.permits(a("192.168.1.1")));
        assert!(!p.permits(a("127.0.0.1")));
        p.deny_all = true;
        assert!(!p.permits(a("8.8.8.8")) && p.permits(a("192.168.1.1")));
    }
}
