//! The kernel's modules that virtual machines need, as a second initramfs with a `modules.dep` of our
//! own making (the packages carry none; depmod makes it at installation).

use crate::cpio::Cpio;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

/// Drivers of Mimeo's own devices, by module name; what they depend on comes along. Modules that are
/// built in or absent are passed over. Every start loads what its devices need of them, so that the
/// archive stays small.
pub(crate) const DEVICES: &[&str] = &[
    "virtio",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "9p",
    "9pnet_virtio",
    "af_packet",
    "evdev",
    "button",
];

/// What is wanted besides: other machines' devices, file systems.
pub(crate) const OTHERS: &[&str] = &[
    "virtio_scsi",
    "virtio_input",
    "virtio_gpu",
    "overlay",
    "squashfs",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "ext4",
    "btrfs",
    "xfs",
    "loop",
    "dm_mod",
    "sd_mod",
    "sr_mod",
    "ata_piix",
    "ahci",
    "e1000",
    "tun",
    "crc32c_intel",
    "libcrc32c",
];

/// Larger than any module.
const MAX_MODULE: u64 = 64 << 20;

/// All modules of a kernel package that may matter.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    /// By name: (path below the root, contents).
    found: BTreeMap<String, (String, Vec<u8>)>,
}

/// `lib/modules/V/kernel/…/some-name.ko.xz` is the module `some_name`, packed with `xz`.
fn module_name(path: &str) -> Option<(String, Option<&str>)> {
    let path = path.strip_prefix("usr/").unwrap_or(path);
    let file = path.strip_prefix("lib/modules/")?.rsplit('/').next()?;
    let (stem, packing) = file.split_once(".ko")?;
    let packing = match packing {
        "" => None,
        p => Some(p.strip_prefix('.')?),
    };
    Some((stem.replace('-', "_"), packing))
}

impl Modules {
    /// Keeps a file of a package if it is a module from a place where needed ones live.
    pub(crate) fn offer(&mut self, path: &str, size: u64, file: &mut dyn Read) -> io::Result<()> {
        const ELSEWHERE: &[&str] = &[
            "/drivers/gpu/drm/amd",
            "/drivers/gpu/drm/i915",
            "/drivers/gpu/drm/nouveau",
            "/drivers/gpu/drm/radeon",
            "/drivers/media",
            "/drivers/infiniband",
            "/drivers/net/wireless",
            "/drivers/staging",
            "/drivers/iio",
            "/drivers/usb",
            "/sound/",
        ];
        let Some((name, packing)) = module_name(path) else {
            return Ok(());
        };
        if size > MAX_MODULE || ELSEWHERE.iter().any(|e| path.contains(e)) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        file.take(MAX_MODULE).read_to_end(&mut bytes)?;
        let (bytes, path) = match packing {
            None => (bytes, path.to_owned()),
            Some(p) => {
                let plain = path.strip_suffix(&format!(".{p}")).unwrap_or(path);
                (unpack(p, bytes)?, plain.to_owned())
            }
        };
        self.found.insert(name, (path, bytes));
        Ok(())
    }

    /// The wanted modules and everything that they depend on.
    fn closure(&self, wanted: &[&[&str]]) -> BTreeSet<&str> {
        let mut chosen = BTreeSet::new();
        let mut open: Vec<String> = wanted
            .iter()
            .copied()
            .flatten()
            .map(|w| (*w).to_owned())
            .collect();
        while let Some(name) = open.pop() {
            let Some((name, (_, bytes))) = self.found.get_key_value(&name) else {
                continue;
            };
            if chosen.insert(name.as_str()) {
                open.extend(dependencies(bytes));
            }
        }
        chosen
    }

    /// An initramfs with the wanted modules and their `modules.dep`.
    pub(crate) fn initramfs(&self, wanted: &[&[&str]]) -> Vec<u8> {
        let (mut cpio, mut dep, mut alias) = (Cpio::new(), String::new(), String::new());
        let chosen = self.closure(wanted);
        let mut root = None;
        for name in &chosen {
            let (path, bytes) = &self.found[*name];
            let path = path.strip_prefix("usr/").unwrap_or(path);
            cpio.file(path, 0o644, bytes);
            let Some((version, file)) = split_version(path) else {
                continue;
            };
            root = Some(format!("lib/modules/{version}"));
            dep.push_str(&format!("{file}:"));
            for d in self.load_order(name) {
                dep.push_str(&format!(" {d}"));
            }
            dep.push('\n');
            for a in info(bytes, "alias") {
                alias.push_str(&format!("alias {a} {name}\n"));
            }
        }
        if let Some(root) = root {
            cpio.file(&format!("{root}/modules.dep"), 0o644, dep.as_bytes());
            cpio.file(&format!("{root}/modules.alias"), 0o644, alias.as_bytes());
            cpio.file(&format!("{root}/modules.symbols"), 0o644, b"");
        }
        cpio.finish()
    }

    /// Files that a module depends on, each before those that it depends on itself: the order in
    /// which modprobe goes through the list from its end.
    fn load_order(&self, name: &str) -> Vec<&str> {
        let (mut seen, mut order) = (BTreeSet::from([name.to_owned()]), Vec::new());
        self.visit(name, &mut seen, &mut order);
        order.reverse();
        order
    }

