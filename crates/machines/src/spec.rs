//! What a machine is to be: serialisable, validated before anything is built.

mod disk;
mod net;
mod share;

pub use disk::{DiskFormat, DiskSpec};
pub use mimeo_net::{IpNet, Mac, Publish};
pub use net::{AllowHost, NetSpec};
pub use share::{ShareProtocol, ShareSpec};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of RAM that a machine gets when nobody says otherwise.
pub const DEFAULT_MEMORY: u64 = 256 << 20;
/// The largest number of vCPUs: xAPIC identifiers are 8 bits wide and 255 is the broadcast (SDM
/// vol. 3, 12.4.6).
pub const MAX_CPUS: u32 = 254;
/// The address of a guest on its socket device when nobody says otherwise.
pub const DEFAULT_CID: u64 = 3;
/// The smallest RAM: the first megabyte and one more for a payload.
pub const MIN_MEMORY: u64 = 2 << 20;
/// The largest RAM: what fits below 2^40 with room for later devices.
pub const MAX_MEMORY: u64 = 512 << 30;

/// Which board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoardKind {
    /// The small one: serial port, interrupt controllers, timers, ACPI; no firmware, no screen.
    #[default]
    Microvm,
}

/// Which engine executes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The interpreter: the reference.
    Interp,
    /// The binary translator.
    Bt,
    /// The fastest one that is sound on this host.
    #[default]
    Auto,
}

/// Devices that are there only when asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptionalDevice {
    /// QEMU's isa-debug-exit at port 0xf4.
    DebugExit,
    /// QEMU's pc-testdev.
    Testdev,
}

/// How virtio devices are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// On the PCI bus.
    #[default]
    Pci,
    /// By registers in memory that ACPI announces.
    Mmio,
}

/// A socket device: `cid=N,path=SOCKET` in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VsockSpec {
    /// The guest's address: 3 to 2^32 - 2 (VIRTIO 1.2, 5.10.4).
    #[serde(default = "default_cid")]
    pub cid: u64,
    /// Where programs of the host reach it; the guest reaches `PATH_PORT`.
    pub path: PathBuf,
}

const fn default_cid() -> u64 {
    DEFAULT_CID
}

impl FromStr for VsockSpec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        let error = || SpecError::Vsock(s.to_owned());
        let (mut cid, mut path) = (DEFAULT_CID, None);
        for part in s.split(',') {
            match part.split_once('=') {
                Some(("cid", n)) => cid = n.parse().map_err(|_| error())?,
                Some(("path", p)) if !p.is_empty() => path = Some(PathBuf::from(p)),
                _ => return Err(error()),
            }
        }
        if !(3..u64::from(u32::MAX)).contains(&cid) {
            return Err(error());
        }
        let path = path.ok_or_else(error)?;
        Ok(Self { cid, path })
    }
}

/// What a triple fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTripleFault {
    /// The monitor reports it and ends.
    #[default]
    Exit,
    /// The machine is reset, as a PC's chipset does.
    Reset,
}

