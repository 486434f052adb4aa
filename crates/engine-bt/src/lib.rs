//! The same-ISA binary translator.

mod emit;
