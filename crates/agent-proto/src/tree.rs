//! File trees on a stream: sent in the order of a walk, and put up again without trust.
//!
//! The receiver keeps a directory open for each level and names everything relative to it through
//! `/proc/self/fd`, one component at a time and never through a symbolic link: whatever the other
//! side says, nothing outside of the destination is reached.

use crate::{Entry, Malformed, Message, PIECE, read_message, write_message};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Levels of a tree.
const DEEPEST: usize = 256;
/// open(2) on Linux: no symbolic link as the last component; a directory or nothing.
const O_NOFOLLOW: i32 = 0o400_000;
const O_DIRECTORY: i32 = 0o200_000;
/// open(2): does not wait for a FIFO's other end.
const O_NONBLOCK: i32 = 0o4000;

/// Sends the file or tree at `path`, then [`Entry::Done`].
///
/// # Errors
/// The file system's or the stream's; the stream is then in the middle of a tree.
pub fn send(path: &Path, to: &mut impl Write) -> io::Result<()> {
    send_entry(path, b"", to, 0)?;
    say(to, Entry::Done)
}

fn say(to: &mut impl Write, entry: Entry) -> io::Result<()> {
    write_message(to, &Message::Entry(entry))
}

/// An error with the path that it is about.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn send_entry(path: &Path, name: &[u8], to: &mut impl Write, depth: usize) -> io::Result<()> {
    let meta = fs::symlink_metadata(path).map_err(at(path))?;
    let (kind, name) = (meta.file_type(), name.to_vec());
    let mode = meta.permissions().mode() & 0o7777;
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(at(path))?;
        let target = target.as_os_str().as_bytes().to_vec();
        return say(to, Entry::Symlink { name, target });
    }
    if kind.is_dir() {
        if depth >= DEEPEST {
            return Err(at(path)(io::Error::other("the tree is too deep")));
        }
        say(to, Entry::Directory { name, mode })?;
        let mut names: Vec<_> = fs::read_dir(path)
            .map_err(at(path))?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            send_entry(&path.join(&name), name.as_bytes(), to, depth + 1)?;
        }
        return say(to, Entry::Leave);
    }
    if !kind.is_file() {
        return say(to, Entry::Skipped { name });
    }
    let modified = match meta.modified()?.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)
        .map_err(at(path))?;
    say(
        to,
        Entry::File {
            name,
            mode,
            modified,
        },
    )?;
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return say(to, Entry::FileEnd),
            Ok(n) => say(to, Entry::Data(buffer[..n].to_vec()))?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(at(path)(e)),
        }
    }
}

/// Where a source called `name` goes when `destination` was given, as cp(1) understands it: into a
/// directory that exists, else under the destination's own name. `contents`: what is in the source
/// goes into the destination.
///
/// # Errors
/// There is no directory for it.
pub fn place(destination: &Path, name: &[u8], contents: bool) -> io::Result<(PathBuf, Vec<u8>)> {
    let text = destination.as_os_str().as_bytes();
    if destination.is_dir() && !contents {
        check_name(name)?;
        return Ok((destination.to_owned(), name.to_vec()));
    }
    if text.ends_with(b"/") && !contents {
        return Err(at(destination)(io::Error::new(
            ErrorKind::NotFound,
            "there is no such directory",
        )));
    }
    let own = destination.file_name();
    if contents && (own.is_none() || destination.is_dir()) {
        // The root entry is the destination itself.
        return Ok((destination.to_owned(), b".".to_vec()));
    }
    let own = own.ok_or_else(|| at(destination)(io::Error::other("it has no name")))?;
    let parent = match destination.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    };
    if parent.is_dir() {
        Ok((parent, own.as_bytes().to_vec()))
    } else {
        Err(at(&parent)(io::Error::new(
            ErrorKind::NotFound,
            "there is no such directory",
        )))
    }
}

/// One component that leads nowhere else.
fn check_name(name: &[u8]) -> io::Result<()> {
    let bad = name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, 0 | b'/'));
    if bad { Err(Malformed.into()) } else { Ok(()) }
}

/// A directory that is being filled.
struct Level {
    directory: File,
    /// Its permissions when all is in it.
    mode: Option<u32>,
}

impl Level {
    fn open(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(O_DIRECTORY | if mode.is_some() { O_NOFOLLOW } else { 0 })
            .open(path)
            .map_err(at(path))?;
        Ok(Self { directory, mode })
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
            .join(OsStr::from_bytes(name))
    }

