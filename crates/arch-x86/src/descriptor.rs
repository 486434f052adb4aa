//! Segment and gate descriptors (SDM vol. 3, 3.4.5, 3.5, 6.8.3, 7.11 and 9.2).

use crate::{Segment, selector::Selector};

/// System-segment and gate types (SDM vol. 3, table 3-2).
pub mod system_type {
    /// 16-bit TSS, available.
    pub const TSS16: u8 = 1;
    /// LDT.
    pub const LDT: u8 = 2;
    /// 16-bit TSS, busy.
    pub const TSS16_BUSY: u8 = 3;
    /// 16-bit call gate.
    pub const CALL16: u8 = 4;
    /// Task gate.
    pub const TASK: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INTERRUPT16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP16: u8 = 7;
    /// 32-bit TSS (64-bit in long mode), available.
    pub const TSS: u8 = 9;
    /// 32-bit TSS (64-bit in long mode), busy.
    pub const TSS_BUSY: u8 = 11;
    /// 32-bit (64-bit) call gate.
    pub const CALL: u8 = 12;
    /// 32-bit (64-bit) interrupt gate.
    pub const INTERRUPT: u8 = 14;
    /// 32-bit (64-bit) trap gate.
    pub const TRAP: u8 = 15;
}

/// An 8-byte descriptor as it lies in a table. System descriptors of long mode have eight more bytes,
/// which the methods that need them take separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// The accessed bit of a code or data segment.
    pub const ACCESSED: u64 = 1 << 40;
    /// The busy bit of a TSS.
    pub const BUSY: u64 = 1 << 41;

    /// The type field, 0 to 15.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> u8 {
        ((self.0 >> 40) & 15) as u8
    }

    /// S is clear: a system segment or a gate.
    #[inline]
    #[must_use]
    pub const fn is_system(self) -> bool {
        self.0 & (1 << 44) == 0
    }

    /// A code segment.
    #[inline]
    #[must_use]
    pub const fn is_code(self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }

    /// A data segment.
    #[inline]
    #[must_use]
    pub const fn is_data(self) -> bool {
        !self.is_system() && self.kind() & 8 == 0
    }

    /// A conforming code segment.
    #[inline]
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// A writable data segment.
    #[inline]
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.is_data() && self.kind() & 2 != 0
    }

    /// A segment that data can be read from: any data segment, or readable code.
    #[inline]
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.is_data() || (self.is_code() && self.kind() & 2 != 0)
    }

    /// Descriptor privilege level, 0 to 3.
    #[inline]
    #[must_use]
    pub const fn dpl(self) -> u8 {
        ((self.0 >> 45) & 3) as u8
    }

    /// Present.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & (1 << 47) != 0
    }

    /// L: 64-bit code.
    #[inline]
    #[must_use]
    pub const fn long(self) -> bool {
        self.0 & (1 << 53) != 0
    }

    /// D/B: 32-bit default size.
    #[inline]
    #[must_use]
    pub const fn db(self) -> bool {
        self.0 & (1 << 54) != 0
    }

    /// Base address, 32 bits.
    #[inline]
    #[must_use]
    pub const fn base(self) -> u64 {
        (self.0 >> 16) & 0xff_ffff | (self.0 >> 32) & 0xff00_0000
    }

    /// Limit in bytes, granularity applied.
    #[inline]
    #[must_use]
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | (self.0 >> 32) & 0xf_0000) as u32;
        if self.0 & (1 << 55) != 0 {
            raw << 12 | 0xfff
        } else {
            raw
        }
    }

    /// Access rights in [`Segment::attr`]'s form.
    #[inline]
    #[must_use]
    pub const fn attr(self) -> u32 {
        ((self.0 >> 40) & 0xf0ff) as u32
    }

    /// What a segment register holds after this descriptor was loaded through `selector`.
    #[inline]
    #[must_use]
    pub const fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            attr: self.attr(),
        }
    }

    /// As [`Self::segment`] for LDT and TSS in long mode; `high` is the second quadword, whose low
    /// half is base bits 63:32.
    #[inline]
    #[must_use]
    pub const fn system_segment(self, selector: u16, high: u64) -> Segment {
        let mut segment = self.segment(selector);
        segment.base |= high << 32;
        segment
    }

    /// Bits 12:8 of a 16-byte descriptor's last doubleword are zero, as they must be in LDT, TSS and
    /// call-gate descriptors of long mode (SDM vol. 3, 6.8.3.1 and 9.2.3).
    #[inline]
    #[must_use]
    pub const fn upper_type_is_zero(high: u64) -> bool {
        high & (0x1f << 40) == 0
    }

    /// The descriptor read as a gate.
    #[inline]
    #[must_use]
    pub const fn gate(self) -> Gate {
        Gate(self.0)
    }

    /// Whether LSL gives a limit for it (SDM vol. 2, LSL, table 3-55); LAR accepts gates besides.
    #[must_use]
    pub const fn has_limit(self, long_mode: bool) -> bool {
        use system_type as t;
        if !self.is_system() {
            return true;
        }
        match self.kind() {
            t::TSS16 | t::TSS16_BUSY => !long_mode,
            t::LDT | t::TSS | t::TSS_BUSY => true,
            _ => false,
        }
    }

    /// Whether LAR gives rights for it (SDM vol. 2, LAR, table 3-53).
    #[must_use]
    pub const fn has_rights(self, long_mode: bool) -> bool {
        use system_type as t;
        self.has_limit(long_mode)
            || match self.kind() {
                t::CALL16 | t::TASK => !long_mode,
                t::CALL => true,
                _ => false,
            }
    }

    /// The privilege check of LAR, LSL, VERR and VERW: CPL and RPL are at most the DPL, which
    /// conforming code does not ask for.
    #[inline]
    #[must_use]
    pub const fn visible(self, cpl: u8, rpl: u8) -> bool {
        self.is_conforming() || (cpl <= self.dpl() && rpl <= self.dpl())
    }
}

