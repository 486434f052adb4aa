//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2; APM vol. 3), with the vendors' differences: where
//! the instructions exist, when SYSRET checks its target, what becomes of SS.

use super::operand::cpl0;
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::cpuid::Vendor;
use mimeo_arch_x86::{Cr0, Efer, Exception, Gpr, RFlags, Seg, Segment};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, size): (Handler, u8) = match i.code() {
        Code::Syscall => (syscall, 0),
        Code::Sysretd => (sysret, 4),
        Code::Sysretq => (sysret, 8),
        Code::Sysenter => (sysenter, 0),
        Code::Sysexitd => (sysexit, 4),
        Code::Sysexitq => (sysexit, 8),
        _ => return None,
    };
    op.run = run;
    op.size = size;
    Some(Lower::End)
}

fn ud() -> Trap {
    Exception::ud().into()
}

fn gp() -> Trap {
    Exception::gp(0).into()
}

fn is_amd(cpu: &Cpu) -> bool {
    cpu.model.vendor() == Vendor::Amd
}

/// A flat code segment: 64-bit or 32-bit, at `dpl`.
fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
    let size = if long { 1 << 13 } else { 1 << 14 };
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attr: 0x809b | size | u32::from(dpl) << 5,
    }
}

/// A flat stack segment at `dpl`.
fn flat_stack(selector: u16, dpl: u8) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attr: 0xc093 | u32::from(dpl) << 5,
    }
}

/// Loads CS and SS, and CPL with them.
fn enter(cpu: &mut Cpu, cs: Segment, ss: Segment, cpl: u8) {
    let s = &mut cpu.state;
    s.seg[Seg::Cs as usize] = cs;
    s.seg[Seg::Ss as usize] = ss;
    s.cpl = cpl;
}

/// SYSCALL and SYSRET need EFER.SCE, and 64-bit code on Intel CPUs.
fn syscall_exists(cpu: &Cpu) -> Exec {
    let s = &cpu.state;
    let here = cpu.code64 || (is_amd(cpu) && s.cr0.contains(Cr0::PE));
    if here && s.efer.contains(Efer::SCE) {
        Ok(())
    } else {
        Err(ud())
    }
}

fn syscall(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    syscall_exists(cpu)?;
    let (long, code64) = (cpu.long_mode, cpu.code64);
    let s = &mut cpu.state;
    let selector = (s.msr.star >> 32) as u16 & !3;
    s.gpr[Gpr::Rcx as usize] = s.rip;
    if long {
        s.gpr[Gpr::R11 as usize] = (s.rflags - RFlags::RF).bits();
        s.rip = if code64 { s.msr.lstar } else { s.msr.cstar };
        let kept = s.rflags.bits() & !s.msr.fmask;
        s.rflags = (RFlags::from_bits_truncate(kept) - RFlags::RF) | RFlags::FIXED1;
    } else {
        s.rip = s.msr.star & 0xffff_ffff;
        s.rflags -= RFlags::VM | RFlags::IF | RFlags::RF;
    }
    let ss = flat_stack(selector.wrapping_add(8), 0);
    enter(cpu, flat_code(selector, 0, long), ss, 0);
    // Whether a single-step trap follows is decided by the new TF.
    cpu.no_step = !cpu.state.rflags.contains(RFlags::TF);
    cpu.refresh();
    Ok(())
}

fn sysret(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    syscall_exists(cpu)?;
    cpl0(cpu)?;
    let amd = is_amd(cpu);
    let to64 = op.size == 8;
    let target = cpu.gpr(Gpr::Rcx);
    if to64 && !amd && !cpu.is_canonical(target) {
        return Err(gp());
    }
    let long = cpu.long_mode;
    let s = &mut cpu.state;
    let base = (s.msr.star >> 48) as u16;
    let cs = if to64 { base.wrapping_add(16) } else { base } | 3;
    let ss_selector = base.wrapping_add(8) | 3;
    s.rip = if to64 { target } else { target & 0xffff_ffff };
    if long {
        // RF and VM are cleared, reserved bits stay as they must be.
        let flags = s.gpr[Gpr::R11 as usize] & 0x3c_7fd7;
        s.rflags = RFlags::from_bits_truncate(flags) | RFlags::FIXED1;
    } else {
        s.rflags |= RFlags::IF;
    }
    // AMD CPUs load SS's selector alone.
    let ss = if amd {
        Segment {
            selector: ss_selector,
            ..s.seg[Seg::Ss as usize]
        }
    } else {
        flat_stack(ss_selector, 3)
    };
    enter(cpu, flat_code(cs, 3, to64), ss, 3);
    cpu.refresh();
    Ok(())
}

/// SYSENTER and SYSEXIT exist in protected mode, and in long mode on Intel CPUs.
fn sysenter_exists(cpu: &Cpu) -> Exec {
    if cpu.long_mode && is_amd(cpu) {
        return Err(ud());
    }
    let null = cpu.state.msr.sysenter_cs & 0xfffc == 0;
    if !cpu.state.cr0.contains(Cr0::PE) || null {
        return Err(gp());
    }
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    sysenter_exists(cpu)?;
    let long = cpu.long_mode;
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let s = &mut cpu.state;
    let selector = s.msr.sysenter_cs as u16 & !3;
    s.rip = s.msr.sysenter_eip & mask;
    s.gpr[Gpr::Rsp as usize] = s.msr.sysenter_esp & mask;
    s.rflags -= RFlags::VM | RFlags::IF | RFlags::RF;
    let ss = flat_stack(selector.wrapping_add(8), 0);
    enter(cpu, flat_code(selector, 0, long), ss, 0);
    cpu.refresh();
    Ok(())
}

fn sysexit(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    sysenter_exists(cpu)?;
    cpl0(cpu)?;
    let to64 = op.size == 8;
    let (ip, sp) = (cpu.gpr(Gpr::Rdx), cpu.gpr(Gpr::Rcx));
    if to64 && !(cpu.is_canonical(ip) && cpu.is_canonical(sp)) {
        return Err(gp());
    }
    let mask = if to64 { u64::MAX } else { 0xffff_ffff };
    let s = &mut cpu.state;
    let base = s.msr.sysenter_cs as u16 & !3;
    let cs = base.wrapping_add(if to64 { 32 } else { 16 }) | 3;
    s.rip = ip & mask;
    s.gpr[Gpr::Rsp as usize] = sp & mask;
    let ss = flat_stack(cs.wrapping_add(8), 3);
    enter(cpu, flat_code(cs, 3, to64), ss, 3);
    cpu.refresh();
    Ok(())
}
