//! Whether a state can exist: for snapshots, which are untrusted.

use super::{Seg, Segment, X86State};
use crate::canonical::is_canonical;
use crate::cpuid::{CpuModel, Feature};
use crate::msr::{self, index as i};
use crate::{Cr0, Cr4, Efer, RFlags, control};

/// A state that no CPU of the model can be in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the saved CPU state is damaged or from another CPU model: {field} = {value:#x}")]
pub struct StateError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
}

/// `Ok` where `ok`, else the error for `field`.
fn expect(ok: bool, field: &'static str, value: u64) -> Result<(), StateError> {
    if ok {
        Ok(())
    } else {
        Err(StateError { field, value })
    }
}

impl X86State {
    /// Checks a state that comes from outside (a snapshot, a migration stream) before a CPU of model
    /// `cpu` is loaded with it.
    ///
    /// # Errors
    /// The first field that cannot be so.
    pub fn validate(&self, cpu: &CpuModel) -> Result<(), StateError> {
        self.validate_control(cpu)?;
        self.validate_flags()?;
        self.validate_segments(cpu)?;
        self.validate_float(cpu)?;
        self.validate_debug()?;
        self.validate_msrs(cpu)
    }

    fn validate_control(&self, cpu: &CpuModel) -> Result<(), StateError> {
        let (cr0, cr4, efer) = (self.cr0, self.cr4, self.efer);
        let paging = cr0.contains(Cr0::PG);
        let long = efer.contains(Efer::LMA);
        let cr0_ok = Cr0::from_bits(cr0.bits()).is_some()
            && cr0.contains(Cr0::ET)
            && (!paging || cr0.contains(Cr0::PE))
            && (!cr0.contains(Cr0::NW) || cr0.contains(Cr0::CD));
        expect(cr0_ok, "cr0", cr0.bits())?;
        let cr4_ok = control::cr4_supported(cpu).contains(cr4)
            && Cr4::from_bits(cr4.bits()).is_some()
            && (!long || cr4.contains(Cr4::PAE))
            && (long || !cr4.contains(Cr4::PCIDE));
        expect(cr4_ok, "cr4", cr4.bits())?;
        let efer_ok = control::efer_supported(cpu).contains(efer)
            && Efer::from_bits(efer.bits()).is_some()
            && long == (paging && efer.contains(Efer::LME));
        expect(efer_ok, "efer", efer.bits())?;
        expect(self.cr3 >> cpu.physical_bits() == 0, "cr3", self.cr3)?;
        let xcr0_ok = match cpu.xcr0_supported() {
            0 => self.xcr0 <= 1,
            _ => control::xcr0_write(cpu, self.xcr0),
        };
        expect(xcr0_ok, "xcr0", self.xcr0)?;
        let key = cpu.has(Feature::Pku) || self.pkru == 0;
        expect(key, "pkru", self.pkru.into())?;
        if paging && cr4.contains(Cr4::PAE) && !long {
            let reserved = 0x1e6 | u64::MAX << cpu.physical_bits();
            for entry in self.pdptr {
                expect(entry & 1 == 0 || entry & reserved == 0, "pdptr", entry)?;
            }
        }
        Ok(())
    }

    fn validate_flags(&self) -> Result<(), StateError> {
        let f = self.rflags;
        let known = RFlags::from_bits(f.bits()).is_some() && f.contains(RFlags::FIXED1);
        let v86 = f.contains(RFlags::VM);
        let protected = self.cr0.contains(Cr0::PE);
        let v86_ok = !v86 || (protected && !self.long_mode() && self.cpl == 3);
        expect(known && v86_ok, "rflags", f.bits())?;
        let cpl = self.cpl;
        expect(cpl <= 3 && (protected || cpl == 0), "cpl", cpl.into())
    }

    fn validate_segments(&self, cpu: &CpuModel) -> Result<(), StateError> {
        let attr = |s: &Segment| s.attr & !(0xf0ff | Segment::UNUSABLE) == 0;
        let wide = |a: u64| is_canonical(a, cpu.has(Feature::La57));
        for s in self.seg.iter().chain([&self.ldtr, &self.tr]) {
            expect(attr(s), "segment attributes", s.attr.into())?;
            expect(wide(s.base), "segment base", s.base)?;
        }
        for n in [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds] {
            let base = self.segment(n).base;
            expect(base >> 32 == 0, "segment base", base)?;
        }
        let cs = self.segment(Seg::Cs);
        let cs_ok = !(cs.unusable() || self.long_mode() && cs.long() && cs.db());
        expect(cs_ok, "cs attributes", cs.attr.into())?;
        for table in [self.gdtr, self.idtr] {
            expect(wide(table.base), "descriptor table base", table.base)?;
        }
        // A branch to a non-canonical address faults before it; running on into one does not.
        let rip = self.code64() || self.rip >> 32 == 0;
        expect(rip, "rip", self.rip)
    }

    fn validate_float(&self, cpu: &CpuModel) -> Result<(), StateError> {
        let fp = &self.fp;
        expect(fp.mxcsr & !0xffff == 0, "mxcsr", fp.mxcsr.into())?;
        expect(fp.fop <= 0x7ff, "fop", fp.fop.into())?;
        for st in fp.st {
            expect(st >> 80 == 0, "st", (st >> 80) as u64)?;
        }
        if !cpu.has(Feature::Avx) {
            for ymm in fp.ymm {
                expect(ymm[2] | ymm[3] == 0, "ymm", ymm[2] | ymm[3])?;
            }
        }
        Ok(())
    }

    fn validate_debug(&self) -> Result<(), StateError> {
        expect(self.dr6 >> 32 == 0, "dr6", self.dr6)?;
        expect(self.dr7 >> 32 == 0, "dr7", self.dr7)
    }

