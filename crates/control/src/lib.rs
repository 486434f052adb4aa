//! Living with VMs: each is one process with a name, a state folder and a control socket.
//!
//! - [`Root`] is the directory of all state folders of a user, [`Folder`] one of them: claimed by
//!   the process that runs the VM, read by everybody else ([`Seen`]).
//! - [`Console`] lets many read and write a VM's serial port and keeps its log.
//! - [`Server`] answers on the control socket, [`client`] asks.
//!
//! Whether a VM runs is told by a lock (flock(2)) that its process holds on a file of the folder:
//! however the process ends, the lock goes with it, and a process identifier that was given to
//! somebody else is never believed.

mod console;
mod error;
mod folder;
mod name;
mod protocol;
mod record;
mod root;
mod server;

pub mod client;

pub use console::Console;
pub use error::ControlError;
pub use folder::{Folder, Seen};
pub use name::{check_name, generate_name};
pub use protocol::{Reply, Request, Status};
pub use record::{EndV1, RecordV1, now, start_time};
pub use root::Root;
pub use server::{Actions, Server};
