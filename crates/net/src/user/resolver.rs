//! The host's name server (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const PORT: u16 = 53;

/// The first name server of a resolv.conf; this host's own when there is none, as the manual says.
pub(super) fn first(resolv_conf: &str) -> SocketAddr {
    let servers = resolv_conf.lines().filter_map(|l| {
        let mut words = l.split_whitespace();
        let address = words
            .next()
            .filter(|w| *w == "nameserver")
            .and(words.next())?;
        // A link-local IPv6 server has its interface after a '%'; without scopes it is of no use.
        address.parse::<IpAddr>().ok()
    });
    let address = servers
        .into_iter()
        .next()
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    SocketAddr::new(address, PORT)
}

/// The system's.
pub(super) fn system() -> SocketAddr {
    first(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_server_counts() {
        let conf = "# comment\nsearch x\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        assert_eq!(first(conf).to_string(), "192.0.2.1:53");
        assert_eq!(
            first("nameserver fe80::1%eth0\nnameserver ::1").to_string(),
            "[::1]:53"
        );
        assert_eq!(
            first("nameserver\nxnameserver 1.2.3.4").to_string(),
            "127.0.0.1:53"
        );
    }
}
