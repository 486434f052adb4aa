//! The network card and what it is connected to.

use crate::status::Failure;
use anyhow::Context;
use mimeo_backends::host_entropy;
use mimeo_bus::NetBackend;
use mimeo_devices::virtio::net::VirtioNet;
use mimeo_machines::MachineSpec;
use mimeo_machines::spec::{AllowHost, Mac, NetSpec};
use mimeo_net::{Capture, NetError, Policy, Tell, UserNet, UserNetConfig};
use std::fs::File;
use std::sync::Arc;

/// The address of a card that is alone in its network, so that every start of a guest is like the last.
const ALONE: Mac = Mac::local(0x56_3412_0054);

/// The card that `spec` describes, on its network; `None` when it shall have none.
pub fn card(spec: &MachineSpec) -> Result<Option<VirtioNet>, Failure> {
    if spec.net == NetSpec::None {
        return Ok(None);
    }
    let capture = capture(spec)?;
    let tell: Tell = Arc::new(|text| eprintln!("\nmimeo: {text}"));
    let backend: Arc<dyn NetBackend> = match &spec.net {
        NetSpec::None => return Ok(None),
        NetSpec::User { .. } => {
            Arc::new(UserNet::start(user(spec), capture, tell).map_err(failure)?)
        }
        other => {
            return Err(Failure::usage(anyhow::anyhow!(
                "the network {other} cannot be had yet: use --net user or --net none"
            )));
        }
    };
    let mac = spec.mac.unwrap_or_else(|| match spec.net {
        NetSpec::User { .. } => ALONE,
        _ => made_up(),
    });
    Ok(Some(VirtioNet::new(mac.bytes(), backend)))
}

/// An address that no other card is likely to have.
fn made_up() -> Mac {
    let mut seed = [0; 8];
    host_entropy(&mut seed);
    Mac::local(u64::from_le_bytes(seed))
}

fn capture(spec: &MachineSpec) -> Result<Capture, Failure> {
    let Some(path) = &spec.pcap else {
        return Ok(Capture::default());
    };
    let begin = || Capture::new(Some(File::create(path)?));
    begin()
        .with_context(|| format!("cannot write the capture {}", path.display()))
        .map_err(Failure::Usage)
}

/// The user network that `spec` describes.
fn user(spec: &MachineSpec) -> UserNetConfig {
    let mut policy = Policy {
        deny: spec.deny_net.clone(),
        ..Policy::default()
    };
    for allowed in &spec.allow_host {
        match allowed {
            AllowHost::Host => policy.allow_host = true,
            AllowHost::Net(net) => policy.allow.push(*net),
        }
    }
    UserNetConfig {
        policy,
        publish: spec.publish.clone(),
        resolver: match spec.net {
            NetSpec::User { dns } => dns,
            _ => None,
        },
        ..UserNetConfig::default()
    }
}

/// Which kind of failure it is when a network cannot be set up.
fn failure(error: NetError) -> Failure {
    match error {
        NetError::Publish { .. } | NetError::Config(_) => Failure::usage(error),
        NetError::Host(_) => Failure::host(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_alone_has_the_address_that_people_know() {
        assert_eq!(ALONE.to_string(), "52:54:00:12:34:56");
        assert_ne!(made_up(), made_up());
    }

    #[test]
    fn rules_reach_the_policy() {
        let spec = MachineSpec {
            net: "user,dns=127.0.0.1:5353".parse().unwrap(),
            allow_host: vec!["host".parse().unwrap(), "10.1.1.1".parse().unwrap()],
            deny_net: vec!["10.0.0.0/8".parse().unwrap()],
            ..MachineSpec::default()
        };
        let c = user(&spec);
        assert!(c.policy.allow_host && c.policy.permits("10.1.1.1".parse().unwrap()));
        assert!(!c.policy.permits("10.1.1.2".parse().unwrap()));
        assert_eq!(c.resolver, Some("127.0.0.1:5353".parse().unwrap()));
    }
}
