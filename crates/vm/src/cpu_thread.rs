//! One vCPU's host thread.

use crate::gate::{Gate, Pass};
use crate::report::CpuReport;
use mimeo_arch_x86::{Activity, RFlags, X86State};
use mimeo_vcpu::{CpuIo, EngineError, EventBits, Exit, StopAt, Vcpu, VcpuEvents};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// What a vCPU thread reports to the control thread.
pub(crate) enum Report {
    /// A triple fault; the thread waits behind the gate's next closing.
    TripleFault(Box<CpuReport>),
    /// The monitor or the host failed.
    Failed(String),
}

/// What a vCPU thread works on.
pub(crate) struct CpuThread {
    pub(crate) index: u32,
    pub(crate) vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
    pub(crate) events: Arc<VcpuEvents>,
    pub(crate) io: Box<dyn CpuIo + Send>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) model: Arc<mimeo_arch_x86::cpuid::CpuModel>,
    pub(crate) memory: Arc<mimeo_memory::GuestMemory>,
    pub(crate) report: Box<dyn Fn(Report) + Send>,
}

impl CpuThread {
    /// Runs until the gate is over. Contains panics: they become a [`Report::Failed`].
    pub(crate) fn main(mut self) {
        while self.gate.enter() == Pass::Go {
            let result = catch_unwind(AssertUnwindSafe(|| self.run_until_stopped()));
            self.gate.leave();
            match result {
                Ok(Ok(())) => continue,
                Ok(Err(e)) => (self.report)(Report::Failed(format!("vCPU {}: {e}", self.index))),
                Err(panic) => (self.report)(Report::Failed(format!(
                    "vCPU {}: internal error: {}",
                    self.index,
                    panic_text(&*panic)
                ))),
            }
            return;
        }
    }

    fn run_until_stopped(&mut self) -> Result<(), EngineError> {
        let cell = self.vcpu.clone();
        let mut vcpu = cell.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match vcpu.run(StopAt::default(), &mut *self.io)? {
                Exit::Stopped => {
                    if !self.gate.is_open() {
                        return Ok(());
                    }
                }
                Exit::Halted => self.events.wait(wake_mask(&vcpu.save()), None),
                Exit::TripleFault => {
                    let report = CpuReport::new(self.index, &**vcpu, &self.model, &self.memory);
                    (self.report)(Report::TripleFault(Box::new(report)));
                    self.events.wait(EventBits::STOP, None);
                    return Ok(());
                }
                exit @ (Exit::InstructionLimit | Exit::Debug) => {
                    return Err(EngineError::Internal(format!("unexpected exit {exit:?}")));
                }
            }
        }
    }
}

/// Which events end the sleep of a vCPU in this state (SDM vol. 3, 9.4.4 and 2.8.7; vol. 2, HLT):
/// an NMI unless blocked, an external interrupt only with RFLAGS.IF, INIT always, a SIPI only after
/// INIT.
pub(crate) fn wake_mask(state: &X86State) -> EventBits {
    let mut mask = EventBits::STOP.0 | EventBits::ENGINE.0 | EventBits::INIT.0;
    if state.activity == Activity::WaitForSipi {
        return EventBits(mask | EventBits::SIPI.0);
    }
    if state.rflags.contains(RFlags::IF) {
        mask |= EventBits::INTR.0;
    }
    if !state.nmi_blocked {
        mask |= EventBits::NMI.0;
    }
    EventBits(mask)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wakes_a_sleeping_cpu() {
        let mut s = X86State::reset(0);
        s.activity = Activity::Halted;
        assert!(!wake_mask(&s).any(EventBits::INTR), "IF is clear");
        assert!(wake_mask(&s).any(EventBits::NMI));
        s.rflags |= RFlags::IF;
        assert!(wake_mask(&s).any(EventBits::INTR));
        s.nmi_blocked = true;
        assert!(!wake_mask(&s).any(EventBits::NMI));
        s.activity = Activity::WaitForSipi;
        assert!(wake_mask(&s).any(EventBits::SIPI));
        assert!(!wake_mask(&s).any(EventBits::INTR));
    }
}
