//! The `mimeo` command as people use it: what they get wrong, how machines end, Debian's kernels,
//! living with machines by name.

mod debian;
mod endings;
mod engines;
mod errors;
mod living;
mod net;
mod storage;
mod support;
