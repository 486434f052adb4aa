//! What mimeo and the agent in a guest say to each other over a vsock stream.
//!
//! A stream is a conversation: the host opens it and says first what it is about ([`Request`]); then
//! frames go both ways. A frame is a kind (one byte), the length of what follows (four bytes, little
//! endian, at most [`MAX_FRAME`]) and that many bytes. Each side takes the other's frames for
//! hostile: a length beyond the limit or a text that is none ends the conversation.
//!
//! No dependencies: the agent is built from this crate and its own by the compiler alone
//! (`mimeo-agent-binary`).

mod frame;
mod message;
pub mod tree;
mod wire;

pub use frame::{Frames, MAX_FRAME, read_message, write_message};
pub use message::{Entry, Exec, Failure, Message, Request};
pub use wire::Malformed;

/// The vsock port on which an agent listens.
pub const PORT: u32 = 19785;
/// Version of the conversation. An agent of another version says so in its answer to
/// [`Request::Ping`].
pub const VERSION: u32 = 1;
/// Bytes of a process's standard input that may be on their way: the host sends no more until the
/// agent says that it has taken some.
pub const WINDOW: u32 = 256 * 1024;
/// Bytes of data in one frame.
pub const PIECE: usize = 32 * 1024;
