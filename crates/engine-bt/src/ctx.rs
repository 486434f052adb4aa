//! The context block: where a vCPU's guest state lives while translated code runs.
//!
//! Host RSP points at [`Ctx::gpr`] in translated code, so that the hottest fields are one
//! disp8 away on both sides. Translated code never pushes or calls; nothing below is a stack.

use crate::emit::{Mem, Reg, reg};
use std::cell::Cell;
use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

/// See the module.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Ctx {
    /// The host's RSP while in translated code.
    pub(crate) host_rsp: Cell<u64>,
    /// Where to enter translated code (host address).
    pub(crate) target: Cell<u64>,
    /// Which site left translated code ([`crate::index::Site`]).
    pub(crate) site: Cell<u32>,
    /// Host PC of a fault, as an offset into the code cache.
    pub(crate) fault_pc: Cell<u32>,
    /// E (host R10) on exit: the linear address of a memory site.
    pub(crate) ea: Cell<u64>,
    /// T (host R11) on exit: the target of an indirect branch.
    pub(crate) t: Cell<u64>,
    /// Not 0 while this vCPU's thread may be executing translated code.
    pub(crate) in_cache: AtomicU32,
    /// Not 0: leave translated code at the next instruction boundary, do not enter.
    pub(crate) kick: AtomicU32,
    /// Guest RIP at an asynchronous exit.
    pub(crate) rip: Cell<u64>,
    /// rL of the supervisor view with RFLAGS.AC clear.
    pub(crate) view_sup: Cell<u64>,
    /// rL of the supervisor view with RFLAGS.AC set.
    pub(crate) view_ac: Cell<u64>,
    /// rL of the view in use.
    pub(crate) rl: Cell<u64>,
    /// Guest FS base.
    pub(crate) fs_base: Cell<u64>,
    /// Guest GS base.
    pub(crate) gs_base: Cell<u64>,
    /// Bits 47 to 12: what PEXT takes a table index out of an address with.
    pub(crate) page_mask: Cell<u64>,
    /// Guest RFLAGS but the six status flags, DF, IF and AC.
    pub(crate) sysflags: Cell<u64>,
    /// Status flags on entry and exit: OF in bit 0, the low byte of RFLAGS in bits 8 to 15.
    pub(crate) status: Cell<u64>,
    /// For sequences within one instruction.
    pub(crate) scratch: Cell<u64>,
    /// Guest general registers. In translated code only R10, R11, R14 and R15 live here; the slots
    /// of the others are free for spills within one instruction.
    pub(crate) gpr: [Cell<u64>; 16],
    /// Guest YMM registers, while out of translated code. The upper halves count only if
    /// [`Self::upper`] is not 0; else they are zero ([`Self::ymm_registers`]).
    pub(crate) ymm: Cell<[[u64; 4]; 16]>,
    /// Some upper half of `ymm` may be other than zero.
    pub(crate) upper: Cell<u32>,
    /// XGETBV can tell whether upper halves are in use.
    pub(crate) xinuse: Cell<u32>,
    /// Guest MXCSR, while out of translated code.
    pub(crate) mxcsr: Cell<u32>,
    /// The monitor's MXCSR.
    pub(crate) host_mxcsr: Cell<u32>,
    /// RFLAGS.DF in its place, all other bits zero. The host's DF stays clear.
    pub(crate) df: Cell<u32>,
    /// RFLAGS.IF in its place.
    pub(crate) iflag: Cell<u32>,
    /// RFLAGS.AC in its place.
    pub(crate) ac: Cell<u32>,
    /// RFLAGS.IF's bit if a maskable interrupt waits for it, else zero.
    pub(crate) pending: Cell<u32>,
    /// Status flags within a block, as LAHF and SETO leave them in AX.
    pub(crate) flags: Cell<u64>,
    /// IA32_KERNEL_GS_BASE.
    pub(crate) kernel_gs: Cell<u64>,
    /// Times that the host code of the traced guest instruction was entered.
    pub(crate) traced: Cell<u64>,
    /// Selectors of ES, CS, SS, DS, FS, GS.
    pub(crate) selectors: [Cell<u64>; 6],
    /// What CS holds: 0, as in the state; 1, a flat 64-bit segment of DPL 0; 2, one of DPL 3.
    pub(crate) cs_kind: Cell<u32>,
    /// What SS holds, in the same way (0: only the selector may have changed; 3: a null selector of CPL
    /// 0).
    pub(crate) ss_kind: Cell<u32>,
    /// rL of the CPL 3 view of the current address space.
    pub(crate) view_user: Cell<u64>,
    /// CR0, CR2, CR3, CR4.
    pub(crate) cr: [Cell<u64>; 4],
    /// SYSCALL: the target, the flags that it keeps, the selectors that it loads.
    pub(crate) lstar: Cell<u64>,
    /// See [`Self::lstar`].
    pub(crate) fmask_kept: Cell<u64>,
    /// See [`Self::lstar`].
    pub(crate) syscall_cs: Cell<u64>,
    /// See [`Self::lstar`].
    pub(crate) syscall_ss: Cell<u64>,
    /// The selectors that SYSRET to 64-bit code loads.
    pub(crate) sysret_cs: Cell<u64>,
    /// See [`Self::sysret_cs`].
    pub(crate) sysret_ss: Cell<u64>,
    /// Linear addresses of the descriptors of [`Self::sysret_cs`] and [`Self::sysret_ss`] in the GDT.
    pub(crate) user_cs_at: Cell<u64>,
    /// See [`Self::user_cs_at`].
    pub(crate) user_ss_at: Cell<u64>,
    /// The selectors that an IRET within CPL 0 is to find in its frame.
    pub(crate) own_cs: Cell<u64>,
    /// See [`Self::own_cs`].
    pub(crate) own_ss: Cell<u64>,
    /// What SS then holds: see [`Self::cs_kind`]; 3, nothing.
    pub(crate) own_ss_kind: Cell<u32>,
    /// The linear addresses of their descriptors.
    pub(crate) own_cs_at: Cell<u64>,
    /// See [`Self::own_cs_at`].
    pub(crate) own_ss_at: Cell<u64>,
    /// What is added to the host's time-stamp counter.
    pub(crate) tsc_offset: Cell<u64>,
    /// IA32_TSC_AUX.
    pub(crate) tsc_aux: Cell<u64>,
    /// Not 0: SYSCALL may be carried out inline.
    pub(crate) syscall_ok: Cell<u32>,
    /// Not 0: SYSRET to 64-bit code may be.
    pub(crate) sysret_ok: Cell<u32>,
    /// Not 0: IRET to CPL 3 may be.
    pub(crate) iret_user_ok: Cell<u32>,
    /// Not 0: IRET within CPL 0 may be.
    pub(crate) iret_own_ok: Cell<u32>,
    /// Not 0: RDTSC may be.
    pub(crate) tsc_ok: Cell<u32>,
    /// CR4.FSGSBASE.
    pub(crate) fsgsbase_ok: Cell<u32>,
}

