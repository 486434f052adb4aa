//! The same-ISA binary translator: x86-64 guest code in 64-bit mode becomes host code in which guest
//! registers are host registers, guest flags host flags, and every memory operand goes through the
//! linear addend tables. The interpreter (`mimeo-engine-interp`) executes whatever has no fast
//! path, one instruction at a time, and is the reference.
//!
//! Design and emitted patterns: `docs/design/bt.md`.

mod ctx;
mod decode;
mod emit;
mod engine;
mod explain;
mod hash;
mod host;
mod ibtc;
mod index;
mod lat;
mod lazy;
mod lower;
mod mmu;
#[cfg(test)]
mod mutants;
mod peer;
mod reencode;
mod requirements;
mod shared;
mod signal;
mod tramp;
mod vcpu;

pub use engine::{BtEngine, BtOptions};
