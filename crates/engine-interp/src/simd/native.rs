//! Calling thunks: the unsafe island of this group.
//!
//! A thunk touches only what its five pointers lead to and caller-saved registers; every pointer
//! made here leads into the vCPU's own state or to a buffer of the caller that is large enough for
//! any operand.
#![expect(
    unsafe_code,
    reason = "calls generated code with pointers into the monitor's own buffers"
)]

use super::thunk::Aux;
use mimeo_codemem::CodeMemory;
use std::ptr::NonNull;

/// Room for any operand, aligned for any instruction.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(32))]
pub(super) struct Vector(pub(super) [u64; 4]);

/// An FXSAVE area.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct FxArea(pub(super) [u8; 512]);

type Function = unsafe extern "sysv64" fn(*mut u8, *mut u8, *mut u8, *mut u8, NonNull<Aux>);

/// A thunk's entry point. Code memory of thunks is never freed, so an entry stays valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry(Function);

impl Entry {
    /// The code at `offset` of the thunks' code memory, written by the generator.
    pub(super) fn new(memory: &CodeMemory, offset: usize) -> Self {
        assert!(offset < memory.size());
        let code = memory.base().as_ptr().wrapping_add(offset);
        // SAFETY: the generator put a function of this signature there; the cache that owns the
        // memory is a static, so it is never unmapped.
        Self(unsafe { std::mem::transmute::<*mut u8, Function>(code) })
    }
}

/// Where a thunk finds one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// No such operand, or an immediate.
    None,
    /// YMM register n.
    Ymm(u8),
    /// MMX register n (the x87 register of that physical number; TOP is 0).
    Mm(u8),
    /// General register n.
    Gpr(u8),
    /// The memory buffer.
    Memory,
    /// The staging buffer.
    Staged,
}

/// The registers and buffers that operands can be in.
pub(super) struct Operands<'a> {
    pub(super) ymm: &'a mut [[u64; 4]; 16],
    pub(super) st: &'a mut [u128; 8],
    pub(super) gpr: &'a mut [u64; 16],
    pub(super) memory: &'a mut Vector,
    pub(super) staged: &'a mut Vector,
}

/// Runs a vector thunk.
pub(super) fn vector(entry: Entry, places: [Place; 4], o: &mut Operands<'_>, aux: &mut Aux) {
    let memory: *mut Vector = o.memory;
    let staged: *mut Vector = o.staged;
    let ymm = o.ymm.as_mut_ptr();
    let st = o.st.as_mut_ptr();
    let gpr = o.gpr.as_mut_ptr();
    let pointer = |p: Place| -> *mut u8 {
        match p {
            Place::None | Place::Memory => memory.cast(),
            Place::Staged => staged.cast(),
            Place::Ymm(n) => ymm.wrapping_add(usize::from(n & 15)).cast(),
            Place::Mm(n) => st.wrapping_add(usize::from(n & 7)).cast(),
            Place::Gpr(n) => gpr.wrapping_add(usize::from(n & 15)).cast(),
        }
    };
    let [a, b, c, d] = places.map(pointer);
    // SAFETY: the thunk accesses at most 32 bytes through a YMM or buffer pointer, 8 through an MMX
    // or general register pointer: all inside the arrays and buffers (indices are masked), which
    // are exclusively borrowed here. Several pointers may be equal; they are raw. The generator
    // leaves MXCSR, the x87 state and the upper halves of YMM as the ABI wants them.
    unsafe { entry.0(a, b, c, d, NonNull::from(aux)) };
}

/// Runs an x87 thunk.
pub(super) fn x87(entry: Entry, area: &mut FxArea, memory: &mut Vector, aux: &mut Aux) {
    let area: *mut FxArea = area;
    let memory: *mut Vector = memory;
    // SAFETY: the thunk accesses 512 bytes through the first pointer and at most 10 through the
    // second, both exclusively borrowed, aligned buffers; it leaves the x87 state initialised and
    // MXCSR as the area's field says, which the caller set to the host's.
    unsafe {
        entry.0(
            area.cast(),
            memory.cast(),
            memory.cast(),
            memory.cast(),
            NonNull::from(aux),
        );
    }
}
