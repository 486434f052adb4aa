//! What may be written to the control registers (SDM vol. 2, MOV-Move to/from Control Registers;
//! vol. 3, 2.5, 5.4.1, 11.8.5). Pure rules: a violation is #GP(0).

use crate::cpuid::{CpuModel, Feature as F, Vendor};
use crate::{Cr0, Cr4, Efer, Seg, X86State};

/// The CR4 bits that exist.
#[must_use]
pub fn cr4_supported(cpu: &CpuModel) -> Cr4 {
    let rows = [
        (F::Vme, Cr4::VME | Cr4::PVI),
        (F::Tsc, Cr4::TSD),
        (F::De, Cr4::DE),
        (F::Pse, Cr4::PSE),
        (F::Pae, Cr4::PAE),
        (F::Mce, Cr4::MCE),
        (F::Pge, Cr4::PGE),
        (F::Fxsr, Cr4::OSFXSR),
        (F::Sse, Cr4::OSXMMEXCPT),
        (F::Umip, Cr4::UMIP),
        (F::La57, Cr4::LA57),
        (F::Fsgsbase, Cr4::FSGSBASE),
        (F::Pcid, Cr4::PCIDE),
        (F::Xsave, Cr4::OSXSAVE),
        (F::Smep, Cr4::SMEP),
        (F::Smap, Cr4::SMAP),
        (F::Pku, Cr4::PKE),
    ];
    // RDPMC's bit exists wherever the instruction does, counters or not.
    let always = Cr4::PCE;
    rows.iter()
        .filter(|(f, _)| cpu.has(*f))
        .fold(always, |bits, (_, b)| bits | *b)
}

/// The IA32_EFER bits that exist.
#[must_use]
pub fn efer_supported(cpu: &CpuModel) -> Efer {
    let rows = [
        (F::Syscall, Efer::SCE),
        (F::Lm, Efer::LME | Efer::LMA),
        (F::Nx, Efer::NXE),
        (F::AutoIbrs, Efer::AIBRSE),
    ];
    rows.iter()
        .filter(|(f, _)| cpu.has(*f))
        .fold(Efer::empty(), |bits, (_, b)| bits | *b)
}

/// The value that MOV to CR0 of `value` gives, or `None` for #GP(0). EFER.LMA follows by
/// [`efer_after_cr0`]; PDPTEs are the caller's to load where [`reloads_pdptes`] says so.
#[must_use]
pub fn cr0_write(state: &X86State, value: u64) -> Option<Cr0> {
    if value >> 32 != 0 {
        return None;
    }
    // Reserved bits of the low half are ignored.
    let new = Cr0::from_bits_truncate(value) | Cr0::ET;
    let old = state.cr0;
    if new.contains(Cr0::PG) && !new.contains(Cr0::PE)
        || new.contains(Cr0::NW) && !new.contains(Cr0::CD)
    {
        return None;
    }
    let long_code = state.segment(Seg::Cs).long();
    if new.contains(Cr0::PG) && !old.contains(Cr0::PG) && state.efer.contains(Efer::LME) {
        // A 16-bit TSS cannot be in use in long mode (types 1 and 3).
        let tss16 = state.tr.attr & 0x1d == 1;
        if !state.cr4.contains(Cr4::PAE) || long_code || tss16 {
            return None;
        }
    }
    if old.contains(Cr0::PG) && !new.contains(Cr0::PG) {
        let code64 = state.efer.contains(Efer::LMA) && long_code;
        if code64 || state.cr4.contains(Cr4::PCIDE) {
            return None;
        }
    }
    Some(new)
}

/// EFER with LMA as CR0.PG and LME make it.
#[must_use]
pub fn efer_after_cr0(efer: Efer, cr0: Cr0) -> Efer {
    let mut efer = efer;
    efer.set(Efer::LMA, efer.contains(Efer::LME) && cr0.contains(Cr0::PG));
    efer
}

/// The value that MOV to CR4 of `value` gives, or `None` for #GP(0).
#[must_use]
pub fn cr4_write(state: &X86State, cpu: &CpuModel, value: u64) -> Option<Cr4> {
    let new = Cr4::from_bits(value)?;
    let old = state.cr4;
    let long = state.efer.contains(Efer::LMA);
    let pcide_on = new.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE);
    let bad = !cr4_supported(cpu).contains(new)
        || (long && !new.contains(Cr4::PAE))
        || (long && (new ^ old).contains(Cr4::LA57))
        || (pcide_on && (!long || state.cr3 & 0xfff != 0));
    (!bad).then_some(new)
}

/// What MOV to CR3 does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cr3Write {
    /// The new value.
    pub cr3: u64,
    /// Translations of the new PCID may be kept (bit 63 with CR4.PCIDE).
    pub keep: bool,
}

