//! `mimeo cp`, in the guest.

use mimeo_agent_proto::{Message, VERSION, tree, write_message};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that are gathered before they are sent.
const BUFFER: usize = 128 * 1024;

/// Sends the file or tree at `path`.
pub fn get(path: &[u8], stream: &mut File) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(BUFFER, Unflushed(stream));
    tree::send(Path::new(OsStr::from_bytes(path)), &mut to)?;
    to.flush()
}

/// A stream whose flushes do nothing, so that small messages are gathered.
struct Unflushed<'a>(&'a mut File);

impl Write for Unflushed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes a file or tree.
pub fn put(path: &[u8], name: &[u8], contents: bool, stream: &mut File) -> io::Result<()> {
    let (parent, name) = tree::place(Path::new(OsStr::from_bytes(path)), name, contents)?;
    let mut from = BufReader::with_capacity(BUFFER, &mut *stream);
    tree::receive(&parent, &name, 0o7777, &mut from)?;
    write_message(stream, &Message::Ok(VERSION))
}
