//! Guest memory as instructions see it: segmentation, the software TLB, checked access.

mod access;
mod atomic;
mod raw;
mod segment;
mod string;
mod tlb;
mod walk;

pub use tlb::MmuEvent;
pub(crate) use tlb::Tlb;
pub(crate) use walk::Phys;

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or read-modify-write (x86 checks both as a write).
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Operand widths of 1, 2, 4 and 8 bytes.
pub trait Width: Copy + Eq + std::fmt::Debug + 'static {
    /// Bytes.
    const BYTES: usize;
    /// Bits.
    const BITS: u32;
    /// The low bits of `v`.
    fn trunc(v: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> i64;
}

macro_rules! width {
    ($u:ty, $i:ty) => {
        impl Width for $u {
            const BYTES: usize = size_of::<$u>();
            const BITS: u32 = <$u>::BITS;
            #[inline(always)]
            fn trunc(v: u64) -> Self {
                v as $u
            }
            #[inline(always)]
            fn zext(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn sext(self) -> i64 {
                i64::from(self as $i)
            }
        }
    };
}

width!(u8, i8);
width!(u16, i16);
width!(u32, i32);
width!(u64, i64);

/// The segment argument of accesses that belong to no segment: faults are #GP.
pub const SYSTEM: u8 = 3;
