//! The same-ISA binary translator.
