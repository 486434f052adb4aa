//! Exit statuses and what they mean. `mimeo run --help` lists them.

use std::process::ExitCode;

/// How the process ends. Odd numbers belong to the debug-exit device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The guest switched itself off, or the command did what it should.
    Done,
    /// A flag or a file cannot be used.
    Usage,
    /// The host or the monitor failed.
    Failed,
    /// The guest asked for a reset and `--no-reboot` was given.
    Reset,
    /// Triple fault.
    TripleFault,
    /// Ended from the keyboard.
    Quit,
    /// The time limit passed.
    Timeout,
    /// What the guest wrote to the debug-exit device.
    DebugExit(u8),
    /// What a command in a guest or another mimeo ended with.
    Passed(u8),
}

impl Status {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 2,
            Self::Failed => 4,
            Self::Reset => 6,
            Self::TripleFault => 8,
            Self::Quit => 10,
            Self::Timeout => 124,
            Self::DebugExit(status) | Self::Passed(status) => status,
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status.code())
    }
}

/// The status of commands about machines that mimeo itself could not carry out, as podman has it;
/// below it there is room for a guest's own.
pub const COMMAND_FAILED: u8 = 125;

/// A failure with the status that it ends the process with.
#[derive(Debug)]
pub enum Failure {
    /// The person can mend it: a flag, a file.
    Usage(anyhow::Error),
    /// The host or the monitor.
    Host(anyhow::Error),
    /// A command about a machine that runs elsewhere (`ps`, `exec`, `stop`…) was not carried out.
    Command(anyhow::Error),
}

impl Failure {
    /// A failure that the person can mend.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    /// A failure of the host or the monitor.
    pub fn host(error: impl Into<anyhow::Error>) -> Self {
        Self::Host(error.into())
    }

    /// A command about another machine that was not carried out.
    pub fn command(error: impl Into<anyhow::Error>) -> Self {
        Self::Command(error.into())
    }

    /// The exit status.
    pub const fn status(&self) -> Status {
        match self {
            Self::Usage(_) => Status::Usage,
            Self::Host(_) => Status::Failed,
            Self::Command(_) => Status::Passed(COMMAND_FAILED),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Usage(error) | Self::Host(error) | Self::Command(error)) = self;
        write!(f, "{error:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn every_ending_has_its_own_even_status() {
        let all = [
            Status::Done,
            Status::Usage,
            Status::Failed,
            Status::Reset,
            Status::TripleFault,
            Status::Quit,
            Status::Timeout,
        ];
        for (i, a) in all.iter().enumerate() {
            assert_eq!(a.code() % 2, 0, "odd ones belong to debug-exit");
            assert!(all[..i].iter().all(|b| b.code() != a.code()));
        }
    }
}
