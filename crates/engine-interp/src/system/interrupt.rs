//! Delivery of exceptions and interrupts (SDM vol. 3, chapter 7; 22.1.4 and 22.3 for real and
//! virtual-8086 mode), INT n, INT3, INTO, INT1.

use super::code_segment::{self, Target};
use super::operand::is_v86;
use super::segment::{self, Faults};
use super::stack::{self, Frame, Stack};
use super::task::{self, Switch};
use super::transfer::enter_inner;
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Step, Trap, TrapKind};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::descriptor::{Descriptor, system_type};
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Activity, Cr0, Cr4, Exception, Gpr, RFlags, Seg, Vector, tss};
use mimeo_vcpu::{CpuIo, EngineError};

/// Where an interrupt comes from: decides privilege checks and the EXT bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The interrupt controller.
    External,
    /// A non-maskable interrupt.
    Nmi,
    /// A fault, trap or abort of the processor, or INT1.
    Exception,
    /// INT n, INT3, INTO: gate privilege is checked, EXT is clear.
    Software,
}

impl Source {
    /// The EXT bit of error codes of faults during delivery.
    #[must_use]
    pub fn ext(self) -> bool {
        self != Self::Software
    }
}

/// Delivers an external interrupt or NMI; a fault of the delivery is delivered in turn.
pub(crate) fn external(
    cpu: &mut Cpu,
    vector: u8,
    source: Source,
    io: &mut dyn CpuIo,
) -> Result<Step, EngineError> {
    cpu.delivered += 1;
    match deliver(cpu, vector, source, None, io) {
        Ok(()) => Ok(Step::Retired),
        Err(trap) => match trap.into_kind() {
            TrapKind::Engine(e) => Err(e),
            TrapKind::Yield => Ok(Step::Interrupted),
            TrapKind::Exception(e) | TrapKind::NewTask(e) => raise(cpu, e, io),
        },
    }
}

/// Contributory exceptions (SDM vol. 3, table 7-4).
fn contributory(v: Vector) -> bool {
    matches!(
        v,
        Vector::De | Vector::Ts | Vector::Np | Vector::Ss | Vector::Gp | Vector::Cp
    )
}

/// See [`Cpu::raise`].
pub(crate) fn raise(
    cpu: &mut Cpu,
    first: Exception,
    io: &mut dyn CpuIo,
) -> Result<Step, EngineError> {
    let mut e = first;
    if cpu.state.activity == Activity::Halted {
        // A debug trap after HLT ends it.
        cpu.state.activity = Activity::Running;
    }
    loop {
        cpu.note_exception(e);
        cpu.delivered += 1;
        prepare(cpu, &e);
        let trap = match deliver(cpu, e.vector as u8, Source::Exception, e.error_code, io) {
            Ok(()) => return Ok(Step::Exception(first)),
            Err(trap) => trap,
        };
        let second = match trap.into_kind() {
            TrapKind::Engine(e) => return Err(e),
            TrapKind::Yield => return Ok(Step::Interrupted),
            TrapKind::Exception(second) | TrapKind::NewTask(second) => second,
        };
        if e.vector == Vector::Df {
            cpu.note_exception(second);
            cpu.state.activity = Activity::Shutdown;
            return Ok(Step::TripleFault);
        }
        let double = (contributory(e.vector) && contributory(second.vector))
            || (e.vector == Vector::Pf
                && (contributory(second.vector) || second.vector == Vector::Pf));
        if double && second.cr2.is_some() {
            // The second page fault has set CR2 before it became a double fault.
            prepare(cpu, &second);
        }
        e = if double {
            Exception::with_code(Vector::Df, 0)
        } else {
            second
        };
    }
}

/// What an exception changes before its delivery: CR2, DR6, DR7.GD, IA32_DEBUGCTL.BTF.
fn prepare(cpu: &mut Cpu, e: &Exception) {
    if let Some(cr2) = e.cr2 {
        cpu.state.cr2 = cr2;
    }
    if e.vector == Vector::Db {
        // B0 to B3 are replaced, the others accumulate (SDM vol. 3, 19.2.3).
        cpu.state.dr6 = (cpu.state.dr6 & !0xf) | e.dr6;
        cpu.state.dr7 &= !super::debug::DR7_GD;
        cpu.state.msr.debugctl &= !super::debug::DEBUGCTL_BTF;
        cpu.refresh();
    }
}

