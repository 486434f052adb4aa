//! Base address registers (PCI 3.0, 6.2.5.1).

/// What a BAR maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GB.
    Memory32,
    /// Memory anywhere; takes the next register too.
    Memory64,
}

/// A BAR that a function has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// What it maps.
    pub kind: BarKind,
    /// Bytes: a power of two; at least 16 for memory and 4 for ports.
    pub size: u64,
}

impl Bar {
    /// The address part of the register pair.
    pub(super) const fn address_mask(&self) -> u64 {
        let mask = !(self.size - 1);
        match self.kind {
            BarKind::Io => mask & 0xffff_fffc,
            BarKind::Memory32 => mask & 0xffff_fff0,
            BarKind::Memory64 => mask & !0xf,
        }
    }

    /// The read-only low bits.
    pub(super) const fn flags(&self) -> u32 {
        match self.kind {
            BarKind::Io => 1,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 4,
        }
    }

    /// Whether the size is one that the specification allows.
    pub(super) const fn valid(&self) -> bool {
        let least = match self.kind {
            BarKind::Io => 4,
            _ => 16,
        };
        let most = match self.kind {
            BarKind::Io => 256,
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 40,
        };
        self.size.is_power_of_two() && self.size >= least && self.size <= most
    }
}
