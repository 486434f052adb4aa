//! CLI, STI, PUSHF, POPF, CLAC, STAC by privilege, IOPL, VME and PVI (SDM vol. 2; vol. 3, 22.3,
//! 22.4; table 22-2).

use super::operand::{cpl0, is_v86};
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::{Cr0, Cr4, Exception, Gpr, RFlags, Seg};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, size, end): (Handler, u8, bool) = match i.code() {
        Code::Cli => (cli, 0, false),
        Code::Sti => (sti, 0, true),
        Code::Clac => (clac, 0, true),
        Code::Stac => (stac, 0, true),
        Code::Pushfw => (pushf, 2, false),
        Code::Pushfd => (pushf, 4, false),
        Code::Pushfq => (pushf, 8, false),
        Code::Popfw => (popf, 2, true),
        Code::Popfd => (popf, 4, true),
        Code::Popfq => (popf, 8, true),
        _ => return None,
    };
    op.run = run;
    op.size = size;
    Some(if end { Lower::End } else { Lower::Plain })
}

fn gp() -> Trap {
    Exception::gp(0).into()
}

/// Which flag CLI and STI work on.
enum Target {
    /// IF itself.
    If,
    /// VIF: virtual-8086 mode with VME, or CPL 3 with PVI.
    Vif,
}

/// SDM vol. 2, table 3-7.
fn target(cpu: &Cpu) -> Result<Target, Trap> {
    let s = &cpu.state;
    let iopl = s.rflags.iopl();
    if !s.cr0.contains(Cr0::PE) {
        return Ok(Target::If);
    }
    if is_v86(cpu) {
        return match iopl {
            3 => Ok(Target::If),
            _ if s.cr4.contains(Cr4::VME) => Ok(Target::Vif),
            _ => Err(gp()),
        };
    }
    if iopl >= s.cpl {
        Ok(Target::If)
    } else if s.cpl == 3 && s.cr4.contains(Cr4::PVI) {
        Ok(Target::Vif)
    } else {
        Err(gp())
    }
}

fn cli(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let flag = match target(cpu)? {
        Target::If => RFlags::IF,
        Target::Vif => RFlags::VIF,
    };
    cpu.state.rflags -= flag;
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    match target(cpu)? {
        Target::If => {
            // The shadow is cast only when IF was clear.
            cpu.state.sti_shadow = !cpu.state.rflags.contains(RFlags::IF);
            cpu.state.rflags |= RFlags::IF;
        }
        Target::Vif if cpu.state.rflags.contains(RFlags::VIP) => return Err(gp()),
        Target::Vif => cpu.state.rflags |= RFlags::VIF,
    }
    Ok(())
}

fn stac(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    set_ac(cpu, true)
}

fn clac(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    set_ac(cpu, false)
}

/// #UD rather than #GP above CPL 0 (SDM vol. 2, CLAC).
fn set_ac(cpu: &mut Cpu, on: bool) -> Exec {
    cpl0(cpu).map_err(|_| Trap::from(Exception::ud()))?;
    cpu.state.rflags.set(RFlags::AC, on);
    cpu.refresh();
    Ok(())
}

/// How PUSHF and POPF behave in virtual-8086 mode.
enum V86 {
    /// Not in virtual-8086 mode, or with IOPL 3.
    Plain,
    /// IOPL below 3 with VME, 16 bits: VIF stands in for IF.
    Virtual,
}

fn v86(cpu: &Cpu, size: u8) -> Result<V86, Trap> {
    let s = &cpu.state;
    if !is_v86(cpu) || s.rflags.iopl() == 3 {
        Ok(V86::Plain)
    } else if s.cr4.contains(Cr4::VME) && size == 2 {
        Ok(V86::Virtual)
    } else {
        Err(gp())
    }
}

fn pushf(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mut image = cpu.state.rflags - RFlags::VM - RFlags::RF;
    if let V86::Virtual = v86(cpu, op.size)? {
        image |= RFlags::IOPL;
        image.set(RFlags::IF, image.contains(RFlags::VIF));
    }
    let sp = cpu.gpr(Gpr::Rsp).wrapping_sub(op.size.into()) & cpu.stack_mask();
    let (seg, bits) = (Seg::Ss as u8, image.bits());
    match op.size {
        2 => cpu.store(seg, sp, bits as u16, io)?,
        4 => cpu.store(seg, sp, bits as u32, io)?,
        _ => cpu.store(seg, sp, bits, io)?,
    }
    cpu.set_sp(sp);
    Ok(())
}

fn popf(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let virtual_if = matches!(v86(cpu, op.size)?, V86::Virtual);
    let (seg, mask) = (Seg::Ss as u8, cpu.stack_mask());
    let sp = cpu.gpr(Gpr::Rsp) & mask;
    let bits = match op.size {
        2 => u64::from(cpu.load::<u16>(seg, sp, io)?),
        4 => u64::from(cpu.load::<u32>(seg, sp, io)?),
        _ => cpu.load(seg, sp, io)?,
    };
    let image = RFlags::from_bits_truncate(bits);
    if virtual_if {
        pop_virtual(cpu, image)?;
    } else {
        let wide = op.size != 2;
        let changed = poppable(cpu, wide);
        let s = &mut cpu.state;
        s.rflags = (s.rflags - changed) | (image & changed);
        if wide {
            s.rflags -= RFlags::RF;
        }
    }
    cpu.set_sp(sp.wrapping_add(op.size.into()) & mask);
    cpu.refresh();
    Ok(())
}

/// POPFW in virtual-8086 mode with VME and IOPL below 3.
fn pop_virtual(cpu: &mut Cpu, image: RFlags) -> Exec {
    let s = &mut cpu.state;
    let wants = image.contains(RFlags::IF);
    if image.contains(RFlags::TF) || (wants && s.rflags.contains(RFlags::VIP)) {
        return Err(gp());
    }
    let changed = RFlags::STATUS | RFlags::DF | RFlags::NT | RFlags::TF;
    s.rflags = (s.rflags - changed) | (image & changed);
    s.rflags.set(RFlags::VIF, wants);
    Ok(())
}

/// The flags that POPF may change: IOPL at CPL 0 only, IF where IOPL allows it; `wide`: more than
/// 16 bits (AC and ID too). VIF, VIP and VM never.
fn poppable(cpu: &Cpu, wide: bool) -> RFlags {
    let s = &cpu.state;
    let mut changed = RFlags::STATUS | RFlags::DF | RFlags::NT | RFlags::TF;
    if wide {
        changed |= RFlags::AC | RFlags::ID;
    }
    let cpl = if is_v86(cpu) { 3 } else { s.cpl };
    if cpl == 0 {
        changed |= RFlags::IOPL;
    }
    if cpl <= s.rflags.iopl() {
        changed |= RFlags::IF;
    }
    changed
}
