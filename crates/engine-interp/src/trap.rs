//! Why an instruction did not complete.

use mimeo_arch_x86::Exception;
use mimeo_vcpu::EngineError;

/// What [`Trap`] carries.
#[derive(Debug)]
pub enum TrapKind {
    /// A fault of the instruction, to be delivered to the guest.
    Exception(Exception),
    /// A fault in the new task after a task switch (SDM vol. 3, 9.3): the state is the new task's,
    /// and the fault is delivered with RIP as it is there. Handlers of instructions deliver it
    /// themselves; it leaves only [`crate::Cpu::software_interrupt`].
    NewTask(Exception),
    /// A repeated string instruction stopped between two iterations because an event is pending;
    /// its registers are exact and RIP goes back to it.
    Yield,
    /// The host failed.
    Engine(EngineError),
}

/// Why an instruction did not complete: RIP stays at it. Boxed, so that results stay in registers.
#[derive(Debug)]
pub struct Trap(Box<TrapKind>);

impl Trap {
    /// The reason.
    #[must_use]
    pub fn kind(&self) -> &TrapKind {
        &self.0
    }

    /// The reason, by value.
    #[must_use]
    pub fn into_kind(self) -> TrapKind {
        *self.0
    }

    /// Interrupted between two iterations.
    #[must_use]
    pub fn yielded() -> Self {
        Self(Box::new(TrapKind::Yield))
    }
}

impl From<Exception> for Trap {
    #[cold]
    fn from(e: Exception) -> Self {
        Self(Box::new(TrapKind::Exception(e)))
    }
}

impl From<EngineError> for Trap {
    #[cold]
    fn from(e: EngineError) -> Self {
        Self(Box::new(TrapKind::Engine(e)))
    }
}

impl From<TrapKind> for Trap {
    #[cold]
    fn from(kind: TrapKind) -> Self {
        Self(Box::new(kind))
    }
}
