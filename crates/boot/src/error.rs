//! What can go wrong between a kernel file and the first instruction.

use mimeo_memory::MemoryError;

/// Why bytes are not a kernel that this machine can start. Reads as the rest of a sentence that
/// begins with the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Something else altogether.
    #[error("is not a kernel but {what}; {remedy}")]
    NotAKernel {
        /// What it is, as far as its first bytes tell.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A kernel or program for another kind of processor.
    #[error("is for {0}, and this machine is an x86 PC; get the x86-64 (amd64) one")]
    OtherArchitecture(String),
    /// The file ends too early.
    #[error(
        "is truncated: its {what} should reach to byte {needed} and the file ends at {have}; copy or download it again"
    )]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// The file's least length.
        needed: u64,
        /// Its actual length.
        have: u64,
    },
    /// A kernel whose headers contradict themselves.
    #[error("is damaged: {0}; copy or download it again")]
    Malformed(String),
    /// A kernel that asks for something that Mimeo does not do.
    #[error("cannot be started: {what}; {remedy}")]
    Unsupported {
        /// What it asks for.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Why a kernel could not be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened or read.
    #[error("cannot read {name}: {cause}; {remedy}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        cause: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The file is not a kernel for this machine.
    #[error("{name} {reason}")]
    Payload {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: Rejection,
    },
    /// The guest has too little memory for the kernel.
    #[error(
        "{name} needs at least {needed} MB of RAM to start and the machine has {have} MB; give it -m {needed}M or more"
    )]
    RamTooSmall {
        /// The kernel's file.
        name: String,
        /// Megabytes that it needs, the initial RAM disks included.
        needed: u64,
        /// Megabytes of RAM in the memory map.
        have: u64,
    },
    /// A part of the kernel wants to be where the machine has no RAM.
    #[error(
        "{name} wants to be loaded at {start:#x} to {end:#x}, where the machine has no free RAM; link it to 1 MB or above, or give the machine more memory with -m"
    )]
    NoRamThere {
        /// The kernel's file.
        name: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// An initial RAM disk or module is larger than what is left.
    #[error(
        "initrd {name} ({size} MB) does not fit beside the kernel into {have} MB of RAM; give the machine at least -m {needed}M"
    )]
    InitrdDoesNotFit {
        /// The file (the first, when there are several).
        name: String,
        /// Megabytes of all of them.
        size: u64,
        /// Megabytes of RAM.
        have: u64,
        /// Megabytes that would do.
        needed: u64,
    },
    /// Several initial RAM disks for a protocol or size that cannot take them.
    #[error(
        "initrd {name} is {size} MB, more than the {limit} MB that this kernel's boot protocol can be given; make it smaller"
    )]
    InitrdTooLarge {
        /// The file.
        name: String,
        /// Megabytes.
        size: u64,
        /// Megabytes.
        limit: u64,
    },
    /// The kernel's command line is too long.
    #[error(
        "the kernel command line has {len} bytes and {name} takes at most {max}; shorten --append"
    )]
    CommandLineTooLong {
        /// The kernel's file.
        name: String,
        /// Its length without the final NUL.
        len: usize,
        /// The most that this kernel takes.
        max: usize,
    },
    /// A NUL byte in the command line or a module's string.
    #[error("the kernel command line contains a NUL byte; take it out of --append")]
    CommandLineNul,
    /// The protocol asked for is not one that the payload has.
    #[error("{name} has no {protocol} entry; leave the choice to Mimeo")]
    NoSuchEntry {
        /// The kernel's file.
        name: String,
        /// The protocol's name.
        protocol: &'static str,
    },
    /// No room for the loader's own tables below 1 MB, or too many ranges in the map.
    #[error("no room for {0} in the machine's memory map")]
    NoRoom(&'static str),
    /// Guest memory refused an access.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
