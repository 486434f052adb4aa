//! The rows, one file per instruction group.
//!
//! `forms!` takes families: `[base] { modes: Code access size, ...; }` where `base` is what the
//! forms share, `modes` is `any`, `m64` (64-bit code only) or `legacy` (16- and 32-bit code only),
//! and `access size` describe the memory operand of the forms that can have one: `r`, `w`, `rw`,
//! `address` or `hint`, and its bytes.

macro_rules! mode {
    (any) => {
        crate::Modes::Any
    };
    (m64) => {
        crate::Modes::Only64
    };
    (legacy) => {
        crate::Modes::Legacy
    };
}

macro_rules! access {
    (r) => {
        crate::Access::Read
    };
    (w) => {
        crate::Access::Write
    };
    (rw) => {
        crate::Access::ReadWrite
    };
    (address) => {
        crate::Access::Address
    };
    (hint) => {
        crate::Access::Hint
    };
}

macro_rules! forms {
    ($([$base:expr] { $($mode:ident: $($code:ident $($access:ident $size:literal)?),+;)+ })+) => {
        pub(super) const FORMS: &[Form] = &[$($($(
            $base.code(iced_x86::Code::$code, mode!($mode))$(.operand(access!($access), $size))?
        ),+),+),+];
    };
}

mod avx2;
mod avx_fp;
mod avx_int;
mod avx_move;
mod bits;
mod control;
mod crypto;
mod flags;
mod fma;
mod hints;
mod integer;
mod mmx;
mod moves;
mod segments;
mod shifts;
mod sse;
mod sse2;
mod sse3;
mod sse4;
mod stack;
mod strings;
mod system;
mod x87;
mod xsave;

use crate::Form;

/// Every group's rows.
pub(crate) const GROUPS: &[&[Form]] = &[
    avx2::FORMS,
    avx_fp::FORMS,
    avx_int::FORMS,
    avx_move::FORMS,
    bits::FORMS,
    control::FORMS,
    crypto::FORMS,
    flags::FORMS,
    fma::FORMS,
    hints::FORMS,
    integer::FORMS,
    mmx::FORMS,
    moves::FORMS,
    segments::FORMS,
    shifts::FORMS,
    sse::FORMS,
    sse2::FORMS,
    sse3::FORMS,
    sse4::FORMS,
    stack::FORMS,
    strings::FORMS,
    system::FORMS,
    x87::FORMS,
    xsave::FORMS,
];
