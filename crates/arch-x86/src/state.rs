//! The canonical architectural state of one x86 CPU.
//!
//! Every engine can load a vCPU from an [`X86State`] and give one back at any instruction
//! boundary; snapshots, migration, engine switches and lockstep comparison all use this type.

mod check;
mod diff;

pub use check::StateError;
pub use diff::{Difference, diff};

use crate::{Cr0, Cr4, Efer, Exception, RFlags};
use serde::{Deserialize, Serialize};

/// Index of a general-purpose register, in encoding order (SDM vol. 2, table 2-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "register names")]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

/// Index of a segment register, in encoding order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "register names")]
pub enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// A segment register with its hidden part (SDM vol. 3, 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied (the last valid offset of an expand-up segment).
    pub limit: u32,
    /// Access rights as in bits 8 to 23 of the descriptor's high dword, shifted down by 8:
    /// type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15. Bit 16 set: the segment is
    /// unusable (null selector).
    pub attr: u32,
}

impl Segment {
    /// Bit of [`Segment::attr`] that marks a segment loaded with a null selector.
    pub const UNUSABLE: u32 = 1 << 16;

    /// SS holding a null selector in 64-bit mode at CPL `cpl`.
    #[must_use]
    pub const fn null_stack(selector: u16, cpl: u8) -> Self {
        Self {
            selector,
            base: 0,
            limit: u32::MAX,
            attr: Self::UNUSABLE | (cpl as u32) << 5,
        }
    }

    /// A real-mode segment: base = selector * 16, 64 KB, writable data or code.
    #[must_use]
    pub const fn real_mode(selector: u16) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attr: 0x93,
        }
    }

    /// Descriptor privilege level, 0 to 3.
    #[inline]
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        ((self.attr >> 5) & 3) as u8
    }

    /// The D/B bit: 32-bit default size.
    #[inline]
    #[must_use]
    pub const fn db(&self) -> bool {
        self.attr & (1 << 14) != 0
    }

    /// The L bit: 64-bit code.
    #[inline]
    #[must_use]
    pub const fn long(&self) -> bool {
        self.attr & (1 << 13) != 0
    }

    /// The segment was loaded with a null selector.
    #[inline]
    #[must_use]
    pub const fn unusable(&self) -> bool {
        self.attr & Self::UNUSABLE != 0
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (last valid offset).
    pub limit: u16,
}

/// What the CPU is doing between instructions (SDM vol. 3, 9.4 and 26.6.2's activity state).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// In HLT (or MWAIT), until an interrupt.
    Halted,
    /// An application processor waiting for a SIPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// x87, SSE and AVX registers plus their control words (SDM vol. 1, chapters 8, 10, 13, 14).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpState {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word; TOP in bits 11 to 13.
    pub fsw: u16,
    /// Abridged tag byte as FXSAVE stores it: bit n set when *physical* register n is not empty.
    pub ftw: u8,
    /// Last x87 opcode (11 bits).
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Last x87 data pointer.
    pub fdp: u64,
    /// Selector of the last x87 instruction (16/32-bit formats).
    pub fcs: u16,
    /// Selector of the last x87 operand (16/32-bit formats).
    pub fds: u16,
    /// ST(0) to ST(7) as FXSAVE orders them (relative to TOP), 10 bytes each in the low bits.
    pub st: [u128; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// YMM0 to YMM15, little-endian quadwords; XMM in elements 0 and 1.
    pub ymm: [[u64; 4]; 16],
}

impl Default for FpState {
    /// The state after power-up and INIT's FNINIT-like values (SDM vol. 3, table 11-1).
    fn default() -> Self {
        Self {
            fcw: 0x0040,
            fsw: 0,
            ftw: 0xff,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
            st: [0; 8],
            mxcsr: 0x1f80,
            ymm: [[0; 4]; 16],
        }
    }
}

/// MSRs that the engine itself owns. Those of the local APIC and of the clock belong to the
/// machine and are reached through `CpuIo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u32,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
    pub mtrr_var: [(u64, u64); 8],
    /// The eleven fixed-range MTRRs, in MSR order (250h, 258h, 259h, 268h to 26Fh).
    pub mtrr_fixed: [u64; 11],
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_MCG_STATUS and machine-check banks' status, control pairs are not modelled.
    pub mcg_status: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            mtrr_def_type: 0,
            mtrr_var: [(0, 0); 8],
            mtrr_fixed: [0; 11],
            misc_enable: 1,
            debugctl: 0,
            spec_ctrl: 0,
            tsc_adjust: 0,
            xss: 0,
            mcg_status: 0,
        }
    }
}

