//! Exceptions and their classes (SDM vol. 3, 7.3 and 7.15).

/// Exception vectors 0 to 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "the mnemonics are the manual's own")]
pub enum Vector {
    De = 0,
    Db = 1,
    Nmi = 2,
    Bp = 3,
    Of = 4,
    Br = 5,
    Ud = 6,
    Nm = 7,
    Df = 8,
    CoprocessorOverrun = 9,
    Ts = 10,
    Np = 11,
    Ss = 12,
    Gp = 13,
    Pf = 14,
    Mf = 16,
    Ac = 17,
    Mc = 18,
    Xm = 19,
    Ve = 20,
    Cp = 21,
}

/// A fault, trap or abort that an instruction raised, before delivery.
///
/// Faults leave RIP at the instruction, traps after it; the raiser has set RIP accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exception {
    /// Which exception.
    pub vector: Vector,
    /// The error code, for the vectors that push one (SDM vol. 3, 7.13).
    pub error_code: Option<u32>,
    /// The linear address that goes into CR2; `Some` for #PF only.
    pub cr2: Option<u64>,
    /// Bits that a #DB sets in DR6; zero for every other vector.
    pub dr6: u64,
}

impl Exception {
    /// An exception without an error code.
    #[inline]
    #[must_use]
    pub const fn new(vector: Vector) -> Self {
        Self {
            vector,
            error_code: None,
            cr2: None,
            dr6: 0,
        }
    }

    /// An exception with an error code.
    #[inline]
    #[must_use]
    pub const fn with_code(vector: Vector, code: u32) -> Self {
        Self {
            vector,
            error_code: Some(code),
            cr2: None,
            dr6: 0,
        }
    }

    /// #GP(code).
    #[inline]
    #[must_use]
    pub const fn gp(code: u32) -> Self {
        Self::with_code(Vector::Gp, code)
    }

    /// #SS(code).
    #[inline]
    #[must_use]
    pub const fn ss(code: u32) -> Self {
        Self::with_code(Vector::Ss, code)
    }

    /// #UD.
    #[inline]
    #[must_use]
    pub const fn ud() -> Self {
        Self::new(Vector::Ud)
    }

    /// #PF with its error code (SDM vol. 3, 5.7) and linear address.
    #[inline]
    #[must_use]
    pub const fn pf(code: u32, linear: u64) -> Self {
        Self {
            vector: Vector::Pf,
            error_code: Some(code),
            cr2: Some(linear),
            dr6: 0,
        }
    }

    /// #DB with the DR6 bits it sets (SDM vol. 3, 19.2.3).
    #[inline]
    #[must_use]
    pub const fn db(dr6: u64) -> Self {
        Self {
            vector: Vector::Db,
            error_code: None,
            cr2: None,
            dr6,
        }
    }
}
