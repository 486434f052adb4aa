//! The equivalence proof: the bare-metal programs under `guests/` run on real hardware
//! virtualization (our reference) and on Mimeo's engines, and must report the same.
//!
//! - [`image`]: builds the programs with the host's C compiler, learns which cases each contains.
//! - [`engine`]: the ways of running an image, each a command with a known exit status.
//! - [`report`]: runs an image to its end, across cases that end the machine, and reads its report.
//! - [`kvm`]: a monitor of our own over `/dev/kvm`, just enough for these programs.
//!
//! `guests/README.md` describes the programs and the protocol.

pub mod engine;
pub mod image;
pub mod kvm;
pub mod report;
