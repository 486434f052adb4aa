//! Stateless DHCPv6 (RFC 8415, 18.3.6): the name server for those that ask so. Addresses come from
//! router advertisements.

use super::config::UserNetConfig;

pub(super) const SERVER_PORT: u16 = 547;
pub(super) const CLIENT_PORT: u16 = 546;

const INFORMATION_REQUEST: u8 = 11;
const REPLY: u8 = 7;
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const DNS_SERVERS: u16 = 23;
/// The longest identifier (RFC 8415, 11.1).
const LONGEST_ID: usize = 130;

/// The first option of a kind.
fn option(mut options: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (body, rest) = rest.split_at_checked(len)?;
        if u16::from_be_bytes([head[0], head[1]]) == kind {
            return Some(body);
        }
        options = rest;
    }
    None
}

fn push(m: &mut Vec<u8>, kind: u16, body: &[u8]) {
    m.extend(kind.to_be_bytes());
    // At most 130 bytes.
    m.extend((body.len() as u16).to_be_bytes());
    m.extend(body);
}

/// The answer to a client's message, if it deserves one.
pub(super) fn answer(config: &UserNetConfig, mac: [u8; 6], message: &[u8]) -> Option<Vec<u8>> {
    let (&[kind, x, y, z], options) = message.split_first_chunk::<4>()?;
    // A DUID of our link-layer address, Ethernet (11.4).
    let own = [&[0, 3, 0, 1], &mac[..]].concat();
    let for_us = option(options, SERVER_ID).is_none_or(|id| id == own);
    if kind != INFORMATION_REQUEST || !for_us {
        return None;
    }
    let mut m = vec![REPLY, x, y, z];
    if let Some(id) = option(options, CLIENT_ID).filter(|id| id.len() <= LONGEST_ID) {
        push(&mut m, CLIENT_ID, id);
    }
    push(&mut m, SERVER_ID, &own);
    push(&mut m, DNS_SERVERS, &config.dns6.octets());
    Some(m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_information_is_answered() {
        let c = UserNetConfig::default();
        let ask = [11, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 6, 0, 2, 0, 23];
        let m = answer(&c, [2; 6], &ask).unwrap();
        assert_eq!(m[..10], [7, 1, 2, 3, 0, 1, 0, 2, 9, 9]);
        assert_eq!(option(&m[4..], DNS_SERVERS), Some(&c.dns6.octets()[..]));
        assert!(
            answer(&c, [2; 6], &[1, 1, 2, 3]).is_none(),
            "no addresses here"
        );
        assert!(
            answer(&c, [2; 6], &[11, 0, 0, 0, 0, 2, 0, 1, 7]).is_none(),
            "another server"
        );
        for n in 0..4 {
            assert!(answer(&c, [2; 6], &ask[..n]).is_none());
        }
        // Lengths that lie end the list.
        assert!(answer(&c, [2; 6], &[11, 0, 0, 0, 0, 1, 0xff, 0xff, 1]).is_some());
    }
}
