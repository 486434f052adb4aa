//! When SIMD and x87 instructions exist at all: #UD, #NM, #MF, #XM.
//!
//! SDM vol. 2, 2.5 to 2.7 (exception classes), vol. 3, 14.1 and table 14-1; vol. 1, 8.7 and 11.5.

use crate::{Cpu, Exec};
use mimeo_arch_x86::cpuid::xcr0;
use mimeo_arch_x86::{Cr0, Cr4, Exception, RFlags, Vector};
use mimeo_isa_x86::Unit;

/// Availability of a unit, pending x87 exceptions included where the unit's instructions wait.
#[inline(always)]
pub(super) fn unit(cpu: &Cpu, unit: Unit) -> Exec {
    match unit {
        Unit::Sse => sse(cpu),
        Unit::Avx => avx(cpu),
        Unit::X87 => x87(cpu),
        Unit::Mmx => mmx(cpu),
        Unit::MmxSse => {
            sse(cpu)?;
            pending(cpu)
        }
        Unit::Xsave => xsave(cpu),
        Unit::Fxsave => fxsave(cpu),
        Unit::None | Unit::VexGpr => Ok(()),
    }
}

/// XMM registers by legacy encoding.
#[inline(always)]
pub(super) fn sse(cpu: &Cpu) -> Exec {
    let s = &cpu.state;
    if s.cr0.bits() & (Cr0::EM.bits() | Cr0::TS.bits()) == 0 && s.cr4.contains(Cr4::OSFXSR) {
        return Ok(());
    }
    if s.cr0.contains(Cr0::EM) || !s.cr4.contains(Cr4::OSFXSR) {
        return undefined();
    }
    not_available()
}

/// VEX encoding on vector registers.
#[inline(always)]
pub(super) fn avx(cpu: &Cpu) -> Exec {
    const STATE: u64 = xcr0::SSE | xcr0::AVX;
    let s = &cpu.state;
    if s.xcr0 & STATE != STATE
        || !s.cr4.contains(Cr4::OSXSAVE)
        || !s.cr0.contains(Cr0::PE)
        || s.rflags.contains(RFlags::VM)
    {
        return undefined();
    }
    if s.cr0.contains(Cr0::TS) {
        return not_available();
    }
    Ok(())
}

/// x87, without looking at pending exceptions.
#[inline(always)]
pub(super) fn x87(cpu: &Cpu) -> Exec {
    if cpu.state.cr0.bits() & (Cr0::EM.bits() | Cr0::TS.bits()) == 0 {
        Ok(())
    } else {
        not_available()
    }
}

/// WAIT: #NM only with both CR0.MP and CR0.TS.
pub(super) fn wait(cpu: &Cpu) -> Exec {
    if cpu.state.cr0.contains(Cr0::MP | Cr0::TS) {
        return not_available();
    }
    pending(cpu)
}

/// MMX registers.
pub(super) fn mmx(cpu: &Cpu) -> Exec {
    if cpu.state.cr0.contains(Cr0::EM) {
        return undefined();
    }
    if cpu.state.cr0.contains(Cr0::TS) {
        return not_available();
    }
    pending(cpu)
}

/// The XSAVE family.
pub(super) fn xsave(cpu: &Cpu) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return undefined();
    }
    if cpu.state.cr0.contains(Cr0::TS) {
        return not_available();
    }
    Ok(())
}

/// FXSAVE and FXRSTOR.
pub(super) fn fxsave(cpu: &Cpu) -> Exec {
    x87(cpu)
}

/// #MF for an unmasked x87 exception that is pending (the ES bit of the status word).
#[inline(always)]
pub(super) fn pending(cpu: &Cpu) -> Exec {
    const ES: u16 = 1 << 7;
    if cpu.state.fp.fsw & ES != 0 && cpu.state.cr0.contains(Cr0::NE) {
        return Err(Exception::new(Vector::Mf).into());
    }
    Ok(())
}

/// Adds the exception flags that a SIMD instruction raised to MXCSR; the fault if one of them is
/// unmasked: #XM, or #UD without CR4.OSXMMEXCPT. The instruction's destination then stays.
pub(super) fn simd_exceptions(cpu: &mut Cpu, raised: u32) -> Exec {
    /// Invalid, denormal and divide by zero are found before the operation: when one of them is
    /// unmasked, overflow, underflow and precision are not looked for (SDM vol. 1, 11.5.3.2).
    const BEFORE: u32 = 0x07;
    let mxcsr = cpu.state.fp.mxcsr;
    let unmasked = !(mxcsr >> 7) & 0x3f;
    let mut raised = raised & 0x3f;
    if raised & unmasked & BEFORE != 0 {
        raised &= BEFORE;
    }
    cpu.state.fp.mxcsr = mxcsr | raised;
    if raised & unmasked == 0 {
        return Ok(());
    }
    if cpu.state.cr4.contains(Cr4::OSXMMEXCPT) {
        Err(Exception::new(Vector::Xm).into())
    } else {
        undefined()
    }
}

#[cold]
fn undefined() -> Exec {
    Err(Exception::ud().into())
}

#[cold]
fn not_available() -> Exec {
    Err(Exception::new(Vector::Nm).into())
}