    /// Appends what `name` depends on, dependencies first.
    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<&'a str>) {
        let Some((_, bytes)) = self.found.get(name) else {
            return;
        };
        for d in dependencies(bytes) {
            if seen.insert(d.clone()) {
                self.visit(&d, seen, order);
                let file = self.found.get(&d).and_then(|(path, _)| split_version(path));
                order.extend(file.map(|(_, file)| file));
            }
        }
    }
}

/// `lib/modules/VERSION/FILE`.
fn split_version(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("usr/").unwrap_or(path);
    path.strip_prefix("lib/modules/")?.split_once('/')
}

/// The values of a key in a module's `.modinfo` section, which holds `key=value` strings with NULs
/// between them (include/linux/moduleinfo.h). The section is found by its look, not by the ELF
/// headers: every string in it follows a NUL.
fn info<'a>(module: &'a [u8], key: &str) -> Vec<&'a str> {
    let prefix = format!("{key}=");
    module
        .split(|&b| b == 0)
        .filter_map(|s| s.strip_prefix(prefix.as_bytes()))
        .filter_map(|s| std::str::from_utf8(s).ok())
        .filter(|s| s.bytes().all(|b| (0x20..0x7f).contains(&b)))
        .collect()
}

fn dependencies(module: &[u8]) -> Vec<String> {
    let all = info(module, "depends").into_iter();
    all.flat_map(|d| d.split(','))
        .filter(|d| !d.is_empty())
        .map(|d| d.replace('-', "_"))
        .collect()
}

/// Unpacks a compressed module with the host's tool (dpkg's own dependencies bring xz and zstd).
fn unpack(packing: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let tool = match packing {
        "xz" => "xz",
        "zst" => "zstd",
        "gz" => "gzip",
        other => return Err(io::Error::other(format!("modules packed with {other}"))),
    };
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| io::Error::other(format!("{tool}: {e}; install it")))?;
    let stdin = child.stdin.take();
    // Written from another thread, so that neither pipe can fill up against the other.
    let writer = std::thread::spawn(move || stdin.map_or(Ok(()), |mut i| i.write_all(&bytes)));
    let out = child.wait_with_output()?;
    let written = writer.join().unwrap_or(Ok(()));
    if !out.status.success() {
        return Err(io::Error::other(format!("{tool} cannot unpack a module")));
    }
    written?;
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(m: &mut Modules, path: &str, info: &str) {
        let bytes = format!("\x7fELF\0license=GPL\0{info}\0x").into_bytes();
        m.offer(path, bytes.len() as u64, &mut bytes.as_slice())
            .unwrap();
    }

    #[test]
    fn names_of_modules() {
        let n = |p| module_name(p).map(|(n, p)| (n, p.map(str::to_owned)));
        let rng = "lib/modules/6.1/kernel/drivers/char/hw_random/virtio-rng.ko";
        assert_eq!(n(rng), Some(("virtio_rng".into(), None)));
        let xz = "usr/lib/modules/6.12/kernel/fs/fuse/fuse.ko.xz";
        assert_eq!(n(xz), Some(("fuse".into(), Some("xz".into()))));
        assert_eq!(n("boot/vmlinuz"), None);
        assert_eq!(n("lib/modules/6.1/modules.order"), None);
    }

    #[test]
    fn wanted_modules_come_with_their_dependencies() {
        let mut m = Modules::default();
        let at = |s: &str| format!("lib/modules/6.1/kernel/{s}.ko");
        offer(
            &mut m,
            &at("virtio_blk"),
            "depends=virtio,virtio_ring\0alias=virtio:d00000002v*",
        );
        // As in Linux 6.1, where the first in the list is needed by the second.
        offer(&mut m, &at("virtio"), "depends=virtio-ring");
        offer(&mut m, &at("virtio-ring"), "depends=");
        offer(&mut m, &at("unrelated"), "depends=virtio");
        offer(&mut m, &at("drivers/media/virtio_net"), "depends=");
        assert_eq!(
            m.closure(&[DEVICES]).into_iter().collect::<Vec<_>>(),
            ["virtio", "virtio_blk", "virtio_ring"]
        );
        let cpio = m.initramfs(&[DEVICES, OTHERS]);
        let text = String::from_utf8_lossy(&cpio);
        assert!(text.contains("kernel/virtio_blk.ko: kernel/virtio.ko kernel/virtio-ring.ko\n"));
        assert!(text.contains("kernel/virtio-ring.ko:\n"));
        assert!(text.contains("alias virtio:d00000002v* virtio_blk\n"));
        assert!(!text.contains("unrelated"));
    }

    #[test]
    fn packed_modules_are_unpacked() {
        assert!(unpack("lzma2", vec![]).is_err());
        if Command::new("gzip").arg("--version").output().is_err() {
            println!("skipped: gzip is not installed");
            return;
        }
        assert!(unpack("gz", b"not gzip".to_vec()).is_err());
    }
}
