//! Reads and writes of the engine's own registers.

use super::{index as i, memory_types};
use crate::control;
use crate::cpuid::{CpuModel, Feature as F, Vendor};
use crate::{Seg, X86State};

/// Who answers for an MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// [`read`] and [`write`] of this module.
    Engine,
    /// The time-stamp counter: `CpuIo::tsc` plus IA32_TSC_ADJUST.
    Tsc,
    /// The machine, through `CpuIo`; it also refuses what nobody knows.
    Machine,
}

/// Who answers for `msr`.
#[must_use]
pub const fn owner(cpu: &CpuModel, msr: u32) -> Owner {
    match msr {
        i::IA32_TSC if cpu.has(F::Tsc) => Owner::Tsc,
        i::IA32_APIC_BASE | i::IA32_TSC_DEADLINE | i::X2APIC_FIRST..=i::X2APIC_LAST => {
            Owner::Machine
        }
        i::KVM_FIRST..=i::KVM_LAST if cpu.has(F::Hypervisor) => Owner::Machine,
        _ => Owner::Engine,
    }
}

/// IA32_MISC_ENABLE: branch trace and precise event sampling are unavailable.
const MISC_FIXED: u64 = 1 << 11 | 1 << 12;
const MISC_MONITOR: u64 = 1 << 18;
/// The only bit of IA32_MISC_ENABLE that can be changed: fast strings.
const MISC_WRITABLE: u64 = 1;
/// IA32_DEBUGCTL: LBR (ignored) and BTF.
const DEBUGCTL_LBR: u64 = 1;
const DEBUGCTL_BTF: u64 = 2;

/// AMD's configuration registers that kernels look at: (number, fixed value); writes are ignored.
const AMD_FIXED: &[(u32, u64)] = &[
    (i::AMD_SYSCFG, 0),
    // TscFreqSel: the TSC counts at the P0 frequency.
    (i::AMD_HWCR, 1 << 24),
    (i::AMD_NB_CFG, 0),
    (i::AMD_LS_CFG, 0),
    (i::AMD_IC_CFG, 0),
    (i::AMD_DC_CFG, 0),
    // LFENCE serializes.
    (i::AMD_DE_CFG, 2),
    (i::AMD_BU_CFG2, 0),
];

fn amd_fixed(cpu: &CpuModel, msr: u32) -> Option<u64> {
    let row = AMD_FIXED.iter().find(|(n, _)| *n == msr);
    row.filter(|_| cpu.vendor() == Vendor::Amd).map(|(_, v)| *v)
}

/// Whether a register exists by the features it belongs to.
fn exists(cpu: &CpuModel, msr: u32) -> bool {
    let intel = cpu.vendor() == Vendor::Intel;
    match msr {
        i::IA32_PLATFORM_ID | i::IA32_BIOS_UPDT_TRIG | i::IA32_MISC_ENABLE => intel,
        i::IA32_TSC_ADJUST => cpu.has(F::TscAdjust),
        i::IA32_SPEC_CTRL => spec_ctrl_bits(cpu) != 0,
        i::IA32_PRED_CMD => cpu.has(F::SpecCtrl) || cpu.has(F::AmdIbpb),
        i::IA32_MTRRCAP => cpu.has(F::Mtrr),
        msr if memory_types::is_mtrr(msr) => cpu.has(F::Mtrr),
        i::IA32_PAT => cpu.has(F::Pat),
        i::IA32_ARCH_CAPABILITIES => cpu.has(F::ArchCapabilities),
        i::IA32_SYSENTER_CS | i::IA32_SYSENTER_ESP | i::IA32_SYSENTER_EIP => cpu.has(F::Sep),
        i::IA32_MCG_CAP | i::IA32_MCG_STATUS => cpu.has(F::Mca),
        i::IA32_EFER => cpu.has(F::Lm) || cpu.has(F::Nx) || cpu.has(F::Syscall),
        i::IA32_STAR => cpu.has(F::Syscall),
        i::IA32_LSTAR | i::IA32_CSTAR | i::IA32_FMASK => cpu.has(F::Syscall) && cpu.has(F::Lm),
        i::IA32_FS_BASE | i::IA32_GS_BASE | i::IA32_KERNEL_GS_BASE => cpu.has(F::Lm),
        i::IA32_TSC_AUX => cpu.has(F::Rdtscp),
        i::IA32_BIOS_SIGN_ID | i::IA32_DEBUGCTL => true,
        _ => amd_fixed(cpu, msr).is_some(),
    }
}

