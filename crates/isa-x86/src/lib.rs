//! Facts of the x86 instruction set: what each instruction form is and touches.
//!
//! One row per form ([`Form`]), keyed by [`iced_x86::Code`]; one file per instruction group under
//! `groups/`. The table is *default-deny*: a code without a row does not exist for a guest, every
//! engine raises #UD for it. Rows are written from the Intel SDM (325462); the tests hold them
//! against iced's own tables, which are the cross-check and not the authority.
//!
//! Not in the table, on purpose: AVX-512, AMX, CET shadow stacks, TSX, VMX, SVM, SGX, XOP, 3DNow!
//! and the rest of `tests/denied.rs`.

pub mod form;
mod groups;
mod table;

pub use form::{Access, Class, Flags, Form, Group, ImplicitMemory, MemOperand, Modes, Unit, X87};
pub use mimeo_arch_x86::cpuid::Feature;
pub use table::{forms, lookup};
