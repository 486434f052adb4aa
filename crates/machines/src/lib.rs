//! Boards: a folder each; the only place that knows devices and engines.
pub mod manifest;
pub mod signals;
pub mod spec;
pub mod tsc;

pub use signals::{MachineEvent, Signals};
pub use spec::MachineSpec;
