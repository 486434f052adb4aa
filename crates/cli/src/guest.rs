//! Named guests: images that Mimeo prepares itself.

use crate::args::MachineArgs;
use crate::payload::{Boot, Disk};
use crate::status::Failure;
use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use mimeo_image::{
    DebianOptions, Flavour, INSTALL_COMMANDS, INSTALLED, Installation, Progress, Terminal, debian,
    debian_root,
};
use mimeo_machines::spec::{DiskFormat, DiskSpec, ShareProtocol, ShareSpec};
use rustix::{stdio, termios};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A guest that Mimeo prepares.
#[derive(Debug, Clone, Copy)]
struct Named {
    name: &'static str,
    flavour: Flavour,
    /// It has Debian's root file system on a disk; otherwise all of it is in its initial RAM disk.
    root: bool,
}

/// The names and what they are.
const GUESTS: &[Named] = &[
    Named {
        name: "debian",
        flavour: Flavour::Cloud,
        root: true,
    },
    Named {
        name: "debian-generic",
        flavour: Flavour::Generic,
        root: true,
    },
    Named {
        name: "busybox",
        flavour: Flavour::Cloud,
        root: false,
    },
    Named {
        name: "busybox-generic",
        flavour: Flavour::Generic,
        root: false,
    },
    Named {
        name: "debian-stable",
        flavour: Flavour::Stable,
        root: false,
    },
];

fn find(name: &str) -> Result<Named, Failure> {
    let found = GUESTS.iter().find(|g| g.name == name).copied();
    found.ok_or_else(|| {
        let names: Vec<&str> = GUESTS.iter().map(|g| g.name).collect();
        Failure::usage(anyhow!(
            "there is no guest `{name}`: choose one of {}, or give --kernel FILE",
            names.join(", ")
        ))
    })
}

/// The tag of the folder that a guest with a root file system mounts at /mnt/host.
const HOST_TAG: &str = "host";

/// Adds to a machine what the guest `name` has besides its kernel: the root file system as first
/// disk, by a throw-away layer, and the current folder. Gives words for the kernel's command line;
/// where the root file system cannot be had, the guest does without, and says so.
pub fn furnish(name: &str, machine: &mut MachineArgs) -> Result<Vec<String>, Failure> {
    let guest = find(name)?;
    if !guest.root {
        return Ok(Vec::new());
    }
    let mut shown = Shown::default();
    let image = debian_root(&mut |p| shown.show(p), &mut install);
    shown.finish();
    let image = match image {
        Ok(image) => image,
        Err(e) => {
            eprintln!("mimeo: {e}; going on without Debian's root file system, with busybox alone");
            return Ok(Vec::new());
        }
    };
    let mut words = vec!["mimeo.root=vda".to_owned()];
    if guest.flavour == Flavour::Generic {
        words.push("mimeo.modules=ext4".into());
    }
    let disk = DiskSpec {
        file: image,
        snapshot: true,
        format: Some(DiskFormat::Raw),
        ..DiskSpec::default()
    };
    machine.disks.insert(0, disk);
    let taken = machine.shares.iter().any(|s| s.tag == HOST_TAG);
    if !taken && let Ok(dir) = std::env::current_dir() {
        machine.shares.push(ShareSpec {
            dir,
            tag: HOST_TAG.into(),
            ro: false,
            protocol: ShareProtocol::Fs,
        });
    }
    words.push("mimeo.share".into());
    Ok(words)
}