/// The effect of MOV to CR3 of `value`, or `None` for #GP(0). With PAE paging the caller loads the
/// PDPTEs, which may raise #GP(0) too.
#[must_use]
pub fn cr3_write(state: &X86State, cpu: &CpuModel, value: u64) -> Option<Cr3Write> {
    const KEEP: u64 = 1 << 63;
    let pcide = state.cr4.contains(Cr4::PCIDE);
    let cr3 = if pcide { value & !KEEP } else { value };
    if cr3 >> cpu.physical_bits() != 0 && state.efer.contains(Efer::LMA) {
        return None;
    }
    Some(Cr3Write {
        cr3,
        keep: pcide && value & KEEP != 0,
    })
}

/// Whether a write that leaves these registers behind loads the PDPTE registers (SDM vol. 3,
/// 5.4.1): PAE paging is in use afterwards and a bit changed that has to do with it.
#[must_use]
pub fn reloads_pdptes(old: (Cr0, Cr4), new: (Cr0, Cr4), efer: Efer) -> bool {
    let in_use = new.0.contains(Cr0::PG)
        && new.1.contains(Cr4::PAE)
        && !efer_after_cr0(efer, new.0).contains(Efer::LMA);
    let cr0 = Cr0::PG | Cr0::CD | Cr0::NW;
    let cr4 = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
    in_use && ((old.0 ^ new.0).intersects(cr0) || (old.1 ^ new.1).intersects(cr4))
}

/// Whether a write to CR0 or CR4 drops all cached translations, global ones too (SDM vol. 3,
/// 5.10.4.1).
#[must_use]
pub fn flushes_tlb(old: (Cr0, Cr4), new: (Cr0, Cr4)) -> bool {
    let cr0 = Cr0::PG | Cr0::WP;
    let cr4 =
        Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::LA57;
    (old.0 ^ new.0).intersects(cr0) || (old.1 ^ new.1).intersects(cr4)
}

/// The value that WRMSR of `value` to IA32_EFER gives, or `None` for #GP(0).
#[must_use]
pub fn efer_write(state: &X86State, cpu: &CpuModel, value: u64) -> Option<Efer> {
    let new = Efer::from_bits(value)?;
    if !efer_supported(cpu).contains(new) {
        return None;
    }
    let old = state.efer;
    if (new ^ old).contains(Efer::LME) && state.cr0.contains(Cr0::PG) {
        return None;
    }
    // LMA is the processor's own: what is written to it is ignored.
    Some((new - Efer::LMA) | (old & Efer::LMA))
}

/// Whether XSETBV of `value` to XCR0 is allowed (SDM vol. 1, 13.3).
#[must_use]
pub const fn xcr0_write(cpu: &CpuModel, value: u64) -> bool {
    use crate::cpuid::xcr0::{AVX, SSE, X87};
    let supported = value & !cpu.xcr0_supported() == 0;
    supported && value & X87 != 0 && (value & AVX == 0 || value & SSE != 0)
}

/// Whether an address is canonical for what MSRs, LGDT, LLDT and LTR take: by the widest linear
/// address of the CPU, whatever CR4.LA57 says now (SDM vol. 1, 3.3.7.1).
#[must_use]
pub const fn base_is_canonical(cpu: &CpuModel, address: u64) -> bool {
    crate::canonical::is_canonical(address, cpu.has(F::La57))
}

