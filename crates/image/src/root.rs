//! The root file system of `mimeo run debian`: made of packages, without root, once.
//!
//! The host's package client resolves and fetches the packages as an ordinary user; here they are
//! laid out as files and as packages in one archive; a guest of Mimeo's own, in which everybody may
//! be root, has dpkg configure them on an empty file system (the `install` that the caller brings).
//! The result is a disk image in the cache, which machines use by throw-away layers.

use crate::apt::{self, Apt};
use crate::cache::{self, Slot};
use crate::{ImageError, Progress};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tar::{Builder, EntryType, Header};

/// Part of the cache's key: raised whenever the image is made differently.
const RECIPE: u32 = 1;
/// Bytes of the file system; the file is sparse.
const SIZE: u64 = 4 << 30;
/// What is installed besides the essential packages.
const PACKAGES: &[&str] = &[
    "apt",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "less",
    "mount",
    "nano",
    "netbase",
    "procps",
    "wget",
];
/// What comes along where there is a package of that name: the keys of the distribution, and the word
/// that /usr is merged, without which a program comes that would merge it.
const OPTIONAL: &[&str] = &["debian-archive-keyring", "ubuntu-keyring", "usr-is-merged"];
/// Directories that are links into /usr (Debian policy 9.1.1, merged /usr).
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What is not unpacked, as dpkg is told as well.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
];

/// The image's file, and a small one with its length, which is what the cache checks: summing up
/// gigabytes at every start would take longer than the start.
const IMAGE: &str = "root.img";
const LENGTH: &str = "root.length";
/// What a failed installation said, and how long that counts.
const FAILED: &str = "failed";
const RETRY: Duration = Duration::from_secs(24 * 3600);

/// What a guest that installs is to do: shell commands for the `busybox` guest, with the image as
/// its first disk and the archive as its second.
pub const INSTALL_COMMANDS: &str = "mkdir -p /newroot; mount -t ext4 /dev/vda /newroot && tar -xf /dev/vdb -C /newroot && cp /newroot/debs/install.sh /tmp && sh /tmp/install.sh; poweroff -f\n";
/// The line that such a guest prints when it has done it.
pub const INSTALLED: &str = "@installed";

/// An installation to be carried out.
#[derive(Debug)]
pub struct Installation<'a> {
    /// The disk image, an empty ext4 file system.
    pub image: &'a Path,
    /// The archive with the packages (tar), to be read only.
    pub archive: &'a Path,
    /// Number of packages.
    pub packages: usize,
}

