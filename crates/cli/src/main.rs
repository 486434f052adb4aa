//! The `mimeo` command.

fn main() {}
