//! IRET in every mode (SDM vol. 2, IRET; vol. 3, 22.2.6, 9.4).

use super::code_segment::{self, Target};
use super::operand::is_v86;
use super::segment::{self, Faults};
use super::stack::Reader;
use super::task::{self, Switch};
use super::transfer::{enter_outer, outer_ss};
use crate::decode::Lower;
use crate::{Cpu, Exec, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Cr0, Cr4, Exception, Gpr, RFlags, Seg};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    op.size = match i.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        Code::Iretq => 8,
        _ => return None,
    };
    op.run = iret;
    Some(Lower::End)
}

fn gp() -> Trap {
    Exception::gp(0).into()
}

fn iret(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let s = &cpu.state;
    let protected = s.cr0.contains(Cr0::PE);
    if protected && is_v86(cpu) {
        return from_v86(cpu, op.size, io);
    }
    // An IRET that faults has unblocked NMIs too (SDM vol. 3, 7.7.1).
    cpu.unblock_nmi();
    if !protected {
        return real(cpu, op.size, RFlags::empty(), io);
    }
    if cpu.state.rflags.contains(RFlags::NT) {
        if cpu.long_mode {
            return Err(gp());
        }
        let link = task::back_link(cpu, io)?;
        let done = task::switch(cpu, link, Switch::Return, Faults::GP, io);
        return task::settle(cpu, done, io);
    }
    let mut reader = Reader::new(cpu, op.size);
    let ip = reader.pop(cpu, io)?;
    let cs = Selector(reader.pop(cpu, io)? as u16);
    let flags = RFlags::from_bits_truncate(reader.pop(cpu, io)?);
    let to_v86 = flags.contains(RFlags::VM) && op.size == 4 && !cpu.long_mode;
    if to_v86 && cpu.state.cpl == 0 {
        return to_virtual(cpu, ip, cs.0, flags, reader, io);
    }
    let target = code_segment::return_to(cpu, cs, io)?;
    if target.cpl == cpu.state.cpl && !cpu.code64 {
        target.check_ip(cpu, ip, 0)?;
        let changed = changeable(cpu, op.size);
        cpu.set_sp(reader.sp());
        target.enter(cpu, ip);
        set_flags(cpu, flags, changed);
        return Ok(());
    }
    let sp = reader.pop(cpu, io)?;
    let ss = Selector(reader.pop(cpu, io)? as u16);
    outer(cpu, &target, ip, flags, (sp, ss), op.size, io)
}

/// To an outer level, or from 64-bit mode, where SS:RSP is popped in any case.
fn outer(
    cpu: &mut Cpu,
    target: &Target,
    ip: u64,
    flags: RFlags,
    (sp, ss): (u64, Selector),
    size: u8,
    io: &mut dyn CpuIo,
) -> Exec {
    let ss = outer_ss(cpu, target, ss, io)?;
    target.check_ip(cpu, ip, 0)?;
    let changed = changeable(cpu, size);
    let sp = if size == 2 {
        (cpu.gpr(Gpr::Rsp) & !0xffff) | sp
    } else {
        sp
    };
    enter_outer(cpu, target, ip, ss, sp, 8, 0);
    set_flags(cpu, flags, changed);
    Ok(())
}

/// The flags that IRET may change at the present CPL, with pops of `size` bytes.
fn changeable(cpu: &Cpu, size: u8) -> RFlags {
    let s = &cpu.state;
    let mut changed = RFlags::STATUS | RFlags::TF | RFlags::DF | RFlags::NT;
    let wide = size != 2;
    if wide {
        changed |= RFlags::RF | RFlags::AC | RFlags::ID;
    }
    if s.cpl <= s.rflags.iopl() {
        changed |= RFlags::IF;
    }
    if s.cpl == 0 {
        changed |= RFlags::IOPL;
        if wide {
            changed |= RFlags::VIF | RFlags::VIP;
        }
    }
    changed
}

