//! The quickstart image `debian`: Debian's stock kernel and a static busybox.

use crate::apt::{self, Apt};
use crate::cache::{self, Slot};
use crate::initramfs::initramfs;
use crate::modules::{DEVICES, Modules, OTHERS};
use crate::{ImageError, Progress};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of the distribution's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// The one for virtual machines: small, no drivers for real hardware.
    #[default]
    Cloud,
    /// The one for everything.
    Generic,
    /// The one for virtual machines of Debian's current stable release, whatever the host's is.
    Stable,
}

impl Flavour {
    /// The meta packages that lead to it, Debian's first, then Ubuntu's.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Stable => &["linux-image-cloud-amd64"],
            Self::Cloud => &[
                "linux-image-cloud-amd64",
                "linux-image-virtual",
                "linux-image-amd64",
            ],
            Self::Generic => &["linux-image-amd64", "linux-image-generic"],
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Cloud => "debian-cloud",
            Self::Generic => "debian-generic",
            Self::Stable => "debian-stable",
        }
    }
}

/// Part of the cache's key: raised whenever the prepared files are made differently.
const RECIPE: u32 = 2;

/// The prepared files.
const FILES: &[&str] = &["vmlinuz", "busybox", "devices.cpio", "modules.cpio"];

/// What the person at the guest's serial console looks through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// The value of TERM.
    pub term: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// How the image shall be.
#[derive(Debug, Clone, Default)]
pub struct DebianOptions {
    /// Which kernel.
    pub flavour: Flavour,
    /// Ask the package client again although there is a prepared image.
    pub refresh: bool,
    /// Another directory than the user's cache (for tests).
    pub cache: Option<PathBuf>,
    /// The terminal; without one the shell runs what it reads as a script: no prompt, no echo. The
    /// end of the input is told to it by Ctrl-D (byte 4).
    pub terminal: Option<Terminal>,
    /// Modules that init shall load besides the drivers of the devices that it finds, e.g. `ext4`;
    /// with any, the initramfs with more than those drivers comes along.
    pub modules: Vec<String>,
}

/// A prepared image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuickImage {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Vec<u8>,
    /// A second one with modules.
    pub modules: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Gives the image, from the cache when it is there and whole, else by the host's package client.
///
/// # Errors
/// [`ImageError`], with the way to do without.
pub fn debian(
    opts: &DebianOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<QuickImage, ImageError> {
    let root = match &opts.cache {
        Some(dir) => dir.clone(),
        None => cache::root()?,
    };
    let key = format!("{}-{RECIPE}", opts.flavour.key());
    let mut wait = || {
        progress(Progress::Step(
            "waiting for another mimeo that prepares the image",
        ))
    };
    let slot = Slot::lock(&root, &key, &mut wait)?;
    let dir = match slot.current().filter(|_| !opts.refresh) {
        Some(dir) => dir,
        None => prepare(&slot, &root, opts.flavour, progress)?,
    };
    let busybox = dir.join("busybox");
    let busybox = fs::read(&busybox).map_err(ImageError::io(&busybox))?;
    Ok(QuickImage {
        kernel: dir.join("vmlinuz"),
        initrd: initramfs(&busybox),
        modules: dir.join(if opts.modules.is_empty() {
            "devices.cpio"
        } else {
            "modules.cpio"
        }),
        cmdline: cmdline(opts),
    })
}

/// The kernel's command line: the serial console last, so that it is init's.
fn cmdline(opts: &DebianOptions) -> String {
    let mut line = "console=ttyS0 quiet".to_owned();
    if let Some(t) = &opts.terminal {
        // A word of the command line: nothing that could end it or begin another.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if !t.term.is_empty() && t.term.chars().all(plain) {
            line.push_str(&format!(" mimeo.term={}", t.term));
        }
        if t.cols > 0 && t.rows > 0 {
            line.push_str(&format!(" mimeo.cols={} mimeo.rows={}", t.cols, t.rows));
        }
    }
    if opts.terminal.is_none() {
        line.push_str(" mimeo.script");
    }
    if !opts.modules.is_empty() {
        line.push_str(&format!(" mimeo.modules={}", opts.modules.join(",")));
    }
    line
}

