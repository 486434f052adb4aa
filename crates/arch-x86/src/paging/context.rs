//! The registers that decide how a walk goes.

use crate::cpuid::{CpuModel, Feature, Vendor};
use crate::{Cr0, Cr4, Efer, X86State};

/// Which paging structure is in use (SDM vol. 3, 5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses are physical.
    None,
    /// 32-bit paging: two levels of 4-byte entries.
    Bits32,
    /// PAE paging: PDPTE registers, then two levels of 8-byte entries.
    Pae,
    /// 4-level paging (long mode).
    Level4,
    /// 5-level paging (long mode with CR4.LA57).
    Level5,
}

impl PagingMode {
    /// The mode that the control registers select.
    #[inline]
    #[must_use]
    pub fn of(cr0: Cr0, cr4: Cr4, efer: Efer) -> Self {
        if !cr0.contains(Cr0::PG) {
            Self::None
        } else if !cr4.contains(Cr4::PAE) {
            Self::Bits32
        } else if !efer.contains(Efer::LMA) {
            Self::Pae
        } else if cr4.contains(Cr4::LA57) {
            Self::Level5
        } else {
            Self::Level4
        }
    }
}

/// Everything but memory that a walk depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagingContext {
    /// Which paging structure is in use.
    pub mode: PagingMode,
    /// CR3.
    pub cr3: u64,
    /// The PDPTE registers (PAE paging only).
    pub pdptr: [u64; 4],
    /// Bits of an 8-byte entry at or above the model's MAXPHYADDR, up to bit 51.
    pub high_reserved: u64,
    /// Bits of a 4 MB page's directory entry that are reserved (SDM vol. 3, table 5-4).
    pub pse_reserved: u32,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// IA32_EFER.NXE (with CR4.PAE, without which it has no effect).
    pub nxe: bool,
    /// CR4.PKE in a mode that has protection keys.
    pub pke: bool,
    /// PKRU.
    pub pkru: u32,
    /// 1 GB pages exist.
    pub gbpages: bool,
    /// Bit 8 of PML4 and PML5 entries is reserved (AMD; APM vol. 2, 5.3.3).
    pub top_bit8_reserved: bool,
}

impl PagingContext {
    /// The context of a CPU of model `cpu` in `state`.
    #[must_use]
    pub fn new(state: &X86State, cpu: &CpuModel) -> Self {
        let mut context = Self::from_registers(cpu, state.cr0, state.cr3, state.cr4, state.efer);
        context.pdptr = state.pdptr;
        context.pkru = state.pkru;
        context
    }

    /// The context that these control registers give; PDPTE registers and PKRU are zero.
    #[must_use]
    pub fn from_registers(cpu: &CpuModel, cr0: Cr0, cr3: u64, cr4: Cr4, efer: Efer) -> Self {
        let mode = PagingMode::of(cr0, cr4, efer);
        let width = cpu.physical_bits().clamp(32, 52);
        Self {
            mode,
            cr3,
            pdptr: [0; 4],
            high_reserved: high_reserved(width),
            pse_reserved: pse_reserved(width, cpu.has(Feature::Pse36)),
            wp: cr0.contains(Cr0::WP),
            pse: cr4.contains(Cr4::PSE),
            pge: cr4.contains(Cr4::PGE),
            smep: cr4.contains(Cr4::SMEP),
            smap: cr4.contains(Cr4::SMAP),
            nxe: efer.contains(Efer::NXE) && cr4.contains(Cr4::PAE),
            pke: cr4.contains(Cr4::PKE) && matches!(mode, PagingMode::Level4 | PagingMode::Level5),
            pkru: 0,
            gbpages: cpu.has(Feature::Pdpe1gb),
            top_bit8_reserved: cpu.vendor() == Vendor::Amd,
        }
    }
}

/// Address bits `width` to 51 (zero when `width` is 52).
pub(super) const fn high_reserved(width: u32) -> u64 {
    ((1 << 52) - 1) & !((1 << width) - 1)
}

/// Reserved bits of a 4 MB page's entry: bit 21, and those of bits 20:13 (address bits 39:32) that
/// lie above min(40, MAXPHYADDR); all of 21:13 without PSE-36.
pub(super) const fn pse_reserved(width: u32, pse36: bool) -> u32 {
    const ALL: u32 = 0x003f_e000;
    let width = if width > 40 { 40 } else { width };
    if pse36 {
        ALL & !(((1 << (width - 32)) - 1) << 13)
    } else {
        ALL
    }
}
