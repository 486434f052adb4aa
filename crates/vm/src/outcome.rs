//! How a VM ended.

use crate::report::CpuReport;

/// How a VM ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset and resets end this VM; how it asked.
    Reset(&'static str),
    /// The debug-exit device was written: the value is the exit status it asks for.
    DebugExit(u8),
    /// A vCPU took a triple fault.
    TripleFault(Box<CpuReport>),
    /// The time limit passed.
    Timeout,
    /// A replay came to its end and its state is the recorded one.
    Replayed,
    /// Somebody asked the monitor to end (escape key, signal, control command).
    Stopped,
    /// The monitor or the host failed; the sentence says what.
    HostError(String),
}
