//! The same-ISA binary translator.

mod emit;
mod reencode;