const ORIGIN: i32 = offset_of!(Ctx, gpr) as i32;

/// Displacement from host RSP of the named field.
macro_rules! at {
    ($field:ident) => {
        (std::mem::offset_of!($crate::ctx::Ctx, $field) as i32 - $crate::ctx::origin())
    };
}
pub(crate) use at;

/// Offset of the point that host RSP points at.
pub(crate) const fn origin() -> i32 {
    ORIGIN
}

/// The context slot of guest register `n`.
pub(crate) const fn slot(n: usize) -> Mem {
    Mem::base(reg::RSP, n as i32 * 8)
}

/// A context field as a memory operand, by displacement ([`at!`]).
pub(crate) const fn field(disp: i32) -> Mem {
    Mem::base(reg::RSP, disp)
}

/// E: the effective-address temporary.
pub(crate) const E: Reg = reg::R10;
/// T: the addend and general temporary.
pub(crate) const T: Reg = reg::R11;
/// rL: base of the read table plus [`RL_BIAS`].
pub(crate) const RL: Reg = reg::R15;
/// Guest RSP.
pub(crate) const GSP: Reg = reg::R14;
/// What rL is above the table's base: a shift count in its low 6 bits, so that one register is
/// both the table's base and SHRX's count.
pub(crate) const RL_BIAS: u64 = 28;

/// Host register of each guest register; [`E`] stands for "in memory".
pub(crate) const HOST: [Reg; 16] = [0, 1, 2, 3, GSP, 5, 6, 7, 8, 9, E, E, 12, 13, E, E];

/// Whether guest register `n` lives in the context block in translated code.
pub(crate) const fn in_memory(n: usize) -> bool {
    matches!(n, 10 | 11 | 14 | 15)
}

