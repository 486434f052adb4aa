//! The `mimeo` command as people use it: what they get wrong, how machines end, Debian's kernels.

mod debian;
mod endings;
mod errors;
mod support;
