//! The life-cycle of a VM as a table.

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Built and loaded; no instruction has run.
    Created,
    /// vCPUs run.
    Running,
    /// No vCPU runs, time stands still; everything is kept.
    Paused,
    /// No vCPU runs while the machine is being reset.
    Resetting,
    /// Over. Nothing leads out of here.
    Stopped,
}

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Begin to run.
    Start,
    /// Stop running, keep everything.
    Pause,
    /// Run on.
    Resume,
    /// Reset the machine (it is at rest while that happens).
    Reset,
    /// The reset is done: run.
    ResetDone,
    /// End.
    Stop,
}

/// Every transition there is. What is not here is refused.
pub const TRANSITIONS: &[(Phase, Command, Phase)] = &[
    (Phase::Created, Command::Start, Phase::Running),
    (Phase::Created, Command::Stop, Phase::Stopped),
    (Phase::Running, Command::Pause, Phase::Paused),
    (Phase::Running, Command::Reset, Phase::Resetting),
    (Phase::Running, Command::Stop, Phase::Stopped),
    (Phase::Paused, Command::Resume, Phase::Running),
    (Phase::Paused, Command::Reset, Phase::Resetting),
    (Phase::Paused, Command::Stop, Phase::Stopped),
    (Phase::Resetting, Command::ResetDone, Phase::Running),
    (Phase::Resetting, Command::Stop, Phase::Stopped),
];

/// A command that does not fit the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a VM that is {0:?} cannot {1:?}")]
pub struct BadTransition(pub Phase, pub Command);

impl Phase {
    /// The phase after `command`.
    ///
    /// # Errors
    /// [`BadTransition`] when the table has no such row.
    pub fn after(self, command: Command) -> Result<Self, BadTransition> {
        TRANSITIONS
            .iter()
            .find(|(from, c, _)| *from == self && *c == command)
            .map(|t| t.2)
            .ok_or(BadTransition(self, command))
    }
}

/// No (phase, command) pair has two answers, and nothing leaves `Stopped`.
const _: () = {
    let mut i = 0;
    while i < TRANSITIONS.len() {
        let (from, command, _) = TRANSITIONS[i];
        assert!(!matches!(from, Phase::Stopped));
        let mut j = i + 1;
        while j < TRANSITIONS.len() {
            assert!(
                from as u8 != TRANSITIONS[j].0 as u8 || command as u8 != TRANSITIONS[j].1 as u8
            );
            j += 1;
        }
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life() {
        let p = Phase::Created.after(Command::Start).unwrap();
        let p = p.after(Command::Pause).unwrap();
        assert_eq!(
            p.after(Command::Pause),
            Err(BadTransition(Phase::Paused, Command::Pause))
        );
        let p = p.after(Command::Resume).unwrap();
        let p = p.after(Command::Reset).unwrap();
        let p = p.after(Command::ResetDone).unwrap();
        let p = p.after(Command::Stop).unwrap();
        assert!(p.after(Command::Start).is_err());
    }
}
