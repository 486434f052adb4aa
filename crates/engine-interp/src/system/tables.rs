//! Descriptor-table registers and what looks at descriptors without loading them: LGDT, LIDT, SGDT,
//! SIDT, LLDT, LTR, SLDT, STR, LAR, LSL, VERR, VERW, ARPL (SDM vol. 2; vol. 3, 6.10).

use super::operand::{cpl0, get, protected, register, set, source16, store16};
use super::segment::{self, Table};
use crate::decode::Lower;
use crate::mem::Access;
use crate::op::NO_REG;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::descriptor::{Descriptor, system_type};
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Cr4, DescriptorTable, Exception, RFlags, Segment, Vector, control};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    // (handler, bytes of the operand)
    let (run, size): (Handler, u8) = match i.code() {
        Code::Lgdt_m1632_16 => (lgdt, 2),
        Code::Lgdt_m1632 => (lgdt, 4),
        Code::Lgdt_m1664 => (lgdt, 8),
        Code::Lidt_m1632_16 => (lidt, 2),
        Code::Lidt_m1632 => (lidt, 4),
        Code::Lidt_m1664 => (lidt, 8),
        Code::Sgdt_m1632_16 | Code::Sgdt_m1632 => (sgdt, 4),
        Code::Sgdt_m1664 => (sgdt, 8),
        Code::Sidt_m1632_16 | Code::Sidt_m1632 => (sidt, 4),
        Code::Sidt_m1664 => (sidt, 8),
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 => (lldt, 2),
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => (ltr, 2),
        Code::Sldt_rm16 => (sldt, 2),
        Code::Sldt_r32m16 => (sldt, 4),
        Code::Sldt_r64m16 => (sldt, 8),
        Code::Str_rm16 => (str_, 2),
        Code::Str_r32m16 => (str_, 4),
        Code::Str_r64m16 => (str_, 8),
        Code::Lar_r16_rm16 => (lar, 2),
        Code::Lar_r32_r32m16 => (lar, 4),
        Code::Lar_r64_r64m16 => (lar, 8),
        Code::Lsl_r16_rm16 => (lsl, 2),
        Code::Lsl_r32_r32m16 => (lsl, 4),
        Code::Lsl_r64_r64m16 => (lsl, 8),
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 => (verr, 2),
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => (verw, 2),
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 => (arpl, 2),
        _ => return None,
    };
    op.run = run;
    op.size = size;
    op.r0 = register(i, 0);
    if i.op_count() > 1 {
        op.r1 = register(i, 1);
    }
    Some(Lower::Plain)
}

/// #GP(0) where CR4.UMIP keeps an instruction to CPL 0.
pub(super) fn umip(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::UMIP) {
        cpl0(cpu)
    } else {
        Ok(())
    }
}

