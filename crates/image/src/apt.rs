//! Debian's package client, used as an ordinary user: `apt-cache` to find a package, `apt-get
//! download` to get it (signatures and sums checked by apt), `dpkg-deb` to open it.
//!
//! Where the system has no package lists (a fresh container), lists of our own are fetched into the
//! cache. The system's own state is never written.

use crate::{ImageError, Progress};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often progress is looked at while apt works.
const POLL: Duration = Duration::from_millis(100);

/// apt with its options.
#[derive(Debug)]
pub(crate) struct Apt {
    /// Where lists of our own are, when they are in use.
    state: PathBuf,
    own_lists: bool,
    /// The one source to use instead of the system's.
    source: Option<PathBuf>,
}

/// Debian's keys on Debian and its derivatives.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Apt {
    /// Finds the tools. `cache` is where lists of our own may go.
    pub(crate) fn new(cache: &Path) -> Result<Self, ImageError> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            let found = Command::new(tool)
                .arg("--version")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if !found.is_ok_and(|s| s.success()) {
                return Err(ImageError::NoPackageClient(tool));
            }
        }
        let (state, own_lists) = (cache.join("apt"), false);
        Ok(Self {
            state,
            own_lists,
            source: None,
        })
    }

    /// The same for a release of Debian's of its own (`stable`), from the mirror that the system uses.
    pub(crate) fn of_release(
        cache: &Path,
        suite: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ImageError> {
        let mut apt = Self::new(cache)?;
        let mirror = apt.debian_mirror().ok_or_else(|| {
            ImageError::NoPackage(format!("a source of Debian's {suite} release"))
        })?;
        apt.state = cache.join(format!("apt-{suite}"));
        std::fs::create_dir_all(&apt.state).map_err(ImageError::io(&apt.state))?;
        let source = apt.state.join("sources.list");
        let line = format!("deb [arch=amd64 signed-by={DEBIAN_KEYS}] {mirror} {suite} main\n");
        std::fs::write(&source, line).map_err(ImageError::io(&source))?;
        apt.source = Some(source);
        apt.update(progress)?;
        Ok(apt)
    }

    /// Where the system gets Debian's packages from.
    fn debian_mirror(&self) -> Option<String> {
        let mut c = self.command("apt-get");
        c.args(["indextargets", "--format", "$(REPO_URI)"]);
        c.args(["Created-By: Packages", "Origin: Debian", "Label: Debian"]);
        let out = c.stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    }

    fn command(&self, tool: &str) -> Command {
        let mut c = Command::new(tool);
        c.env("LC_ALL", "C").stdin(Stdio::null());
        for option in [
            "Acquire::Retries=2",
            "Acquire::http::Timeout=30",
            "APT::Sandbox::User=",
        ] {
            c.arg("-o").arg(option);
        }
        if self.own_lists {
            let dir = |name: &str, path: &Path| format!("{name}={}", path.display());
            let (state, cache) = (self.state.join("state"), self.state.join("cache"));
            for option in [
                dir("Dir::State", &state),
                dir("Dir::State::lists", &state.join("lists")),
                dir("Dir::Cache", &cache),
                dir("Dir::Cache::archives", &cache.join("archives")),
            ] {
                c.arg("-o").arg(option);
            }
            c.args(["-o", "Dir::State::status=/var/lib/dpkg/status"]);
        }
        if let Some(source) = &self.source {
            let list = format!("Dir::Etc::sourcelist={}", source.display());
            c.args(["-o", &list, "-o", "Dir::Etc::sourceparts=-"]);
            c.args(["-o", "Acquire::Languages=none"]);
        }
        c
    }

    /// Finds the first of `candidates` that apt knows and follows meta packages to the package that
    /// holds a kernel; fetches package lists when the system has none.
    pub(crate) fn kernel_package(
        &mut self,
        candidates: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<String, ImageError> {
        if let Some(found) = self.resolve(candidates) {
            return Ok(found);
        }
        self.update(progress)?;
        let none = || ImageError::NoPackage(candidates.join(" or "));
        self.resolve(candidates).ok_or_else(none)
    }

    fn resolve(&self, candidates: &[&str]) -> Option<String> {
        candidates.iter().find_map(|meta| {
            let mut name = (*meta).to_owned();
            // Ubuntu's have a step more than Debian's.
            for _ in 0..4 {
                name = kernel_dependency(&self.depends(&name)?)?;
                if is_kernel(&name) {
                    return Some(name);
                }
            }
            None
        })
    }

    /// What `apt-cache depends` says of a package, if it knows it.
    fn depends(&self, package: &str) -> Option<String> {
        let mut c = self.command("apt-cache");
        c.args(["depends", "--important", "--", package])
            .stderr(Stdio::null());
        let out = c.output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Fetches package lists into the cache and uses them from now on.
    fn update(&mut self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), ImageError> {
        self.own_lists = true;
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            let dir = self.state.join(dir);
            std::fs::create_dir_all(&dir).map_err(ImageError::io(&dir))?;
        }
        progress(Progress::Step("fetching package lists"));
        let mut c = self.command("apt-get");
        c.arg("update");
        let state = self.state.clone();
        run(c, "apt-get update", &state, &mut || {})
    }

    /// Downloads `package` into the empty directory `dir` and gives the file.
    pub(crate) fn download(
        &self,
        package: &str,
        dir: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, ImageError> {
        std::fs::create_dir_all(dir).map_err(ImageError::io(dir))?;
        let total = self.size(package).unwrap_or(0);
        let mut c = self.command("apt-get");
        c.current_dir(dir).args(["download", "--", package]);
        let mut watch = || {
            let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let done = files.filter_map(|f| Some(f.metadata().ok()?.len())).sum();
            progress(Progress::Bytes {
                what: package,
                done,
                total,
            });
        };
        run(c, &format!("apt-get download {package}"), dir, &mut watch)?;
        let files = std::fs::read_dir(dir).map_err(ImageError::io(dir))?;
        files
            .flatten()
            .map(|f| f.path())
            .find(|p| p.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| ImageError::NoPackage(package.to_owned()))
    }

    /// apt-get for a system of its own, in which nothing is installed: its files are below `dir`.
    fn system(&self, dir: &Path, packages: &[&str]) -> Command {
        let mut c = self.command("apt-get");
        let set = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        for option in [
            set("Dir::State::status", dir.join("status")),
            set("Dir::State::extended_states", dir.join("extended")),
            set("Dir::Cache", dir.join("cache")),
            set("Dir::Cache::archives", dir.join("archives")),
            "Debug::NoLocking=1".into(),
            "APT::Install-Recommends=0".into(),
        ] {
            c.arg("-o").arg(option);
        }
        c.args(["-y", "-qq", "install", "?essential"])
            .args(packages);
        c
    }

    /// What [`Self::system`] would fetch: number of packages and bytes.
    fn system_size(&self, dir: &Path, packages: &[&str]) -> Option<(u64, u64)> {
        let mut c = self.system(dir, packages);
        let out = c.arg("--print-uris").stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout);
        // 'URI' FILE SIZE HASH
        let sizes = text
            .lines()
            .filter_map(|l| l.split_whitespace().nth(2)?.parse::<u64>().ok());
        let (count, sum) = sizes.fold((0, 0), |(n, sum), size| (n + 1, sum + size));
        (out.status.success() && count > 0).then_some((count, sum))
    }

    /// Downloads the essential packages, `packages`, those of `optional` that exist, and all that they
    /// depend on into `dir`; gives the files.
    pub(crate) fn download_system(
        &mut self,
        packages: &[&str],
        optional: &[&str],
        dir: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<PathBuf>, ImageError> {
        let archives = dir.join("archives");
        for dir in [archives.join("partial"), dir.join("cache")] {
            std::fs::create_dir_all(&dir).map_err(ImageError::io(&dir))?;
        }
        let status = dir.join("status");
        File::create(&status).map_err(ImageError::io(&status))?;
        if self.system_size(dir, packages).is_none() {
            self.update(progress)?;
        }
        let known = |k: &&&str| self.system_size(dir, &[k]).is_some();
        let optional = optional.iter().filter(known);
        let all: Vec<&str> = packages.iter().chain(optional).copied().collect();
        let none = || ImageError::NoPackage(all.join(" or "));
        let (_, total) = self.system_size(dir, &all).ok_or_else(none)?;
        let list = |dir: &Path| {
            let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
            files.map(|f| f.path()).collect::<Vec<_>>()
        };
        let size = |p: &PathBuf| p.metadata().map_or(0, |m| m.len());
        let mut watch = || {
            let partial = list(&archives.join("partial"));
            let done = list(&archives)
                .iter()
                .filter(|p| p.is_file())
                .map(size)
                .sum::<u64>();
            progress(Progress::Bytes {
                what: "Debian packages",
                done: done + partial.iter().map(size).sum::<u64>(),
                total,
            });
        };
        let mut c = self.system(dir, &all);
        c.arg("--download-only");
        run(c, "apt-get install --download-only", dir, &mut watch)?;
        let mut debs = list(&archives);
        debs.retain(|p| p.extension().is_some_and(|e| e == "deb"));
        debs.sort();
        if debs.is_empty() {
            Err(none())
        } else {
            Ok(debs)
        }
    }

    /// The size of a package's file, for the progress display.
    fn size(&self, package: &str) -> Option<u64> {
        let mut c = self.command("apt-get");
        c.args(["download", "--print-uris", "--", package])
            .stderr(Stdio::null());
        let out = c.output().ok()?;
        // 'URI' FILE SIZE HASH
        String::from_utf8_lossy(&out.stdout)
            .split_whitespace()
            .nth(2)?
            .parse()
            .ok()
    }
}

/// A package that holds a kernel has its version in the name: `linux-image-6.1.0-56-cloud-amd64`.
fn is_kernel(package: &str) -> bool {
    let version = package
        .strip_prefix("linux-image-")
        .map(|p| p.trim_start_matches("unsigned-"));
    version.is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
}

/// The dependency of a meta package that leads to the kernel.
fn kernel_dependency(depends: &str) -> Option<String> {
    let names = depends
        .lines()
        .filter_map(|l| l.trim_start().strip_prefix("Depends: "));
    let mut images: Vec<_> = names.filter(|n| n.starts_with("linux-image-")).collect();
    images.sort_by_key(|n| !is_kernel(n));
    images.first().map(|n| (*n).to_owned())
}

/// Runs a command to its end, calling `watch` meanwhile; its last words go into the error.
fn run(mut c: Command, name: &str, dir: &Path, watch: &mut dyn FnMut()) -> Result<(), ImageError> {
    let log = dir.join("messages");
    let file = File::create(&log).map_err(ImageError::io(&log))?;
    let fail = |message: String| ImageError::Command {
        command: name.to_owned(),
        message,
    };
    c.stdout(Stdio::null()).stderr(file);
    let mut child = Reaped(c.spawn().map_err(|e| fail(e.to_string()))?);
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(POLL),
            Err(e) => return Err(fail(e.to_string())),
        }
        watch();
    };
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let telling = |l: &&str| l.starts_with("E:") || l.starts_with("W: Failed to fetch");
    let errors: Vec<_> = text.lines().filter(telling).take(2).collect();
    // `apt-get update` ends well even when no list could be fetched.
    let offline = text.contains("Some index files failed to download");
    if status.success() && !offline {
        let _ = std::fs::remove_file(&log);
        return Ok(());
    }
    let last = text.lines().last().unwrap_or("no message").to_owned();
    Err(fail(if errors.is_empty() {
        last
    } else {
        errors.join(" ")
    }))
}

