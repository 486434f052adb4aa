//! x87 arithmetic, in thunks on the host's FPU, and the control instructions that need none.
//!
//! SDM vol. 1, chapter 8. Unmasked exceptions stay pending in the status word, as on hardware,
//! and are raised by the next waiting instruction.

use super::layout::{self, ES, REGISTER, get16};
use super::native::{self, FxArea, Vector};
use super::thunk::{Aux, HOST_MXCSR};
use super::{check, memory, native_of};
use crate::{Access, Cpu, Exec, Handler, Op};
use iced_x86::Code;
use mimeo_arch_x86::{Cr0, RFlags, Seg};
use mimeo_isa_x86::{Form, form::Access as Use};
use mimeo_vcpu::CpuIo;

/// The handler of a control instruction.
pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Wait => wait,
        Code::Fnop => nop,
        Code::Fninit => initialise,
        Code::Fnclex => clear_exceptions,
        // No-operations since the 387 (SDM vol. 3, 24.18.9).
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => obsolete,
        Code::Fldcw_m2byte => load_control,
        Code::Fnstcw_m2byte => store_control,
        Code::Fnstsw_m2byte => store_status,
        Code::Fnstsw_AX => status_to_ax,
        _ => return None,
    })
}

fn wait(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::wait(cpu)
}

fn nop(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    check::pending(cpu)?;
    record(cpu, op, None);
    Ok(())
}

fn initialise(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    layout::initialise(&mut cpu.state.fp);
    Ok(())
}

fn clear_exceptions(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    cpu.state.fp.fsw &= 0x7f00;
    Ok(())
}

fn obsolete(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)
}

fn load_control(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    check::pending(cpu)?;
    let fcw = cpu.load_op::<u16>(op, io)?;
    layout::set_control(&mut cpu.state.fp, fcw);
    Ok(())
}

fn store_control(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    cpu.store_op(op, cpu.state.fp.fcw, io)
}

fn store_status(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    cpu.store_op(op, cpu.state.fp.fsw, io)
}

fn status_to_ax(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    let rax = &mut cpu.state.gpr[0];
    *rax = *rax & !0xffff | u64::from(cpu.state.fp.fsw);
    Ok(())
}

/// Remembers the instruction (and its operand) as the last x87 instruction.
fn record(cpu: &mut Cpu, op: &Op, operand: Option<u64>) {
    let s = &mut cpu.state;
    s.fp.fip = s.rip.wrapping_sub(u64::from(op.len));
    if !cpu.code64 {
        s.fp.fip &= 0xffff_ffff;
    }
    s.fp.fcs = s.seg[Seg::Cs as usize].selector;
    if let Some(offset) = operand {
        s.fp.fdp = offset;
        s.fp.fds = s.seg[usize::from(op.seg).min(5)].selector;
    }
}

/// Instructions that compute: in a thunk.
pub(super) fn native(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    check::pending(cpu)?;
    let t = native_of(cpu, op);
    let m = &t.form.mem;
    let size = usize::from(m.size);
    let mut buffer = Vector::default();
    let (mut store_at, mut operand) = (None, None);
    if m.access != Use::None {
        operand = Some(cpu.ea(op));
        if m.access == Use::Write {
            store_at = Some(memory::address(cpu, op, m, Access::Write)?);
        } else {
            let linear = memory::address(cpu, op, m, Access::Read)?;
            memory::load(cpu, op.seg, linear, size, &mut buffer, io)?;
        }
    }
    let before = area_of(cpu);
    let mut area = before;
    let mut aux = flags_in(cpu, t.form);
    if store_at.is_some() {
        buffer = SENTINELS[0];
    }
    native::x87(t.entry, &mut area, &mut buffer, &mut aux);
    let raised = get16(&area.0, 2) & ES != 0;
    if let Some(linear) = store_at {
        // An unmasked exception may have suppressed the store: ask again with another filling when
        // the buffer looks untouched.
        let mut stored = true;
        if raised && buffer.0 == SENTINELS[0].0 {
            buffer = SENTINELS[1];
            area = before;
            native::x87(t.entry, &mut area, &mut buffer, &mut aux);
            stored = buffer.0 != SENTINELS[1].0;
        }
        if stored {
            memory::store(cpu, op.seg, linear, size, &buffer, io)?;
        }
    }
    take_area(cpu, &area);
    flags_out(cpu, t.form, &aux);
    record(cpu, op, operand);
    if raised {
        record_opcode(cpu, op);
    }
    Ok(())
}

