//! Contracts of devices: buses, IRQ lines, timers, byte streams, save and restore.
//!
//! A device's register model knows no bus address, no IRQ number and no thread: it is handed
//! offsets, [`IrqLine`]s and a [`Clock`]. `machines` binds it.

mod block;
mod clock;
mod irq;
mod map;
mod message;
mod net;
mod save;
mod stream;
mod timed;
mod vsock;

pub use block::{BlockBackend, BlockDone, BlockOperation, BlockRequest};
pub use clock::{Clock, HostClock, Nanos, Timer, TimerHandle, TimerService, TscClock};
pub use irq::{IrqLine, IrqSink, LineModel};
pub use map::{AddressMap, BusError, MmioDevice, PortDevice, PortView};
pub use message::{Message, MessageDone, MessageHost, MessageServer};
pub use net::{MAX_FRAME, NetBackend, NetCard, NetHeader};
pub use save::{RestoreError, SaveRestore};
pub use stream::{NullStream, StreamDevice, StreamHost, StreamModel};
pub use timed::{Timed, TimedBinding, TimedGuard, TimedModel};
pub use vsock::{
    HOST_CID, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, VSOCK_HEADER, VSOCK_PAYLOAD, VSOCK_STREAM,
    VsockDevice, VsockHeader, VsockHost, vsock_op,
};
