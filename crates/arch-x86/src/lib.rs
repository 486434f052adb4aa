//! Facts of the x86 architecture: registers, descriptors, page walk, CPUID, MSRs.
//!
//! Source: Intel SDM (325462) and AMD APM (24592, 24593); each item names the section.
//! No engine, no device, no host: everything here is plain data and pure functions.

pub mod canonical;
pub mod control;
pub mod cpuid;
pub mod descriptor;
pub mod exception;
pub mod flags;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod selector;
pub mod state;
pub mod tss;

pub use exception::{Exception, Vector};
pub use flags::RFlags;
pub use regs::{Cr0, Cr4, Efer};
pub use state::{Activity, DescriptorTable, Gpr, Seg, Segment, X86State};
