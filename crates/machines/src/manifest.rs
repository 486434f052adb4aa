//! The printed description of a built machine: address map, ports, lines. Golden files compare it.

use std::fmt;

/// One row of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// First address or port.
    pub base: u64,
    /// Length in bytes or ports.
    pub len: u64,
    /// What answers there.
    pub name: String,
}

/// What a board is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The board's name.
    pub board: String,
    /// RAM, ROM and MMIO devices, in address order.
    pub memory: Vec<Range>,
    /// I/O ports, in order.
    pub ports: Vec<Range>,
    /// Interrupt lines: (global system interrupt, ISA line if any, device).
    pub lines: Vec<(u32, Option<u8>, String)>,
    /// Components whose state a snapshot holds, in restore order.
    pub components: Vec<&'static str>,
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "board {}", self.board)?;
        writeln!(f, "memory")?;
        for r in &self.memory {
            writeln!(
                f,
                "  {:012x}-{:012x} {}",
                r.base,
                r.base + (r.len - 1),
                r.name
            )?;
        }
        writeln!(f, "ports")?;
        for r in &self.ports {
            writeln!(
                f,
                "  {:04x}-{:04x} {}",
                r.base,
                r.base + (r.len - 1),
                r.name
            )?;
        }
        writeln!(f, "lines")?;
        for (gsi, isa, name) in &self.lines {
            match isa {
                Some(isa) => writeln!(f, "  gsi {gsi:2} isa {isa:2} {name}")?,
                None => writeln!(f, "  gsi {gsi:2}        {name}")?,
            }
        }
        writeln!(f, "state")?;
        for c in &self.components {
            writeln!(f, "  {c}")?;
        }
        Ok(())
    }
}