    fn close(self) -> io::Result<()> {
        match self.mode {
            Some(mode) => self.directory.set_permissions(Permissions::from_mode(mode)),
            None => Ok(()),
        }
    }
}

/// Receives a tree into the directory `parent`: the root entry is called `name` there (`.`: it is
/// the directory itself). `modes`: the permission bits that are taken over (without 0o7000 a stranger
/// cannot leave a program that runs as its owner). Gives the names of what was not copied.
///
/// # Errors
/// The stream's, the file system's, or what the other side reports as its own failure.
pub fn receive(
    parent: &Path,
    name: &[u8],
    modes: u32,
    from: &mut impl Read,
) -> io::Result<Vec<String>> {
    let mut levels = vec![Level::open(parent, None)?];
    let (mut file, mut skipped): (Option<(File, SystemTime)>, _) = (None, Vec::new());
    loop {
        let message = read_message(from)?.ok_or(ErrorKind::UnexpectedEof)?;
        let entry = match message {
            Message::Entry(entry) => entry,
            Message::Failed(_, text) => return Err(io::Error::other(text)),
            _ => return Err(Malformed.into()),
        };
        let root = levels.len() == 1;
        let level = levels.last().ok_or(Malformed)?;
        // Data belongs to a file and nothing else comes before its end.
        let inside = matches!(entry, Entry::Data(_) | Entry::FileEnd);
        if inside != file.is_some() {
            return Err(Malformed.into());
        }
        let own = |given: Vec<u8>| if root { name.to_vec() } else { given };
        match entry {
            Entry::Directory { name, mode } => {
                let name = own(name);
                if levels.len() > DEEPEST {
                    return Err(Malformed.into());
                }
                let next = directory(level, &name, mode & modes, root)?;
                levels.push(next);
            }
            Entry::Leave => {
                if root {
                    return Err(Malformed.into());
                }
                levels.pop().ok_or(Malformed)?.close()?;
            }
            Entry::File {
                name,
                mode,
                modified,
            } => {
                let name = own(name);
                file = Some((create(level, &name, mode & modes)?, time(modified)));
            }
            Entry::Data(bytes) => {
                if let Some((file, _)) = &mut file {
                    file.write_all(&bytes)?;
                }
            }
            Entry::FileEnd => {
                if let Some((file, modified)) = file.take() {
                    file.set_modified(modified)?;
                }
            }
            Entry::Symlink { name, target } => symlink(level, &own(name), &target)?,
            Entry::Skipped { name } => {
                skipped.push(String::from_utf8_lossy(&own(name)).into_owned());
            }
            Entry::Done if root => return Ok(skipped),
            Entry::Done => return Err(Malformed.into()),
        }
    }
}

fn time(seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 {
        UNIX_EPOCH.checked_sub(span)
    } else {
        UNIX_EPOCH.checked_add(span)
    };
    moved.unwrap_or(UNIX_EPOCH)
}

/// Makes a directory, or enters one that is there.
fn directory(level: &Level, name: &[u8], mode: u32, root: bool) -> io::Result<Level> {
    if root && name == b"." {
        return Level::open(&level.path(b""), None);
    }
    check_name(name)?;
    let path = level.path(name);
    // Nobody else sees it before it is whole.
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(named(name, e)),
        _ => Level::open(&path, Some(mode)).map_err(|e| named(name, e)),
    }
}

fn named(name: &[u8], e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", String::from_utf8_lossy(name)))
}

