//! Segment selectors (SDM vol. 3, 3.4.2).

/// A 16-bit selector: index, table and requested privilege level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Selector(pub u16);

impl Selector {
    /// Requested privilege level, 0 to 3.
    #[inline]
    #[must_use]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// The selector names the LDT (TI).
    #[inline]
    #[must_use]
    pub const fn local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Byte offset of the descriptor in its table.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> u16 {
        self.0 & !7
    }

    /// A null selector: entry 0 of the GDT, whatever the RPL.
    #[inline]
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// The selector as exceptions push it, RPL replaced by `ext` (SDM vol. 3, 7.13).
    #[inline]
    #[must_use]
    pub const fn error_code(self, ext: bool) -> u32 {
        (self.0 & !3) as u32 | ext as u32
    }

    /// The same selector with another RPL.
    #[inline]
    #[must_use]
    pub const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | (rpl & 3) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let s = Selector(0x2f);
        assert_eq!((s.rpl(), s.local(), s.offset()), (3, true, 0x28));
        assert_eq!((s.error_code(false), s.error_code(true)), (0x2c, 0x2d));
        assert!(Selector(3).is_null() && !Selector(4).is_null() && !Selector(8).is_null());
        assert_eq!(s.with_rpl(1), Selector(0x2d));
    }
}