/// Carries out an installation; calls the function with each line that the guest prints.
pub type Installer<'a> =
    dyn FnMut(&Installation<'_>, &mut dyn FnMut(&str)) -> Result<(), String> + 'a;

/// Gives the root file system's image, from the cache or made by `install`.
///
/// # Errors
/// [`ImageError`].
pub fn debian_root(
    progress: &mut dyn FnMut(Progress<'_>),
    install: &mut Installer<'_>,
) -> Result<PathBuf, ImageError> {
    let root = cache::root()?;
    let mut wait = || {
        progress(Progress::Step(
            "waiting for another mimeo that prepares the root file system",
        ))
    };
    let slot = Slot::lock(&root, &format!("debian-root-{RECIPE}"), &mut wait)?;
    let whole = |dir: &PathBuf| {
        let length = fs::read_to_string(dir.join(LENGTH)).ok();
        let length = length.and_then(|l| l.trim().parse().ok());
        fs::metadata(dir.join(IMAGE)).is_ok_and(|m| Some(m.len()) == length)
    };
    let dir = match slot.current().filter(whole) {
        Some(dir) => dir,
        None => match failed_lately(&slot) {
            Some(message) => return Err(installation_failed(message)),
            None => prepare(&slot, &root, progress, install)?,
        },
    };
    Ok(dir.join(IMAGE))
}

fn prepare(
    slot: &Slot,
    root: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
    install: &mut Installer<'_>,
) -> Result<PathBuf, ImageError> {
    let mut apt = Apt::new(root)?;
    let work = slot.workspace()?;
    progress(Progress::Step("looking for Debian's packages"));
    let (download, image, archive) = (
        work.join("download"),
        work.join(IMAGE),
        work.join("archive"),
    );
    let packages = apt.download_system(PACKAGES, OPTIONAL, &download, progress)?;
    progress(Progress::Step("laying out the packages"));
    lay_out(&packages, &archive)?;
    fs::remove_dir_all(&download).map_err(ImageError::io(&download))?;
    make_file_system(&image)?;
    let count = packages.len();
    let mut configured = 0;
    let what = Installation {
        image: &image,
        archive: &archive,
        packages: count,
    };
    progress(Progress::Step(
        "starting a machine that installs the packages",
    ));
    let mut line = |text: &str| {
        if text.starts_with("Setting up ") {
            configured += 1;
            progress(Progress::Count {
                what: "installing packages",
                done: configured,
                total: count as u64,
            });
        }
    };
    install(&what, &mut line).map_err(|message| {
        // Minutes of work that will not end better a moment later.
        let _ = fs::write(slot.dir().join(FAILED), &message);
        installation_failed(message)
    })?;
    fs::remove_file(&archive).map_err(ImageError::io(&archive))?;
    cache::write_synced(&work.join(LENGTH), SIZE.to_string().as_bytes())?;
    let dir = slot.publish(&work, "root", &[LENGTH])?;
    progress(Progress::Done);
    Ok(dir)
}

fn installation_failed(message: String) -> ImageError {
    ImageError::Command {
        command: "installing the packages in a machine".into(),
        message,
    }
}

/// What a failed installation of the last day said.
fn failed_lately(slot: &Slot) -> Option<String> {
    let path = slot.dir().join(FAILED);
    let age = fs::metadata(&path).ok()?.modified().ok()?.elapsed().ok()?;
    let message = fs::read_to_string(&path).ok()?;
    let again = format!("{message} (remove {} to try again)", path.display());
    (age < RETRY).then_some(again)
}

/// An empty ext4 file system, by the host's mke2fs.
fn make_file_system(image: &Path) -> Result<(), ImageError> {
    let file = File::create(image).and_then(|f| f.set_len(SIZE));
    file.map_err(ImageError::io(image))?;
    // Where an ordinary user's PATH does not lead.
    for tool in ["mke2fs", "/sbin/mke2fs", "/usr/sbin/mke2fs"] {
        let run = Command::new(tool)
            .args(["-q", "-F", "-t", "ext4", "-L", "mimeo"])
            .arg(image)
            .stdin(Stdio::null())
            .output();
        match run {
            Ok(out) if out.status.success() => return Ok(()),
            Ok(out) => {
                return Err(ImageError::Command {
                    command: "mke2fs".into(),
                    message: String::from_utf8_lossy(&out.stderr).trim().to_owned(),
                });
            }
            Err(_) => {}
        }
    }
    Err(ImageError::NoPackageClient("mke2fs (e2fsprogs)"))
}

/// Writes the archive: the packages' files as they are once installed, then `debs/` with the
/// packages, unpacked as far as dpkg takes them so that the guest need not, and the scripts.
fn lay_out(packages: &[PathBuf], archive: &Path) -> Result<(), ImageError> {
    let file = File::create(archive).map_err(ImageError::io(archive))?;
    let mut to = Builder::new(BufWriter::with_capacity(1 << 20, file));
    let failed = |cause| ImageError::Io {
        path: archive.to_owned(),
        cause,
    };
    directories(&mut to).map_err(failed)?;
    for package in packages {
        let mut data = Vec::new();
        apt::for_each_entry(package, "--fsys-tarfile", &mut |entry| add(&mut to, entry))?;
        apt::read_part(package, "--fsys-tarfile", &mut data)?;
        let mut control = Vec::new();
        apt::read_part(package, "--ctrl-tarfile", &mut control)?;
        let deb = uncompressed(&control, &data);
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        file_entry(&mut to, &format!("debs/{name}"), 0o644, &deb).map_err(failed)?;
    }
    let scripts: [(&str, &[u8]); 2] = [
        ("debs/install.sh", include_bytes!("install.sh")),
        ("debs/configure.sh", include_bytes!("configure.sh")),
    ];
    for (name, bytes) in scripts {
        file_entry(&mut to, name, 0o755, bytes).map_err(failed)?;
    }
    sources(&mut to).map_err(failed)?;
    let done = to.into_inner().and_then(|mut w| w.flush());
    done.map_err(failed)
}

fn file_entry(to: &mut Builder<impl Write>, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut h = Header::new_gnu();
    h.set_size(bytes.len() as u64);
    h.set_mode(mode);
    h.set_entry_type(EntryType::Regular);
    to.append_data(&mut h, name, bytes)
}

/// What must be there before any package: merged /usr, and the archive's own directories.
fn directories(to: &mut Builder<impl Write>) -> io::Result<()> {
    let directory = |name: &str| {
        let mut h = Header::new_gnu();
        h.set_size(0);
        h.set_mode(0o755);
        h.set_entry_type(EntryType::Directory);
        (h, format!("{name}/"))
    };
    for name in ["usr", "debs", "debs/apt"] {
        let (mut h, name) = directory(name);
        to.append_data(&mut h, name, io::empty())?;
    }
    for name in MERGED {
        let (mut h, target) = directory(&format!("usr/{name}"));
        to.append_data(&mut h, target, io::empty())?;
        let mut h = Header::new_gnu();
        h.set_size(0);
        h.set_mode(0o777);
        h.set_entry_type(EntryType::Symlink);
        to.append_link(&mut h, name, format!("usr/{name}"))?;
    }
    Ok(())
}

/// A package's path where it belongs with merged /usr; `None` for what is left out.
fn merged(path: &str) -> Option<String> {
    let path = path.trim_start_matches("./");
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if path.is_empty() || (MERGED.contains(&first) && rest.is_empty()) {
        return None;
    }
    let path = if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    };
    let left_out = LEFT_OUT.iter().any(|l| path.starts_with(l));
    (!left_out).then_some(path)
}

/// Adds an entry of a package's files.
fn add(to: &mut Builder<impl Write>, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let Some(path) = merged(&path) else {
        return Ok(());
    };
    let mut header = entry.header().clone();
    let link = entry
        .link_name_bytes()
        .map(|l| String::from_utf8_lossy(&l).into_owned());
    match (header.entry_type(), link) {
        (EntryType::Symlink, Some(link)) => to.append_link(&mut header, path, link),
        // A hard link names another entry of the archive.
        (EntryType::Link, Some(link)) => match merged(&link) {
            Some(link) => to.append_link(&mut header, path, link),
            None => Ok(()),
        },
        _ => to.append_data(&mut header, path, entry),
    }
}

/// A package (deb(5)) with both its parts uncompressed.
fn uncompressed(control: &[u8], data: &[u8]) -> Vec<u8> {
    let mut deb = b"!<arch>\n".to_vec();
    let parts: [(&str, &[u8]); 3] = [
        ("debian-binary", b"2.0\n"),
        ("control.tar", control),
        ("data.tar", data),
    ];
    for (name, bytes) in parts {
        // ar(5): name, time, owner, group, mode, size, end of the header.
        let header = format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            0,
            100644,
            bytes.len()
        );
        deb.extend(header.bytes());
        deb.extend(bytes);
        if bytes.len() % 2 == 1 {
            deb.push(b'\n');
        }
    }
    deb
}

