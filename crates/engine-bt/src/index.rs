//! What the run loop and the signal handlers need to know about emitted code, readable without a
//! lock: sites (the places where code leaves) and blocks by host address.
//!
//! Append-only until the whole code cache is dropped. A block is published by storing the new count
//! last; host addresses only grow, so that a binary search finds a block.

use crate::lazy::LazyArray;
use crate::lower::{CLOSED, INEXACT, SHADOW};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sites and blocks that one code cache can hold.
const MAX_SITES: usize = 1 << 22;
const MAX_BLOCKS: usize = 1 << 20;
const MAX_INSNS: usize = 1 << 23;

/// The part of an instruction's mark that is its offset.
const OFFSET: u64 = !((SHADOW | INEXACT | CLOSED) as u64);

/// Why a site leaves translated code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SiteKind {
    /// No read right in the table: fill it, or let the interpreter execute the instruction.
    Read = 0,
    /// No write right.
    Write = 1,
    /// The interpreter executes the instruction (no fast path, or a page-straddling access).
    Interp = 2,
    /// A direct branch that is not chained yet.
    Link = 3,
    /// An indirect branch (target in T) that the cache does not know.
    Indirect = 4,
    /// A direct branch that may not be chained and that the cache does not know.
    Far = 5,
    /// A misaligned operand, which the instruction has not met yet.
    Misaligned = 6,
}

/// A place where translated code leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Site {
    /// Why.
    pub(crate) kind: SiteKind,
    /// Read, Write, Interp, Indirect, Misaligned: the instruction's RIP. Link, Far: the branch target.
    pub(crate) rip: u64,
    /// Read, Write: where to retry. Interp: where to go on after the instruction (0: nowhere).
    /// Misaligned: where the instruction begins. Link: where the displacement to patch is. Offsets into the
    /// code cache.
    pub(crate) host: u32,
    /// Length of the instruction in bits 0 to 3, [`AUX_FP`].
    pub(crate) aux: u8,
    /// The instruction's form, as a number of iced's.
    pub(crate) code: u16,
}

/// Bit of [`Site::aux`]: the instruction uses FP state.
pub(crate) const AUX_FP: u8 = 1 << 4;

/// A block as the handlers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// RIP of the instruction that the host address belongs to.
    pub(crate) rip: u64,
    /// The host address is the first of that instruction, and the state is exact there.
    pub(crate) boundary: bool,
    /// It follows an STI: no interrupt may be delivered there.
    pub(crate) shadow: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Index {
    sites: LazyArray,
    blocks: LazyArray,
    insns: LazyArray,
    site_count: AtomicUsize,
    block_count: AtomicUsize,
    insn_count: AtomicUsize,
}

