//! `mimeo cp`.

use super::{agent, running};
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_agent_proto::{Message, Request, read_message, tree, write_message};
use std::ffi::OsStr;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Bytes that are gathered before they are sent.
const BUFFER: usize = 128 * 1024;
/// What is taken over of a guest's permission bits: no program of a stranger runs as its owner.
const MODES: u32 = 0o777;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Host(&'a str),
    Guest(&'a str, &'a str),
}

/// `NAME:PATH` is in a guest. A path of the host's with a colon is written with a slash before it.
fn side(text: &str) -> Side<'_> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => Side::Guest(name, path),
        _ => Side::Host(text),
    }
}

/// The last component of a path, and whether its contents are meant (`PATH/.`).
fn name_of(path: &str) -> (Vec<u8>, bool) {
    let contents = path == "." || path.ends_with("/.");
    let trimmed = path.trim_end_matches("/.").trim_end_matches('/');
    let name = Path::new(trimmed).file_name().unwrap_or(OsStr::new(""));
    (name.as_bytes().to_vec(), contents || name.is_empty())
}

/// `mimeo cp`.
pub fn cp(source: &str, destination: &str) -> Result<Status, Failure> {
    match (side(source), side(destination)) {
        (Side::Host(from), Side::Guest(name, to)) => put(from, name, to),
        (Side::Guest(name, from), Side::Host(to)) => get(name, from, to),
        _ => Err(Failure::command(anyhow!(
            "one of the two must be in a guest (NAME:PATH) and the other on the host"
        ))),
    }
}

/// A stream whose flushes do nothing, so that small messages are gathered.
struct Unflushed<'a>(&'a UnixStream);

impl Write for Unflushed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the agent says in the end.
fn verdict(stream: &mut impl Read) -> Result<(), Failure> {
    match read_message(stream) {
        Ok(Some(Message::Ok(_))) => Ok(()),
        Ok(Some(Message::Failed(_, why))) => Err(Failure::command(anyhow!("{why}"))),
        Ok(_) => Err(Failure::command(anyhow!("the guest's agent has ended"))),
        Err(e) => Err(Failure::command(e)),
    }
}

fn put(from: &str, name: &str, to: &str) -> Result<Status, Failure> {
    let path = Path::new(from);
    // Before the guest is asked for anything.
    path.symlink_metadata()
        .with_context(|| from.to_owned())
        .map_err(Failure::Command)?;
    let mut stream = agent(&running(name)?)?;
    let (own, contents) = name_of(from);
    let request = Request::Put {
        path: to.as_bytes().to_vec(),
        name: own,
        contents,
    };
    write_message(&mut stream, &Message::Request(request)).map_err(Failure::command)?;
    let mut gathered = BufWriter::with_capacity(BUFFER, Unflushed(&stream));
    let sent = tree::send(path, &mut gathered).and_then(|()| gathered.flush());
    drop(gathered);
    match sent {
        // The agent has closed: it says why.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            verdict(&mut stream)?;
        }
        Err(e) => return Err(Failure::command(e)),
        Ok(()) => verdict(&mut stream)?,
    }
    Ok(Status::Done)
}

fn get(name: &str, from: &str, to: &str) -> Result<Status, Failure> {
    let mut stream = agent(&running(name)?)?;
    let (own, contents) = name_of(from);
    let (parent, target) = tree::place(Path::new(to), &own, contents).map_err(Failure::command)?;
    let path = from.as_bytes().to_vec();
    write_message(&mut stream, &Message::Request(Request::Get { path }))
        .map_err(Failure::command)?;
    let mut gathered = BufReader::with_capacity(BUFFER, stream);
    let skipped =
        tree::receive(&parent, &target, MODES, &mut gathered).map_err(Failure::command)?;
    for name in skipped {
        eprintln!("mimeo: {name} is neither a file, a directory nor a link: not copied");
    }
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_and_names() {
        assert_eq!(side("web:/etc"), Side::Guest("web", "/etc"));
        assert_eq!(side("./a:b"), Side::Host("./a:b"));
        assert_eq!(side("plain"), Side::Host("plain"));
        assert_eq!(name_of("/a/b"), (b"b".to_vec(), false));
        assert_eq!(name_of("/a/b/"), (b"b".to_vec(), false));
        assert_eq!(name_of("/a/b/."), (b"b".to_vec(), true));
        assert_eq!(name_of("."), (b"".to_vec(), true));
        assert_eq!(name_of("/"), (b"".to_vec(), true));
    }
}
