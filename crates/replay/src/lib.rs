//! Deterministic execution: record, replay and lockstep verification of vCPUs.
//!
//! Everything that can differ between two runs of one guest reaches a vCPU through [`CpuIo`], through
//! its event word or by DMA. In deterministic mode one vCPU runs at a time, in slices of an exact
//! number of instructions; virtual time is a function of the instructions retired ([`VirtualClock`]);
//! timers, device input and interrupts happen only at slice boundaries or inside a vCPU's own
//! [`CpuIo`] call. A [`Recorder`] writes each answer, event and DMA write with its instruction count;
//! a [`Replayer`] gives them back without any device, on any engine, and stops at the first request
//! that differs from the recorded one.
//!
//! Not covered: parallel vCPUs (by design: they take turns here).
//!
//! [`CpuIo`]: mimeo_vcpu::CpuIo

mod clock;
mod driver;
mod hash;
pub mod lockstep;
mod log;
mod player;
mod recorder;

pub use clock::{NANOS_PER_INSTRUCTION_SHIFT, VirtualClock};
pub use driver::{Ended, Pump, RecordedCpu, ReplayedCpu, record, replay};
pub use hash::state_hash;
pub use log::{Entry, LogError, LogReader, LogWriter};
pub use player::Replayer;
pub use recorder::{DmaRecorder, Recorder, SharedLog};