impl Index {
    /// An empty index.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            sites: LazyArray::new(2 * MAX_SITES)?,
            blocks: LazyArray::new(3 * MAX_BLOCKS)?,
            insns: LazyArray::new(MAX_INSNS)?,
            site_count: AtomicUsize::new(0),
            block_count: AtomicUsize::new(0),
            insn_count: AtomicUsize::new(0),
        })
    }

    /// Whether one more block of the largest size fits.
    pub(crate) fn has_room(&self) -> bool {
        self.site_count.load(Ordering::Relaxed) + 1024 < MAX_SITES
            && self.block_count.load(Ordering::Relaxed) + 1 < MAX_BLOCKS
            && self.insn_count.load(Ordering::Relaxed) + 256 < MAX_INSNS
    }

    /// Number of sites so far: the number of the next one.
    pub(crate) fn sites(&self) -> u32 {
        self.site_count.load(Ordering::Relaxed) as u32
    }

    /// Adds a site. Under the translator's lock.
    pub(crate) fn add_site(&self, s: Site) {
        let n = self.site_count.load(Ordering::Relaxed);
        let word = s.kind as u64
            | u64::from(s.aux) << 8
            | u64::from(s.code) << 16
            | u64::from(s.host) << 32;
        self.sites.set(2 * n, word);
        self.sites.set(2 * n + 1, s.rip);
        self.site_count.store(n + 1, Ordering::Release);
    }

    /// The site with number `n`.
    pub(crate) fn site(&self, n: u32) -> Option<Site> {
        let n = n as usize;
        if n >= self.site_count.load(Ordering::Acquire) {
            return None;
        }
        let word = self.sites.get(2 * n);
        Some(Site {
            kind: match word & 0xff {
                0 => SiteKind::Read,
                1 => SiteKind::Write,
                2 => SiteKind::Interp,
                3 => SiteKind::Link,
                4 => SiteKind::Indirect,
                5 => SiteKind::Far,
                _ => SiteKind::Misaligned,
            },
            rip: self.sites.get(2 * n + 1),
            host: (word >> 32) as u32,
            aux: (word >> 8) as u8,
            code: (word >> 16) as u16,
        })
    }

    /// Publishes a block: `insns` are (guest offset from `rip`, host offset from `start`) in host
    /// order. Under the translator's lock.
    pub(crate) fn add_block(&self, start: u32, end: u32, rip: u64, insns: &[(u16, u32)]) {
        let first = self.insn_count.load(Ordering::Relaxed);
        for (k, (guest, host)) in insns.iter().enumerate() {
            self.insns
                .set(first + k, u64::from(*guest) << 32 | u64::from(*host));
        }
        self.insn_count
            .store(first + insns.len(), Ordering::Relaxed);
        let n = self.block_count.load(Ordering::Relaxed);
        self.blocks
            .set(3 * n, u64::from(start) << 32 | u64::from(end));
        self.blocks.set(3 * n + 1, rip);
        self.blocks
            .set(3 * n + 2, (first as u64) << 16 | insns.len() as u64);
        self.block_count.store(n + 1, Ordering::Release);
    }

    /// The host offset of the instruction `offset` bytes into the code of block number `n` (counted since
    /// the last [`Self::clear`]), if one begins there that may be branched to.
    pub(crate) fn entry(&self, n: u32, offset: u16) -> Option<u32> {
        let n = n as usize;
        if n >= self.block_count.load(Ordering::Acquire) {
            return None;
        }
        let start = (self.blocks.get(3 * n) >> 32) as u32;
        let packed = self.blocks.get(3 * n + 2);
        let (first, count) = ((packed >> 16) as usize, (packed & 0xffff) as usize);
        (first..first + count)
            .map(|k| self.insns.get(k))
            .find(|insn| insn >> 32 == u64::from(offset))
            .map(|insn| start + insn as u32)
    }

    /// Number of the block that host offset `pc` belongs to, and the instruction's RIP.
    pub(crate) fn place(&self, pc: u32) -> Option<(u32, u64)> {
        let found = self.find(pc)?;
        Some((self.block_at(pc)? as u32, found.rip))
    }

    /// The guest instruction that host offset `pc` belongs to. Async-signal-safe.
    pub(crate) fn find(&self, pc: u32) -> Option<Found> {
        let n = self.block_at(pc)?;
        let range = self.blocks.get(3 * n);
        let (start, end) = ((range >> 32) as u32, range as u32);
        if pc >= end {
            return None;
        }
        let rip = self.blocks.get(3 * n + 1);
        let packed = self.blocks.get(3 * n + 2);
        let (first, count) = ((packed >> 16) as usize, (packed & 0xffff) as usize);
        let mut found = None;
        for k in 0..count {
            let insn = self.insns.get(first + k);
            let host = start + insn as u32;
            if host > pc {
                break;
            }
            found = Some(Found {
                rip: rip.wrapping_add(insn >> 32 & OFFSET),
                boundary: host == pc && insn >> 32 & u64::from(INEXACT) == 0,
                shadow: insn >> 32 & u64::from(SHADOW) != 0,
            });
        }
        found
    }

    /// Guest address and first host offset of every instruction of the block that starts at host offset
    /// `start`.
    pub(crate) fn instructions(&self, start: u32) -> Vec<(u64, u32)> {
        let Some(n) = self.block_at(start) else {
            return Vec::new();
        };
        let rip = self.blocks.get(3 * n + 1);
        let packed = self.blocks.get(3 * n + 2);
        let (first, count) = ((packed >> 16) as usize, (packed & 0xffff) as usize);
        (first..first + count)
            .map(|k| self.insns.get(k))
            .map(|insn| {
                let at = rip.wrapping_add(insn >> 32 & OFFSET);
                (at, start + insn as u32)
            })
            .collect()
    }

    /// The block whose host code holds `pc` or ends before it.
    fn block_at(&self, pc: u32) -> Option<usize> {
        let (mut lo, mut hi) = (0, self.block_count.load(Ordering::Acquire));
        while lo < hi {
            let mid = lo + (hi - lo) / 2;
            if (self.blocks.get(3 * mid) >> 32) as u32 <= pc {
                lo = mid + 1;
            } else {
                hi = mid;
            }
        }
        lo.checked_sub(1)
    }

    /// Forgets everything: the code cache is being dropped and no vCPU is inside it.
    pub(crate) fn clear(&self) {
        self.block_count.store(0, Ordering::SeqCst);
        self.site_count.store(0, Ordering::SeqCst);
        self.insn_count.store(0, Ordering::SeqCst);
    }

    /// (blocks, instructions, sites).
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (
            self.block_count.load(Ordering::Relaxed) as u64,
            self.insn_count.load(Ordering::Relaxed) as u64,
            self.site_count.load(Ordering::Relaxed) as u64,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_host_address() {
        let x = Index::new().unwrap();
        x.add_block(100, 150, 0x1000, &[(0, 0), (3, 10), (7, 30)]);
        x.add_block(160, 200, 0x2000, &[(0, 0)]);
        let f = |pc| x.find(pc).map(|f| (f.rip, f.boundary));
        assert_eq!(f(99), None);
        assert_eq!(f(100), Some((0x1000, true)));
        assert_eq!(f(109), Some((0x1000, false)));
        assert_eq!(f(110), Some((0x1003, true)));
        assert_eq!(f(149), Some((0x1007, false)));
        assert_eq!(f(155), None);
        assert_eq!(f(160), Some((0x2000, true)));
        assert_eq!(x.entry(0, 3), Some(110));
        assert_eq!(x.entry(0, 4), None);
        assert_eq!(x.entry(1, 0), Some(160));
        assert_eq!(x.entry(2, 0), None);
        assert_eq!(x.place(131), Some((0, 0x1007)));
        assert_eq!(x.place(160), Some((1, 0x2000)));
        // Where the flags are lost nothing enters or leaves; where they are known only the block goes on.
        let marked = [(0, 0), (1 | INEXACT, 8), (2 | CLOSED, 16)];
        x.add_block(300, 340, 0x3000, &marked);
        assert_eq!(f(308), Some((0x3001, false)));
        assert_eq!(f(316), Some((0x3002, true)));
        assert_eq!((x.entry(2, 1), x.entry(2, 2)), (None, None));
    }

    #[test]
    fn sites_keep_their_fields() {
        let x = Index::new().unwrap();
        let s = Site {
            kind: SiteKind::Link,
            rip: 0xffff_ffff_8000_0000,
            host: 0x0123_4567,
            aux: 9,
            code: 4321,
        };
        x.add_site(s);
        assert_eq!(x.site(0), Some(s));
        assert_eq!(x.site(1), None);
    }
}
