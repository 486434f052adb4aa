//! Access rights and the #PF error code (SDM vol. 3, 5.6 and 5.7).

use super::PagingContext;
use crate::{Exception, RFlags};

bitflags::bitflags! {
    /// The error code of a page fault (SDM vol. 3, 5.7).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct PfCode: u32 {
        /// A translation was there, or a reserved bit was set (clear: an entry was not present).
        const P = 1 << 0;
        /// The access was a write.
        const W = 1 << 1;
        /// The access was a user-mode access.
        const U = 1 << 2;
        /// A reserved bit was set in an entry.
        const RSVD = 1 << 3;
        /// The access was an instruction fetch (said with NXE or SMEP only).
        const ID = 1 << 4;
        /// A protection key forbids the access.
        const PK = 1 << 5;
    }
}

impl PfCode {
    /// The page fault at `linear` with this code.
    #[inline]
    #[must_use]
    pub const fn at(self, linear: u64) -> Exception {
        Exception::pf(self.bits(), linear)
    }
}

bitflags::bitflags! {
    /// What the entries of a walk, taken together, say of a page.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// U/S is set in every entry: a user-mode address.
        const USER = 1 << 0;
        /// R/W is set in every entry.
        const WRITABLE = 1 << 1;
        /// XD is set in some entry (and NXE enabled).
        const NX = 1 << 2;
        /// G is set in the last entry and CR4.PGE is set.
        const GLOBAL = 1 << 3;
        /// D is set in the last entry (after this walk).
        const DIRTY = 1 << 4;
    }
}

/// What is done with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write (or a read-modify-write).
    Write,
    /// An instruction fetch.
    Execute,
}

/// An access to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// A user-mode access: CPL is 3 and the access is not an implicit supervisor one.
    pub user: bool,
    /// EFLAGS.AC is set and the access is explicit, so that SMAP does not apply.
    pub smap_override: bool,
}

impl Access {
    /// An access by the instruction itself, with its CPL and flags.
    #[inline]
    #[must_use]
    pub fn explicit(kind: AccessKind, cpl: u8, rflags: RFlags) -> Self {
        Self {
            kind,
            user: cpl == 3,
            smap_override: rflags.contains(RFlags::AC),
        }
    }

    /// An implicit supervisor-mode access, whatever the CPL: descriptor tables, the TSS, the stack
    /// that an interrupt switches to (SDM vol. 3, 5.6).
    #[inline]
    #[must_use]
    pub const fn implicit(kind: AccessKind) -> Self {
        Self {
            kind,
            user: false,
            smap_override: false,
        }
    }

    /// The error-code bits that depend on the access alone.
    #[inline]
    pub(super) fn code(self, context: &PagingContext) -> PfCode {
        let mut code = PfCode::empty();
        code.set(PfCode::W, self.kind == AccessKind::Write);
        code.set(PfCode::U, self.user);
        let fetch = self.kind == AccessKind::Execute;
        code.set(PfCode::ID, fetch && (context.nxe || context.smep));
        code
    }
}

impl PagingContext {
    /// Whether a page with `rights` and protection key `pkey` permits `access` (SDM vol. 3, 5.6.1
    /// and 5.6.2). Engines use it on what their TLBs hold; dirtiness is not looked at.
    ///
    /// # Errors
    /// The error code of the page fault.
    #[inline]
    pub fn check(&self, rights: Rights, pkey: u8, access: Access) -> Result<(), PfCode> {
        if self.mode == super::PagingMode::None {
            return Ok(());
        }
        let user_page = rights.contains(Rights::USER);
        let writable = rights.contains(Rights::WRITABLE);
        let forbidden = match access.kind {
            _ if access.user && !user_page => true,
            AccessKind::Execute => {
                rights.contains(Rights::NX) || (!access.user && user_page && self.smep)
            }
            kind => {
                let write = kind == AccessKind::Write;
                (write && !writable && (access.user || self.wp))
                    || (!access.user && user_page && self.smap && !access.smap_override)
            }
        };
        let by_key = self.pke && user_page && self.key_forbids(pkey, access);
        if !forbidden && !by_key {
            return Ok(());
        }
        let mut code = access.code(self) | PfCode::P;
        code.set(PfCode::PK, by_key);
        Err(code)
    }

    /// PKRU forbids `access` to a user page with key `pkey` (SDM vol. 3, 5.6.2).
    fn key_forbids(&self, pkey: u8, access: Access) -> bool {
        let bits = self.pkru >> (2 * u32::from(pkey & 15));
        match access.kind {
            AccessKind::Execute => false,
            AccessKind::Read => bits & 1 != 0,
            AccessKind::Write => bits & 1 != 0 || (bits & 2 != 0 && (access.user || self.wp)),
        }
    }
}
