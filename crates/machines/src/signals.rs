//! What devices ask of the machine as a whole: power off, reset, end with a status.

use mimeo_vcpu::{EventBits, VcpuEvents};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A wish of the guest's (or of its devices) that concerns the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched the machine off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset; the text says by which means.
    Reset(&'static str),
    /// The debug-exit device was written; the value is the process's exit status.
    DebugExit(u8),
}

/// Where devices leave their [`MachineEvent`]s and the VM's control thread finds them.
///
/// The first event wins until it is taken: a guest that writes the reset port twice is reset once.
/// Lock order: `state` is a leaf; raising the event words happens after it is released.
#[derive(Debug)]
pub struct Signals {
    state: Mutex<State>,
    changed: Condvar,
    cpus: Vec<Arc<VcpuEvents>>,
}

#[derive(Debug, Default)]
struct State {
    event: Option<MachineEvent>,
    /// Someone else wants the control thread's attention (see [`Signals::nudge`]).
    nudged: bool,
}

impl Signals {
    /// Signals of a machine with these vCPUs.
    #[must_use]
    pub fn new(cpus: Vec<Arc<VcpuEvents>>) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            cpus,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an event and makes every vCPU leave guest code soon. From any thread.
    pub fn raise(&self, event: MachineEvent) {
        self.lock().event.get_or_insert(event);
        self.changed.notify_all();
        for cpu in &self.cpus {
            cpu.raise(EventBits::STOP);
        }
    }

    /// Wakes the control thread without an event.
    pub fn nudge(&self) {
        self.lock().nudged = true;
        self.changed.notify_all();
    }

    /// Whether an event waits to be taken.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.lock().event.is_some()
    }

    /// Takes the event, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<MachineEvent> {
        self.lock().event.take()
    }

    /// Sleeps until there is an event, a nudge, or `deadline` has passed; takes the event.
    #[must_use]
    pub fn wait(&self, deadline: Option<Instant>) -> Option<MachineEvent> {
        let mut state = self.lock();
        loop {
            if state.event.is_some() || std::mem::take(&mut state.nudged) {
                return state.event.take();
            }
            state = match deadline {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(d) => {
                    let left = d.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return None;
                    }
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_wins_and_stops_the_cpus() {
        let cpu = Arc::new(VcpuEvents::default());
        let s = Signals::new(vec![cpu.clone()]);
        s.raise(MachineEvent::Reset("port cf9h"));
        s.raise(MachineEvent::PowerOff);
        assert!(cpu.pending().any(EventBits::STOP));
        assert_eq!(s.wait(None), Some(MachineEvent::Reset("port cf9h")));
        assert_eq!(s.take(), None);
    }

    #[test]
    fn a_nudge_wakes_without_an_event_and_a_deadline_ends() {
        let s = Signals::new(Vec::new());
        s.nudge();
        assert_eq!(s.wait(None), None);
        assert_eq!(s.wait(Some(Instant::now())), None);
    }
}