impl Ctx {
    /// A zeroed context with default control words.
    pub(crate) fn new() -> Self {
        let word = || Cell::new(0);
        Self {
            host_rsp: word(),
            target: word(),
            site: Cell::new(0),
            fault_pc: Cell::new(0),
            ea: word(),
            t: word(),
            in_cache: AtomicU32::new(0),
            kick: AtomicU32::new(0),
            rip: word(),
            view_sup: word(),
            view_ac: word(),
            rl: word(),
            fs_base: word(),
            gs_base: word(),
            page_mask: Cell::new(0xffff_ffff_f000),
            flags: word(),
            sysflags: Cell::new(2),
            status: word(),
            scratch: word(),
            gpr: std::array::from_fn(|_| word()),
            ymm: Cell::new([[0; 4]; 16]),
            upper: Cell::new(0),
            xinuse: Cell::new(u32::from(crate::host::tells_use())),
            mxcsr: Cell::new(0x1f80),
            host_mxcsr: Cell::new(0x1f80),
            df: Cell::new(0),
            iflag: Cell::new(0),
            ac: Cell::new(0),
            pending: Cell::new(0),
            kernel_gs: word(),
            traced: word(),
            selectors: std::array::from_fn(|_| word()),
            cs_kind: Cell::new(0),
            ss_kind: Cell::new(0),
            view_user: word(),
            cr: std::array::from_fn(|_| word()),
            lstar: word(),
            fmask_kept: word(),
            syscall_cs: word(),
            syscall_ss: word(),
            sysret_cs: word(),
            sysret_ss: word(),
            user_cs_at: word(),
            user_ss_at: word(),
            own_cs: word(),
            own_ss: word(),
            own_ss_kind: Cell::new(0),
            own_cs_at: word(),
            own_ss_at: word(),
            tsc_offset: word(),
            tsc_aux: word(),
            syscall_ok: Cell::new(0),
            sysret_ok: Cell::new(0),
            iret_user_ok: Cell::new(0),
            iret_own_ok: Cell::new(0),
            tsc_ok: Cell::new(0),
            fsgsbase_ok: Cell::new(0),
        }
    }

    /// The YMM registers as of the last exit.
    pub(crate) fn ymm_registers(&self) -> [[u64; 4]; 16] {
        let mut all = self.ymm.get();
        if self.upper.get() == 0 {
            for y in &mut all {
                y[2..].fill(0);
            }
        }
        all
    }

    /// Sets the YMM registers for the next entry.
    pub(crate) fn set_ymm_registers(&self, all: [[u64; 4]; 16]) {
        let used = all.iter().any(|y| y[2] | y[3] != 0);
        self.upper.set(u32::from(used));
        self.ymm.set(all);
    }

    /// Loads the status flags from an RFLAGS image.
    pub(crate) fn set_status(&self, rflags: u64) {
        self.status.set((rflags >> 11 & 1) | (rflags & 0xd5) << 8);
    }

    /// The status flags as bits of RFLAGS.
    pub(crate) fn status_flags(&self) -> u64 {
        let status = self.status.get();
        (status & 1) << 11 | status >> 8 & 0xd5
    }
}

const _: () = assert!(ORIGIN == 128 && offset_of!(Ctx, ymm) % 32 == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_flags_survive_the_packing() {
        let c = Ctx::new();
        for bits in 0..64u64 {
            let f = (bits & 1)
                | (bits >> 1 & 1) << 2
                | (bits >> 2 & 1) << 4
                | (bits >> 3 & 3) << 6
                | (bits >> 5 & 1) << 11;
            c.set_status(f | 0x202);
            assert_eq!(c.status_flags(), f);
        }
    }

    #[test]
    fn unused_upper_halves_read_as_zero() {
        let c = Ctx::new();
        let mut all = [[1, 2, 0, 0]; 16];
        c.set_ymm_registers(all);
        assert_eq!(c.upper.get(), 0);
        assert_eq!(c.ymm_registers(), all);
        // What an earlier exit left in the upper halves does not come back.
        c.ymm.set([[1, 2, 3, 4]; 16]);
        assert_eq!(c.ymm_registers(), all);
        all[15][3] = 5;
        c.set_ymm_registers(all);
        assert_ne!(c.upper.get(), 0);
        assert_eq!(c.ymm_registers(), all);
    }

    #[test]
    fn hot_fields_are_one_byte_away() {
        for d in [at!(site), at!(scratch), at!(sysflags), at!(status)] {
            assert!((-128..0).contains(&d));
        }
        assert_eq!(at!(gpr), 0);
    }
}