const SENTINELS: [Vector; 2] = [
    Vector([0x5a5a_5a5a_5a5a_5a5a; 4]),
    Vector([0xa5a5_a5a5_a5a5_a5a5; 4]),
];

/// The guest's x87 state as an FXSAVE area for the host.
fn area_of(cpu: &Cpu) -> FxArea {
    let fp = &cpu.state.fp;
    let mut area = FxArea([0; 512]);
    let a = &mut area.0;
    layout::put(a, 0, &fp.fcw.to_le_bytes());
    // With CR0.NE clear an exception may be pending here: the host must not raise it.
    let fsw = if fp.fsw & ES != 0 && !cpu.state.cr0.contains(Cr0::NE) {
        fp.fsw & 0x7f00
    } else {
        fp.fsw
    };
    layout::put(a, 2, &fsw.to_le_bytes());
    a[4] = fp.ftw;
    layout::put(a, 24, &HOST_MXCSR.to_le_bytes());
    for (n, st) in fp.st.iter().enumerate() {
        layout::put(a, 32 + 16 * n, &(st & REGISTER).to_le_bytes());
    }
    area
}

/// Takes the x87 state back.
fn take_area(cpu: &mut Cpu, area: &FxArea) {
    let a = &area.0;
    let fp = &mut cpu.state.fp;
    let kept = if fp.fsw & ES != 0 { fp.fsw & 0x3f } else { 0 };
    fp.fsw = get16(a, 2) | kept;
    fp.ftw = a[4];
    for (n, bytes) in a[32..160].as_chunks().0.iter().enumerate() {
        fp.st[n] = u128::from_le_bytes(*bytes) & REGISTER;
    }
    layout::summarise(fp);
}

fn flags_in(cpu: &Cpu, form: &Form) -> Aux {
    Aux {
        flags: cpu.state.rflags.bits() & u64::from(form.flags.read) | 2,
        ..Aux::default()
    }
}

fn flags_out(cpu: &mut Cpu, form: &Form, aux: &Aux) {
    let changed = u64::from(form.flags.changed());
    if changed != 0 {
        let old = cpu.state.rflags.bits();
        cpu.state.rflags = RFlags::from_bits_retain(old & !changed | aux.flags & changed);
    }
}

/// FOP: the low three bits of the opcode byte and the ModRM byte. They are looked up in the code
/// itself, after an unmasked exception only.
fn record_opcode(cpu: &mut Cpu, op: &Op) {
    let start = cpu.state.rip.wrapping_sub(u64::from(op.len));
    let base = if cpu.code64 {
        0
    } else {
        cpu.state.seg[Seg::Cs as usize].base
    };
    let mut previous = 0_u8;
    for n in 0..u64::from(op.len) {
        let mut linear = base.wrapping_add(start).wrapping_add(n);
        if !cpu.code64 {
            linear &= 0xffff_ffff;
        }
        let Some(byte) = code_byte(cpu, linear) else {
            return;
        };
        if previous & 0xf8 == 0xd8 {
            cpu.state.fp.fop = u16::from(previous & 7) << 8 | u16::from(byte);
            return;
        }
        previous = byte;
    }
}

/// A byte of the instruction that is being executed; `None` if its page has just gone.
fn code_byte(cpu: &mut Cpu, linear: u64) -> Option<u8> {
    let gpa = cpu.translate_fetch(linear).ok()?;
    let mut byte = [0];
    cpu.memory.read(gpa, &mut byte).ok()?;
    Some(byte[0])
}
