//! HLT, CPUID, MONITOR, MWAIT, RDPKRU, WRPKRU, hypercalls (SDM vol. 2).
//!
//! MWAIT ends at once, as it may for any reason of the implementation (SDM vol. 2, MWAIT): nothing
//! watches the line that MONITOR armed.

use super::operand::{cpl0, ecx, set_edx_eax};
use crate::decode::Lower;
use crate::mem::Access;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::cpuid::CpuidContext;
use mimeo_arch_x86::msr::index;
use mimeo_arch_x86::{Activity, Cr4, Exception, Gpr};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, end): (Handler, bool) = match i.code() {
        Code::Hlt => (hlt, true),
        Code::Cpuid => (cpuid, false),
        Code::Monitorw | Code::Monitord | Code::Monitorq => (monitor, false),
        Code::Mwait => (mwait, true),
        Code::Rdpkru => (rdpkru, false),
        Code::Wrpkru => (wrpkru, true),
        Code::Vmcall | Code::Vmmcall => (hypercall, true),
        _ => return None,
    };
    op.run = run;
    Some(if end { Lower::End } else { Lower::Plain })
}

fn gp() -> Trap {
    Exception::gp(0).into()
}

fn hlt(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    cpu.state.activity = Activity::Halted;
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    let s = &cpu.state;
    let context = CpuidContext {
        apic_id: cpu.index,
        cpus: cpu.cpus,
        cr4: s.cr4,
        xcr0: s.xcr0,
        xss: s.msr.xss,
        // Bit 11 of the register is the APIC's global enable.
        apic_enabled: io
            .msr_read(index::IA32_APIC_BASE)
            .is_ok_and(|base| base >> 11 & 1 != 0),
    };
    let leaf = cpu.gpr(Gpr::Rax) as u32;
    let [eax, ebx, c, edx] = cpu.model.cpuid(leaf, ecx(cpu), &context);
    for (r, value) in [
        (Gpr::Rax, eax),
        (Gpr::Rbx, ebx),
        (Gpr::Rcx, c),
        (Gpr::Rdx, edx),
    ] {
        cpu.state.gpr[r as usize] = value.into();
    }
    Ok(())
}

/// #UD above CPL 0.
fn monitor_allowed(cpu: &Cpu) -> Exec {
    cpl0(cpu).map_err(|_| Exception::ud().into())
}

fn monitor(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    monitor_allowed(cpu)?;
    if ecx(cpu) != 0 {
        return Err(gp());
    }
    let offset = match op.addr {
        2 => cpu.gpr(Gpr::Rax) & 0xffff,
        4 => cpu.gpr(Gpr::Rax) & 0xffff_ffff,
        _ => cpu.gpr(Gpr::Rax),
    };
    // Checked like a load of one byte.
    let linear = cpu.linear(op.seg, offset, 1, Access::Read)?;
    cpu.read::<u8>(op.seg, linear, io)?;
    cpu.state.monitor = Some(cpu.translate(linear, Access::Read)? & !63);
    Ok(())
}

fn mwait(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    monitor_allowed(cpu)?;
    if ecx(cpu) != 0 {
        return Err(gp());
    }
    cpu.state.monitor = None;
    Ok(())
}

/// #UD unless CR4.PKE is set; ECX must be zero.
fn pkru_allowed(cpu: &Cpu) -> Exec {
    if !cpu.state.cr4.contains(Cr4::PKE) {
        return Err(Exception::ud().into());
    }
    if ecx(cpu) != 0 {
        return Err(gp());
    }
    Ok(())
}

fn rdpkru(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    pkru_allowed(cpu)?;
    set_edx_eax(cpu, cpu.state.pkru.into());
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    pkru_allowed(cpu)?;
    if cpu.gpr(Gpr::Rdx) as u32 != 0 {
        return Err(gp());
    }
    cpu.set_pkru(cpu.gpr(Gpr::Rax) as u32);
    Ok(())
}

impl Cpu {
    /// Writes PKRU (WRPKRU, XRSTOR): the rights that TLB entries were filled under change.
    pub(crate) fn set_pkru(&mut self, value: u32) {
        if self.state.pkru != value {
            self.state.pkru = value;
            self.flush_tlb(crate::MmuEvent::All);
            self.refresh();
        }
    }
}

/// VMCALL and VMMCALL. Without the hypervisor's leaves they do not exist; above CPL 0 the machine
/// answers as KVM does.
fn hypercall(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    if !cpu.model.has(mimeo_arch_x86::cpuid::Feature::Hypervisor) {
        return Err(Exception::ud().into());
    }
    /// KVM_EPERM.
    const NOT_PERMITTED: u64 = -1i64 as u64;
    let registers = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi];
    let mask = if cpu.code64 { u64::MAX } else { 0xffff_ffff };
    let args = registers.map(|r| cpu.gpr(r) & mask);
    let result = if cpu.state.cpl == 0 {
        io.hypercall(args)
    } else {
        NOT_PERMITTED
    };
    cpu.state.gpr[Gpr::Rax as usize] = result & mask;
    Ok(())
}