/// Delivers vector `vector`; RIP is what the handler returns to. Nothing has changed on `Err`,
/// unless it is [`TrapKind::NewTask`].
///
/// # Errors
/// The fault of the delivery.
pub(crate) fn deliver(
    cpu: &mut Cpu,
    vector: u8,
    source: Source,
    code: Option<u32>,
    io: &mut dyn CpuIo,
) -> Result<(), Trap> {
    let event = Event {
        vector,
        source,
        code,
    };
    if cpu.long_mode {
        event.long(cpu, io)
    } else if cpu.state.cr0.contains(Cr0::PE) {
        event.protected(cpu, io)
    } else {
        let ivt = cpu.state.idtr.base;
        let limit = u32::from(cpu.state.idtr.limit);
        if u32::from(vector) * 4 + 3 > limit {
            return Err(event.idt_fault(Vector::Gp));
        }
        real(cpu, vector, ivt, io)
    }
}

/// Real mode, and virtual-8086 mode's own handlers: FLAGS, CS and IP pushed, CS:IP from the vector
/// table at `ivt` (SDM vol. 3, 22.1.4).
fn real(cpu: &mut Cpu, vector: u8, ivt: u64, io: &mut dyn CpuIo) -> Exec {
    let at = ivt.wrapping_add(u64::from(vector) * 4) & 0xffff_ffff;
    // In virtual-8086 mode the table is read with the program's own rights.
    let entry: u32 = if is_v86(cpu) {
        cpu.read(crate::mem::SYSTEM, at, io)?
    } else {
        cpu.read_system(at, io)?
    };
    let s = &cpu.state;
    let mut flags = s.rflags;
    let virtual_if = is_v86(cpu) && flags.iopl() < 3;
    if virtual_if {
        flags.set(RFlags::IF, flags.contains(RFlags::VIF));
        flags |= RFlags::IOPL;
    }
    let mut frame = Frame::new(2);
    frame.push(flags.bits());
    frame.push(s.segment(Seg::Cs).selector);
    frame.push(s.rip);
    let sp = Stack::current(cpu, 0).push(cpu, &frame, io)?;
    let ip = u64::from(entry & 0xffff);
    let cs = cpu.state.seg[Seg::Cs as usize];
    if ip > u64::from(cs.limit) {
        return Err(Exception::gp(0).into());
    }
    cpu.set_sp(sp);
    cpu.state.seg[Seg::Cs as usize] = segment::load_real(cpu, cs, (entry >> 16) as u16);
    cpu.state.rip = ip;
    let masked = if virtual_if { RFlags::VIF } else { RFlags::IF };
    cpu.state.rflags -= masked | RFlags::TF | RFlags::AC | RFlags::RF;
    cpu.refresh();
    Ok(())
}

/// One event on its way through the IDT.
#[derive(Clone, Copy)]
struct Event {
    vector: u8,
    source: Source,
    code: Option<u32>,
}

impl Event {
    fn ext(&self) -> bool {
        self.source.ext()
    }

    /// A fault whose error code names the IDT entry.
    fn idt_fault(&self, vector: Vector) -> Trap {
        let code = u32::from(self.vector) * 8 + 2 + u32::from(self.ext());
        Exception::with_code(vector, code).into()
    }

    fn faults(&self) -> Faults {
        Faults {
            bad: Vector::Gp,
            ext: self.ext(),
        }
    }

    /// Reads and checks the IDT entry of `size` bytes; gives it and, in long mode, its upper half.
    fn gate(
        &self,
        cpu: &mut Cpu,
        size: u32,
        kinds: &[u8],
        io: &mut dyn CpuIo,
    ) -> Result<(Descriptor, u64), Trap> {
        let idtr = cpu.state.idtr;
        let offset = u32::from(self.vector) * size;
        if offset + size - 1 > u32::from(idtr.limit) {
            return Err(self.idt_fault(Vector::Gp));
        }
        let at = idtr.base.wrapping_add(offset.into());
        let at = if cpu.long_mode { at } else { at & 0xffff_ffff };
        let gate = Descriptor(cpu.read_system(at, io)?);
        let high = if size == 16 {
            cpu.read_system(at.wrapping_add(8), io)?
        } else {
            0
        };
        let reachable = self.source != Source::Software || gate.dpl() >= cpu.state.cpl;
        if !gate.is_system() || !kinds.contains(&gate.kind()) || !reachable {
            return Err(self.idt_fault(Vector::Gp));
        }
        if !gate.present() {
            return Err(self.idt_fault(Vector::Np));
        }
        Ok((gate, high))
    }

