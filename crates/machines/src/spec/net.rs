//! The network card's part of a specification.

use super::SpecError;
use mimeo_net::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The largest VLAN (IEEE 802.1Q, 9.6: 4095 is reserved).
const LAST_VLAN: u16 = 4094;
/// The longest name of a host interface (IFNAMSIZ without its NUL) and of a switch.
const LONGEST_NAME: usize = 15;
/// The port of name servers.
const DNS: u16 = 53;

/// What the card is connected to. A string in files, as on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NetSpec {
    /// There is no card.
    None,
    /// The NAT in the process.
    User {
        /// The host's name server; the one of /etc/resolv.conf if none is given.
        dns: Option<SocketAddr>,
    },
    /// An existing tap interface of the host.
    Tap(String),
    /// A switch that the machines of one user share.
    Switch {
        /// Its name.
        name: String,
        /// The VLAN that the machine's port belongs to; without one the port carries all, with tags.
        vlan: Option<u16>,
    },
    /// Debian's passt: one of our own, or the one at a socket.
    Passt(Option<PathBuf>),
}

impl Default for NetSpec {
    fn default() -> Self {
        Self::User { dns: None }
    }
}

/// A name that is a file's and an interface's.
fn is_name(s: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=LONGEST_NAME).contains(&s.len()) && s.bytes().all(plain) && !s.starts_with('.')
}

impl FromStr for NetSpec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        let bad = || SpecError::Net(s.to_owned());
        let (kind, options) = s.split_once(',').map_or((s, None), |(k, o)| (k, Some(o)));
        let (kind, value) = kind
            .split_once('=')
            .map_or((kind, None), |(k, v)| (k, Some(v)));
        let name = || value.filter(|v| is_name(v)).map(str::to_owned);
        let option = |key: &str| match options {
            None => Ok(None),
            Some(o) => match o.split_once('=') {
                Some((k, v)) if k == key => Ok(Some(v)),
                _ => Err(bad()),
            },
        };
        match (kind, value) {
            ("none", None) if options.is_none() => Ok(Self::None),
            ("user", None) => {
                let server = |v: &str| {
                    let address = v.parse::<IpAddr>().map(|a| SocketAddr::new(a, DNS));
                    address.or_else(|_| v.parse()).map_err(|_| bad())
                };
                let dns = option("dns")?.map(server).transpose()?;
                Ok(Self::User { dns })
            }
            ("tap", Some(_)) if options.is_none() => Ok(Self::Tap(name().ok_or_else(bad)?)),
            ("switch", Some(_)) => {
                let vlan = |v: &str| v.parse().ok().filter(|v| (1..=LAST_VLAN).contains(v));
                let vlan = option("vlan")?
                    .map(|v| vlan(v).ok_or_else(bad))
                    .transpose()?;
                let name = name().ok_or_else(bad)?;
                Ok(Self::Switch { name, vlan })
            }
            ("passt", None) if options.is_none() => Ok(Self::Passt(None)),
            // A path may have commas.
            ("passt", Some(_)) => s
                .strip_prefix("passt=")
                .filter(|p| !p.is_empty())
                .map(|p| Self::Passt(Some(p.into())))
                .ok_or_else(bad),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::User { dns: None } => f.write_str("user"),
            Self::User { dns: Some(dns) } => write!(f, "user,dns={dns}"),
            Self::Tap(name) => write!(f, "tap={name}"),
            Self::Switch { name, vlan: None } => write!(f, "switch={name}"),
            Self::Switch {
                name,
                vlan: Some(v),
            } => write!(f, "switch={name},vlan={v}"),
            Self::Passt(None) => f.write_str("passt"),
            Self::Passt(Some(path)) => write!(f, "passt={}", path.display()),
        }
    }
}

/// What a guest of the user network may reach although it would not: this host, or a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowHost {
    /// The host itself: its loopback at the router's address, its other addresses at their own.
    Host,
    /// An address or network, whatever `deny-net` says.
    Net(IpNet),
}

impl FromStr for AllowHost {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        match s {
            "host" => Ok(Self::Host),
            _ => s
                .parse()
                .map(Self::Net)
                .map_err(|_| SpecError::AllowHost(s.to_owned())),
        }
    }
}

impl fmt::Display for AllowHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Net(net) => net.fmt(f),
        }
    }
}

macro_rules! as_strings {
    ($($type:ty),+) => { $(
        impl TryFrom<String> for $type {
            type Error = SpecError;
            fn try_from(s: String) -> Result<Self, SpecError> {
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

as_strings!(NetSpec, AllowHost);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_written() {
        for text in [
            "none",
            "user",
            "user,dns=127.0.0.1:5353",
            "user,dns=[::1]:53",
            "tap=tap0",
            "switch=lab",
            "switch=lab,vlan=7",
            "passt",
            "passt=/run/a,b.sock",
        ] {
            let n: NetSpec = text.parse().unwrap();
            assert_eq!(n.to_string(), text);
            assert_eq!(NetSpec::try_from(String::from(n.clone())).unwrap(), n);
        }
        let short: NetSpec = "user,dns=9.9.9.9".parse().unwrap();
        assert_eq!(short.to_string(), "user,dns=9.9.9.9:53");
        for bad in [
            "",
            "usr",
            "user=1",
            "user,dns=x",
            "user,mtu=3",
            "none,dns=1.1.1.1",
            "tap",
            "tap=",
            "tap=../x",
            "tap=a23456789012345x",
            "switch=a/b",
            "switch=a,vlan=0",
            "switch=a,vlan=4095",
            "passt=",
        ] {
            let e = bad.parse::<NetSpec>().unwrap_err().to_string();
            assert!(e.contains("switch=NAME"), "{bad}: {e}");
        }
        assert_eq!("host".parse(), Ok(AllowHost::Host));
        assert!("localhost".parse::<AllowHost>().is_err());
    }
}