/// Downloads, unpacks and publishes.
fn prepare(
    slot: &Slot,
    root: &Path,
    flavour: Flavour,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, ImageError> {
    progress(Progress::Step("looking for Debian's kernel"));
    let mut apt = match flavour {
        Flavour::Stable => Apt::of_release(root, "stable", progress)?,
        Flavour::Cloud | Flavour::Generic => Apt::new(root)?,
    };
    let package = apt.kernel_package(flavour.packages(), progress)?;
    let work = slot.workspace()?;
    let packages = work.join("packages");
    let busybox = apt.download("busybox-static", &packages.join("busybox"), progress)?;
    let kernel = apt.download(&package, &packages.join("kernel"), progress)?;
    progress(Progress::Step("unpacking"));
    unpack_busybox(&busybox, &work)?;
    unpack_kernel(&kernel, &work)?;
    fs::remove_dir_all(&packages).map_err(ImageError::io(&packages))?;
    let name = package.trim_start_matches("linux-image-");
    let dir = slot.publish(&work, name, FILES)?;
    progress(Progress::Done);
    Ok(dir)
}

fn missing(package: &Path, what: &'static str) -> ImageError {
    let package = package
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ImageError::Missing { package, what }
}

fn unpack_busybox(package: &Path, work: &Path) -> Result<(), ImageError> {
    let mut busybox = Vec::new();
    apt::for_each_file(package, &mut |path, _, file| {
        if matches!(path, "bin/busybox" | "usr/bin/busybox") {
            file.read_to_end(&mut busybox)?;
        }
        Ok(())
    })?;
    if !busybox.starts_with(b"\x7fELF") {
        return Err(missing(package, "busybox"));
    }
    cache::write_synced(&work.join("busybox"), &busybox)
}

fn unpack_kernel(package: &Path, work: &Path) -> Result<(), ImageError> {
    let (mut kernel, mut modules) = (Vec::new(), Modules::default());
    apt::for_each_file(package, &mut |path, size, file| {
        if path.starts_with("boot/vmlinuz-") {
            file.read_to_end(&mut kernel)?;
            return Ok(());
        }
        modules.offer(path, size, file)
    })?;
    if kernel.is_empty() {
        return Err(missing(package, "kernel"));
    }
    cache::write_synced(&work.join("vmlinuz"), &kernel)?;
    let devices = modules.initramfs(&[DEVICES]);
    cache::write_synced(&work.join("devices.cpio"), &devices)?;
    let all = modules.initramfs(&[DEVICES, OTHERS]);
    cache::write_synced(&work.join("modules.cpio"), &all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_cannot_be_broken_by_the_terminal() {
        let mut opts = DebianOptions {
            terminal: Some(Terminal {
                term: "xterm-256color".into(),
                cols: 80,
                rows: 25,
            }),
            ..DebianOptions::default()
        };
        let want = "console=ttyS0 quiet mimeo.term=xterm-256color mimeo.cols=80 mimeo.rows=25";
        assert_eq!(cmdline(&opts), want);
        assert!(cmdline(&DebianOptions::default()).ends_with(" mimeo.script"));
        opts.terminal = Some(Terminal {
            term: "x init=/bin/evil".into(),
            cols: 0,
            rows: 0,
        });
        assert_eq!(cmdline(&opts), "console=ttyS0 quiet");
        opts.modules = vec!["virtio_mmio".into(), "virtio_blk".into()];
        assert!(cmdline(&opts).ends_with("mimeo.modules=virtio_mmio,virtio_blk"));
    }

    /// A prepared cache is used without asking any package client.
    #[test]
    fn a_whole_cache_needs_no_network() {
        let root = std::env::temp_dir().join(format!("mimeo-debian-{}", std::process::id()));
        let slot = Slot::lock(&root, &format!("debian-cloud-{RECIPE}"), &mut || {}).unwrap();
        let work = slot.workspace().unwrap();
        for &file in FILES {
            fs::write(work.join(file), file).unwrap();
        }
        slot.publish(&work, "6.1", FILES).unwrap();
        drop(slot);
        let opts = DebianOptions {
            cache: Some(root.clone()),
            ..DebianOptions::default()
        };
        let image = debian(&opts, &mut |p| panic!("{p:?}")).unwrap();
        assert_eq!(fs::read(&image.kernel).unwrap(), b"vmlinuz");
        assert_eq!(fs::read(&image.modules).unwrap(), b"devices.cpio");
        assert!(String::from_utf8_lossy(&image.initrd).contains("busybox"));
        fs::remove_dir_all(&root).unwrap();
    }
}
