//! The life of a VM: threads, run, pause, reset, stop.
//!
//! [`Vm`] belongs to one control thread. Each vCPU has a host thread of its own behind one gate;
//! a halted vCPU sleeps on its event word, so an idle guest costs nothing. What devices ask of the
//! whole machine arrives through [`mimeo_machines::Signals`]; what vCPU threads report (a triple
//! fault, a failure of the host, a contained panic) through an inbox.
//!
//! Lock order: a vCPU's mutex, then any lock of the board; the gate's and the inbox's locks are
//! leaves.

mod cpu_thread;
pub mod deterministic;
mod gate;
pub mod life;
mod outcome;
mod report;
mod vm;

pub use outcome::Outcome;
pub use report::CpuReport;
pub use vm::{Loader, OnReset, Vm, VmError, VmHandle};
