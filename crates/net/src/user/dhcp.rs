//! The DHCP server (RFC 2131, 2132): one guest, one address, always the same answer.

use super::UserNetConfig;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};
use std::net::Ipv4Addr;

pub(super) const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;

const LEASE_SECONDS: u32 = 86_400;
const OPTION_HOSTNAME: u8 = 12;
const OPTION_MTU: u8 = 26;

/// The answer to a client's message, if it deserves one.
pub(super) fn answer(config: &UserNetConfig, message: &[u8]) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let asked = DhcpRepr::parse(&packet).ok()?;
    let for_us = asked.server_identifier.is_none_or(|s| s == config.gateway);
    let kind = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if for_us => {
            // While renewing, the address stands in ciaddr (RFC 2131, 4.3.2).
            let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
            if wanted == config.guest {
                DhcpMessageType::Ack
            } else {
                DhcpMessageType::Nak
            }
        }
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let refused = kind == DhcpMessageType::Nak;
    let inform = asked.message_type == DhcpMessageType::Inform;
    let mask = config.netmask();
    let mtu = config.mtu.to_be_bytes();
    let mut options = Vec::new();
    if !refused && config.mtu != 1500 {
        options.push(DhcpOption {
            kind: OPTION_MTU,
            data: &mtu,
        });
    }
    if let Some(name) = config
        .hostname
        .as_ref()
        .filter(|n| !refused && n.len() < 64)
    {
        options.push(DhcpOption {
            kind: OPTION_HOSTNAME,
            data: name.as_bytes(),
        });
    }
    let lease = (!refused && !inform).then_some(LEASE_SECONDS);
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: asked.client_ip,
        your_ip: if refused || inform {
            Ipv4Addr::UNSPECIFIED
        } else {
            config.guest
        },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: (!refused).then_some(config.gateway),
        subnet_mask: (!refused).then_some(mask),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: asked.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(config.gateway),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| [config.dns].into_iter().collect()),
        max_size: None,
        lease_duration: lease,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]))
        .ok()?;
    Some(bytes)
}
