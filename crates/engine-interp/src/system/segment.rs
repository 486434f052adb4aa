//! Segment registers: descriptors in the GDT and LDT, loads with all their checks, MOV, PUSH and POP
//! of segment registers, LDS and its family, SWAPGS, FS and GS bases (SDM vol. 3, 3.4.5, 6.5, 6.6;
//! vol. 2, MOV, LDS, SWAPGS, RDFSBASE).

use super::operand::{cpl0, is_protected, is_v86, register, set, source16, store16};
use crate::decode::Lower;
use crate::mem::SYSTEM;
use crate::op::NO_REG;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction, Register};
use mimeo_arch_x86::cpuid::{Feature, Vendor};
use mimeo_arch_x86::descriptor::Descriptor;
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Cr4, Exception, Gpr, Seg, Segment, Vector, control};
use mimeo_vcpu::CpuIo;

/// Which tables a selector may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// The GDT, and the LDT if TI is set.
    Both,
    /// The GDT alone; TI has been looked at.
    Gdt,
}

/// The linear address of a descriptor of `size` bytes; `None` beyond the table's limit or without an
/// LDT.
pub(super) fn address(cpu: &Cpu, selector: Selector, size: u32, table: Table) -> Option<u64> {
    let s = &cpu.state;
    let (base, limit) = if selector.local() && table == Table::Both {
        if s.ldtr.unusable() {
            return None;
        }
        (s.ldtr.base, s.ldtr.limit)
    } else {
        (s.gdtr.base, u32::from(s.gdtr.limit))
    };
    let offset = u32::from(selector.offset());
    let linear = base.wrapping_add(u64::from(offset));
    let linear = if cpu.long_mode {
        linear
    } else {
        linear & 0xffff_ffff
    };
    (offset + (size - 1) <= limit).then_some(linear)
}

/// Reads the 8-byte descriptor of `selector`; `None` beyond the table's limit.
///
/// # Errors
/// The read's page fault.
pub(super) fn read_descriptor(
    cpu: &mut Cpu,
    selector: Selector,
    io: &mut dyn CpuIo,
) -> Result<Option<Descriptor>, Trap> {
    match address(cpu, selector, 8, Table::Both) {
        Some(at) => cpu.read_system(at, io).map(|d| Some(Descriptor(d))),
        None => Ok(None),
    }
}

/// Sets bits of a descriptor (accessed, busy) atomically.
///
/// # Errors
/// The write's page fault.
pub(super) fn set_bits(cpu: &mut Cpu, selector: Selector, bits: u64, io: &mut dyn CpuIo) -> Exec {
    change_bits(cpu, selector, |d| d | bits, io)
}

/// Clears bits of a descriptor (busy) atomically.
///
/// # Errors
/// The write's page fault.
pub(super) fn clear_bits(cpu: &mut Cpu, selector: Selector, bits: u64, io: &mut dyn CpuIo) -> Exec {
    change_bits(cpu, selector, |d| d & !bits, io)
}

fn change_bits(
    cpu: &mut Cpu,
    selector: Selector,
    change: impl Fn(u64) -> u64,
    io: &mut dyn CpuIo,
) -> Exec {
    if let Some(at) = address(cpu, selector, 8, Table::Both) {
        // The accessed and busy bits lie in the descriptor's sixth byte.
        let at = at.wrapping_add(5);
        let byte = |b: u8| (change(u64::from(b) << 40) >> 40) as u8;
        cpu.as_system(|cpu| cpu.modify_locked_slow(SYSTEM, at, io, &byte))?;
    }
    Ok(())
}

/// Sets the accessed bit of a code or data descriptor unless it is set.
///
/// # Errors
/// The write's page fault.
pub(super) fn mark_accessed(
    cpu: &mut Cpu,
    selector: Selector,
    d: Descriptor,
    io: &mut dyn CpuIo,
) -> Result<Descriptor, Trap> {
    if d.0 & Descriptor::ACCESSED == 0 {
        set_bits(cpu, selector, Descriptor::ACCESSED, io)?;
    }
    Ok(Descriptor(d.0 | Descriptor::ACCESSED))
}

