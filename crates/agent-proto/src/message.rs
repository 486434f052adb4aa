//! The messages.

use crate::frame;
use crate::wire::{Malformed, Reader, Writer};

/// A command to be run. All strings are bytes, as the system has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments; at least the program.
    pub argv: Vec<Vec<u8>>,
    /// Variables (`NAME=VALUE`) added to the user's own few.
    pub env: Vec<Vec<u8>>,
    /// Working directory; empty: the user's home.
    pub directory: Vec<u8>,
    /// User, or `USER:GROUP`, by name or number; empty: the agent's own (root).
    pub user: Vec<u8>,
    /// Give it a terminal of this many rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// It gets standard input; otherwise that is empty.
    pub input: bool,
}

/// What a conversation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec(Exec),
    /// Send the file or tree at this path.
    Get {
        /// The path in the guest.
        path: Vec<u8>,
    },
    /// Take a file or tree, which follows.
    Put {
        /// Where to: as cp(1) understands it.
        path: Vec<u8>,
        /// The last component of the source's name.
        name: Vec<u8>,
        /// The contents of a directory are meant, not the directory.
        contents: bool,
    },
    /// Shut the system down.
    PowerOff,
    /// Are you there?
    Ping,
}

/// A part of a file tree, in the order of a walk: a directory's entries come between it and its
/// [`Entry::Leave`]. Names are single components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory begins.
    Directory {
        /// Its name.
        name: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// It ends.
    Leave,
    /// A file: its bytes follow.
    File {
        /// Its name.
        name: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// When it was last changed, in seconds since 1970.
        modified: i64,
    },
    /// Bytes of the file.
    Data(Vec<u8>),
    /// The file ends.
    FileEnd,
    /// A symbolic link.
    Symlink {
        /// Its name.
        name: Vec<u8>,
        /// Where it leads.
        target: Vec<u8>,
    },
    /// Something that is not copied (a socket, a device).
    Skipped {
        /// Its name.
        name: Vec<u8>,
    },
    /// That was all.
    Done,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no such program, file, user.
    NotFound,
    /// It is there and cannot be executed.
    NotExecutable,
    /// Anything else.
    Other,
}

/// Everything that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// To the agent, first.
    Request(Request),
    /// To the agent: bytes for standard input.
    Input(Vec<u8>),
    /// To the agent: standard input ends.
    InputEnd,
    /// To the agent: the terminal has this many rows and columns.
    Resize(u16, u16),
    /// To the agent: a signal for the command's process group.
    Signal(u8),
    /// To the host: the command runs.
    Started,
    /// To the host: bytes of standard output.
    Output(Vec<u8>),
    /// To the host: bytes of standard error.
    Error(Vec<u8>),
    /// To the host: so many bytes of standard input were taken.
    Taken(u32),
    /// To the host: the command has ended, with this status or by this signal.
    Ended {
        /// The exit status.
        status: u8,
        /// The signal that ended it; 0: none.
        signal: u8,
    },
    /// To the host: it could not be done.
    Failed(Failure, String),
    /// To the host: it was done, or I am here, with the agent's version.
    Ok(u32),
    /// Both ways: part of a tree.
    Entry(Entry),
}

impl Message {
    /// The message's frame.
    ///
    /// # Errors
    /// It is too long.
    pub fn to_frame(&self) -> std::io::Result<Vec<u8>> {
        frame::frame(self)
    }

    pub(crate) fn encode(&self) -> (u8, Vec<u8>) {
        let mut w = Writer::default();
        let kind = match self {
            Self::Request(r) => encode_request(r, &mut w),
            Self::Input(b) => (w.raw(b), 16).1,
            Self::InputEnd => 17,
            Self::Resize(rows, columns) => (w.word((*rows).into()).word((*columns).into()), 18).1,
            Self::Signal(s) => (w.byte(*s), 19).1,
            Self::Started => 32,
            Self::Output(b) => (w.raw(b), 33).1,
            Self::Error(b) => (w.raw(b), 34).1,
            Self::Taken(n) => (w.word(*n), 35).1,
            Self::Ended { status, signal } => (w.byte(*status).byte(*signal), 36).1,
            Self::Failed(why, text) => {
                w.byte(match why {
                    Failure::NotFound => 0,
                    Failure::NotExecutable => 1,
                    Failure::Other => 2,
                });
                (w.raw(text.as_bytes()), 37).1
            }
            Self::Ok(version) => (w.word(*version), 38).1,
            Self::Entry(e) => encode_entry(e, &mut w),
        };
        (kind, w.0)
    }

