//! Differential tests of unprivileged instructions: the interpreter against the host's own CPU.
//!
//! For each form of the instruction table that runs unprivileged, random instances (operands,
//! addressing modes, immediates), random registers, flags, FP state and memory are executed once by
//! [`guest`] (the interpreter on a small long-mode guest) and once by [`host`] (a child process that
//! is single-stepped with ptrace, its pages at the same linear addresses), in 64-bit and
//! compatibility mode; registers, flags, FP state, memory and faults must agree. Flags that the
//! table calls undefined are masked.
//!
//! Deterministic: a case is a function of form, seed and number. `MIMEO_CONFORMANCE_CASES` sets the
//! number of cases a form.

pub mod case;
pub mod compare;
pub mod exclude;
pub mod generate;
pub mod guest;
pub mod host;
pub mod layout;
pub mod random;
pub mod run;
