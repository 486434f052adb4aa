//! Delivery of exceptions and interrupts through the IDT (SDM vol. 3, chapter 7).

use crate::{Cpu, Step, Trap, TrapKind};
use mimeo_arch_x86::{
    Activity, Cr0, DescriptorTable, Exception, Gpr, RFlags, Seg, Segment, Vector,
};
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
    pub fn ext(self) -> u32 {
        u32::from(self != Self::Software)
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
            TrapKind::Exception(e) => raise(cpu, e, io),
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
            TrapKind::Exception(second) => second,
        };
        let double = (contributory(e.vector) && contributory(second.vector))
            || (e.vector == Vector::Pf
                && (contributory(second.vector) || second.vector == Vector::Pf));
        if e.vector == Vector::Df {
            cpu.note_exception(second);
            cpu.state.activity = Activity::Shutdown;
            return Ok(Step::TripleFault);
        }
        e = if double {
            Exception::with_code(Vector::Df, 0)
        } else {
            second
        };
    }
}

/// What an exception changes before its delivery: CR2, DR6, DR7.GD, RF.
fn prepare(cpu: &mut Cpu, e: &Exception) {
    if let Some(cr2) = e.cr2 {
        cpu.state.cr2 = cr2;
    }
    if e.vector == Vector::Db {
        // B0 to B3 are replaced, the others accumulate (SDM vol. 3, 19.2.3).
        cpu.state.dr6 = cpu.state.dr6 & !0xf | e.dr6;
        cpu.state.dr7 &= !(1 << 13);
    }
}

/// Whether the saved RFLAGS of this exception have RF set: faults, not traps (SDM vol. 3, 19.3.1.1).
fn saves_rf(vector: u8, source: Source) -> bool {
    source == Source::Exception && !matches!(vector, 1 | 3 | 4 | 8 | 18)
}

/// Delivers vector `vector`; RIP is what the handler returns to. Nothing has changed on `Err`.
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
    if cpu.long_mode {
        deliver_long(cpu, vector, source, code, io)
    } else if !cpu.state.cr0.contains(Cr0::PE) {
        deliver_real(cpu, vector, io)
    } else {
        Err(Exception::gp(u32::from(vector) * 8 + 2 + source.ext()).into())
    }
}

/// Real mode: IVT entry, FLAGS, CS and IP pushed (SDM vol. 3, 22.1.4).
fn deliver_real(cpu: &mut Cpu, vector: u8, io: &mut dyn CpuIo) -> Result<(), Trap> {
    let at = u64::from(vector) * 4;
    if at + 3 > u64::from(cpu.state.idtr.limit) {
        return Err(Exception::gp(u32::from(vector) * 8 + 2).into());
    }
    let entry: u32 = cpu.read_system(cpu.state.idtr.base.wrapping_add(at), io)?;
    let s = &cpu.state;
    let frame = [
        s.rip as u16,
        s.segment(Seg::Cs).selector,
        s.rflags.bits() as u16,
    ];
    let sp = s.reg(Gpr::Rsp).wrapping_sub(6) & cpu.stack_mask();
    let bytes: Vec<u8> = frame.iter().flat_map(|w| w.to_le_bytes()).collect();
    cpu.store_bytes(Seg::Ss as u8, sp, &bytes, io)?;
    cpu.set_sp(sp);
    let s = &mut cpu.state;
    s.rflags -= RFlags::IF | RFlags::TF | RFlags::AC | RFlags::RF;
    let cs = &mut s.seg[Seg::Cs as usize];
    cs.selector = (entry >> 16) as u16;
    cs.base = u64::from(cs.selector) << 4;
    s.rip = u64::from(entry & 0xffff);
    Ok(())
}

struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    trap: bool,
}

fn read_gate(cpu: &mut Cpu, vector: u8, source: Source, io: &mut dyn CpuIo) -> Result<Gate, Trap> {
    let error = u32::from(vector) * 8 + 2 + source.ext();
    let DescriptorTable { base, limit } = cpu.state.idtr;
    let at = u64::from(vector) * 16;
    if at + 15 > u64::from(limit) {
        return Err(Exception::gp(error).into());
    }
    let low: u64 = cpu.read_system(base.wrapping_add(at), io)?;
    let high: u64 = cpu.read_system(base.wrapping_add(at + 8), io)?;
    let kind = low >> 40 & 0x1f;
    let dpl = (low >> 45 & 3) as u8;
    if !matches!(kind, 14 | 15) || (source == Source::Software && dpl < cpu.state.cpl) {
        return Err(Exception::gp(error).into());
    }
    if low >> 47 & 1 == 0 {
        return Err(Exception::with_code(Vector::Np, error).into());
    }
    Ok(Gate {
        selector: (low >> 16) as u16,
        offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
        ist: (low >> 32 & 7) as u8,
        trap: kind == 15,
    })
}

