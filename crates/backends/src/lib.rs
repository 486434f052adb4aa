//! The host's side of devices: timers, terminals, files, disks, vsock.
//!
//! A device knows a trait of `mimeo-bus`; what stands behind it on the host is here. Host threads
//! of this crate call devices without holding a lock of their own.

mod block;
mod entropy;
mod server;
mod stream;
mod timers;
mod vsock;

pub use block::{
    DiskError, DiskFormat, DiskOptions, ImageInfo, OpenDisk, convert_image, create_image,
    image_info,
};
pub use entropy::host_entropy;
pub use server::ServerThread;
pub use stream::{
    EscapeCommand, FileStream, MemoryStream, Stdio, StdioHooks, StreamError, restore_terminal,
};
pub use timers::{HostTimers, ManualTimers};
pub use vsock::{Connector, ConnectorEnd, VsockMux, connector, serve_connector};
