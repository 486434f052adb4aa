//! XGETBV and XSETBV (SDM vol. 2; vol. 1, 13.3).

use super::xsave::in_use;
use crate::{Cpu, Exec, Handler, Op};
use iced_x86::Code;
use mimeo_arch_x86::cpuid::{Feature, xcr0};
use mimeo_arch_x86::{Cr4, Exception, Gpr};
use mimeo_vcpu::CpuIo;

pub(super) fn handler(code: Code) -> Option<Handler> {
    match code {
        Code::Xgetbv => Some(get),
        Code::Xsetbv => Some(set),
        _ => None,
    }
}

fn get(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(Exception::ud().into());
    }
    let value = match cpu.gpr(Gpr::Rcx) as u32 {
        0 => cpu.state.xcr0,
        1 if cpu.model.has(Feature::Xgetbv1) => cpu.state.xcr0 & in_use(cpu),
        _ => return Err(Exception::gp(0).into()),
    };
    cpu.state.gpr[Gpr::Rax as usize] = value & 0xffff_ffff;
    cpu.state.gpr[Gpr::Rdx as usize] = value >> 32;
    Ok(())
}

/// XCR0 values that the processor accepts: x87 always, AVX only with SSE, nothing unknown.
fn valid(cpu: &Cpu, value: u64) -> bool {
    value & xcr0::X87 != 0
        && (value & xcr0::AVX == 0 || value & xcr0::SSE != 0)
        && value & !cpu.model.xcr0_supported() == 0
}

fn set(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(Exception::ud().into());
    }
    let value = cpu.gpr(Gpr::Rax) & 0xffff_ffff | cpu.gpr(Gpr::Rdx) << 32;
    let index = cpu.gpr(Gpr::Rcx) as u32;
    if cpu.state.cpl != 0 || index != 0 || !valid(cpu, value) {
        return Err(Exception::gp(0).into());
    }
    cpu.state.xcr0 = value;
    Ok(())
}