/// The bits of IA32_SPEC_CTRL that exist.
fn spec_ctrl_bits(cpu: &CpuModel) -> u64 {
    let ibrs = cpu.has(F::SpecCtrl) || cpu.has(F::AmdIbrs);
    let stibp = cpu.has(F::IntelStibp) || cpu.has(F::AmdStibp);
    let bhi = cpu.has(F::BhiCtrl);
    u64::from(ibrs) | u64::from(stibp) << 1 | u64::from(bhi) << 10
}

/// RDMSR of a register of the engine's; `None`: #GP(0).
#[must_use]
pub fn read(state: &X86State, cpu: &CpuModel, msr: u32) -> Option<u64> {
    if !exists(cpu, msr) {
        return None;
    }
    let m = &state.msr;
    Some(match msr {
        i::IA32_PLATFORM_ID | i::IA32_MCG_CAP => 0,
        i::IA32_TSC_ADJUST => m.tsc_adjust,
        i::IA32_SPEC_CTRL => m.spec_ctrl,
        i::IA32_PRED_CMD | i::IA32_BIOS_UPDT_TRIG => return None,
        // A microcode revision, in the half where each vendor keeps it.
        i::IA32_BIOS_SIGN_ID => match cpu.vendor() {
            Vendor::Intel => 1 << 32,
            Vendor::Amd => 0x0a10_1148,
        },
        i::IA32_MTRRCAP => memory_types::CAP,
        i::IA32_ARCH_CAPABILITIES => cpu.arch_capabilities(),
        i::IA32_SYSENTER_CS => m.sysenter_cs,
        i::IA32_SYSENTER_ESP => m.sysenter_esp,
        i::IA32_SYSENTER_EIP => m.sysenter_eip,
        i::IA32_MCG_STATUS => m.mcg_status,
        i::IA32_MISC_ENABLE => misc_enable(state, cpu),
        i::IA32_DEBUGCTL => m.debugctl,
        i::IA32_PAT => m.pat,
        i::IA32_EFER => state.efer.bits(),
        i::IA32_STAR => m.star,
        i::IA32_LSTAR => m.lstar,
        i::IA32_CSTAR => m.cstar,
        i::IA32_FMASK => m.fmask,
        i::IA32_FS_BASE => state.segment(Seg::Fs).base,
        i::IA32_GS_BASE => state.segment(Seg::Gs).base,
        i::IA32_KERNEL_GS_BASE => m.kernel_gs_base,
        i::IA32_TSC_AUX => u64::from(m.tsc_aux),
        _ => match amd_fixed(cpu, msr) {
            Some(fixed) => fixed,
            None => memory_types::read(m, msr)?,
        },
    })
}

fn misc_enable(state: &X86State, cpu: &CpuModel) -> u64 {
    let monitor = if cpu.has(F::Monitor) { MISC_MONITOR } else { 0 };
    state.msr.misc_enable & MISC_WRITABLE | MISC_FIXED | monitor
}

