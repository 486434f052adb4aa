//! What a board and a person tell the loader, and what a person is told when it does not fit.

use crate::{BootError, MemoryMap, Module, Protocol};

/// Everything about a boot save the kernel itself.
#[derive(Debug, Default)]
pub struct BootOptions {
    /// The kernel's command line.
    pub cmdline: String,
    /// Initial RAM disks (for Linux joined into one, in this order) or modules.
    pub initrds: Vec<Module>,
    /// The machine's memory map, ACPI tables and other reservations included.
    pub memory_map: MemoryMap,
    /// Where ACPI's root pointer is, for the protocols that can say it.
    pub acpi_rsdp: Option<u64>,
    /// Seed for Linux's random number generator; `None` in deterministic runs.
    pub rng_seed: Option<[u8; 32]>,
    /// Which entry to use where the payload has several; `None`: the best.
    pub protocol: Option<Protocol>,
}

/// Bytes in megabytes, rounded up.
pub(crate) fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl BootOptions {
    /// Bytes that all modules take, each rounded up to a page.
    pub(crate) fn module_pages(&self) -> u64 {
        let pages = |n: u64| n.checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        self.initrds
            .iter()
            .fold(0, |sum, m| sum.saturating_add(pages(m.size())))
    }

    /// Bytes of all initial RAM disks joined, each at a multiple of four.
    pub(crate) fn initrd_bytes(&self) -> u64 {
        self.initrds.iter().fold(0, |sum: u64, m| {
            let start = sum.checked_next_multiple_of(4).unwrap_or(u64::MAX);
            start.saturating_add(m.size())
        })
    }

    /// The kernel does not fit at `start..end`: because of too little memory, or in principle.
    pub(crate) fn too_small(&self, name: &str, start: u64, end: u64) -> BootError {
        let name = name.to_owned();
        let ram = self.memory_map.ram_above_1mb() + (1 << 20);
        if start < 1 << 20 || end <= ram || end > 3 << 30 {
            return BootError::NoRamThere { name, start, end };
        }
        let needed = megabytes(end.saturating_add(self.module_pages()));
        BootError::RamTooSmall {
            name,
            needed,
            have: self.ram_megabytes(),
        }
    }

    pub(crate) fn initrd_does_not_fit(&self, first: &Module) -> BootError {
        let (total, have) = (self.module_pages(), self.ram_megabytes());
        // Room for the kernel, as for the machine at hand, and a little to unpack into.
        let needed = megabytes(total.saturating_mul(2)).saturating_add(have.min(64));
        BootError::InitrdDoesNotFit {
            name: first.name().to_owned(),
            size: megabytes(total),
            have,
            needed,
        }
    }

    /// RAM in megabytes, the holes of the first megabyte not deducted.
    fn ram_megabytes(&self) -> u64 {
        megabytes(self.memory_map.ram())
    }
}
