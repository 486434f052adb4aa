//! Byte streams: terminal or pipe, file, memory.

mod file;
mod memory;
mod output;
mod stdio;
mod terminal;

pub use file::FileStream;
pub use memory::MemoryStream;
pub use stdio::{EscapeCommand, Stdio, StdioHooks};
pub use terminal::restore_terminal;

/// A stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The file cannot be written.
    #[error("cannot write the serial output to {path}")]
    File {
        /// Its path.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The terminal or a thread is refused.
    #[error("cannot use standard input and output as the serial port: {0}; try --serial none")]
    Stdio(std::io::Error),
}
