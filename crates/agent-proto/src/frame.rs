//! Frames on a stream.

use crate::{Malformed, Message};
use std::io::{self, ErrorKind, Read, Write};

/// Bytes of a frame's contents at most: a command line with its environment, or a piece of data.
pub const MAX_FRAME: usize = 1 << 20;
const HEADER: usize = 5;

/// The bytes of `message`'s frame.
///
/// # Errors
/// It is longer than [`MAX_FRAME`].
pub(crate) fn frame(message: &Message) -> io::Result<Vec<u8>> {
    let (kind, contents) = message.encode();
    if contents.len() > MAX_FRAME {
        let text = "the arguments are too long: a megabyte is the most";
        return Err(io::Error::new(ErrorKind::ArgumentListTooLong, text));
    }
    let mut bytes = Vec::with_capacity(HEADER + contents.len());
    bytes.push(kind);
    bytes.extend((contents.len() as u32).to_le_bytes());
    bytes.extend(contents);
    Ok(bytes)
}

/// Writes one message.
///
/// # Errors
/// The stream's, or the message is too long.
pub fn write_message(to: &mut impl Write, message: &Message) -> io::Result<()> {
    to.write_all(&frame(message)?)?;
    to.flush()
}

/// Reads one message; `None` at the end of the stream between two messages.
///
/// # Errors
/// The stream's, [`Malformed`] as `InvalidData`, or `UnexpectedEof` inside of a message.
pub fn read_message(from: &mut impl Read) -> io::Result<Option<Message>> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let len = length(&header).ok_or(Malformed)?;
    let mut contents = vec![0; len];
    from.read_exact(&mut contents)?;
    Ok(Some(Message::decode(header[0], &contents)?))
}

fn length(header: &[u8; HEADER]) -> Option<usize> {
    let len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    (len <= MAX_FRAME).then_some(len)
}

/// Messages out of bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// More bytes have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// [`Malformed`]; nothing that follows can be understood.
    pub fn next_message(&mut self) -> Result<Option<Message>, Malformed> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (kind, len) = (header[0], length(header).ok_or(Malformed)?);
        if self.bytes.len() < HEADER + len {
            return Ok(None);
        }
        let message = Message::decode(kind, &self.bytes[HEADER..HEADER + len])?;
        self.bytes.drain(..HEADER + len);
        Ok(Some(message))
    }
}