/// A call, interrupt, trap or task gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate(pub u64);

impl Gate {
    /// The selector that it leads to.
    #[inline]
    #[must_use]
    pub const fn selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }

    /// The low 32 bits of the offset; a 16-bit gate uses 16 of them.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 & 0xffff | (self.0 >> 32) & 0xffff_0000) as u32
    }

    /// Number of parameters that a call gate copies, 0 to 31.
    #[inline]
    #[must_use]
    pub const fn parameters(self) -> u8 {
        ((self.0 >> 32) & 31) as u8
    }

    /// Interrupt-stack-table index of a long-mode gate, 0 (none) to 7.
    #[inline]
    #[must_use]
    pub const fn ist(self) -> u8 {
        ((self.0 >> 32) & 7) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_segments() {
        let code = Descriptor(0x00cf_9b00_0000_ffff);
        assert!(code.is_code() && code.is_readable() && !code.is_conforming() && code.present());
        assert_eq!((code.base(), code.limit(), code.dpl()), (0, u32::MAX, 0));
        let segment = code.segment(8);
        assert_eq!(segment.attr, 0xc09b);
        assert!(segment.db() && !segment.long() && segment.dpl() == 0);
        let data = Descriptor(0x1240_f234_5678_9abc);
        assert!(data.is_writable() && data.is_readable() && data.dpl() == 3);
        assert_eq!((data.base(), data.limit()), (0x1234_5678, 0x9abc));
    }

    #[test]
    fn system_descriptors() {
        let tss = Descriptor(0x1200_8b34_5678_0067);
        assert!(tss.is_system() && tss.kind() == system_type::TSS_BUSY);
        let s = tss.system_segment(0x40, 0xffff_8000);
        assert_eq!((s.base, s.limit), (0xffff_8000_1234_5678, 0x67));
        assert!(Descriptor::upper_type_is_zero(0xffff_8000));
        assert!(!Descriptor::upper_type_is_zero(1 << 40));
        let gate = Descriptor(0xabcd_8c05_0010_1234).gate();
        assert_eq!(gate.selector(), Selector(0x10));
        assert_eq!(
            (gate.offset(), gate.parameters(), gate.ist()),
            (0xabcd_1234, 5, 5)
        );
    }

    #[test]
    fn what_lar_and_lsl_accept() {
        let of = |kind: u64| Descriptor(kind << 40);
        let accepted = |long, f: fn(Descriptor, bool) -> bool| -> Vec<u64> {
            (0..16).filter(|k| f(of(*k), long)).collect()
        };
        assert_eq!(accepted(false, Descriptor::has_limit), [1, 2, 3, 9, 11]);
        assert_eq!(accepted(true, Descriptor::has_limit), [2, 9, 11]);
        assert_eq!(
            accepted(false, Descriptor::has_rights),
            [1, 2, 3, 4, 5, 9, 11, 12]
        );
        assert_eq!(accepted(true, Descriptor::has_rights), [2, 9, 11, 12]);
        let dpl2 = Descriptor(1 << 44 | 2 << 45);
        assert!(dpl2.visible(2, 1) && !dpl2.visible(3, 0) && !dpl2.visible(0, 3));
        assert!(Descriptor(0xc << 40 | 1 << 44).visible(3, 3), "conforming");
    }
}