/// WRMSR of a register of the engine's; `None`: #GP(0), and nothing has changed.
///
/// After a write to IA32_EFER, FS and GS bases the caller refreshes what it derives from them.
#[must_use]
pub fn write(state: &mut X86State, cpu: &CpuModel, msr: u32, value: u64) -> Option<()> {
    if !exists(cpu, msr) {
        return None;
    }
    let intel = cpu.vendor() == Vendor::Intel;
    let canonical = || control::base_is_canonical(cpu, value).then_some(value);
    // SYSENTER's registers: 64 bits that must be canonical with Intel, 32 bits with AMD.
    let sysenter = || {
        if intel {
            canonical()
        } else {
            Some(value & 0xffff_ffff)
        }
    };
    let low = |bits: u64| (value & !bits == 0).then_some(value);
    match msr {
        i::IA32_TSC_ADJUST => state.msr.tsc_adjust = value,
        i::IA32_SPEC_CTRL => state.msr.spec_ctrl = low(spec_ctrl_bits(cpu))?,
        // IBPB: nothing is predicted across a barrier, because nothing is predicted.
        i::IA32_PRED_CMD => drop(low(1)?),
        // No update is loaded, so the revision stays.
        i::IA32_BIOS_UPDT_TRIG => {}
        i::IA32_BIOS_SIGN_ID if intel => {}
        i::IA32_SYSENTER_CS => state.msr.sysenter_cs = value & 0xffff_ffff,
        i::IA32_SYSENTER_ESP => state.msr.sysenter_esp = sysenter()?,
        i::IA32_SYSENTER_EIP => state.msr.sysenter_eip = sysenter()?,
        i::IA32_MCG_STATUS => state.msr.mcg_status = low(7)?,
        i::IA32_MISC_ENABLE => {
            if (value ^ misc_enable(state, cpu)) & !MISC_WRITABLE != 0 {
                return None;
            }
            state.msr.misc_enable = value & MISC_WRITABLE;
        }
        i::IA32_DEBUGCTL => {
            state.msr.debugctl = low(DEBUGCTL_LBR | DEBUGCTL_BTF)? & DEBUGCTL_BTF;
        }
        i::IA32_PAT => {
            state.msr.pat = memory_types::pat_is_valid(value).then_some(value)?;
        }
        i::IA32_EFER => state.efer = control::efer_write(state, cpu, value)?,
        i::IA32_STAR => state.msr.star = value,
        i::IA32_LSTAR => state.msr.lstar = canonical()?,
        i::IA32_CSTAR => state.msr.cstar = canonical()?,
        i::IA32_FMASK => state.msr.fmask = low(0xffff_ffff)?,
        i::IA32_FS_BASE => state.seg[Seg::Fs as usize].base = canonical()?,
        i::IA32_GS_BASE => state.seg[Seg::Gs as usize].base = canonical()?,
        i::IA32_KERNEL_GS_BASE => state.msr.kernel_gs_base = canonical()?,
        // AMD ignores the upper half.
        i::IA32_TSC_AUX if intel => state.msr.tsc_aux = low(0xffff_ffff)? as u32,
        i::IA32_TSC_AUX => state.msr.tsc_aux = value as u32,
        _ if memory_types::is_mtrr(msr) => {
            memory_types::write(&mut state.msr, msr, value, cpu.physical_bits())?;
        }
        _ => drop(amd_fixed(cpu, msr)?),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Efer;
    use crate::cpuid::tests::{amd, intel};

    /// Writes, and gives what can be read afterwards; `None` for #GP.
    fn wr(cpu: &CpuModel, msr: u32, value: u64) -> Option<u64> {
        let mut state = X86State::reset(0);
        let before = state.clone();
        let done = write(&mut state, cpu, msr, value);
        assert!(
            done.is_some() || state == before,
            "a refused write changes nothing"
        );
        done.and_then(|()| read(&state, cpu, msr))
    }

    #[test]
    fn canonical_addresses() {
        let (v3, la57, amd) = (
            intel("x86-64-v3"),
            intel("x86-64-v3,+la57"),
            amd("x86-64-v3"),
        );
        let bad = 1 << 47;
        for msr in [
            i::IA32_LSTAR,
            i::IA32_CSTAR,
            i::IA32_FS_BASE,
            i::IA32_GS_BASE,
            i::IA32_KERNEL_GS_BASE,
            i::IA32_SYSENTER_ESP,
            i::IA32_SYSENTER_EIP,
        ] {
            assert_eq!(wr(&v3, msr, bad), None, "{msr:#x}");
            assert_eq!(wr(&la57, msr, bad), Some(bad), "{msr:#x}");
            assert_eq!(wr(&v3, msr, !0xfff), Some(!0xfff), "{msr:#x}");
        }
        assert_eq!(wr(&amd, i::IA32_SYSENTER_EIP, 1 << 47 | 5), Some(5));
        assert_eq!(wr(&amd, i::IA32_LSTAR, bad), None);
    }

    #[test]
    fn reserved_bits() {
        let cpu = intel("x86-64-v3");
        for (msr, good, bad) in [
            (i::IA32_FMASK, 0xffff_ffff, 1 << 32),
            (i::IA32_TSC_AUX, 0xffff_ffff, 1 << 32),
            (i::IA32_SPEC_CTRL, 0x403, 4),
            (i::IA32_PAT, 0x0706_0504_0100_0706, 2),
            (i::IA32_PAT, 0, 0x0300_0000_0000_0000),
            (i::IA32_MTRR_DEF_TYPE, 0xc06, 0x1006),
            (i::IA32_MTRR_PHYSBASE0, 0x8000_0006, 0x8000_0002),
            (i::IA32_MTRR_PHYSMASK7, 0x3fff_8000_0800, 1 << 46),
            (i::IA32_MTRR_FIX4K_F8000, 0x0606_0606_0606_0606, 7),
            (i::IA32_MISC_ENABLE, 0x1800, 1 << 34 | 0x1801),
            (i::IA32_EFER, 0x901, 1 << 12),
            (i::IA32_MCG_STATUS, 7, 8),
            (i::IA32_DEBUGCTL, 2, 4),
        ] {
            assert_eq!(wr(&cpu, msr, good), Some(good), "{msr:#x}");
            assert_eq!(wr(&cpu, msr, bad), None, "{msr:#x}");
        }
        assert_eq!(wr(&amd("x86-64-v3"), i::IA32_TSC_AUX, 1 << 32 | 7), Some(7));
        assert_eq!(wr(&cpu, i::IA32_SYSENTER_CS, 1 << 32 | 8), Some(8));
    }

    #[test]
    fn what_exists() {
        let (intel, amd) = (intel("x86-64-v3"), amd("x86-64-v3"));
        let s = X86State::reset(0);
        for msr in [
            i::IA32_MTRRCAP,
            i::IA32_MCG_CAP,
            i::IA32_ARCH_CAPABILITIES,
            i::IA32_PLATFORM_ID,
        ] {
            assert!(read(&s, &intel, msr).is_some(), "{msr:#x}");
            assert_eq!(wr(&intel, msr, 0), None, "{msr:#x} is read-only");
        }
        assert_eq!(read(&s, &intel, i::AMD_HWCR), None);
        assert_eq!(read(&s, &amd, i::AMD_HWCR), Some(1 << 24));
        assert_eq!(wr(&amd, i::AMD_DE_CFG, 0), Some(2));
        assert_eq!(read(&s, &amd, i::IA32_ARCH_CAPABILITIES), None);
        assert_eq!(read(&s, &intel, i::IA32_PRED_CMD), None);
        let mut t = s.clone();
        assert_eq!(write(&mut t, &intel, i::IA32_PRED_CMD, 1), Some(()));
        assert_eq!(write(&mut t, &intel, i::IA32_PRED_CMD, 2), None);
        for msr in [0, 0x3a, 0xc1, 0x186, i::IA32_XSS, 0x480, 0x2fe, u32::MAX] {
            assert_eq!(read(&s, &intel, msr), None, "{msr:#x}");
            assert_eq!(write(&mut t, &intel, msr, 0), None, "{msr:#x}");
        }
    }

    #[test]
    fn efer_and_owners() {
        let cpu = intel("x86-64-v3");
        let mut s = X86State::reset(0);
        assert_eq!(write(&mut s, &cpu, i::IA32_EFER, 0x0d01), Some(()));
        assert_eq!(s.efer, Efer::SCE | Efer::LME | Efer::NXE);
        assert_eq!(owner(&cpu, i::IA32_TSC), Owner::Tsc);
        assert_eq!(owner(&cpu, i::IA32_APIC_BASE), Owner::Machine);
        assert_eq!(owner(&cpu, 0x830), Owner::Machine);
        assert_eq!(owner(&cpu, 0x4b56_4d01), Owner::Machine);
        assert_eq!(
            owner(&intel("host,-hypervisor"), 0x4b56_4d01),
            Owner::Engine
        );
        assert_eq!(owner(&cpu, i::IA32_EFER), Owner::Engine);
    }
}