    /// Every register has a value that WRMSR would have taken.
    fn validate_msrs(&self, cpu: &CpuModel) -> Result<(), StateError> {
        let m = &self.msr;
        let fixed = [
            0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
        ];
        let variable = m.mtrr_var.iter().flat_map(|(b, m)| [*b, *m]);
        let values = [
            (i::IA32_LSTAR, "lstar", m.lstar),
            (i::IA32_CSTAR, "cstar", m.cstar),
            (i::IA32_FMASK, "fmask", m.fmask),
            (i::IA32_KERNEL_GS_BASE, "kernel_gs_base", m.kernel_gs_base),
            (i::IA32_SYSENTER_CS, "sysenter_cs", m.sysenter_cs),
            (i::IA32_SYSENTER_ESP, "sysenter_esp", m.sysenter_esp),
            (i::IA32_SYSENTER_EIP, "sysenter_eip", m.sysenter_eip),
            (i::IA32_PAT, "pat", m.pat),
            (i::IA32_MTRR_DEF_TYPE, "mtrr_def_type", m.mtrr_def_type),
            (i::IA32_DEBUGCTL, "debugctl", m.debugctl),
            (i::IA32_SPEC_CTRL, "spec_ctrl", m.spec_ctrl),
            (i::IA32_MCG_STATUS, "mcg_status", m.mcg_status),
        ];
        let mtrrs = (0x200..)
            .zip(variable)
            .chain(fixed.into_iter().zip(m.mtrr_fixed));
        let all = values.into_iter().chain(mtrrs.map(|(n, v)| (n, "mtrr", v)));
        let mut scratch = Self::reset(0);
        for (number, field, value) in all {
            // Zero is every register's value in a model that lacks it.
            let ok = value == 0 || msr::write(&mut scratch, cpu, number, value).is_some();
            expect(ok, field, value)?;
        }
        expect(m.xss == 0, "xss", m.xss)?;
        expect(m.misc_enable <= 1, "misc_enable", m.misc_enable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::tests::intel;

    #[test]
    fn ordinary_states_pass() {
        let cpu = intel("x86-64-v3");
        let reset = X86State::reset(cpu.signature());
        assert_eq!(reset.validate(&cpu), Ok(()));
        assert_eq!(reset.init(cpu.signature()).validate(&cpu), Ok(()));
        assert_eq!(
            reset
                .validate(&intel("x86-64-v2,-mtrr,-pat"))
                .map_err(|e| e.field),
            Err("pat")
        );
    }

    #[test]
    fn impossible_states_are_refused() {
        let cpu = intel("x86-64-v3");
        let refused = |change: fn(&mut X86State)| {
            let mut s = X86State::reset(0);
            change(&mut s);
            s.validate(&cpu).map_err(|e| e.field)
        };
        assert_eq!(refused(|s| s.cpl = 4), Err("cpl"));
        assert_eq!(refused(|s| s.cpl = 3), Err("cpl"));
        assert_eq!(refused(|s| s.rflags |= RFlags::VM), Err("rflags"));
        assert_eq!(
            refused(|s| s.rflags = RFlags::from_bits_retain(1 << 40 | 2)),
            Err("rflags")
        );
        assert_eq!(refused(|s| s.cr0 |= Cr0::PG), Err("cr0"));
        assert_eq!(refused(|s| s.cr4 |= Cr4::PCIDE), Err("cr4"));
        assert_eq!(refused(|s| s.cr4 |= Cr4::LA57), Err("cr4"));
        assert_eq!(
            refused(|s| (s.efer, s.cr4) = (Efer::LMA, Cr4::PAE)),
            Err("efer")
        );
        assert_eq!(refused(|s| s.efer |= Efer::SVME), Err("efer"));
        assert_eq!(refused(|s| s.cr3 = 1 << 50), Err("cr3"));
        assert_eq!(refused(|s| s.xcr0 = 0xff), Err("xcr0"));
        assert_eq!(refused(|s| s.fp.mxcsr = 0x1_0000), Err("mxcsr"));
        assert_eq!(refused(|s| s.fp.st[3] = u128::MAX), Err("st"));
        assert_eq!(
            refused(|s| s.seg[2].attr = 1 << 20),
            Err("segment attributes")
        );
        assert_eq!(refused(|s| s.seg[4].base = 1 << 60), Err("segment base"));
        assert_eq!(refused(|s| s.rip = 1 << 32), Err("rip"));
        assert_eq!(refused(|s| s.dr7 = 1 << 32), Err("dr7"));
        assert_eq!(refused(|s| s.msr.lstar = 1 << 50), Err("lstar"));
        assert_eq!(refused(|s| s.msr.mtrr_var[7].1 = 1), Err("mtrr"));
        assert_eq!(refused(|s| s.msr.mtrr_fixed[10] = 2), Err("mtrr"));
        assert_eq!(refused(|s| s.msr.xss = 1), Err("xss"));
    }

    #[test]
    fn init_keeps_what_the_manual_says() {
        let mut s = X86State::reset(1);
        s.cr0 = Cr0::PE | Cr0::ET | Cr0::CD;
        s.fp.ymm[1][0] = 7;
        s.msr.pat = 0;
        s.xcr0 = 7;
        s.pkru = 5;
        s.cr2 = 9;
        s.efer = Efer::SCE;
        let init = s.init(0x806f8);
        assert_eq!(init.cr0, Cr0::ET | Cr0::CD, "CD and NW are kept");
        assert_eq!(
            (init.fp.ymm[1][0], init.msr.pat, init.xcr0, init.pkru),
            (7, 0, 7, 5)
        );
        assert_eq!((init.cr2, init.efer, init.rip), (0, Efer::empty(), 0xfff0));
        assert_eq!(init.gpr[2], 0x806f8);
    }
}