/// Loads limit and base of a table register.
fn load_table(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<DescriptorTable, Trap> {
    cpl0(cpu)?;
    let mut bytes = [0; 10];
    let len = if op.size == 8 { 10 } else { 6 };
    let offset = cpu.ea(op);
    cpu.load_bytes(op.seg, offset, &mut bytes[..len], io)?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let [_, _, base @ ..] = bytes;
    let base = u64::from_le_bytes(base);
    let base = match op.size {
        2 => base & 0xff_ffff,
        4 => base & 0xffff_ffff,
        _ => base,
    };
    if !control::base_is_canonical(&cpu.model, base) {
        return Err(Exception::gp(0).into());
    }
    Ok(DescriptorTable { base, limit })
}

fn lgdt(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpu.state.gdtr = load_table(cpu, op, io)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpu.state.idtr = load_table(cpu, op, io)?;
    Ok(())
}

fn store_table(cpu: &mut Cpu, op: &Op, table: DescriptorTable, io: &mut dyn CpuIo) -> Exec {
    umip(cpu)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let offset = cpu.ea(op);
    cpu.store_bytes(op.seg, offset, &bytes[..2 + usize::from(op.size)], io)
}

fn sgdt(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    store_table(cpu, op, cpu.state.gdtr, io)
}

fn sidt(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    store_table(cpu, op, cpu.state.idtr, io)
}

fn sldt(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    umip(cpu)?;
    let selector = cpu.state.ldtr.selector;
    store16(cpu, op, selector.into(), io)
}

fn str_(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    umip(cpu)?;
    let selector = cpu.state.tr.selector;
    store16(cpu, op, selector.into(), io)
}

fn lldt(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    cpl0(cpu)?;
    let selector = Selector(source16(cpu, op, op.r0, io)?);
    cpu.state.ldtr = load_ldt(cpu, selector, Vector::Gp, io)?;
    Ok(())
}

/// The LDTR that `selector` gives. Errors are `vector`(selector), #GP or #TS (a task switch), and
/// #NP (SDM vol. 2, LLDT).
///
/// # Errors
/// As said, and page faults of reading the descriptor.
pub(super) fn load_ldt(
    cpu: &mut Cpu,
    selector: Selector,
    vector: Vector,
    io: &mut dyn CpuIo,
) -> Result<Segment, Trap> {
    if selector.is_null() {
        return Ok(Segment {
            selector: selector.0,
            attr: Segment::UNUSABLE,
            ..Segment::default()
        });
    }
    let error = |vector| Trap::from(Exception::with_code(vector, selector.error_code(false)));
    let (low, high) = read_system(cpu, selector, io)?.ok_or_else(|| error(vector))?;
    if !low.is_system() || low.kind() != system_type::LDT {
        return Err(error(vector));
    }
    if !low.present() {
        // A task switch says #TS for this too (SDM vol. 3, table 9-1).
        let absent = if vector == Vector::Ts {
            vector
        } else {
            Vector::Np
        };
        return Err(error(absent));
    }
    let segment = low.system_segment(selector.0, high);
    if !control::base_is_canonical(&cpu.model, segment.base) {
        return Err(error(vector));
    }
    Ok(segment)
}

/// Reads the descriptor of a system segment from the GDT: 8 bytes, or 16 in long mode. `None`: in
/// the LDT, beyond the limit, or with type bits in the upper half.
fn read_system(
    cpu: &mut Cpu,
    selector: Selector,
    io: &mut dyn CpuIo,
) -> Result<Option<(Descriptor, u64)>, Trap> {
    if selector.local() {
        return Ok(None);
    }
    let size = if cpu.long_mode { 16 } else { 8 };
    let Some(at) = segment::address(cpu, selector, size, Table::Gdt) else {
        return Ok(None);
    };
    let low = Descriptor(cpu.read_system(at, io)?);
    let high = if cpu.long_mode {
        cpu.read_system(at.wrapping_add(8), io)?
    } else {
        0
    };
    Ok(Descriptor::upper_type_is_zero(high).then_some((low, high)))
}

fn ltr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    cpl0(cpu)?;
    let selector = Selector(source16(cpu, op, op.r0, io)?);
    if selector.is_null() {
        return Err(Exception::gp(0).into());
    }
    let error = |vector| Trap::from(Exception::with_code(vector, selector.error_code(false)));
    let (low, high) = read_system(cpu, selector, io)?.ok_or_else(|| error(Vector::Gp))?;
    let available = match low.kind() {
        system_type::TSS => true,
        system_type::TSS16 => !cpu.long_mode,
        _ => false,
    };
    if !low.is_system() || !available {
        return Err(error(Vector::Gp));
    }
    if !low.present() {
        return Err(error(Vector::Np));
    }
    let mut segment = low.system_segment(selector.0, high);
    if !control::base_is_canonical(&cpu.model, segment.base) {
        return Err(error(Vector::Gp));
    }
    segment::set_bits(cpu, selector, Descriptor::BUSY, io)?;
    segment.attr |= 2;
    cpu.state.tr = segment;
    Ok(())
}

/// The descriptor that LAR, LSL, VERR and VERW look at; `None` where they clear ZF in any case.
fn visible(
    cpu: &mut Cpu,
    selector: Selector,
    io: &mut dyn CpuIo,
) -> Result<Option<Descriptor>, Trap> {
    if selector.is_null() {
        return Ok(None);
    }
    let descriptor = segment::read_descriptor(cpu, selector, io)?;
    let cpl = cpu.state.cpl;
    Ok(descriptor.filter(|d| d.visible(cpl, selector.rpl())))
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    cpu.state.rflags.set(RFlags::ZF, on);
}

fn lar(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    let selector = Selector(source16(cpu, op, op.r1, io)?);
    let long = cpu.long_mode;
    let found = visible(cpu, selector, io)?.filter(|d| d.has_rights(long));
    if let Some(d) = found {
        let rights = (d.0 >> 32) & 0x00ff_ff00;
        set(cpu, op.r0, op.size, rights);
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

fn lsl(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    let selector = Selector(source16(cpu, op, op.r1, io)?);
    let long = cpu.long_mode;
    let found = visible(cpu, selector, io)?.filter(|d| d.has_limit(long));
    if let Some(d) = found {
        set(cpu, op.r0, op.size, d.limit().into());
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

fn verr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    verify(cpu, op, Descriptor::is_readable, io)
}

fn verw(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    verify(cpu, op, Descriptor::is_writable, io)
}

fn verify(cpu: &mut Cpu, op: &Op, ok: fn(Descriptor) -> bool, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    let selector = Selector(source16(cpu, op, op.r0, io)?);
    let found = visible(cpu, selector, io)?;
    set_zf(cpu, found.is_some_and(ok));
    Ok(())
}

/// ARPL: raises the destination's RPL to the source's.
fn arpl(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    protected(cpu)?;
    let rpl = get(cpu, op.r1) as u16 & 3;
    let adjust = |v: u16| if v & 3 < rpl { v & !3 | rpl } else { v };
    let old = if op.r0 == NO_REG {
        let linear = cpu.linear(op.seg, cpu.ea(op), 2, Access::Write)?;
        let old = cpu.read::<u16>(op.seg, linear, io)?;
        if adjust(old) != old {
            cpu.write(op.seg, linear, adjust(old), io)?;
        }
        old
    } else {
        let old = get(cpu, op.r0) as u16;
        set(cpu, op.r0, 2, adjust(old).into());
        old
    };
    set_zf(cpu, adjust(old) != old);
    Ok(())
}
