//! MOV to and from control and debug registers, CLTS, LMSW, SMSW, XSETBV, XGETBV, and what follows
//! from a change of a control register (SDM vol. 2; vol. 3, 2.5, 5.4.1, 5.10.4.1, 19.2).

use super::operand::{
    cpl0, ecx, edx_eax, get, is_v86, register, set, set_edx_eax, source16, store16,
};
use crate::decode::Lower;
use crate::mem::Phys;
use crate::{Cpu, Exec, Handler, MmuEvent, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::cpuid::{Feature, xcr0};
use mimeo_arch_x86::paging::{PagingMode, load_pdptes};
use mimeo_arch_x86::{Cr0, Cr4, Exception, X86State, control};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, end): (Handler, bool) = match i.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => (mov_from_cr, false),
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => (mov_to_cr, true),
        Code::Mov_r32_dr | Code::Mov_r64_dr => (mov_from_dr, false),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => (mov_to_dr, true),
        Code::Clts => (clts, true),
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => (lmsw, true),
        Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16 => (smsw, false),
        Code::Xsetbv => (xsetbv, true),
        Code::Xgetbv => (xgetbv, false),
        _ => return None,
    };
    op.run = run;
    op.r0 = if i.op_count() > 0 { register(i, 0) } else { 0 };
    if i.op_count() > 1 {
        op.r1 = register(i, 1);
    }
    Some(if end { Lower::End } else { Lower::Plain })
}

fn gp() -> Trap {
    Exception::gp(0).into()
}

fn ud() -> Trap {
    Exception::ud().into()
}

/// The part of a register that these moves take: 32 bits outside 64-bit mode.
fn wide(cpu: &Cpu, value: u64) -> u64 {
    if cpu.code64 {
        value
    } else {
        value & 0xffff_ffff
    }
}

fn mov_from_cr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    if !matches!(op.r1, 0 | 2 | 3 | 4 | 8) {
        return Err(ud());
    }
    cpl0(cpu)?;
    let s = &cpu.state;
    let value = match op.r1 {
        0 => s.cr0.bits(),
        2 => s.cr2,
        3 => s.cr3,
        4 => s.cr4.bits(),
        _ => u64::from(io.cr8_read()),
    };
    let value = wide(cpu, value);
    set(cpu, op.r0, 8, value);
    Ok(())
}

fn mov_to_cr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    if !matches!(op.r0, 0 | 2 | 3 | 4 | 8) {
        return Err(ud());
    }
    cpl0(cpu)?;
    let value = wide(cpu, get(cpu, op.r1));
    match op.r0 {
        0 => set_cr0(cpu, value),
        2 => {
            cpu.state.cr2 = value;
            Ok(())
        }
        3 => set_cr3(cpu, value),
        4 => set_cr4(cpu, value),
        _ if value > 15 => Err(gp()),
        _ => {
            io.cr8_write(value as u8);
            Ok(())
        }
    }
}

/// Writes CR0 with everything that follows: PDPTEs, EFER.LMA, TLB, derived state.
///
/// # Errors
/// #GP(0); nothing has changed then.
pub(crate) fn set_cr0(cpu: &mut Cpu, value: u64) -> Exec {
    let new = control::cr0_write(&cpu.state, value).ok_or_else(gp)?;
    change(cpu, new, cpu.state.cr4)
}

/// Writes CR4 with everything that follows.
///
/// # Errors
/// #GP(0); nothing has changed then.
pub(crate) fn set_cr4(cpu: &mut Cpu, value: u64) -> Exec {
    let new = control::cr4_write(&cpu.state, &cpu.model, value).ok_or_else(gp)?;
    change(cpu, cpu.state.cr0, new)
}

fn change(cpu: &mut Cpu, cr0: Cr0, cr4: Cr4) -> Exec {
    let s = &cpu.state;
    let (old, new) = ((s.cr0, s.cr4), (cr0, cr4));
    if control::reloads_pdptes(old, new, s.efer) {
        let pdptes = load_pdptes(&Phys(&cpu.memory), s.cr3, cpu.model.physical_bits());
        cpu.state.pdptr = pdptes.ok_or_else(gp)?;
    }
    let s = &mut cpu.state;
    (s.cr0, s.cr4) = new;
    s.efer = control::efer_after_cr0(s.efer, cr0);
    if control::flushes_tlb(old, new) {
        cpu.flush_tlb(MmuEvent::All);
    }
    cpu.refresh();
    Ok(())
}