/// Everything a guest can observe of one CPU, save the local APIC (a device of its own).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct X86State {
    /// General-purpose registers, indexed by [`Gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer: of the next instruction to execute.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: RFlags,
    /// ES, CS, SS, DS, FS, GS, indexed by [`Seg`].
    pub seg: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// Current privilege level, 0 to 3 (3 in virtual-8086 mode).
    pub cpl: u8,
    /// CR0.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3, PCID in the low 12 bits when CR4.PCIDE is set.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// XCR0.
    pub xcr0: u64,
    /// PKRU.
    pub pkru: u32,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// The PDPTE registers of PAE paging, loaded with CR3 (SDM vol. 3, 5.4.1).
    pub pdptr: [u64; 4],
    /// x87, SSE, AVX.
    pub fp: FpState,
    /// Engine-owned MSRs.
    pub msr: Msrs,
    /// Running, halted, waiting for a SIPI, or shut down.
    pub activity: Activity,
    /// One-instruction interrupt shadow after STI.
    pub sti_shadow: bool,
    /// One-instruction interrupt and debug-trap shadow after MOV SS or POP SS.
    pub mov_ss_shadow: bool,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: bool,
    /// A latched NMI.
    pub nmi_pending: bool,
    /// An exception that was raised but not yet delivered (a snapshot between the two).
    pub pending_exception: Option<Exception>,
    /// Address range armed by MONITOR (linear-to-physical base), if any.
    pub monitor: Option<u64>,
}

impl X86State {
    /// The state after RESET (SDM vol. 3, table 11-1). `edx` is CPUID.1:EAX (the signature).
    #[must_use]
    pub fn reset(edx: u32) -> Self {
        let mut seg = [Segment::real_mode(0); 6];
        seg[Seg::Cs as usize] = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            attr: 0x9b,
        };
        let mut gpr = [0; 16];
        gpr[Gpr::Rdx as usize] = u64::from(edx);
        Self {
            gpr,
            rip: 0xfff0,
            rflags: RFlags::FIXED1,
            seg,
            ldtr: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                attr: 0x82,
            },
            tr: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                attr: 0x8b,
            },
            gdtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            idtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            cpl: 0,
            cr0: Cr0::CD | Cr0::NW | Cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            xcr0: 1,
            pkru: 0,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            pdptr: [0; 4],
            fp: FpState::default(),
            msr: Msrs::default(),
            activity: Activity::Running,
            sti_shadow: false,
            mov_ss_shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            pending_exception: None,
            monitor: None,
        }
    }

    /// The state after INIT (SDM vol. 3, table 11-1): x87, SSE and AVX registers, XCR0, PKRU, MSRs
    /// and CR0.CD and CR0.NW are kept, the rest is as after RESET. `edx` is CPUID.1:EAX. What the
    /// CPU does next (run, or wait for a SIPI) is the caller's to say.
    #[must_use]
    pub fn init(&self, edx: u32) -> Self {
        let kept = Cr0::CD | Cr0::NW;
        let reset = Self::reset(edx);
        Self {
            cr0: (reset.cr0 - kept) | (self.cr0 & kept),
            fp: self.fp.clone(),
            msr: self.msr.clone(),
            xcr0: self.xcr0,
            pkru: self.pkru,
            ..reset
        }
    }

    /// A general-purpose register.
    #[inline]
    #[must_use]
    pub const fn reg(&self, r: Gpr) -> u64 {
        self.gpr[r as usize]
    }

    /// A segment register.
    #[inline]
    #[must_use]
    pub const fn segment(&self, s: Seg) -> &Segment {
        &self.seg[s as usize]
    }

    /// Long mode is active (64-bit or compatibility).
    #[inline]
    #[must_use]
    pub fn long_mode(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }

    /// Executing 64-bit code.
    #[inline]
    #[must_use]
    pub fn code64(&self) -> bool {
        self.long_mode() && self.segment(Seg::Cs).long()
    }
}
