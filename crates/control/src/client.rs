//! Asking a VM's process.

use crate::{ControlError, Reply, Request, Seen};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a VM's process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a socket's path (unix(7)), its end included.
const LONGEST_PATH: usize = 108;
/// Bytes of an answer.
const LONGEST_REPLY: u64 = 64 * 1024;

/// Calls `use_path` with a path to `path` that is short enough for a socket's address, which a
/// directory may make too long: then through a descriptor of the directory.
fn short<T>(path: &Path, use_path: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() < LONGEST_PATH {
        return use_path(path);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    use_path(&through)
}

/// Listens on a socket at `path`, however long that is.
///
/// # Errors
/// The system's.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    short(path, |p| UnixListener::bind(p))
}

/// Connects to the socket at `path`, however long that is.
///
/// # Errors
/// The system's.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    short(path, |p| UnixStream::connect(p))
}

fn exchange(path: &Path, request: &Request) -> io::Result<(UnixStream, Reply)> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line is the console's.
    let mut byte = [0];
    while answer.last() != Some(&b'\n') {
        if stream.read(&mut byte)? == 0 || answer.len() as u64 > LONGEST_REPLY {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.push(byte[0]);
    }
    let reply = serde_json::from_slice(&answer)?;
    Ok((stream, reply))
}

pub(crate) fn ask_at(path: &Path, request: &Request) -> io::Result<Reply> {
    exchange(path, request).map(|(_, reply)| reply)
}

pub(crate) fn console_at(path: &Path) -> io::Result<UnixStream> {
    let (stream, _) = exchange(path, &Request::Console)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Why a VM's process did not answer.
fn silent(vm: &Seen) -> impl FnOnce(io::Error) -> ControlError + '_ {
    move |cause| {
        let name = vm.name();
        if vm.running() {
            ControlError::NoAnswer { name, cause }
        } else {
            ControlError::NotRunning(name)
        }
    }
}

/// Asks the VM `vm`.
///
/// # Errors
/// [`ControlError::NotRunning`], [`ControlError::NoAnswer`], [`ControlError::Refused`].
pub fn ask(vm: &Seen, request: &Request) -> Result<Reply, ControlError> {
    match ask_at(&vm.dir().join("control"), request).map_err(silent(vm))? {
        Reply::Refused { why } => Err(ControlError::Refused(why)),
        reply => Ok(reply),
    }
}

/// Attaches to the VM's serial port.
///
/// # Errors
/// As [`ask`].
pub fn console(vm: &Seen) -> Result<UnixStream, ControlError> {
    console_at(&vm.dir().join("control")).map_err(silent(vm))
}

/// Connects to `port` of the guest, through the socket of its vsock device. Fails while nobody
/// listens there.
///
/// # Errors
/// The system's, or `ConnectionRefused` when the guest says no.
pub fn guest_port(socket: &Path, port: u32, patience: Duration) -> io::Result<UnixStream> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if line.len() > 32 || stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        line.push(byte[0]);
    }
    if !line.starts_with(b"OK ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// The last `lines` lines of what `file` holds, or all.
///
/// # Errors
/// The file's.
pub fn tail(file: impl Read, lines: Option<usize>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    BufReader::new(file).read_to_end(&mut all)?;
    let Some(lines) = lines else {
        return Ok(all);
    };
    let count = BufReader::new(all.as_slice()).split(b'\n').count();
    let skip = count.saturating_sub(lines);
    let at = all
        .split_inclusive(|&b| b == b'\n')
        .take(skip)
        .map(<[u8]>::len)
        .sum();
    Ok(all.split_off(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_no_obstacle() {
        let dir = std::env::temp_dir().join(format!("mimeo-long-{}", std::process::id()));
        let deep = dir.join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let listener = listen(&deep.join("s")).unwrap();
        connect(&deep.join("s")).unwrap();
        drop(listener);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn tails() {
        let text = b"a\nb\nc\n";
        assert_eq!(tail(&text[..], None).unwrap(), text);
        assert_eq!(tail(&text[..], Some(2)).unwrap(), b"b\nc\n");
        assert_eq!(tail(&text[..], Some(0)).unwrap(), b"");
        assert_eq!(tail(&b"a\nb"[..], Some(1)).unwrap(), b"b");
        assert_eq!(tail(&text[..], Some(9)).unwrap(), text);
    }
}