/// Has packages installed in a machine of our own: this program again, with the small guest.
fn install(what: &Installation<'_>, line: &mut dyn FnMut(&str)) -> Result<(), String> {
    eprintln!(
        "mimeo: a machine installs {} packages for Debian's root file system; once, for some minutes",
        what.packages
    );
    // A comma in a name is written twice.
    let path = |p: &Path| p.display().to_string().replace(',', ",,");
    let text = |e: std::io::Error| e.to_string();
    let mut child = Command::new(std::env::current_exe().map_err(text)?)
        .args([
            "run", "busybox", "-m", "768M", "--net", "none", "--vsock", "off",
        ])
        .args(["--no-reboot", "--timeout", "3600"])
        .arg("--disk")
        .arg(path(what.image))
        .arg("--disk")
        .arg(format!("{},ro", path(what.archive)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(text)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(INSTALL_COMMANDS.as_bytes()).map_err(text)?;
    }
    let (mut installed, mut last) = (false, Vec::new());
    if let Some(stdout) = child.stdout.take() {
        for said in BufReader::new(stdout).split(b'\n') {
            let said = said.map_err(text)?;
            let said = String::from_utf8_lossy(&said).trim_end().to_owned();
            installed |= said == INSTALLED;
            line(&said);
            last.push(said);
            if last.len() > 20 {
                last.remove(0);
            }
        }
    }
    let out = child.wait_with_output().map_err(text)?;
    if installed && out.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(format!("{} {error}", last.join("; ")))
}

/// How a guest shall be.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Words for its command line.
    pub append: &'a str,
    /// A person may sit at its serial port; otherwise it runs what it reads as a script.
    pub interactive: bool,
    /// Words that its furniture needs ([`furnish`]).
    pub words: Vec<String>,
    /// The machine's name.
    pub name: Option<&'a str>,
}

/// The machine's name as a host name (RFC 1123): letters, digits and hyphens.
fn host_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.chars().map(letter).collect()
}

/// Prepares the guest `name`.
pub fn prepare(name: &str, wanted: Wanted<'_>) -> Result<Boot, Failure> {
    let flavour = find(name)?.flavour;
    let options = DebianOptions {
        flavour,
        terminal: wanted.interactive.then(terminal),
        modules: wanted
            .words
            .iter()
            .filter_map(|w| w.strip_prefix("mimeo.modules="))
            .map(str::to_owned)
            .collect(),
        ..DebianOptions::default()
    };
    let mut shown = Shown::default();
    let image = debian(&options, &mut |p| shown.show(p)).map_err(Failure::usage);
    shown.finish();
    let image = image?;
    let mut cmdline = image.cmdline;
    for word in wanted
        .words
        .iter()
        .filter(|w| !w.starts_with("mimeo.modules="))
    {
        cmdline.push(' ');
        cmdline.push_str(word);
    }
    if let Some(name) = wanted.name {
        cmdline.push_str(&format!(" mimeo.hostname={}", host_name(name)));
    }
    if !wanted.append.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(wanted.append);
    }
    let initrds = vec![
        Disk::Bytes(name.to_owned(), image.initrd),
        Disk::File(image.modules),
    ];
    Ok(Boot {
        kernel: image.kernel,
        initrds,
        cmdline,
    })
}

/// The terminal that the person looks at; a plain one in the background, where somebody may sit
/// down at the console later.
fn terminal() -> Terminal {
    let size = termios::tcgetwinsize(stdio::stdout()).ok();
    Terminal {
        term: std::env::var("TERM").unwrap_or_default(),
        cols: size.map_or(80, |s| s.ws_col),
        rows: size.map_or(24, |s| s.ws_row),
    }
}

/// The progress display on standard error; nothing is shown where that is no terminal.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    what: String,
}

impl Shown {
    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Step(text) => {
                self.finish();
                let bar = ProgressBar::new_spinner().with_message(text.to_owned());
                bar.enable_steady_tick(Duration::from_millis(100));
                self.bar = Some(bar);
                self.what.clear();
            }
            Progress::Bytes { what, done, total } => {
                if self.what != what {
                    self.finish();
                    self.bar = Some(download_bar(what, total));
                    self.what = what.to_owned();
                }
                if let Some(bar) = &self.bar {
                    bar.set_length(total.max(done));
                    bar.set_position(done);
                }
            }
            Progress::Count { what, done, total } => {
                if self.what != what {
                    self.finish();
                    self.bar = Some(count_bar(what, total));
                    self.what = what.to_owned();
                }
                if let Some(bar) = &self.bar {
                    bar.set_position(done);
                }
            }
            Progress::Done => self.finish(),
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn count_bar(what: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_message(what.to_owned())
}

fn download_bar(what: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_message(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_guest_is_told_the_known_ones() {
        let error = prepare("windows", Wanted::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("windows") && error.contains("debian"),
            "{error}"
        );
    }
}