    pub(crate) fn decode(kind: u8, contents: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(contents);
        let half = |r: &mut Reader<'_>| u16::try_from(r.word()?).map_err(|_| Malformed);
        let message = match kind {
            1..=5 => Self::Request(decode_request(kind, &mut r)?),
            16 => Self::Input(r.rest()),
            17 => Self::InputEnd,
            18 => Self::Resize(half(&mut r)?, half(&mut r)?),
            19 => Self::Signal(r.byte()?),
            32 => Self::Started,
            33 => Self::Output(r.rest()),
            34 => Self::Error(r.rest()),
            35 => Self::Taken(r.word()?),
            36 => Self::Ended {
                status: r.byte()?,
                signal: r.byte()?,
            },
            37 => {
                let why = match r.byte()? {
                    0 => Failure::NotFound,
                    1 => Failure::NotExecutable,
                    _ => Failure::Other,
                };
                Self::Failed(why, String::from_utf8_lossy(&r.rest()).into_owned())
            }
            38 => Self::Ok(r.word()?),
            48..=54 => Self::Entry(decode_entry(kind, &mut r)?),
            _ => return Err(Malformed),
        };
        r.end()?;
        Ok(message)
    }
}

fn encode_request(request: &Request, w: &mut Writer) -> u8 {
    match request {
        Request::Exec(e) => {
            w.list(&e.argv)
                .list(&e.env)
                .bytes(&e.directory)
                .bytes(&e.user)
                .flag(e.input);
            let (rows, columns) = e.terminal.unwrap_or_default();
            w.flag(e.terminal.is_some())
                .word(rows.into())
                .word(columns.into());
            1
        }
        Request::Get { path } => (w.raw(path), 2).1,
        Request::Put {
            path,
            name,
            contents,
        } => (w.bytes(path).bytes(name).flag(*contents), 3).1,
        Request::PowerOff => 4,
        Request::Ping => 5,
    }
}

fn decode_request(kind: u8, r: &mut Reader<'_>) -> Result<Request, Malformed> {
    Ok(match kind {
        1 => {
            let mut e = Exec {
                argv: r.list()?,
                env: r.list()?,
                directory: r.bytes()?,
                user: r.bytes()?,
                input: r.flag()?,
                terminal: None,
            };
            let terminal = r.flag()?;
            let rows = u16::try_from(r.word()?).map_err(|_| Malformed)?;
            let columns = u16::try_from(r.word()?).map_err(|_| Malformed)?;
            e.terminal = terminal.then_some((rows, columns));
            if e.argv.is_empty() {
                return Err(Malformed);
            }
            Request::Exec(e)
        }
        2 => Request::Get { path: r.rest() },
        3 => Request::Put {
            path: r.bytes()?,
            name: r.bytes()?,
            contents: r.flag()?,
        },
        4 => Request::PowerOff,
        5 => Request::Ping,
        _ => return Err(Malformed),
    })
}

fn encode_entry(entry: &Entry, w: &mut Writer) -> u8 {
    match entry {
        Entry::Directory { name, mode } => (w.bytes(name).word(*mode), 48).1,
        Entry::Leave => 49,
        Entry::File {
            name,
            mode,
            modified,
        } => (w.bytes(name).word(*mode).long(*modified), 50).1,
        Entry::Data(b) => (w.raw(b), 51).1,
        Entry::FileEnd => 52,
        Entry::Symlink { name, target } => (w.bytes(name).bytes(target), 53).1,
        Entry::Skipped { name } => (w.byte(1).bytes(name), 54).1,
        Entry::Done => (w.byte(0), 54).1,
    }
}

