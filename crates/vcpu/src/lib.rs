//! Contracts between engines and the rest of the house.
//!
//! An engine executes guest instructions; the machine answers what they ask of the world.
//! Port, MMIO, MSR and interrupt traffic are callbacks on [`CpuIo`]; [`Exit`] carries only
//! decisions. One vCPU is one host thread. See `docs/architecture.md`.

mod engine;
mod events;
mod io;
mod random;

pub use engine::{Engine, EngineCaps, EngineConfig, EngineError, Exit, StopAt, Vcpu};
pub use events::{EventBits, VcpuEvents};
pub use io::{CpuIo, MsrError, NoIo};