/// The faults of a load: #GP and #NP (#SS) normally, #TS in a task switch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    /// Bad selector or descriptor.
    pub(super) bad: Vector,
    /// EXT bit of the error code.
    pub(super) ext: bool,
}

impl Faults {
    /// Of an instruction's own load.
    pub(super) const GP: Self = Self {
        bad: Vector::Gp,
        ext: false,
    };

    /// The fault `vector`(selector).
    pub(super) fn at(self, vector: Vector, selector: Selector) -> Trap {
        Exception::with_code(vector, selector.error_code(self.ext)).into()
    }
}

/// What SS becomes when `selector` is loaded at `cpl` (SDM vol. 2, MOV).
///
/// # Errors
/// #GP(0) or #GP(selector) (or `faults.bad`), #SS(selector) where it is not present, page faults.
pub(super) fn load_ss(
    cpu: &mut Cpu,
    selector: Selector,
    cpl: u8,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Segment, Trap> {
    let bad = || faults.at(faults.bad, selector);
    if selector.is_null() {
        return Err(faults.at(faults.bad, Selector(0)));
    }
    let d = read_descriptor(cpu, selector, io)?.ok_or_else(bad)?;
    if selector.rpl() != cpl || !d.is_writable() || d.dpl() != cpl {
        return Err(bad());
    }
    if !d.present() {
        return Err(faults.at(Vector::Ss, selector));
    }
    let d = mark_accessed(cpu, selector, d, io)?;
    Ok(d.segment(selector.0))
}

/// SS holding a null selector in 64-bit mode at CPL `cpl`.
pub(super) fn null_ss(selector: u16, cpl: u8) -> Segment {
    Segment::null_stack(selector, cpl)
}

/// What DS, ES, FS or GS becomes when `selector` is loaded in protected mode.
///
/// # Errors
/// #GP(selector) (or `faults.bad`), #NP(selector), page faults.
pub(super) fn load_data(
    cpu: &mut Cpu,
    old: Segment,
    selector: Selector,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Segment, Trap> {
    if selector.is_null() {
        return Ok(null_data(cpu, old, selector));
    }
    let bad = || faults.at(faults.bad, selector);
    let d = read_descriptor(cpu, selector, io)?.ok_or_else(bad)?;
    let level = cpu.state.cpl.max(selector.rpl());
    if !d.is_readable() || (!d.is_conforming() && level > d.dpl()) {
        return Err(bad());
    }
    if !d.present() {
        return Err(faults.at(Vector::Np, selector));
    }
    let d = mark_accessed(cpu, selector, d, io)?;
    Ok(d.segment(selector.0))
}

/// A data segment register with a null selector. AMD CPUs before the "null selector clears base"
/// feature keep base and limit.
pub(super) fn null_data(cpu: &Cpu, old: Segment, selector: Selector) -> Segment {
    let keeps = cpu.model.vendor() == Vendor::Amd && !cpu.model.has(Feature::NullSelClrBase);
    Segment {
        selector: selector.0,
        base: if keeps { old.base } else { 0 },
        limit: if keeps { old.limit } else { 0 },
        attr: Segment::UNUSABLE,
    }
}

/// What a segment register becomes in real-address or virtual-8086 mode. Real-address mode leaves
/// limit and rights as they are ("unreal" mode lives from that).
pub(super) fn load_real(cpu: &Cpu, old: Segment, selector: u16) -> Segment {
    if is_v86(cpu) {
        return v86_segment(selector);
    }
    Segment {
        selector,
        base: u64::from(selector) << 4,
        attr: old.attr & !Segment::UNUSABLE,
        limit: old.limit,
    }
}

/// A segment register of virtual-8086 mode (SDM vol. 3, 22.2.1).
pub(super) fn v86_segment(selector: u16) -> Segment {
    Segment {
        attr: 0xf3,
        ..Segment::real_mode(selector)
    }
}

impl Cpu {
    /// Loads a segment register other than CS, as MOV and POP do.
    ///
    /// # Errors
    /// #GP, #NP, #SS, #PF; nothing has changed then.
    pub fn load_segment(&mut self, seg: u8, selector: u16, io: &mut dyn CpuIo) -> Exec {
        let n = usize::from(seg).min(5);
        let old = self.state.seg[n];
        let sel = Selector(selector);
        let new = if !is_protected(self) {
            load_real(self, old, selector)
        } else if seg != Seg::Ss as u8 {
            load_data(self, old, sel, Faults::GP, io)?
        } else if sel.is_null() && self.code64 && self.state.cpl < 3 && sel.rpl() == self.state.cpl
        {
            null_ss(selector, self.state.cpl)
        } else {
            let cpl = self.state.cpl;
            load_ss(self, sel, cpl, Faults::GP, io)?
        };
        self.state.seg[n] = new;
        self.refresh();
        Ok(())
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    if let Some(done) = lower_stack(i, op) {
        return Some(done);
    }
    let (run, size, end): (Handler, u8, bool) = match i.code() {
        Code::Mov_rm16_Sreg => (mov_from_seg, 2, false),
        Code::Mov_r32m16_Sreg => (mov_from_seg, 4, false),
        Code::Mov_r64m16_Sreg => (mov_from_seg, 8, false),
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            (mov_to_seg, 2, true)
        }
        Code::Les_r16_m1616 | Code::Lds_r16_m1616 | Code::Lss_r16_m1616 => (load_far, 2, true),
        Code::Lfs_r16_m1616 | Code::Lgs_r16_m1616 => (load_far, 2, true),
        Code::Les_r32_m1632 | Code::Lds_r32_m1632 | Code::Lss_r32_m1632 => (load_far, 4, true),
        Code::Lfs_r32_m1632 | Code::Lgs_r32_m1632 => (load_far, 4, true),
        Code::Lss_r64_m1664 | Code::Lfs_r64_m1664 | Code::Lgs_r64_m1664 => (load_far, 8, true),
        Code::Swapgs => (swapgs, 8, false),
        Code::Rdfsbase_r32 | Code::Rdgsbase_r32 => (read_base, 4, false),
        Code::Rdfsbase_r64 | Code::Rdgsbase_r64 => (read_base, 8, false),
        Code::Wrfsbase_r32 | Code::Wrgsbase_r32 => (write_base, 4, false),
        Code::Wrfsbase_r64 | Code::Wrgsbase_r64 => (write_base, 8, false),
        _ => return None,
    };
    op.run = run;
    op.size = size;
    op.r0 = if i.op_count() > 0 {
        register_or_seg(i, 0)
    } else {
        0
    };
    if i.op_count() > 1 {
        op.r1 = register_or_seg(i, 1);
    }
    op.r2 = match i.code() {
        Code::Les_r16_m1616 | Code::Les_r32_m1632 => Seg::Es,
        Code::Lss_r16_m1616 | Code::Lss_r32_m1632 | Code::Lss_r64_m1664 => Seg::Ss,
        Code::Lfs_r16_m1616 | Code::Lfs_r32_m1632 | Code::Lfs_r64_m1664 => Seg::Fs,
        Code::Lgs_r16_m1616 | Code::Lgs_r32_m1632 | Code::Lgs_r64_m1664 => Seg::Gs,
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 | Code::Wrfsbase_r32 | Code::Wrfsbase_r64 => {
            Seg::Fs
        }
        Code::Rdgsbase_r32 | Code::Rdgsbase_r64 | Code::Wrgsbase_r32 | Code::Wrgsbase_r64 => {
            Seg::Gs
        }
        _ => Seg::Ds,
    } as u8;
    Some(if end { Lower::End } else { Lower::Plain })
}

/// PUSH and POP: `op.r0` is the segment register, `op.size` the operand's size.
fn lower_stack(i: &Instruction, op: &mut Op) -> Option<Lower> {
    use Code as C;
    let (push, size) = match i.code() {
        C::Pushw_ES | C::Pushw_CS | C::Pushw_SS | C::Pushw_DS | C::Pushw_FS | C::Pushw_GS => {
            (true, 2)
        }
        C::Pushd_ES | C::Pushd_CS | C::Pushd_SS | C::Pushd_DS | C::Pushd_FS | C::Pushd_GS => {
            (true, 4)
        }
        C::Pushq_FS | C::Pushq_GS => (true, 8),
        C::Popw_ES | C::Popw_SS | C::Popw_DS | C::Popw_FS | C::Popw_GS => (false, 2),
        C::Popd_ES | C::Popd_SS | C::Popd_DS | C::Popd_FS | C::Popd_GS => (false, 4),
        C::Popq_FS | C::Popq_GS => (false, 8),
        _ => return None,
    };
    op.r0 = crate::op::seg_number(i.op_register(0));
    op.size = size;
    op.run = if push { push_seg } else { pop_seg };
    Some(if push { Lower::Plain } else { Lower::End })
}

fn register_or_seg(i: &Instruction, n: u32) -> u8 {
    match i.op_register(n) {
        Register::None => NO_REG,
        r if r.is_segment_register() => crate::op::seg_number(r),
        _ => register(i, n),
    }
}

fn mov_from_seg(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let selector = cpu.state.seg[usize::from(op.r1).min(5)].selector;
    store16(cpu, op, selector.into(), io)
}

fn mov_to_seg(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    if op.r0 == Seg::Cs as u8 {
        return Err(Exception::ud().into());
    }
    let selector = source16(cpu, op, op.r1, io)?;
    cpu.load_segment(op.r0, selector, io)?;
    cpu.state.mov_ss_shadow = op.r0 == Seg::Ss as u8;
    Ok(())
}

/// A 32-bit push of a segment register writes 16 bits on Intel CPUs and zero-extends on AMD's.
fn push_seg(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let selector = cpu.state.seg[usize::from(op.r0).min(5)].selector;
    let sp = cpu.gpr(Gpr::Rsp).wrapping_sub(op.size.into()) & cpu.stack_mask();
    let ss = Seg::Ss as u8;
    match op.size {
        8 => cpu.store(ss, sp, u64::from(selector), io)?,
        4 if cpu.model.vendor() == Vendor::Amd => cpu.store(ss, sp, u32::from(selector), io)?,
        _ => cpu.store(ss, sp, selector, io)?,
    }
    cpu.set_sp(sp);
    Ok(())
}

fn pop_seg(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mask = cpu.stack_mask();
    let sp = cpu.gpr(Gpr::Rsp) & mask;
    let selector: u16 = cpu.load(Seg::Ss as u8, sp, io)?;
    cpu.load_segment(op.r0, selector, io)?;
    // POP SS moves the pointer by the old stack segment's size.
    let sp = sp.wrapping_add(op.size.into()) & mask;
    let rsp = &mut cpu.state.gpr[Gpr::Rsp as usize];
    *rsp = match mask {
        0xffff => *rsp & !0xffff | sp,
        _ => sp,
    };
    cpu.state.mov_ss_shadow = op.r0 == Seg::Ss as u8;
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: offset, then selector.
fn load_far(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mut bytes = [0; 10];
    let size = usize::from(op.size).min(8);
    let ea = cpu.ea(op);
    cpu.load_bytes(op.seg, ea, &mut bytes[..size + 2], io)?;
    let selector = u16::from_le_bytes([bytes[size], bytes[size + 1]]);
    let mut offset = [0; 8];
    offset[..size].copy_from_slice(&bytes[..size]);
    cpu.load_segment(op.r2, selector, io)?;
    set(cpu, op.r0, op.size, u64::from_le_bytes(offset));
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    let s = &mut cpu.state;
    std::mem::swap(&mut s.seg[Seg::Gs as usize].base, &mut s.msr.kernel_gs_base);
    Ok(())
}

/// #UD unless CR4.FSGSBASE is set.
fn fsgsbase(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::FSGSBASE) {
        Ok(())
    } else {
        Err(Exception::ud().into())
    }
}

fn read_base(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    fsgsbase(cpu)?;
    let base = cpu.state.seg[usize::from(op.r2).min(5)].base;
    set(cpu, op.r0, op.size, base);
    Ok(())
}

fn write_base(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    fsgsbase(cpu)?;
    let mut base = cpu.state.gpr[usize::from(op.r0 & 15)];
    if op.size == 4 {
        base &= 0xffff_ffff;
    }
    if !control::base_is_canonical(&cpu.model, base) {
        return Err(Exception::gp(0).into());
    }
    cpu.state.seg[usize::from(op.r2).min(5)].base = base;
    Ok(())
}