/// A machine to be built. The same names as the command line's flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MachineSpec {
    /// The board.
    pub machine: BoardKind,
    /// Bytes of RAM: [`MIN_MEMORY`] to [`MAX_MEMORY`], a multiple of 1 MB.
    pub memory: u64,
    /// Number of vCPUs: 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// CPU model with added and removed features: `MODEL[,+f][,-f]...`.
    pub cpu: String,
    /// The engine.
    pub engine: EngineKind,
    /// Optional devices, each at most once.
    pub devices: Vec<OptionalDevice>,
    /// How virtio devices are reached.
    pub transport: Transport,
    /// An entropy device (virtio-rng).
    pub rng: bool,
    /// A memory balloon (virtio-balloon), which gives free memory back to the host.
    pub balloon: bool,
    /// Bytes that the balloon asks the guest to give up.
    pub balloon_size: u64,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Folders of the host's.
    pub shares: Vec<ShareSpec>,
    /// A socket device (virtio-vsock).
    pub vsock: Option<VsockSpec>,
    /// What the network card (virtio-net) is connected to.
    pub net: NetSpec,
    /// The card's address; one is made up if none is given.
    pub mac: Option<Mac>,
    /// Ports of the host that lead into the guest (user network).
    pub publish: Vec<Publish>,
    /// What the guest may reach although it would not (user network).
    pub allow_host: Vec<AllowHost>,
    /// What the guest may not reach (user network).
    pub deny_net: Vec<IpNet>,
    /// The file into which all frames are recorded.
    pub pcap: Option<PathBuf>,
    /// What a triple fault does.
    pub on_triple_fault: OnTripleFault,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            machine: BoardKind::default(),
            memory: DEFAULT_MEMORY,
            cpus: 1,
            cpu: "x86-64-v3".into(),
            engine: EngineKind::default(),
            devices: Vec::new(),
            transport: Transport::default(),
            rng: true,
            balloon: true,
            balloon_size: 0,
            disks: Vec::new(),
            shares: Vec::new(),
            vsock: None,
            net: NetSpec::default(),
            mac: None,
            publish: Vec::new(),
            allow_host: Vec::new(),
            deny_net: Vec::new(),
            pcap: None,
            on_triple_fault: OnTripleFault::default(),
        }
    }
}

/// A specification that no machine can be built from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Number of vCPUs out of range.
    #[error("{0} CPUs cannot be had: give --cpus a number from 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// RAM size out of range or not whole megabytes.
    #[error(
        "{0} bytes of memory cannot be had: give -m a size from {min}M to {max}G in whole megabytes",
        min = MIN_MEMORY >> 20,
        max = MAX_MEMORY >> 30
    )]
    Memory(u64),
    /// The size is not a number with a unit.
    #[error("`{0}` is not a size: write a number with M or G, such as 256M or 2G")]
    Size(String),
    /// Not a disk.
    #[error(
        "`{0}` is not a disk ({1}): write FILE[,ro][,snapshot][,format=raw|qcow2][,serial=TEXT][,queues=N]; a comma in a name is written twice"
    )]
    Disk(String, String),
    /// Not a socket device.
    #[error(
        "`{0}` is not a socket device: write cid=N,path=SOCKET with a number from 3 to 4294967294, or off"
    )]
    Vsock(String),
    /// Not a shared folder.
    #[error(
        "`{0}` is not a shared folder: write HOSTDIR:TAG[:ro][,fs|,9p] with a tag of 1 to 36 bytes, such as .:here"
    )]
    Share(String),
    /// The same tag twice.
    #[error("two shared folders have the tag {0}: give each its own")]
    Tag(String),
    /// Not a network.
    #[error(
        "`{0}` is not a network: write user[,dns=ADDRESS], none, tap=INTERFACE, switch=NAME[,vlan=N] or passt[=SOCKET]"
    )]
    Net(String),
    /// Not something that can be allowed.
    #[error("`{0}` cannot be allowed: write host, or an address or network such as 192.168.1.0/24")]
    AllowHost(String),
    /// A rule for the user network and another network.
    #[error("{0} belongs to the user network, not to `{1}`: leave it out, or use --net user")]
    NetRule(&'static str, NetSpec),
    /// The same optional device twice.
    #[error("the device {0} was given twice: once is enough")]
    Twice(String),
}

impl MachineSpec {
    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), SpecError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(SpecError::Cpus(self.cpus));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(1 << 20)
        {
            return Err(SpecError::Memory(self.memory));
        }
        self.disks.iter().try_for_each(DiskSpec::validate)?;
        for (i, share) in self.shares.iter().enumerate() {
            share.validate()?;
            if self.shares[..i].iter().any(|s| s.tag == share.tag) {
                return Err(SpecError::Tag(share.tag.clone()));
            }
        }
        for (i, d) in self.devices.iter().enumerate() {
            if self.devices[..i].contains(d) {
                return Err(SpecError::Twice(d.to_string()));
            }
        }
        let rules = [
            ("--publish", !self.publish.is_empty()),
            ("--allow-host", !self.allow_host.is_empty()),
            ("--deny-net", !self.deny_net.is_empty()),
        ];
        let user = matches!(self.net, NetSpec::User { .. });
        match rules.iter().find(|(_, given)| *given && !user) {
            Some((rule, _)) => Err(SpecError::NetRule(rule, self.net.clone())),
            None => Ok(()),
        }
    }

    /// Whether an optional device was asked for.
    #[must_use]
    pub fn has(&self, device: OptionalDevice) -> bool {
        self.devices.contains(&device)
    }
}