/// Long mode (SDM vol. 3, 7.14).
fn deliver_long(
    cpu: &mut Cpu,
    vector: u8,
    source: Source,
    code: Option<u32>,
    io: &mut dyn CpuIo,
) -> Result<(), Trap> {
    let ext = source.ext();
    let gate = read_gate(cpu, vector, source, io)?;
    let cs = target_code(cpu, gate.selector, ext, io)?;
    let conforming = cs.attr & 4 != 0;
    let cpl = cpu.state.cpl;
    let new_cpl = if conforming { cpl } else { cs.dpl() };
    let stack = if gate.ist != 0 {
        tss_stack(cpu, 0x24 + 8 * (u64::from(gate.ist) - 1), ext, io)?
    } else if new_cpl < cpl {
        tss_stack(cpu, 4 + 8 * u64::from(new_cpl), ext, io)?
    } else {
        cpu.state.reg(Gpr::Rsp)
    };
    let s = &cpu.state;
    let mut flags = s.rflags;
    flags.set(
        RFlags::RF,
        flags.contains(RFlags::RF) || saves_rf(vector, source),
    );
    let mut frame = vec![
        s.rip,
        u64::from(s.segment(Seg::Cs).selector),
        flags.bits(),
        s.reg(Gpr::Rsp),
        u64::from(s.segment(Seg::Ss).selector),
    ];
    if let Some(code) = code {
        frame.insert(0, u64::from(code));
    }
    let bytes: Vec<u8> = frame.iter().flat_map(|q| q.to_le_bytes()).collect();
    let sp = (stack & !15).wrapping_sub(bytes.len() as u64);
    let stack_fault = || Trap::from(Exception::ss(ext));
    if !cpu.is_canonical(sp) || !cpu.is_canonical(sp.wrapping_add(bytes.len() as u64 - 1)) {
        return Err(stack_fault());
    }
    if !cpu.is_canonical(gate.offset) {
        return Err(Exception::gp(ext).into());
    }
    push_frame(cpu, new_cpl, sp, &bytes, io)?;
    let s = &mut cpu.state;
    s.gpr[Gpr::Rsp as usize] = sp;
    s.rip = gate.offset;
    if new_cpl != cpl {
        s.seg[Seg::Ss as usize] = Segment {
            selector: u16::from(new_cpl),
            base: 0,
            limit: 0xffff_ffff,
            attr: Segment::UNUSABLE | u32::from(new_cpl) << 5,
        };
    }
    s.seg[Seg::Cs as usize] = Segment {
        selector: gate.selector & !3 | u16::from(new_cpl),
        ..cs
    };
    s.cpl = new_cpl;
    s.rflags -= RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM;
    if !gate.trap {
        s.rflags -= RFlags::IF;
    }
    cpu.refresh();
    Ok(())
}

/// Pushes the frame with the rights of the new privilege level.
fn push_frame(
    cpu: &mut Cpu,
    cpl: u8,
    sp: u64,
    bytes: &[u8],
    io: &mut dyn CpuIo,
) -> Result<(), Trap> {
    if cpl < 3 {
        cpu.as_system(|cpu| cpu.write_bytes(Seg::Ss as u8, sp, bytes, io))
    } else {
        cpu.write_bytes(Seg::Ss as u8, sp, bytes, io)
    }
}

/// A stack pointer from the 64-bit TSS.
fn tss_stack(cpu: &mut Cpu, offset: u64, ext: u32, io: &mut dyn CpuIo) -> Result<u64, Trap> {
    let tr = cpu.state.tr;
    if offset + 7 > u64::from(tr.limit) {
        let code = u32::from(tr.selector & !3) | ext;
        return Err(Exception::with_code(Vector::Ts, code).into());
    }
    let sp: u64 = cpu.read_system(tr.base.wrapping_add(offset), io)?;
    if cpu.is_canonical(sp) {
        Ok(sp)
    } else {
        Err(Exception::ss(ext).into())
    }
}

/// The 64-bit code segment that a gate names.
fn target_code(
    cpu: &mut Cpu,
    selector: u16,
    ext: u32,
    io: &mut dyn CpuIo,
) -> Result<Segment, Trap> {
    let code = u32::from(selector & !3) | ext;
    if selector & !3 == 0 {
        return Err(Exception::gp(ext).into());
    }
    let gp = || Trap::from(Exception::gp(code));
    let selector = mimeo_arch_x86::selector::Selector(selector);
    let d = super::segment::read_descriptor(cpu, selector, io)?.ok_or_else(gp)?;
    let cs = d.segment(selector.0);
    let is_code = cs.attr & 0x18 == 0x18;
    if !is_code || cs.dpl() > cpu.state.cpl || !cs.long() || cs.db() {
        return Err(gp());
    }
    if cs.attr & 0x80 == 0 {
        return Err(Exception::with_code(Vector::Np, code).into());
    }
    Ok(cs)
}