/// Whether SYSRET checks the return address before it changes privilege (Intel), or not at all
/// (AMD).
#[must_use]
pub const fn sysret_checks_canonical(vendor: Vendor) -> bool {
    matches!(vendor, Vendor::Intel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::tests::intel;

    fn long_mode() -> X86State {
        let mut s = X86State::reset(0);
        s.cr0 = Cr0::PE | Cr0::PG | Cr0::ET;
        s.cr4 = Cr4::PAE;
        s.efer = Efer::LME | Efer::LMA;
        s.seg[Seg::Cs as usize].attr = 0xa09b;
        s
    }

    #[test]
    fn cr0() {
        let mut s = X86State::reset(0);
        let pe = Cr0::PE.bits();
        let pg = Cr0::PG.bits();
        assert_eq!(cr0_write(&s, pe), Some(Cr0::PE | Cr0::ET));
        assert_eq!(cr0_write(&s, pg), None, "PG without PE");
        assert_eq!(cr0_write(&s, Cr0::NW.bits()), None, "NW without CD");
        assert_eq!(cr0_write(&s, pe | 1 << 32), None);
        assert_eq!(
            cr0_write(&s, pe | 1 << 28),
            Some(Cr0::PE | Cr0::ET),
            "ignored"
        );
        s.cr0 = Cr0::PE;
        s.efer = Efer::LME;
        assert_eq!(cr0_write(&s, pe | pg), None, "LME without PAE");
        s.cr4 = Cr4::PAE;
        assert!(cr0_write(&s, pe | pg).is_some());
        s.tr.attr = 0x83;
        assert_eq!(cr0_write(&s, pe | pg), None, "16-bit TSS");
        s.tr.attr = 0x8b;
        s.seg[Seg::Cs as usize].attr = 0xa09b;
        assert_eq!(cr0_write(&s, pe | pg), None, "CS.L");
        let mut s = long_mode();
        assert_eq!(cr0_write(&s, pe), None, "64-bit code turns paging off");
        s.seg[Seg::Cs as usize].attr = 0xc09b;
        assert!(cr0_write(&s, pe).is_some());
        s.cr4 |= Cr4::PCIDE;
        assert_eq!(cr0_write(&s, pe), None, "PCIDE");
    }

    #[test]
    fn cr4_and_cr3() {
        let cpu = intel("x86-64-v3,+la57");
        let mut s = long_mode();
        let pae = Cr4::PAE.bits();
        assert!(cr4_write(&s, &cpu, pae | Cr4::PCIDE.bits()).is_some());
        assert_eq!(cr4_write(&s, &cpu, 0), None, "PAE off in long mode");
        assert_eq!(cr4_write(&s, &cpu, pae | Cr4::LA57.bits()), None);
        assert_eq!(cr4_write(&s, &cpu, pae | Cr4::VMXE.bits()), None);
        assert_eq!(cr4_write(&s, &cpu, pae | Cr4::PKE.bits()), None, "no PKU");
        assert_eq!(cr4_write(&s, &cpu, pae | 1 << 30), None);
        s.cr3 = 0x1001;
        assert_eq!(
            cr4_write(&s, &cpu, pae | Cr4::PCIDE.bits()),
            None,
            "CR3[11:0]"
        );
        assert_eq!(cr3_write(&s, &cpu, 1 << 63), None);
        assert_eq!(cr3_write(&s, &cpu, 1 << 46), None);
        s.cr4 |= Cr4::PCIDE;
        let keep = Cr3Write {
            cr3: 0x2005,
            keep: true,
        };
        assert_eq!(cr3_write(&s, &cpu, 1 << 63 | 0x2005), Some(keep));
        let legacy = X86State::reset(0);
        assert_eq!(cr4_write(&legacy, &cpu, Cr4::PCIDE.bits()), None);
        assert!(cr4_write(&legacy, &cpu, Cr4::LA57.bits()).is_some());
    }

    #[test]
    fn efer_and_xcr0() {
        let cpu = intel("x86-64-v3");
        let s = long_mode();
        let sce = Efer::SCE.bits();
        assert_eq!(efer_write(&s, &cpu, sce), None, "LME while paging");
        let lme = Efer::LME.bits();
        assert_eq!(
            efer_write(&s, &cpu, sce | lme),
            Some(Efer::SCE | Efer::LME | Efer::LMA)
        );
        assert_eq!(efer_write(&s, &cpu, lme | Efer::SVME.bits()), None);
        let off = X86State::reset(0);
        let lma = Efer::LMA.bits();
        assert_eq!(
            efer_write(&off, &cpu, lma),
            Some(Efer::empty()),
            "LMA is ignored"
        );
        for (value, ok) in [
            (1, true),
            (3, true),
            (7, true),
            (0, false),
            (2, false),
            (5, false),
            (0xf, false),
            (1 << 9 | 3, false),
        ] {
            assert_eq!(xcr0_write(&cpu, value), ok, "{value:#x}");
        }
        assert!(xcr0_write(&intel("x86-64-v3,+pku"), 1 << 9 | 3));
    }

    #[test]
    fn pdptes_are_reloaded_with_pae_paging_only() {
        let paging = Cr0::PE | Cr0::PG;
        let both = |a: (Cr0, Cr4), b| reloads_pdptes(a, b, Efer::empty());
        assert!(both((Cr0::PE, Cr4::PAE), (paging, Cr4::PAE)));
        assert!(both((paging, Cr4::PAE), (paging, Cr4::PAE | Cr4::PGE)));
        assert!(!both((paging, Cr4::PAE), (paging, Cr4::PAE | Cr4::UMIP)));
        assert!(!both((paging, Cr4::empty()), (paging, Cr4::PGE)));
        assert!(!reloads_pdptes(
            (Cr0::PE, Cr4::PAE),
            (paging, Cr4::PAE),
            Efer::LME
        ));
    }
}
