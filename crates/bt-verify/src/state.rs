//! What is known at one point of the code.

use std::collections::{BTreeMap, BTreeSet};

/// The name of an unknown 64-bit value: equal names, equal values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Id {
    /// What register `.1` holds after the instruction at `.0` (or at the join there).
    At(u32, u8),
    /// A constant.
    Const(u64),
}

/// An entry of the branch cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// At a fixed byte offset.
    Fixed(i32),
    /// At 16 times the low 16 bits of a value, or of the value rotated right by 6.
    Of(Id, u8),
}

/// What a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Val {
    /// An unknown value with a name.
    Plain(Id),
    /// The value, rotated right.
    Rotated(Id, u8),
    /// Bits 47 to 12 of the value: a bounded table index.
    Index(Id),
    /// The addend of the value's page, from the write table or the read table.
    Addend { of: Id, write: bool },
    /// The host address of the value: value + addend, the addend known not to be zero.
    Host { of: Id, write: bool },
    /// The value's low 32 bits.
    Low32(Id),
    /// The value's low 32 bits with bits 12 to 31 set.
    InPage(Id),
    /// The low 16 bits of the value rotated right by `ror`, times 1 or 2.
    Low16 { of: Id, ror: u8, twice: bool },
    /// The value with bits 12 to 63 set: minus the bytes from it to the end of its page.
    Above(Id),
    /// A number of elements of `1 << shift` bytes: no more than lie between the value (each of the two)
    /// and the end of its page.
    Elements { of: Id, also: Option<Id>, shift: u8 },
    /// A number below this.
    Below(u32),
}

impl Val {
    /// The names that it speaks of.
    fn ids(self) -> impl Iterator<Item = Id> {
        let (a, b) = match self {
            Self::Plain(id)
            | Self::Rotated(id, _)
            | Self::Above(id)
            | Self::Index(id)
            | Self::Low32(id)
            | Self::InPage(id)
            | Self::Addend { of: id, .. }
            | Self::Host { of: id, .. }
            | Self::Low16 { of: id, .. } => (Some(id), None),
            Self::Elements { of, also, .. } => (Some(of), also),
            Self::Below(_) => (None, None),
        };
        a.into_iter().chain(b)
    }
}

/// What the flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flags {
    Unknown,
    /// ZF: the register's addend is zero.
    Zero(Id, bool),
    /// CF: `size` bytes at the value cross a page.
    Crosses(Id, u32),
    /// ZF clear: the value has one of these low bits set.
    LowBits(Id, u32),
    /// ZF: the branch-cache entry is that of the value that it was compared with.
    Tag(Slot),
    /// CF: the first register's value is below the second's.
    Less(u8, u8),
}

impl Flags {
    fn id(self) -> Option<Id> {
        match self {
            Self::Unknown | Self::Less(..) | Self::Tag(Slot::Fixed(_)) => None,
            Self::Tag(Slot::Of(id, _)) => Some(id),
            Self::Zero(id, _) | Self::Crosses(id, _) | Self::LowBits(id, _) => Some(id),
        }
    }
}

/// What is known before an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) regs: [Val; 16],
    pub(crate) flags: Flags,
    /// Lookups that were found valid: (value, write table).
    pub(crate) valid: BTreeSet<(Id, bool)>,
    /// The largest size for which the value cannot straddle a page, in bytes.
    pub(crate) fits: BTreeMap<Id, u32>,
    /// Branch-cache entries whose tag matched.
    pub(crate) matched: BTreeSet<Slot>,
    /// The site number was stored and nothing has happened since.
    pub(crate) site_stored: bool,
}

impl State {
    /// Nothing is known, at `at`.
    pub(crate) fn top(at: u32) -> Self {
        Self {
            regs: std::array::from_fn(|r| Val::Plain(Id::At(at, r as u8))),
            flags: Flags::Unknown,
            valid: BTreeSet::new(),
            fits: BTreeMap::new(),
            matched: BTreeSet::new(),
            site_stored: false,
        }
    }

    /// The instruction at `at` is about to name values: names that it gave on an earlier way through
    /// (a loop) must not be mistaken for the new ones.
    pub(crate) fn forget(&mut self, at: u32) {
        let old = |id: Id| matches!(id, Id::At(a, _) if a == at);
        for (r, val) in self.regs.iter_mut().enumerate() {
            if val.ids().any(old) {
                *val = Val::Plain(Id::At(at, r as u8 | 0x40));
            }
        }
        if self.flags.id().is_some_and(old) {
            self.flags = Flags::Unknown;
        }
        self.valid.retain(|(id, _)| !old(*id));
        self.fits.retain(|id, _| !old(*id));
        self.matched
            .retain(|slot| !matches!(slot, Slot::Of(id, _) if old(*id)));
    }

    /// What both know, at `at`.
    pub(crate) fn join(&self, other: &Self, at: u32) -> Self {
        let mut other = other.clone();
        other.forget(at);
        Self {
            regs: std::array::from_fn(|r| {
                if self.regs[r] == other.regs[r] {
                    self.regs[r]
                } else {
                    // Marked apart from what an instruction at `at` itself would produce.
                    Val::Plain(Id::At(at, r as u8 | 0x80))
                }
            }),
            flags: if self.flags == other.flags {
                self.flags
            } else {
                Flags::Unknown
            },
            valid: self.valid.intersection(&other.valid).copied().collect(),
            fits: self
                .fits
                .iter()
                .filter_map(|(id, n)| Some((*id, *n.min(other.fits.get(id)?))))
                .collect(),
            matched: self.matched.intersection(&other.matched).copied().collect(),
            site_stored: self.site_stored && other.site_stored,
        }
    }

    /// Whether `size` bytes at the value lie in one page.
    pub(crate) fn fits(&self, of: Id, size: u32) -> bool {
        match of {
            Id::Const(v) => (v & 4095) + u64::from(size) <= 4096,
            Id::At(..) => size <= 1 || self.fits.get(&of).is_some_and(|&n| n >= size),
        }
    }
}