fn decode_entry(kind: u8, r: &mut Reader<'_>) -> Result<Entry, Malformed> {
    Ok(match kind {
        48 => Entry::Directory {
            name: r.bytes()?,
            mode: r.word()?,
        },
        49 => Entry::Leave,
        50 => Entry::File {
            name: r.bytes()?,
            mode: r.word()?,
            modified: r.long()?,
        },
        51 => Entry::Data(r.rest()),
        52 => Entry::FileEnd,
        53 => Entry::Symlink {
            name: r.bytes()?,
            target: r.bytes()?,
        },
        54 if r.flag()? => Entry::Skipped { name: r.bytes()? },
        54 => Entry::Done,
        _ => return Err(Malformed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frames, MAX_FRAME, read_message, write_message};

    fn all() -> Vec<Message> {
        let exec = Exec {
            argv: vec![b"ls".to_vec(), b"-l \xff".to_vec()],
            env: vec![b"A=1".to_vec()],
            directory: b"/tmp".to_vec(),
            user: b"root".to_vec(),
            terminal: Some((25, 80)),
            input: true,
        };
        let (name, path) = (b"n".to_vec(), b"/p".to_vec());
        let entries = [
            Entry::Directory {
                name: name.clone(),
                mode: 0o755,
            },
            Entry::Leave,
            Entry::File {
                name: name.clone(),
                mode: 0o644,
                modified: -7,
            },
            Entry::Data(vec![1, 2, 3]),
            Entry::FileEnd,
            Entry::Symlink {
                name: name.clone(),
                target: path.clone(),
            },
            Entry::Skipped { name: name.clone() },
            Entry::Done,
        ];
        let mut all = vec![
            Message::Request(Request::Exec(exec)),
            Message::Request(Request::Get { path: path.clone() }),
            Message::Request(Request::Put {
                path,
                name,
                contents: true,
            }),
            Message::Request(Request::PowerOff),
            Message::Request(Request::Ping),
            Message::Input(b"x".to_vec()),
            Message::InputEnd,
            Message::Resize(50, 132),
            Message::Signal(15),
            Message::Started,
            Message::Output(Vec::new()),
            Message::Error(b"e".to_vec()),
            Message::Taken(9),
            Message::Ended {
                status: 3,
                signal: 0,
            },
            Message::Failed(Failure::NotFound, "no".into()),
            Message::Ok(1),
        ];
        all.extend(entries.map(Message::Entry));
        all
    }

    #[test]
    fn what_is_said_is_understood_in_pieces_of_any_size() {
        let mut stream = Vec::new();
        for m in all() {
            write_message(&mut stream, &m).unwrap();
        }
        let mut from = stream.as_slice();
        for m in all() {
            assert_eq!(read_message(&mut from).unwrap(), Some(m));
        }
        assert_eq!(read_message(&mut from).unwrap(), None);
        for size in [1, 3, 1000] {
            let (mut frames, mut got) = (Frames::default(), Vec::new());
            for piece in stream.chunks(size) {
                frames.push(piece);
                while let Some(m) = frames.next_message().unwrap() {
                    got.push(m);
                }
            }
            assert_eq!(got, all());
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_another_message() {
        for m in all() {
            let (kind, contents) = m.encode();
            for cut in 0..contents.len() {
                // Never a panic; only messages that end in a free text can be shorter.
                let _ = Message::decode(kind, &contents[..cut]);
            }
            for at in 0..contents.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut changed = contents.clone();
                    changed[at] = value;
                    let _ = Message::decode(kind, &changed);
                }
            }
        }
        assert_eq!(Message::decode(0, b""), Err(Malformed));
        assert_eq!(Message::decode(17, b"x"), Err(Malformed));
        // A list of 2^32 - 1 elements that are not there.
        assert_eq!(Message::decode(1, &[0xff; 4]), Err(Malformed));
    }

    #[test]
    fn a_frame_without_end_is_refused_before_it_is_read() {
        let mut header = vec![16];
        header.extend((MAX_FRAME as u32 + 1).to_le_bytes());
        assert!(read_message(&mut header.as_slice()).is_err());
        let mut frames = Frames::default();
        frames.push(&header);
        assert_eq!(frames.next_message(), Err(Malformed));
        let huge = Message::Input(vec![0; MAX_FRAME + 1]);
        assert!(write_message(&mut Vec::new(), &huge).is_err());
    }
}
