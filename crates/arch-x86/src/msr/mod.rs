//! Model-specific registers (SDM vol. 4, chapter 2; APM vol. 2, appendix A).
//!
//! The engine's own are read and written here, on an [`X86State`]; [`Owner`] says who answers for the
//! others. Registers of features that no model has (performance counters, machine-check banks, VMX,
//! power management) raise #GP as on a CPU without them.
//!
//! Deliberately not modelled: last-branch records (IA32_DEBUGCTL.LBR is ignored).

mod access;
pub mod index;
mod memory_types;

pub use access::{Owner, owner, read, write};
