//! Logical to linear addresses: segment bases, limits and types (SDM vol. 3, 6.3 to 6.5), canonical
//! form (vol. 1, 3.3.7.1).

use super::Access;
use crate::{Cpu, Trap};
use mimeo_arch_x86::{Cr0, Cr4, Exception, RFlags, Seg, Segment};

impl Cpu {
    /// Whether a linear address is canonical under the current paging mode (CR4.LA57).
    #[inline]
    #[must_use]
    pub fn is_canonical(&self, linear: u64) -> bool {
        let unused = if self.state.cr4.contains(Cr4::LA57) {
            64 - 57
        } else {
            64 - 48
        };
        ((linear << unused) as i64 >> unused) as u64 == linear
    }

    /// The linear address of `size` bytes at `seg:offset`, checked against the segment. In 64-bit
    /// mode only the base is added: canonical form is checked with the access itself.
    ///
    /// # Errors
    /// #GP(0), or #SS(0) where `seg` is SS.
    #[inline(always)]
    pub fn linear(&self, seg: u8, offset: u64, size: usize, access: Access) -> Result<u64, Trap> {
        if self.code64 {
            return Ok(if seg >= 4 {
                offset.wrapping_add(self.state.seg[usize::from(seg & 7).min(5)].base)
            } else {
                offset
            });
        }
        self.linear_legacy(seg, offset, size, access)
    }

    fn linear_legacy(
        &self,
        seg: u8,
        offset: u64,
        size: usize,
        access: Access,
    ) -> Result<u64, Trap> {
        let s = &self.state.seg[usize::from(seg).min(5)];
        let last = offset + (size.max(1) as u64 - 1);
        if self.segment_allows(s, offset, last, access) {
            Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
        } else if seg == Seg::Ss as u8 {
            Err(Exception::ss(0).into())
        } else {
            Err(Exception::gp(0).into())
        }
    }

    /// Whether segment `s` allows an access to offsets `first` to `last`.
    pub(crate) fn segment_allows(
        &self,
        s: &Segment,
        first: u64,
        last: u64,
        access: Access,
    ) -> bool {
        let limit = u64::from(s.limit);
        if !self.state.cr0.contains(Cr0::PE) || self.state.rflags.contains(RFlags::VM) {
            return last <= limit;
        }
        if s.unusable() {
            return false;
        }
        let code = s.attr & 8 != 0;
        let right = match access {
            Access::Read => !code || s.attr & 2 != 0,
            Access::Write => !code && s.attr & 2 != 0,
            Access::Fetch => true,
        };
        if !right {
            return false;
        }
        if !code && s.attr & 4 != 0 {
            // Expand-down: valid above the limit, up to 64 KB or 4 GB by the B bit.
            let top = if s.db() { 0xffff_ffff } else { 0xffff };
            first > limit && last <= top
        } else {
            last <= limit
        }
    }

    /// Checks that a data access in 64-bit mode is canonical from its first to its last byte.
    pub(super) fn check_canonical(&self, seg: u8, linear: u64, size: usize) -> Result<(), Trap> {
        if !self.long_mode {
            return Ok(());
        }
        let last = linear.wrapping_add(size.max(1) as u64 - 1);
        if self.is_canonical(linear) && self.is_canonical(last) {
            Ok(())
        } else if seg == Seg::Ss as u8 {
            Err(Exception::ss(0).into())
        } else {
            Err(Exception::gp(0).into())
        }
    }
}