/// The host's package sources, which are the guest's from then on. Without passwords: those are in
/// files of their own (apt_auth.conf(5)), which are not copied.
fn sources(to: &mut Builder<impl Write>) -> io::Result<()> {
    let etc = Path::new("/etc/apt");
    let list = fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten();
    let mut files: Vec<PathBuf> = list.map(|e| e.path()).collect();
    files.push(etc.join("sources.list"));
    for path in files {
        let known = path
            .extension()
            .is_some_and(|e| e == "list" || e == "sources");
        let (Ok(bytes), Ok(name)) = (fs::read(&path), path.strip_prefix(etc)) else {
            continue;
        };
        if known {
            file_entry(to, &format!("debs/apt/{}", name.display()), 0o644, &bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_where_they_belong() {
        let m = |p: &str| merged(p);
        assert_eq!(m("./bin/sh").as_deref(), Some("usr/bin/sh"));
        assert_eq!(
            m("./lib/x86_64-linux-gnu/libc.so.6").as_deref(),
            Some("usr/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(m("./usr/bin/env").as_deref(), Some("usr/bin/env"));
        assert_eq!(m("./library/x").as_deref(), Some("library/x"));
        assert_eq!(
            [m("./"), m("./bin/"), m("./lib64"), m("./usr/share/doc/x")],
            [None, None, None, None]
        );
        assert_eq!(m("./usr/share/doc").as_deref(), Some("usr/share/doc"));
    }

    #[test]
    fn an_uncompressed_package_is_one_for_dpkg() {
        let tar = |name: &str, bytes: &[u8]| {
            let mut b = Builder::new(Vec::new());
            file_entry(&mut b, name, 0o644, bytes).unwrap();
            b.into_inner().unwrap()
        };
        let control = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n";
        let deb = uncompressed(&tar("./control", control), &tar("./etc/x", b"odd"));
        let path = std::env::temp_dir().join(format!("mimeo-deb-{}.deb", std::process::id()));
        fs::write(&path, deb).unwrap();
        let ask = Command::new("dpkg-deb")
            .args(["--field"])
            .arg(&path)
            .arg("Package")
            .output();
        match ask {
            Err(_) => println!("skipped: no dpkg-deb"),
            Ok(out) => {
                assert_eq!(
                    out.stdout,
                    b"x\n",
                    "{}",
                    String::from_utf8_lossy(&out.stderr)
                );
                let mut seen = Vec::new();
                apt::for_each_entry(&path, "--fsys-tarfile", &mut |e| {
                    seen.push(String::from_utf8_lossy(&e.path_bytes()).into_owned());
                    Ok(())
                })
                .unwrap();
                assert_eq!(seen, ["etc/x"]);
            }
        }
        fs::remove_file(&path).unwrap();
    }
}
