//! The machine's memory map as firmware tells it (ACPI 6.5, 15: address range types), and the
//! placing of things into its free RAM.

use mimeo_memory::{GuestMemory, RegionKind};
use std::ops::Range;

/// Address range types (ACPI 6.5, table 15.1), the same numbers in E820, PVH and Multiboot maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum RangeKind {
    /// Free for the operating system.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables, free after they have been read.
    AcpiReclaimable = 3,
    /// ACPI non-volatile storage, to be saved across sleep.
    AcpiNvs = 4,
}

/// One range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemoryRange {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The memory map: sorted, without overlaps.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct MemoryMap {
    ranges: Vec<MemoryRange>,
}

/// The extended BIOS data area starts here: the last KB below 640 KB.
const EBDA: u64 = 0x9_fc00;
/// The system ROM area; ACPI's root pointer is looked for from 0xe0000 (ACPI 6.5, 5.2.5.1).
const BIOS: u64 = 0xe_0000;
const MB: u64 = 1 << 20;

impl MemoryMap {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A PC's map over the RAM regions of `mem`: the last KB of base memory and 0xe0000 to 1 MB are
    /// reserved, video memory and option ROMs (0xa0000 to 0xe0000) are no memory.
    #[must_use]
    pub fn pc(mem: &GuestMemory) -> Self {
        let mut map = Self::new();
        for (gpa, len, kind) in mem.regions() {
            if kind == RegionKind::Ram {
                map.set(gpa, len, RangeKind::Ram);
            }
        }
        map.remove(EBDA, MB - EBDA);
        map.set(EBDA, 0xa_0000 - EBDA, RangeKind::Reserved);
        map.set(BIOS, MB - BIOS, RangeKind::Reserved);
        map
    }

    /// The ranges, in address order.
    #[must_use]
    pub fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    /// Takes a range out of the map.
    pub fn remove(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len);
        let mut kept = Vec::with_capacity(self.ranges.len() + 1);
        for r in self.ranges.drain(..) {
            let r_end = r.start.saturating_add(r.len);
            if r.start < start.min(r_end) {
                let len = r_end.min(start) - r.start;
                kept.push(MemoryRange { len, ..r });
            }
            if r_end > end.max(r.start) {
                let from = r.start.max(end);
                kept.push(MemoryRange {
                    start: from,
                    len: r_end - from,
                    ..r
                });
            }
        }
        self.ranges = kept;
    }

    /// Makes a range one of `kind`, whatever it was before. Neighbours of the same kind are joined.
    pub fn set(&mut self, start: u64, len: u64, kind: RangeKind) {
        if len == 0 {
            return;
        }
        self.remove(start, len);
        let i = self.ranges.partition_point(|r| r.start < start);
        self.ranges.insert(i, MemoryRange { start, len, kind });
        self.ranges.dedup_by(|next, prev| {
            let joins = prev.kind == next.kind && prev.start + prev.len == next.start;
            if joins {
                prev.len += next.len;
            }
            joins
        });
    }

    /// Bytes of usable RAM.
    #[must_use]
    pub fn ram(&self) -> u64 {
        self.ranges
            .iter()
            .filter(|r| r.kind == RangeKind::Ram)
            .map(|r| r.len)
            .sum()
    }

    /// Bytes of usable RAM from 1 MB up to the first gap, what BIOS function 88h and Multiboot's
    /// `mem_upper` count.
    #[must_use]
    pub fn ram_above_1mb(&self) -> u64 {
        self.ranges
            .iter()
            .find(|r| {
                r.kind == RangeKind::Ram && r.start <= MB && r.start.saturating_add(r.len) > MB
            })
            .map_or(0, |r| r.start + r.len - MB)
    }

    /// Bytes of usable RAM from 0 up to the first gap (base memory).
    #[must_use]
    pub fn ram_below_1mb(&self) -> u64 {
        self.ranges
            .first()
            .filter(|r| r.kind == RangeKind::Ram && r.start == 0)
            .map_or(0, |r| r.len.min(MB))
    }
}

/// Finds places for the kernel, its modules and the loader's tables in the free RAM.
#[derive(Debug)]
pub(crate) struct Placer {
    free: MemoryMap,
}