    /// The RFLAGS image that is pushed: RF is set for faults, but not for those of instruction
    /// breakpoints (SDM vol. 3, 19.3.1.1).
    fn flags_image(&self, cpu: &Cpu) -> u64 {
        let fault = self.source == Source::Exception && !matches!(self.vector, 1 | 3 | 4 | 8 | 18);
        let rf = if fault { RFlags::RF } else { RFlags::empty() };
        (cpu.state.rflags | rf).bits()
    }

    /// Protected mode outside long mode (SDM vol. 3, 7.12).
    fn protected(&self, cpu: &mut Cpu, io: &mut dyn CpuIo) -> Exec {
        use system_type as t;
        const KINDS: [u8; 5] = [t::TASK, t::INTERRUPT16, t::TRAP16, t::INTERRUPT, t::TRAP];
        let (d, _) = self.gate(cpu, 8, &KINDS, io)?;
        if d.kind() == t::TASK {
            // The image in the old task's TSS is what would be pushed.
            cpu.state.rflags = RFlags::from_bits_retain(self.flags_image(cpu));
            task::switch(cpu, d.gate().selector(), Switch::Call, self.faults(), io)?;
            return match self.code {
                Some(code) => task::push_error_code(cpu, code, self.ext(), io),
                None => Ok(()),
            };
        }
        let gate = d.gate();
        let wide = d.kind() & 8 != 0;
        let (size, ip) = if wide {
            (4, u64::from(gate.offset()))
        } else {
            (2, u64::from(gate.offset() & 0xffff))
        };
        let target = code_segment::through_gate(cpu, gate.selector(), false, self.faults(), io)?;
        let v86 = is_v86(cpu);
        if v86 && target.cpl != 0 {
            return Err(self.faults().at(Vector::Gp, gate.selector()));
        }
        let clears_if = d.kind() & 1 == 0;
        self.enter_protected(cpu, &target, ip, size, v86, io)?;
        self.mask_flags(cpu, clears_if);
        Ok(())
    }

    /// Builds the frame and enters the handler, on an inner stack where CPL changes.
    fn enter_protected(
        &self,
        cpu: &mut Cpu,
        target: &Target,
        ip: u64,
        size: u8,
        v86: bool,
        io: &mut dyn CpuIo,
    ) -> Exec {
        let inner = target.cpl != cpu.state.cpl;
        let stack = if inner {
            stack::from_tss(cpu, target.cpl, self.ext(), io)?
        } else {
            Stack::current(cpu, self.ext().into())
        };
        let mut frame = Frame::new(size);
        let s = &cpu.state;
        if v86 {
            for n in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                frame.push(s.segment(n).selector);
            }
        }
        if inner {
            frame.push(s.segment(Seg::Ss).selector);
            frame.push(s.reg(Gpr::Rsp));
        }
        frame.push(self.flags_image(cpu));
        frame.push(cpu.state.segment(Seg::Cs).selector);
        frame.push(cpu.state.rip);
        if let Some(code) = self.code {
            frame.push(code);
        }
        target.check_ip(cpu, ip, self.ext().into())?;
        let sp = stack.push(cpu, &frame, io)?;
        if v86 {
            cpu.state.rflags -= RFlags::VM;
            for n in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                let old = cpu.state.seg[n as usize];
                cpu.state.seg[n as usize] = segment::null_data(cpu, old, Selector(0));
            }
        }
        enter_inner(cpu, target, ip, stack.ss, sp);
        Ok(())
    }

    /// Long mode (SDM vol. 3, 7.14).
    fn long(&self, cpu: &mut Cpu, io: &mut dyn CpuIo) -> Exec {
        const KINDS: [u8; 2] = [system_type::INTERRUPT, system_type::TRAP];
        let (d, high) = self.gate(cpu, 16, &KINDS, io)?;
        let gate = d.gate();
        let ip = u64::from(gate.offset()) | high << 32;
        let target = code_segment::through_gate(cpu, gate.selector(), false, self.faults(), io)?;
        let ext = self.ext();
        let inner = target.cpl != cpu.state.cpl;
        let offset = match gate.ist() {
            0 => tss::tss64::RSP0 + 8 * u32::from(target.cpl),
            n => tss::tss64::IST1 + 8 * (u32::from(n) - 1),
        };
        let mut stack = if inner || gate.ist() != 0 {
            stack::from_tss64(cpu, offset, target.cpl, ext, io)?
        } else {
            Stack {
                mask: u64::MAX,
                ..Stack::current(cpu, ext.into())
            }
        };
        stack.sp &= !15;
        if !inner {
            // SS becomes null only with a change of CPL.
            stack.ss = *cpu.state.segment(Seg::Ss);
        }
        let s = &cpu.state;
        let mut frame = Frame::new(8);
        frame.push(s.segment(Seg::Ss).selector);
        frame.push(s.reg(Gpr::Rsp));
        frame.push(self.flags_image(cpu));
        frame.push(s.segment(Seg::Cs).selector);
        frame.push(s.rip);
        if let Some(code) = self.code {
            frame.push(code);
        }
        target.check_ip(cpu, ip, ext.into())?;
        let sp = stack.push(cpu, &frame, io)?;
        enter_inner(cpu, &target, ip, stack.ss, sp);
        self.mask_flags(cpu, d.kind() == system_type::INTERRUPT);
        Ok(())
    }

    /// The flags that a gate clears.
    fn mask_flags(&self, cpu: &mut Cpu, clears_if: bool) {
        let s = &mut cpu.state;
        s.rflags -= RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM;
        if clears_if {
            s.rflags -= RFlags::IF;
        }
        cpu.refresh();
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let run: Handler = match i.code() {
        Code::Int_imm8 => int_n,
        Code::Int3 => int3,
        Code::Into => into,
        Code::Int1 => int1,
        _ => return None,
    };
    op.run = run;
    Some(Lower::End)
}

