//! The gate in front of guest code: lets vCPU threads through, holds them, sends them home.

use mimeo_vcpu::{EventBits, VcpuEvents};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the gate tells a vCPU thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Run guest code.
    Go,
    /// End the thread.
    Quit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Closed,
    Open,
    Over,
}

#[derive(Debug)]
struct State {
    position: Position,
    /// Threads that are inside (past the gate, not yet back).
    inside: u32,
}

/// One gate for all vCPU threads of a VM.
///
/// Lock order: a vCPU's own mutex is taken after passing the gate and released before coming back;
/// `state` is never held while that mutex is.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    cpus: Vec<Arc<VcpuEvents>>,
}

impl Gate {
    /// A closed gate.
    pub(crate) fn new(cpus: Vec<Arc<VcpuEvents>>) -> Self {
        Self {
            state: Mutex::new(State {
                position: Position::Closed,
                inside: 0,
            }),
            changed: Condvar::new(),
            cpus,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU thread asks to run; returns when it may, or must end. Pairs with [`Gate::leave`].
    pub(crate) fn enter(&self) -> Pass {
        let mut state = self.lock();
        loop {
            match state.position {
                Position::Open => {
                    state.inside += 1;
                    return Pass::Go;
                }
                Position::Over => return Pass::Quit,
                Position::Closed => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// A vCPU thread is back.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.inside -= 1;
        if state.inside == 0 {
            self.changed.notify_all();
        }
    }

    /// Whether threads that are inside may stay there.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().position == Position::Open
    }

    /// Lets threads through. A gate that is over stays over.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        if state.position == Position::Closed {
            state.position = Position::Open;
        }
        self.changed.notify_all();
    }

    /// Closes the gate and returns when nobody is inside.
    pub(crate) fn close(&self) {
        self.shut(Position::Closed);
    }

    /// Sends everybody home and returns when nobody is inside.
    pub(crate) fn finish(&self) {
        self.shut(Position::Over);
    }

    fn shut(&self, position: Position) {
        let mut state = self.lock();
        if state.position != Position::Over {
            state.position = position;
        }
        self.changed.notify_all();
        drop(state);
        for cpu in &self.cpus {
            cpu.raise(EventBits::STOP);
        }
        let mut state = self.lock();
        while state.inside != 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_lets_through_and_ends() {
        let gate = Arc::new(Gate::new(vec![Arc::new(VcpuEvents::default())]));
        let (g, rounds) = (gate.clone(), Arc::new(Mutex::new(0u64)));
        let r = rounds.clone();
        let thread = std::thread::spawn(move || {
            while g.enter() == Pass::Go {
                *r.lock().unwrap() += 1;
                g.leave();
            }
        });
        let count = || *rounds.lock().unwrap();
        assert_eq!(count(), 0, "a new gate is closed");
        gate.open();
        while count() == 0 {
            std::thread::yield_now();
        }
        gate.close();
        let held = count();
        std::thread::yield_now();
        assert_eq!(count(), held, "nobody runs behind a closed gate");
        gate.open();
        while count() == held {
            std::thread::yield_now();
        }
        gate.finish();
        thread.join().unwrap();
        assert_eq!(gate.enter(), Pass::Quit);
        gate.open();
        assert_eq!(gate.enter(), Pass::Quit, "over is over");
        assert!(gate.cpus[0].pending().any(EventBits::STOP));
    }
}
