//! Far JMP, CALL and RET: in real and virtual-8086 mode, through code segments, call gates and tasks
//! (SDM vol. 2, CALL, JMP, RET; vol. 3, 6.8).

use super::code_segment::{self, Target};
use super::operand::is_protected;
use super::segment::{self, Faults, Table};
use super::stack::{self, Frame, Reader, Stack};
use super::task::{self, Switch};
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::descriptor::{Descriptor, system_type};
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Exception, Gpr, Seg, Segment, Vector, tss};
use mimeo_vcpu::CpuIo;

/// Far JMP or CALL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jump,
    Call,
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    use Code as C;
    let (run, size): (Handler, u8) = match i.code() {
        C::Jmp_ptr1616 => (jump_direct, 2),
        C::Jmp_ptr1632 => (jump_direct, 4),
        C::Jmp_m1616 => (jump_memory, 2),
        C::Jmp_m1632 => (jump_memory, 4),
        C::Jmp_m1664 => (jump_memory, 8),
        C::Call_ptr1616 => (call_direct, 2),
        C::Call_ptr1632 => (call_direct, 4),
        C::Call_m1616 => (call_memory, 2),
        C::Call_m1632 => (call_memory, 4),
        C::Call_m1664 => (call_memory, 8),
        C::Retfw | C::Retfw_imm16 => (ret, 2),
        C::Retfd | C::Retfd_imm16 => (ret, 4),
        C::Retfq | C::Retfq_imm16 => (ret, 8),
        _ => return None,
    };
    op.run = run;
    op.size = size;
    match i.code() {
        C::Jmp_ptr1616 | C::Call_ptr1616 => {
            op.imm = u64::from(i.far_branch16()) | u64::from(i.far_branch_selector()) << 32;
        }
        C::Jmp_ptr1632 | C::Call_ptr1632 => {
            op.imm = u64::from(i.far_branch32()) | u64::from(i.far_branch_selector()) << 32;
        }
        C::Retfw_imm16 | C::Retfd_imm16 | C::Retfq_imm16 => op.imm = u64::from(i.immediate16()),
        C::Retfw | C::Retfd | C::Retfq => op.imm = 0,
        _ => {}
    }
    Some(Lower::End)
}

fn jump_direct(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (selector, ip) = ((op.imm >> 32) as u16, op.imm & 0xffff_ffff);
    transfer(cpu, Kind::Jump, selector, ip, op.size, io)
}

fn call_direct(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (selector, ip) = ((op.imm >> 32) as u16, op.imm & 0xffff_ffff);
    transfer(cpu, Kind::Call, selector, ip, op.size, io)
}

fn jump_memory(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (selector, ip) = far_pointer(cpu, op, io)?;
    transfer(cpu, Kind::Jump, selector, ip, op.size, io)
}

fn call_memory(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (selector, ip) = far_pointer(cpu, op, io)?;
    transfer(cpu, Kind::Call, selector, ip, op.size, io)
}