/// Delivers a software interrupt after its instruction. TF is not looked at for it: the delivery
/// has cleared it (SDM vol. 3, 19.3.1.4).
fn software(cpu: &mut Cpu, vector: u8, source: Source, io: &mut dyn CpuIo) -> Exec {
    let done = cpu.software_interrupt(vector, source, io);
    task::settle(cpu, done, io)?;
    cpu.no_step = true;
    Ok(())
}

fn int_n(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let vector = op.imm as u8;
    if !is_v86(cpu) {
        return software(cpu, vector, Source::Software, io);
    }
    if cpu.state.cr4.contains(Cr4::VME) && !redirected(cpu, vector, io)? {
        real(cpu, vector, 0, io)?;
        cpu.no_step = true;
        return Ok(());
    }
    if cpu.state.rflags.iopl() < 3 {
        return Err(Exception::gp(0).into());
    }
    software(cpu, vector, Source::Software, io)
}

/// Whether the interrupt redirection bitmap sends INT `vector` to the protected-mode handler: its
/// bit is set (SDM vol. 3, 22.3.3). The 32 bytes lie before the I/O permission bitmap.
fn redirected(cpu: &mut Cpu, vector: u8, io: &mut dyn CpuIo) -> Result<bool, Trap> {
    let gp = || Trap::from(Exception::gp(0));
    let tr = cpu.state.tr;
    if tr.unusable() || tr.attr & 8 == 0 || tr.limit < tss::tss32::LIMIT {
        return Err(gp());
    }
    let map = tr.base.wrapping_add(tss::tss32::IO_MAP.into());
    let start: u16 = cpu.read_system(map, io)?;
    let byte = u32::from(start)
        .checked_sub(32)
        .map(|at| at + u32::from(vector / 8))
        .filter(|at| *at <= tr.limit)
        .ok_or_else(gp)?;
    let bits: u8 = cpu.read_system(tr.base.wrapping_add(byte.into()), io)?;
    Ok(bits >> (vector % 8) & 1 != 0)
}

fn int3(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    software(cpu, Vector::Bp as u8, Source::Software, io)
}

fn into(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    if cpu.state.rflags.contains(RFlags::OF) {
        software(cpu, Vector::Of as u8, Source::Software, io)?;
    }
    Ok(())
}

/// INT1: a debug exception that leaves DR6 as it is and ignores the gate's DPL.
fn int1(cpu: &mut Cpu, _: &Op, io: &mut dyn CpuIo) -> Exec {
    software(cpu, Vector::Db as u8, Source::Exception, io)
}
