//! Boards: a folder each; the only place that knows devices and engines.
//!
//! [`machine::build`] makes a [`machine::Machine`] from a [`MachineSpec`] and from what the host
//! gives ([`machine::MachineHost`]). The built machine prints its [`manifest`].

mod engine;
mod host_cpu;
pub mod machine;
pub mod manifest;
pub mod microvm;
pub mod signals;
pub mod spec;
pub mod time;
pub mod tsc;
pub mod virtual_time;

pub use engine::EngineTuning;
pub use host_cpu::host_cpu;
pub use signals::{MachineEvent, Signals};
pub use spec::MachineSpec;
