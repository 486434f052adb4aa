//! The interpreter: Mimeo's reference engine.
//!
//! It executes x86 as the manuals define it (Intel SDM 325462, AMD APM 24592 to 24594). Instructions
//! are decoded once into blocks of [`Op`]s, each a handler and its resolved operands; a block is
//! identified by physical address and code size and dies when its bytes are written.
//!
//! - [`Cpu`] is one processor: the canonical state, the software TLB, exception delivery. Every
//!   architectural behaviour is a method or function on it, so that another engine (the translator)
//!   can use it for whatever it does not do itself: an instruction's meaning lives in one place.
//! - [`InterpEngine`] is the engine behind [`mimeo_vcpu::Engine`]: it runs a [`Cpu`] from blocks.
//!
//! # Rules for handlers
//! A handler is `fn(&mut Cpu, &Op, &mut dyn CpuIo) -> Exec`.
//! - When it starts, `state.rip` is the address of the *next* instruction. If it returns `Err`, the
//!   caller puts RIP back to the instruction's own address; so a handler changes no state before
//!   its last possible fault (memory operands are checked as a whole before the first byte moves).
//! - A trap that is delivered after the instruction (INT n, INT3, INTO) is delivered by the
//!   handler itself with [`Cpu::software_interrupt`].
//! - After a change of CPL, CS, SS, CR0, CR3, CR4, EFER, RFLAGS.AC, RFLAGS.VM, DR7 or PKRU it calls
//!   [`Cpu::refresh`], which recomputes what is derived from them.

mod cache;
mod cpu;
mod decode;
mod engine;
mod exec;
mod mem;
mod op;
mod simd;
mod system;
mod trap;

pub use cpu::{Cpu, Poll, Step};
pub use engine::InterpEngine;
pub use mem::{Access, MmuEvent, Width};
pub use op::{Exec, Handler, Op, Prefix};
pub use trap::{Trap, TrapKind};
