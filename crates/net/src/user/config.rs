//! How a user network shall be, and which addresses mean what in it.

use crate::{NetError, Policy, Publish};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Bits of the IPv6 network's prefix, as stateless address configuration wants it (RFC 4862, 5.5.3).
pub(super) const PREFIX6: u8 = 64;

/// How the network shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNetConfig {
    /// The guest's address, which DHCP gives out.
    pub guest: Ipv4Addr,
    /// The router's.
    pub gateway: Ipv4Addr,
    /// The name server's.
    pub dns: Ipv4Addr,
    /// Bits of the network's prefix, 8 to 29.
    pub prefix: u8,
    /// The router's IPv6 address; the guest makes its own in the same /64.
    pub gateway6: Ipv6Addr,
    /// The name server's, in the same /64.
    pub dns6: Ipv6Addr,
    /// The largest IP packet on the wire, 1280 to 65521.
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
            gateway6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2),
            dns6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3),
            mtu: 1500,
            policy: Policy::default(),
            publish: Vec::new(),
            resolver: None,
            hostname: None,
        }
    }
}

/// Where an address that the guest uses leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To this address, seen from the host.
    To(IpAddr),
    /// To the host, which is not allowed.
    Host,
    /// Nowhere.
    Nowhere,
}

impl UserNetConfig {
    pub(super) fn check(&self) -> Result<(), NetError> {
        let all = [self.guest, self.gateway, self.dns];
        if !(8..=29).contains(&self.prefix) {
            return Err(NetError::Config("prefix must have 8 to 29 bits"));
        }
        let mask = self.mask();
        let host = |a: Ipv4Addr| u32::from(a) & !mask;
        if all.iter().any(|&a| !self.inside(a.into())) {
            return Err(NetError::Config("addresses must lie in one network"));
        }
        if all.iter().any(|&a| host(a) == 0 || host(a) == !mask) {
            return Err(NetError::Config(
                "addresses must not be the network's first or last",
            ));
        }
        let same = self.guest == self.gateway || self.guest == self.dns;
        if same || self.gateway == self.dns || self.gateway6 == self.dns6 {
            return Err(NetError::Config("addresses must differ"));
        }
        if !self.inside(self.dns6.into()) {
            return Err(NetError::Config("IPv6 addresses must lie in one /64"));
        }
        if !(1280..=65_521).contains(&self.mtu) {
            return Err(NetError::Config("MTU must be 1280 to 65521"));
        }
        Ok(())
    }

    fn mask(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// The subnet mask.
    pub(super) fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask())
    }

    /// The router's link-local address: its interface identifier behind fe80::/64.
    pub(super) fn link_local(&self) -> Ipv6Addr {
        let id = u128::from(self.gateway6) & u128::from(u64::MAX);
        Ipv6Addr::from(0xfe80 << 112 | id)
    }

    /// Whether an address belongs to the guest's own networks.
    pub(super) fn inside(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => (u32::from(a) ^ u32::from(self.gateway)) & self.mask() == 0,
            IpAddr::V6(a) => (u128::from(a) ^ u128::from(self.gateway6)) >> 64 == 0,
        }
    }

    /// Whether an address is the router's or the name server's.
    pub(super) fn ours(&self, a: IpAddr) -> bool {
        self.router(a) || self.name_server(a)
    }

    fn router(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => a == self.gateway,
            IpAddr::V6(a) => a == self.gateway6 || a == self.link_local(),
        }
    }

    /// Whether an address is the name server's.
    pub(super) fn name_server(&self, a: IpAddr) -> bool {
        a == IpAddr::V4(self.dns) || a == IpAddr::V6(self.dns6)
    }

    /// Where an address leads.
    pub(super) fn way(&self, a: IpAddr) -> Way {
        let policy = &self.policy;
        if self.router(a) {
            return match (policy.allow_host, a) {
                (false, _) => Way::Host,
                (true, IpAddr::V4(_)) => Way::To(Ipv4Addr::LOCALHOST.into()),
                (true, IpAddr::V6(_)) => Way::To(Ipv6Addr::LOCALHOST.into()),
            };
        }
        if self.inside(a) || !policy.permits(a) {
            return Way::Nowhere;
        }
        if !policy.allow_host && !policy.allowed(a) && is_the_hosts(a) {
            return Way::Host;
        }
        Way::To(a)
    }
}

/// Whether an address is one of this host's own: nobody can bind to another's.
fn is_the_hosts(a: IpAddr) -> bool {
    UdpSocket::bind((a, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_their_ways() {
        let mut c = UserNetConfig::default();
        let a = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(c.check().is_ok());
        assert_eq!(c.link_local(), a("fe80::2"));
        assert_eq!(c.way(a("10.0.2.2")), Way::Host);
        assert_eq!(c.way(a("fec0::2")), Way::Host);
        assert_eq!(c.way(a("10.0.2.99")), Way::Nowhere);
        assert_eq!(c.way(a("fec0::99")), Way::Nowhere);
        assert_eq!(c.way(a("192.0.2.1")), Way::To(a("192.0.2.1")));
        assert_eq!(c.way(a("127.0.0.1")), Way::Nowhere);
        c.policy.allow_host = true;
        assert_eq!(c.way(a("10.0.2.2")), Way::To(a("127.0.0.1")));
        assert_eq!(c.way(a("fe80::2")), Way::To(a("::1")));
        c.dns6 = "fec0:1::3".parse().unwrap();
        assert!(c.check().is_err());
    }
}