fn create(level: &Level, name: &[u8], mode: u32) -> io::Result<File> {
    check_name(name)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(level.path(name))
        .map_err(|e| named(name, e))?;
    if !file.metadata()?.is_file() {
        return Err(named(
            name,
            io::Error::other("there is something that is not a file"),
        ));
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

fn symlink(level: &Level, name: &[u8], target: &[u8]) -> io::Result<()> {
    check_name(name)?;
    let path = level.path(name);
    if fs::symlink_metadata(&path).is_ok_and(|m| !m.is_dir()) {
        fs::remove_file(&path)?;
    }
    std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).map_err(|e| named(name, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("mimeo-tree-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn copy(from: &Path, to: &Path, name: &str, contents: bool) -> io::Result<Vec<String>> {
        let mut stream = Vec::new();
        send(from, &mut stream)?;
        let (parent, name) = place(to, name.as_bytes(), contents)?;
        receive(&parent, &name, 0o7777, &mut stream.as_slice())
    }

    #[test]
    fn a_tree_arrives_as_it_was() {
        let t = Temp::new("copy");
        let a = t.0.join("a");
        fs::create_dir_all(a.join("sub/empty")).unwrap();
        let big: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        fs::write(a.join("big"), &big).unwrap();
        fs::write(a.join("sub/script"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(a.join("sub/script"), Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(a.join("sub"), Permissions::from_mode(0o500)).unwrap();
        std::os::unix::fs::symlink("../nowhere", a.join("link")).unwrap();
        let pipe = std::os::unix::net::UnixListener::bind(a.join("socket")).unwrap();
        // Under a new name, then into a directory that exists, then the contents.
        let b = t.0.join("b");
        assert_eq!(copy(&a, &b, "a", false).unwrap(), ["socket"]);
        drop(pipe);
        assert_eq!(fs::read(b.join("big")).unwrap(), big);
        let mode = |p: &str| fs::metadata(b.join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("sub"), mode("sub/script")), (0o500, 0o4750));
        assert!(b.join("sub/empty").is_dir());
        assert_eq!(
            fs::read_link(b.join("link")).unwrap(),
            Path::new("../nowhere")
        );
        let times = |p: &Path| fs::metadata(p.join("big")).unwrap().modified().unwrap();
        let second = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(second(times(&a)), second(times(&b)));
        copy(&a.join("big"), &b, "big", false).unwrap();
        fs::set_permissions(a.join("sub"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(b.join("sub"), Permissions::from_mode(0o700)).unwrap();
        copy(&a, &b, "a", false).unwrap();
        assert!(b.join("a/big").is_file());
        let c = t.0.join("c");
        fs::create_dir(&c).unwrap();
        copy(&a, &c, "a", true).unwrap();
        assert!(c.join("big").is_file());
        assert!(copy(&a, &t.0.join("no/such"), "a", false).is_err());
        assert!(copy(&a.join("big"), &t.0.join("missing/"), "big", false).is_err());
    }

    fn hostile(t: &Temp, entries: Vec<Entry>) -> io::Result<Vec<String>> {
        let mut stream = Vec::new();
        for e in entries {
            say(&mut stream, e).unwrap();
        }
        let target = t.0.join("target");
        fs::create_dir_all(&target).unwrap();
        receive(&target, b"root", 0o777, &mut stream.as_slice())
    }

    fn file(name: &str) -> Entry {
        let (name, mode, modified) = (name.into(), 0o644, 0);
        Entry::File {
            name,
            mode,
            modified,
        }
    }

    fn dir(name: &str) -> Entry {
        Entry::Directory {
            name: name.into(),
            mode: 0o755,
        }
    }

    fn link(name: &str, target: &Path) -> Entry {
        let target = target.as_os_str().as_bytes().to_vec();
        Entry::Symlink {
            name: name.into(),
            target,
        }
    }

    #[test]
    fn nothing_outside_of_the_destination_is_reached() {
        let t = Temp::new("hostile");
        let outside = t.0.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "safe").unwrap();
        for name in ["..", ".", "", "a/b", "/etc", "../../x", "a\0b"] {
            assert!(hostile(&t, vec![dir("r"), file(name)]).is_err(), "{name:?}");
            assert!(hostile(&t, vec![dir("r"), dir(name)]).is_err(), "{name:?}");
            assert!(
                hostile(&t, vec![dir("r"), link(name, &outside)]).is_err(),
                "{name:?}"
            );
        }
        // Through a link that the other side has made itself.
        let through = vec![dir("r"), link("l", &outside), dir("l"), file("victim")];
        assert!(hostile(&t, through).is_err());
        let victim = outside.join("victim");
        assert!(hostile(&t, vec![dir("r"), link("m", &victim), file("m")]).is_err());
        let root = t.0.join("target/root");
        fs::remove_dir_all(&root).unwrap();
        assert!(hostile(&t, vec![link("r", &outside), dir("r"), file("victim")]).is_err());
        assert_eq!(fs::read(victim).unwrap(), b"safe");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn broken_orders_are_errors() {
        let t = Temp::new("order");
        let data = || Entry::Data(vec![1]);
        for entries in [
            vec![Entry::Leave],
            vec![data()],
            vec![Entry::FileEnd],
            vec![dir("r"), Entry::Done],
            vec![file("r"), dir("x")],
            vec![file("r"), Entry::Done],
            vec![dir("r")],
        ] {
            assert!(hostile(&t, entries).is_err());
        }
        let deep: Vec<Entry> = (0..DEEPEST + 2).map(|_| dir("d")).collect();
        assert!(hostile(&t, deep).is_err());
    }
}