fn set_flags(cpu: &mut Cpu, flags: RFlags, changed: RFlags) {
    let s = &mut cpu.state;
    s.rflags = (s.rflags - changed) | (flags & changed);
    cpu.refresh();
}

/// From the monitor to virtual-8086 mode: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
fn to_virtual(
    cpu: &mut Cpu,
    ip: u64,
    cs: u16,
    flags: RFlags,
    mut reader: Reader,
    io: &mut dyn CpuIo,
) -> Exec {
    let sp = reader.pop(cpu, io)?;
    let mut selectors = [0; 5];
    for s in &mut selectors {
        *s = reader.pop(cpu, io)? as u16;
    }
    let [ss, es, ds, fs, gs] = selectors;
    let changed = changeable(cpu, 4) | RFlags::VM;
    let s = &mut cpu.state;
    s.seg = [es, cs, ss, ds, fs, gs].map(segment::v86_segment);
    s.cpl = 3;
    s.rip = ip & 0xffff;
    s.gpr[Gpr::Rsp as usize] = sp;
    set_flags(cpu, flags, changed);
    Ok(())
}

/// Within virtual-8086 mode: IOPL 3, or 16 bits with VME, where VIF stands in for IF.
fn from_v86(cpu: &mut Cpu, size: u8, io: &mut dyn CpuIo) -> Exec {
    let s = &cpu.state;
    if s.rflags.iopl() == 3 {
        cpu.unblock_nmi();
        // IOPL, VM, VIF and VIP stay.
        return real(cpu, size, RFlags::IOPL | RFlags::VIF | RFlags::VIP, io);
    }
    if !s.cr4.contains(Cr4::VME) || size != 2 {
        return Err(gp());
    }
    let mut reader = Reader::new(cpu, size);
    let ip = reader.pop(cpu, io)?;
    let cs = reader.pop(cpu, io)? as u16;
    let flags = RFlags::from_bits_truncate(reader.pop(cpu, io)?);
    let wants = flags.contains(RFlags::IF);
    let pending = cpu.state.rflags.contains(RFlags::VIP);
    if flags.contains(RFlags::TF) || (wants && pending) {
        return Err(gp());
    }
    if ip > u64::from(cpu.state.segment(Seg::Cs).limit) {
        return Err(gp());
    }
    cpu.set_sp(reader.sp());
    cpu.state.seg[Seg::Cs as usize] = segment::v86_segment(cs);
    cpu.state.rip = ip;
    cpu.unblock_nmi();
    cpu.state.rflags.set(RFlags::VIF, wants);
    let changed = RFlags::STATUS | RFlags::DF | RFlags::NT | RFlags::TF;
    set_flags(cpu, flags, changed);
    Ok(())
}

/// Real-address mode, and virtual-8086 mode with IOPL 3. `kept`: flags that stay besides VM, VIF and
/// VIP.
fn real(cpu: &mut Cpu, size: u8, kept: RFlags, io: &mut dyn CpuIo) -> Exec {
    let mut reader = Reader::new(cpu, size);
    let ip = reader.pop(cpu, io)?;
    let selector = reader.pop(cpu, io)? as u16;
    let flags = RFlags::from_bits_truncate(reader.pop(cpu, io)?);
    let cs = cpu.state.seg[Seg::Cs as usize];
    if ip > u64::from(cs.limit) {
        return Err(gp());
    }
    let mut changed = RFlags::STATUS | RFlags::TF | RFlags::DF | RFlags::NT | RFlags::IF;
    changed |= RFlags::IOPL;
    if size != 2 {
        changed |= RFlags::RF | RFlags::AC | RFlags::ID;
    }
    cpu.set_sp(reader.sp());
    cpu.state.seg[Seg::Cs as usize] = segment::load_real(cpu, cs, selector);
    cpu.state.rip = ip;
    set_flags(cpu, flags, changed - kept);
    Ok(())
}