/// Ends the child when we are unwound or return early.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Does nothing to a child that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A package's part (`--fsys-tarfile`: its files, `--ctrl-tarfile`: what dpkg needs to know), as an
/// uncompressed archive that `use_stream` reads to its end.
fn with_part(
    package: &Path,
    part: &str,
    use_stream: &mut dyn FnMut(&mut dyn Read) -> std::io::Result<()>,
) -> Result<(), ImageError> {
    let name = format!("dpkg-deb {part} {}", package.display());
    let fail = |message: String| ImageError::Command {
        command: name.clone(),
        message,
    };
    let child = Command::new("dpkg-deb")
        .arg(part)
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = Reaped(child.map_err(|e| fail(e.to_string()))?);
    let stream = child.0.stdout.take();
    let mut stream = std::io::BufReader::new(stream.ok_or_else(|| fail("no output".into()))?);
    use_stream(&mut stream).map_err(|e| fail(e.to_string()))?;
    // dpkg-deb may still be writing padding; a closed pipe would make it fail.
    std::io::copy(&mut stream, &mut std::io::sink()).map_err(|e| fail(e.to_string()))?;
    let status = child.0.wait().map_err(|e| fail(e.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(fail("the package is damaged".into()))
    }
}

/// Calls `each` with every entry of a package's part.
pub(crate) fn for_each_entry(
    package: &Path,
    part: &str,
    each: &mut dyn FnMut(&mut tar::Entry<'_, &mut dyn Read>) -> std::io::Result<()>,
) -> Result<(), ImageError> {
    with_part(package, part, &mut |stream| {
        let mut archive = tar::Archive::new(stream);
        for entry in archive.entries()? {
            each(&mut entry?)?;
        }
        Ok(())
    })
}

/// Appends a package's part to `to`.
pub(crate) fn read_part(package: &Path, part: &str, to: &mut Vec<u8>) -> Result<(), ImageError> {
    with_part(package, part, &mut |stream| {
        stream.read_to_end(to).map(drop)
    })
}

/// Opens a package's file tree and calls `each` with the path (without the leading "./") and a reader
/// of each regular file's contents.
pub(crate) fn for_each_file(
    package: &Path,
    each: &mut dyn FnMut(&str, u64, &mut dyn Read) -> std::io::Result<()>,
) -> Result<(), ImageError> {
    for_each_entry(package, "--fsys-tarfile", &mut |entry| {
        if !entry.header().entry_type().is_file() {
            return Ok(());
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        each(path.trim_start_matches("./"), size, entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_packages_lead_to_kernels() {
        let debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        let found = kernel_dependency(debian).unwrap();
        assert_eq!(found, "linux-image-6.1.0-56-cloud-amd64");
        assert!(is_kernel(&found) && !is_kernel("linux-image-cloud-amd64"));
        let ubuntu =
            "linux-virtual\n  Depends: linux-headers-virtual\n  Depends: linux-image-virtual\n";
        assert_eq!(kernel_dependency(ubuntu).unwrap(), "linux-image-virtual");
        assert_eq!(kernel_dependency("busybox\n  Depends: libc6\n"), None);
    }

    #[test]
    fn a_failing_command_is_quoted() {
        let dir = std::env::temp_dir().join(format!("mimeo-apt-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut c = Command::new("sh");
        c.args([
            "-c",
            "echo 'W: x' >&2; echo 'E: no such thing' >&2; exit 100",
        ]);
        let e = run(c, "apt-get download x", &dir, &mut || {})
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("apt-get download x failed: E: no such thing"),
            "{e}"
        );
        assert!(e.contains("--kernel FILE"), "{e}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