/// Writes CR3 as MOV to CR3 does.
///
/// # Errors
/// #GP(0); nothing has changed then.
pub(crate) fn set_cr3(cpu: &mut Cpu, value: u64) -> Exec {
    let new = control::cr3_write(&cpu.state, &cpu.model, value).ok_or_else(gp)?;
    let s = &cpu.state;
    if PagingMode::of(s.cr0, s.cr4, s.efer) == PagingMode::Pae {
        let pdptes = load_pdptes(&Phys(&cpu.memory), new.cr3, cpu.model.physical_bits());
        cpu.state.pdptr = pdptes.ok_or_else(gp)?;
    }
    cpu.state.cr3 = new.cr3;
    cpu.flush_tlb(if new.keep {
        MmuEvent::Switch
    } else if cpu.state.cr4.contains(Cr4::PCIDE) {
        MmuEvent::Pcid((new.cr3 & 0xfff) as u16)
    } else {
        MmuEvent::NonGlobal
    });
    cpu.refresh();
    Ok(())
}

fn clts(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    cpu.state.cr0 -= Cr0::TS;
    cpu.refresh();
    Ok(())
}

/// LMSW loads PE, MP, EM and TS, and cannot clear PE.
fn lmsw(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    let value = u64::from(source16(cpu, op, op.r0, io)?);
    let old = cpu.state.cr0.bits();
    set_cr0(cpu, (old & !0xe) | (value & 0xf))
}

fn smsw(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    super::tables::umip(cpu)?;
    let value = cpu.state.cr0.bits();
    store16(cpu, op, value, io)
}

/// The checks that MOV to and from a debug register share: the register's number, aliases resolved.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<usize, Trap> {
    let alias = matches!(number, 4 | 5);
    if number > 7 || (alias && cpu.state.cr4.contains(Cr4::DE)) {
        return Err(ud());
    }
    cpl0(cpu)?;
    if cpu.state.dr7 & super::debug::DR7_GD != 0 {
        return Err(Exception::db(super::debug::DR6_BD).into());
    }
    Ok(usize::from(if alias { number + 2 } else { number }))
}

fn mov_from_dr(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let value = match debug_register(cpu, op.r1)? {
        6 => cpu.state.dr6,
        7 => cpu.state.dr7,
        n => cpu.state.dr[n & 3],
    };
    let value = wide(cpu, value);
    set(cpu, op.r0, 8, value);
    Ok(())
}

fn mov_to_dr(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let number = debug_register(cpu, op.r0)?;
    let value = wide(cpu, get(cpu, op.r1));
    if number >= 6 && value >> 32 != 0 {
        return Err(gp());
    }
    match number {
        6 => cpu.state.dr6 = super::debug::dr6(value),
        7 => cpu.state.dr7 = super::debug::dr7(value),
        n => cpu.state.dr[n & 3] = value,
    }
    cpu.refresh();
    Ok(())
}

/// #UD unless CR4.OSXSAVE is set.
fn osxsave(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::OSXSAVE) {
        Ok(())
    } else {
        Err(ud())
    }
}

fn xsetbv(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    osxsave(cpu)?;
    cpl0(cpu)?;
    let value = edx_eax(cpu);
    if is_v86(cpu) || ecx(cpu) != 0 || !control::xcr0_write(&cpu.model, value) {
        return Err(gp());
    }
    cpu.state.xcr0 = value;
    cpu.refresh();
    Ok(())
}

/// XGETBV of XCR0, and of XCR0 & XINUSE where the model has that (SDM vol. 1, 13.6).
fn xgetbv(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    osxsave(cpu)?;
    let value = match ecx(cpu) {
        0 => cpu.state.xcr0,
        1 if cpu.model.has(Feature::Xgetbv1) => cpu.state.xcr0 & xinuse(&cpu.state),
        _ => return Err(gp()),
    };
    set_edx_eax(cpu, value);
    Ok(())
}

/// The XSAVE components that are not in their initial configuration (SDM vol. 1, 13.6).
fn xinuse(s: &X86State) -> u64 {
    let fp = &s.fp;
    let x87 = fp.fcw != 0x37f || fp.fsw != 0 || fp.ftw != 0 || fp.st.iter().any(|v| *v != 0);
    let sse = fp.ymm.iter().any(|v| v[0] | v[1] != 0);
    let avx = fp.ymm.iter().any(|v| v[2] | v[3] != 0);
    let rows = [
        (xcr0::X87, x87),
        (xcr0::SSE, sse),
        (xcr0::AVX, avx),
        (xcr0::PKRU, s.pkru != 0),
    ];
    rows.iter()
        .filter(|(_, used)| *used)
        .fold(0, |bits, (bit, _)| bits | bit)
}
