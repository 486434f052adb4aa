//! What a guest may reach, and which of its ports the host offers.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
    #[error("{0}: a network is ADDRESS or ADDRESS/BITS, for example 192.168.0.0/16 or fd00::/8")]
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
#[serde(try_from = "String", into = "String")]
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

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest_port)?;
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

/// A network of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpNet {
    address: IpAddr,
    bits: u8,
}

impl IpNet {
    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(self, a: IpAddr) -> bool {
        match (self.address, a) {
            (IpAddr::V4(n), IpAddr::V4(a)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                (u32::from(a) ^ u32::from(n)) & mask == 0
            }
            (IpAddr::V6(n), IpAddr::V6(a)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                (u128::from(a) ^ u128::from(n)) & mask == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for IpNet {
    type Err = RuleError;

    fn from_str(s: &str) -> Result<Self, RuleError> {
        let bad = || RuleError::Net(s.to_owned());
        let (address, bits) = match s.split_once('/') {
            Some((a, b)) => (a, Some(b)),
            None => (s, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(b) => b.parse().ok().filter(|&b| b <= most).ok_or_else(bad)?,
        };
        Ok(Self { address, bits })
    }
}

macro_rules! as_strings {
    ($($type:ty),+) => { $(
        impl TryFrom<String> for $type {
            type Error = RuleError;
            fn try_from(s: String) -> Result<Self, RuleError> {
                s.parse()
            }
        }
        impl From<$type> for String {
            fn from(v: $type) -> Self {
                v.to_string()
            }
        }
    )+ };
}

as_strings!(Publish, IpNet);

/// Where a guest's packets may go. Without any rule: everywhere but to the host itself and to
/// link-local addresses (cloud providers keep credentials there).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// The gateway's address leads to the host's loopback, and the host's other addresses to it.
    pub allow_host: bool,
    /// Networks that may be reached although another rule says otherwise.
    pub allow: Vec<IpNet>,
    /// Networks that may not be reached.
    pub deny: Vec<IpNet>,
}

/// The IPv4 address that an IPv6 address is another way to write: mapped, compatible (RFC 4291,
/// 2.5.5), translated (RFC 6052), 6to4 (RFC 3056).
fn embedded(a: Ipv6Addr) -> Option<Ipv4Addr> {
    let o = a.octets();
    let at = |i: usize| Ipv4Addr::new(o[i], o[i + 1], o[i + 2], o[i + 3]);
    match a.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(at(12)),
        [0x2002, ..] => Some(at(2)),
        _ => None,
    }
}

impl Policy {
    /// Whether an address outside may be reached, be it the host's own or not.
    #[must_use]
    pub fn permits(&self, a: IpAddr) -> bool {
        if let IpAddr::V6(v6) = a
            && let Some(v4) = embedded(v6)
        {
            // What holds for the one holds for the other.
            let plain = !v6.is_loopback() && !v6.is_unspecified();
            return plain && self.rules(a) && self.permits(IpAddr::V4(v4));
        }
        self.rules(a)
    }

    fn rules(&self, a: IpAddr) -> bool {
        let (never, local) = match a {
            IpAddr::V4(a) => (
                a.is_loopback() || a.is_multicast() || a.is_broadcast() || a.octets()[0] == 0,
                a.is_link_local(),
            ),
            IpAddr::V6(a) => (
                a.is_loopback() || a.is_multicast() || a.is_unspecified(),
                a.is_unicast_link_local(),
            ),
        };
        if never {
            return false;
        }
        self.allowed(a) || !(local || self.deny.iter().any(|n| n.contains(a)))
    }

    /// Whether a rule allows the address by name.
    #[must_use]
    pub fn allowed(&self, a: IpAddr) -> bool {
        self.allow.iter().any(|n| n.contains(a))
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
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let a = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0/8").contains(a("10.255.1.2")));
        assert!(!net("10.0.0.0/8").contains(a("11.0.0.0")));
        assert!(net("0.0.0.0/0").contains(a("1.2.3.4")) && !net("0.0.0.0/0").contains(a("::1")));
        assert!(net("::/0").contains(a("fd00::1")) && net("fd00::/8").contains(a("fdff::")));
        assert!(net("1.2.3.4").contains(a("1.2.3.4")) && !net("1.2.3.4").contains(a("1.2.3.5")));
        assert!("1.2.3.4/33".parse::<IpNet>().is_err() && "::/129".parse::<IpNet>().is_err());
        let mut p = Policy::default();
        assert!(p.permits(a("93.184.216.34")) && p.permits(a("2001:db8::1")));
        for never in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "::1",
            "::",
            "ff02::1",
            "fe80::1",
            // The same hosts written otherwise.
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::1",
        ] {
            assert!(!p.permits(a(never)), "{never}");
        }
        p.deny = vec![net("192.168.0.0/16"), net("fd00::/8")];
        p.allow = vec![net("192.168.1.1"), net("127.0.0.0/8"), net("fd00::1")];
        assert!(!p.permits(a("192.168.2.1")) && p.permits(a("192.168.1.1")));
        assert!(!p.permits(a("::ffff:192.168.2.1")));
        assert!(!p.permits(a("fd00::2")) && p.permits(a("fd00::1")));
        assert!(!p.permits(a("127.0.0.1")));
    }

    #[test]
    fn rules_are_strings_in_files() {
        for (text, whole) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("[::1]:53:53/udp", "[::1]:53:53/udp"),
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), whole);
            assert_eq!(whole.parse::<Publish>(), text.parse());
        }
        assert_eq!(
            String::from("10.1.0.0/16".parse::<IpNet>().unwrap()),
            "10.1.0.0/16"
        );
    }
}
