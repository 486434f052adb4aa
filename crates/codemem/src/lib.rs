//! Executable memory for generated code: one set of pages mapped twice, once writable and once
//! executable, so that no address is ever both.
//!
//! Hosts restrict this in different ways (`vm.memfd_noexec`, kernels without `MFD_EXEC`, SELinux,
//! `noexec` temporary directories, MDWE), so [`CodeMemory::new`] tries a chain of methods and
//! says which one worked. Every engine that generates code uses this; nothing else in the house
//! maps executable pages.
//!
//! Threads: a `CodeMemory` may be read and executed by any thread; [`CodeMemory::write`] needs
//! exclusive access, [`CodeMemory::patch_u32`] does not.

mod map;

pub use map::{CodeMemory, CodeMemoryError, Method, OutOfRange};