/// Parses a memory size: a number of megabytes, or a number with K, M, G or T (powers of 1024).
///
/// # Errors
/// [`SpecError::Size`] for anything else.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let error = || SpecError::Size(text.into());
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches("ib").trim_end_matches('b');
    let (digits, shift) = match number.strip_suffix(['k', 'm', 'g', 't']) {
        None => (number, 20),
        Some(d) => match number.as_bytes()[d.len()] {
            b'k' => (d, 10),
            b'm' => (d, 20),
            b'g' => (d, 30),
            _ => (d, 40),
        },
    };
    let n: u64 = digits.parse().map_err(|_| error())?;
    n.checked_mul(1 << shift).ok_or_else(error)
}

macro_rules! names {
    ($type:ty, $what:literal, $($name:literal => $value:expr),+ $(,)?) => {
        impl FromStr for $type {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                match s {
                    $($name => Ok($value),)+
                    _ => Err(format!(
                        "there is no {} `{s}`: choose one of {}",
                        $what,
                        [$($name),+].join(", ")
                    )),
                }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $(if *self == $value { return f.write_str($name); })+
                Ok(())
            }
        }
    };
}

names!(BoardKind, "machine", "microvm" => Self::Microvm);
names!(EngineKind, "engine", "interp" => Self::Interp, "bt" => Self::Bt, "auto" => Self::Auto);
names!(Transport, "transport", "pci" => Self::Pci, "mmio" => Self::Mmio);
names!(OptionalDevice, "device", "debug-exit" => Self::DebugExit, "testdev" => Self::Testdev);
names!(OnTripleFault, "such answer to a triple fault", "exit" => Self::Exit, "reset" => Self::Reset);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("256"), Ok(256 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("4096k"), Ok(4 << 20));
        for bad in [
            "",
            "M",
            "nonsense",
            "-1M",
            "1.5G",
            "99999999999999999999",
            "99999999T",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits() {
        let ok = MachineSpec::default();
        assert_eq!(ok.validate(), Ok(()));
        let cpus = |cpus| MachineSpec { cpus, ..ok.clone() }.validate();
        assert_eq!(cpus(0), Err(SpecError::Cpus(0)));
        assert_eq!(cpus(255), Err(SpecError::Cpus(255)));
        let memory = |memory| {
            MachineSpec {
                memory,
                ..ok.clone()
            }
            .validate()
        };
        assert!(memory(1 << 20).is_err());
        assert!(memory((8 << 20) + 1).is_err());
        assert!(memory(1 << 50).is_err());
        let devices = vec![OptionalDevice::Testdev, OptionalDevice::Testdev];
        let twice = MachineSpec { devices, ..ok }.validate();
        assert_eq!(twice, Err(SpecError::Twice("testdev".into())));
    }

    #[test]
    fn socket_devices() {
        let vsock = |cid, path: &str| VsockSpec {
            cid,
            path: path.into(),
        };
        assert_eq!("path=/a".parse(), Ok(vsock(3, "/a")));
        assert_eq!("path=a,cid=9".parse(), Ok(vsock(9, "a")));
        for bad in [
            "",
            "cid=3",
            "path=",
            "cid=2,path=a",
            "cid=4294967295,path=a",
            "a",
        ] {
            assert!(bad.parse::<VsockSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_round_trip() {
        for k in [EngineKind::Interp, EngineKind::Bt, EngineKind::Auto] {
            assert_eq!(k.to_string().parse(), Ok(k));
        }
        assert!(
            "turbo"
                .parse::<EngineKind>()
                .unwrap_err()
                .contains("interp, bt, auto")
        );
    }
}