/// A far pointer in memory: offset, then selector.
fn far_pointer(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<(u16, u64), Trap> {
    let mut bytes = [0; 10];
    let size = usize::from(op.size).min(8);
    let ea = cpu.ea(op);
    cpu.load_bytes(op.seg, ea, &mut bytes[..size + 2], io)?;
    let mut ip = [0; 8];
    ip[..size].copy_from_slice(&bytes[..size]);
    let selector = u16::from_le_bytes([bytes[size], bytes[size + 1]]);
    Ok((selector, u64::from_le_bytes(ip)))
}

fn transfer(
    cpu: &mut Cpu,
    kind: Kind,
    selector: u16,
    ip: u64,
    size: u8,
    io: &mut dyn CpuIo,
) -> Exec {
    if !is_protected(cpu) {
        return real(cpu, kind, selector, ip, size, io);
    }
    let selector = Selector(selector);
    let d = code_segment::read(cpu, selector, Faults::GP, io)?;
    if !d.is_system() {
        let target = code_segment::direct(cpu, selector, d, io)?;
        return same_level(cpu, kind, &target, ip, size, io);
    }
    let long = cpu.long_mode;
    match d.kind() {
        system_type::CALL => call_gate(cpu, kind, selector, d, io),
        system_type::CALL16 if !long => call_gate(cpu, kind, selector, d, io),
        system_type::TASK if !long => {
            let tss = task::through_gate(cpu, selector, d)?;
            task_switch(cpu, kind, tss, io)
        }
        system_type::TSS | system_type::TSS16 if !long => {
            if d.dpl() < cpu.state.cpl.max(selector.rpl()) {
                return Err(Faults::GP.at(Vector::Gp, selector));
            }
            task_switch(cpu, kind, selector, io)
        }
        _ => Err(Faults::GP.at(Vector::Gp, selector)),
    }
}

fn task_switch(cpu: &mut Cpu, kind: Kind, tss: Selector, io: &mut dyn CpuIo) -> Exec {
    let how = match kind {
        Kind::Jump => Switch::Jump,
        Kind::Call => Switch::Call,
    };
    let done = task::switch(cpu, tss, how, Faults::GP, io);
    task::settle(cpu, done, io)
}

/// Real-address and virtual-8086 mode.
fn real(cpu: &mut Cpu, kind: Kind, selector: u16, ip: u64, size: u8, io: &mut dyn CpuIo) -> Exec {
    let cs = cpu.state.seg[Seg::Cs as usize];
    if ip > u64::from(cs.limit) {
        return Err(Exception::gp(0).into());
    }
    if kind == Kind::Call {
        push_return(cpu, size, io)?;
    }
    enter_real(cpu, selector, ip);
    Ok(())
}

fn enter_real(cpu: &mut Cpu, selector: u16, ip: u64) {
    let cs = cpu.state.seg[Seg::Cs as usize];
    cpu.state.seg[Seg::Cs as usize] = segment::load_real(cpu, cs, selector);
    cpu.state.rip = ip;
    cpu.refresh();
}

/// Pushes CS and the return address on the current stack.
fn push_return(cpu: &mut Cpu, size: u8, io: &mut dyn CpuIo) -> Exec {
    let mut frame = Frame::new(size);
    frame.push(cpu.state.segment(Seg::Cs).selector);
    frame.push(cpu.state.rip);
    let sp = Stack::current(cpu, 0).push(cpu, &frame, io)?;
    cpu.set_sp(sp);
    Ok(())
}

/// To a code segment without a change of CPL.
fn same_level(
    cpu: &mut Cpu,
    kind: Kind,
    target: &Target,
    ip: u64,
    size: u8,
    io: &mut dyn CpuIo,
) -> Exec {
    target.check_ip(cpu, ip, 0)?;
    if kind == Kind::Call {
        push_return(cpu, size, io)?;
    }
    target.enter(cpu, ip);
    cpu.refresh();
    Ok(())
}

/// A call gate of 16, 32 or (in long mode) 64 bits.
fn call_gate(
    cpu: &mut Cpu,
    kind: Kind,
    selector: Selector,
    d: Descriptor,
    io: &mut dyn CpuIo,
) -> Exec {
    let gp = || Faults::GP.at(Vector::Gp, selector);
    if d.dpl() < cpu.state.cpl.max(selector.rpl()) {
        return Err(gp());
    }
    let mut high = 0;
    if cpu.long_mode {
        let at = segment::address(cpu, selector, 16, Table::Both).ok_or_else(gp)?;
        high = cpu.read_system(at.wrapping_add(8), io)?;
        if !Descriptor::upper_type_is_zero(high) {
            return Err(gp());
        }
    }
    if !d.present() {
        return Err(Faults::GP.at(Vector::Np, selector));
    }
    let gate = d.gate();
    let size = match d.kind() {
        system_type::CALL16 => 2,
        _ if cpu.long_mode => 8,
        _ => 4,
    };
    let ip = match size {
        2 => u64::from(gate.offset() & 0xffff),
        4 => u64::from(gate.offset()),
        _ => u64::from(gate.offset()) | high << 32,
    };
    let jump = kind == Kind::Jump;
    let target = code_segment::through_gate(cpu, gate.selector(), jump, Faults::GP, io)?;
    if target.cpl == cpu.state.cpl {
        same_level(cpu, kind, &target, ip, size, io)
    } else if cpu.long_mode {
        call_inner64(cpu, &target, ip, io)
    } else {
        call_inner(cpu, &target, ip, size, gate.parameters(), io)
    }
}

/// A call to a more privileged level, outside long mode: stack switch, parameters copied.
fn call_inner(
    cpu: &mut Cpu,
    target: &Target,
    ip: u64,
    size: u8,
    parameters: u8,
    io: &mut dyn CpuIo,
) -> Exec {
    let stack = stack::from_tss(cpu, target.cpl, false, io)?;
    let mut reader = Reader::new(cpu, size);
    let mut copied = [0; 31];
    for slot in &mut copied[..usize::from(parameters.min(31))] {
        *slot = reader.pop(cpu, io)?;
    }
    let mut frame = Frame::new(size);
    frame.push(cpu.state.segment(Seg::Ss).selector);
    frame.push(cpu.gpr(Gpr::Rsp));
    for value in copied[..usize::from(parameters.min(31))].iter().rev() {
        frame.push(*value);
    }
    frame.push(cpu.state.segment(Seg::Cs).selector);
    frame.push(cpu.state.rip);
    target.check_ip(cpu, ip, 0)?;
    let sp = stack.push(cpu, &frame, io)?;
    enter_inner(cpu, target, ip, stack.ss, sp);
    Ok(())
}

/// A call to a more privileged level in long mode: the stack pointer of the TSS, a null SS.
fn call_inner64(cpu: &mut Cpu, target: &Target, ip: u64, io: &mut dyn CpuIo) -> Exec {
    let offset = tss::tss64::RSP0 + 8 * u32::from(target.cpl);
    let stack = stack::from_tss64(cpu, offset, target.cpl, false, io)?;
    let mut frame = Frame::new(8);
    frame.push(cpu.state.segment(Seg::Ss).selector);
    frame.push(cpu.gpr(Gpr::Rsp));
    frame.push(cpu.state.segment(Seg::Cs).selector);
    frame.push(cpu.state.rip);
    target.check_ip(cpu, ip, 0)?;
    let sp = stack.push(cpu, &frame, io)?;
    enter_inner(cpu, target, ip, stack.ss, sp);
    Ok(())
}

/// Enters `target` on a new stack.
pub(super) fn enter_inner(cpu: &mut Cpu, target: &Target, ip: u64, ss: Segment, sp: u64) {
    target.enter(cpu, ip);
    cpu.state.seg[Seg::Ss as usize] = ss;
    cpu.refresh();
    cpu.set_sp(sp);
}

fn ret(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mut reader = Reader::new(cpu, op.size);
    let ip = reader.pop(cpu, io)?;
    let selector = reader.pop(cpu, io)? as u16;
    if !is_protected(cpu) {
        if ip > u64::from(cpu.state.segment(Seg::Cs).limit) {
            return Err(Exception::gp(0).into());
        }
        reader.skip(op.imm);
        cpu.set_sp(reader.sp());
        enter_real(cpu, selector, ip);
        return Ok(());
    }
    let target = code_segment::return_to(cpu, Selector(selector), io)?;
    if target.cpl == cpu.state.cpl {
        target.check_ip(cpu, ip, 0)?;
        reader.skip(op.imm);
        cpu.set_sp(reader.sp());
        target.enter(cpu, ip);
        cpu.refresh();
        return Ok(());
    }
    reader.skip(op.imm);
    let sp = reader.pop(cpu, io)?;
    let ss = Selector(reader.pop(cpu, io)? as u16);
    target.check_ip(cpu, ip, 0)?;
    let ss = outer_ss(cpu, &target, ss, io)?;
    // The parameters lie on both stacks.
    enter_outer(cpu, &target, ip, ss, sp, op.size, op.imm);
    Ok(())
}

/// SS of a return to a less privileged level: it may be null in 64-bit code above ring 3.
///
/// # Errors
/// #GP(selector), #SS(selector), page faults.
pub(super) fn outer_ss(
    cpu: &mut Cpu,
    target: &Target,
    selector: Selector,
    io: &mut dyn CpuIo,
) -> Result<Segment, Trap> {
    let to64 = cpu.long_mode && target.cs.long();
    if selector.is_null() && to64 && target.cpl < 3 && selector.rpl() == target.cpl {
        return Ok(segment::null_ss(selector.0, target.cpl));
    }
    segment::load_ss(cpu, selector, target.cpl, Faults::GP, io)
}

/// Enters a less privileged level: data segments that it may not use become null. `size`: bytes of
/// the pops; `parameters`: bytes released on the outer stack.
pub(super) fn enter_outer(
    cpu: &mut Cpu,
    target: &Target,
    ip: u64,
    ss: Segment,
    sp: u64,
    size: u8,
    parameters: u64,
) {
    let old = cpu.gpr(Gpr::Rsp);
    target.enter(cpu, ip);
    cpu.state.seg[Seg::Ss as usize] = ss;
    cpu.refresh();
    let mask = cpu.stack_mask();
    // A 16-bit pop sets SP alone.
    let sp = match size {
        2 => (old & !0xffff) | sp,
        _ => sp,
    };
    let moved = sp.wrapping_add(parameters) & mask;
    cpu.state.gpr[Gpr::Rsp as usize] = match mask {
        0xffff => (sp & !mask) | moved,
        _ => moved,
    };
    drop_inner_segments(cpu);
}

/// After CPL went up: ES, DS, FS and GS lose data and non-conforming code segments whose DPL is
/// below it.
pub(super) fn drop_inner_segments(cpu: &mut Cpu) {
    for n in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        let s = cpu.state.seg[n as usize];
        let conforming = s.attr & 0x1c == 0x1c;
        if !s.unusable() && !conforming && s.dpl() < cpu.state.cpl {
            cpu.state.seg[n as usize] = segment::null_data(cpu, s, Selector(0));
        }
    }
}