impl Placer {
    pub(crate) fn new(map: &MemoryMap) -> Self {
        let mut free = MemoryMap::new();
        for r in map.ranges() {
            if r.kind == RangeKind::Ram {
                free.set(r.start, r.len, r.kind);
            }
        }
        Self { free }
    }

    /// Takes exactly this range; false when it is not all free.
    pub(crate) fn claim(&mut self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        let inside = |r: &MemoryRange| r.start <= start && end <= r.start + r.len;
        let free = self.free.ranges().iter().any(inside);
        if free {
            self.free.remove(start, len);
        }
        free || len == 0
    }

    /// Takes the lowest free place within `within`. `align` is a power of two.
    pub(crate) fn low(&mut self, len: u64, align: u64, within: Range<u64>) -> Option<u64> {
        let start = self.free.ranges().iter().find_map(|r| {
            let start = r.start.max(within.start).checked_next_multiple_of(align)?;
            let end = start.checked_add(len)?;
            (end <= (r.start + r.len).min(within.end)).then_some(start)
        })?;
        self.free.remove(start, len);
        Some(start)
    }

    /// Takes the highest free place within `within`. `align` is a power of two.
    pub(crate) fn high(&mut self, len: u64, align: u64, within: Range<u64>) -> Option<u64> {
        let start = self.free.ranges().iter().rev().find_map(|r| {
            let end = (r.start + r.len).min(within.end);
            let start = end.checked_sub(len)? & !(align - 1);
            (start >= r.start.max(within.start)).then_some(start)
        })?;
        self.free.remove(start, len);
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u64, u64)]) -> MemoryMap {
        let mut m = MemoryMap::new();
        for &(start, len) in ranges {
            m.set(start, len, RangeKind::Ram);
        }
        m
    }

    #[test]
    fn a_pc_has_its_holes() {
        let mem = GuestMemory::ram(4 * MB).unwrap();
        let m = MemoryMap::pc(&mem);
        let got: Vec<_> = m
            .ranges()
            .iter()
            .map(|r| (r.start, r.len, r.kind))
            .collect();
        assert_eq!(
            got,
            [
                (0, 0x9_fc00, RangeKind::Ram),
                (0x9_fc00, 0x400, RangeKind::Reserved),
                (0xe_0000, 0x2_0000, RangeKind::Reserved),
                (MB, 3 * MB, RangeKind::Ram),
            ]
        );
        assert_eq!(m.ram_above_1mb(), 3 * MB);
        assert_eq!(m.ram_below_1mb(), 0x9_fc00);
        assert_eq!(m.ram(), 3 * MB + 0x9_fc00);
    }

    #[test]
    fn set_splits_and_joins() {
        let mut m = map(&[(0, 100), (100, 100)]);
        assert_eq!(m.ranges().len(), 1);
        m.set(50, 10, RangeKind::AcpiNvs);
        assert_eq!(m.ranges().len(), 3);
        assert_eq!(m.ram(), 190);
        m.remove(0, 1000);
        assert!(m.ranges().is_empty());
        m.set(u64::MAX - 10, 100, RangeKind::Ram);
        m.remove(0, 5);
        assert_eq!(m.ranges().len(), 1);
    }

    #[test]
    fn places_do_not_overlap() {
        let mut p = Placer::new(&map(&[(0, 0x8000), (0x10_0000, 0x10_0000)]));
        assert!(p.claim(0x2000, 0x1000));
        assert!(!p.claim(0x2fff, 1));
        assert!(!p.claim(0x7000, 0x2000));
        assert_eq!(p.low(0x1000, 0x1000, 0x1000..MB), Some(0x1000));
        assert_eq!(p.low(0x1000, 0x1000, 0x1000..MB), Some(0x3000));
        assert_eq!(p.low(0x9000, 0x1000, 0x1000..MB), None);
        assert_eq!(
            p.high(0x1800, 0x1000, 0..0x1f_ffff),
            Some(0x1f_e000 - 0x1000 + 0x1000)
        );
        assert_eq!(p.high(0x20_0000, 0x1000, 0..u64::MAX), None);
        assert!(!p.claim(u64::MAX, 2));
    }
}
