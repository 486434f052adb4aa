//! Hardware task switches: JMP, CALL, IRET, interrupts through task gates; 16- and 32-bit TSS (SDM
//! vol. 3, chapter 9).
//!
//! Everything that can fault before the switch is checked or read first. From the moment the new
//! registers are loaded, faults belong to the new task: they carry [`TrapKind::NewTask`] and are
//! delivered with RIP as it is.

use super::code_segment;
use super::segment::{self, Faults, Table};
use super::tables;
use crate::mem::{Access, SYSTEM};
use crate::{Cpu, Exec, MmuEvent, Trap, TrapKind};
use mimeo_arch_x86::descriptor::{Descriptor, system_type};
use mimeo_arch_x86::paging::{PagingMode, load_pdptes};
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::tss::{tss16, tss32};
use mimeo_arch_x86::{Cr0, Exception, RFlags, Seg, Segment, Vector};
use mimeo_vcpu::CpuIo;

/// What causes the switch: decides busy bits, NT and the back link (SDM vol. 3, table 9-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// JMP.
    Jump,
    /// CALL, or an interrupt or exception through a task gate.
    Call,
    /// IRET with NT set.
    Return,
}

/// The TSS selector of a task gate that the current privilege may use (checked by the caller for
/// interrupts, which ignore the DPL unless they come from software).
///
/// # Errors
/// #GP(gate), #NP(gate).
pub(super) fn through_gate(
    cpu: &Cpu,
    selector: Selector,
    gate: Descriptor,
) -> Result<Selector, Trap> {
    if gate.dpl() < cpu.state.cpl.max(selector.rpl()) {
        return Err(Faults::GP.at(Vector::Gp, selector));
    }
    if !gate.present() {
        return Err(Faults::GP.at(Vector::Np, selector));
    }
    Ok(gate.gate().selector())
}

/// Finishes an instruction that switched tasks: a fault in the new task is delivered there.
///
/// # Errors
/// Faults of before the switch, failures of the host.
pub(super) fn settle(cpu: &mut Cpu, done: Exec, io: &mut dyn CpuIo) -> Exec {
    match done.map_err(Trap::into_kind) {
        Ok(()) => Ok(()),
        Err(TrapKind::NewTask(e)) => {
            cpu.raise(e, io)?;
            Ok(())
        }
        Err(kind) => Err(kind.into()),
    }
}

/// The registers that a TSS holds.
#[derive(Debug, Clone, Copy, Default)]
struct Image {
    wide: bool,
    cr3: u64,
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    seg: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// A TSS found through its descriptor.
struct Tss {
    selector: Selector,
    segment: Segment,
    wide: bool,
}

/// Switches to the task of `selector`.
///
/// # Errors
/// Faults of the old task; [`TrapKind::NewTask`] once the switch is done.
pub(super) fn switch(
    cpu: &mut Cpu,
    selector: Selector,
    how: Switch,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Exec {
    let new = find(cpu, selector, how, faults, io)?;
    let old = cpu.state.tr;
    let old_selector = Selector(old.selector);
    // Pages that the switch will write are checked before anything changes.
    check_old(cpu, &old, old_selector, faults, io)?;
    let image = read_image(cpu, &new, io)?;
    if how == Switch::Call {
        // The back link goes into the new TSS.
        cpu.write_system(new.segment.base, old.selector, io)?;
    }
    save_old(cpu, &old, how, io)?;
    if how != Switch::Call {
        segment::clear_bits(cpu, old_selector, Descriptor::BUSY, io)?;
    }
    if how != Switch::Return {
        segment::set_bits(cpu, new.selector, Descriptor::BUSY, io)?;
    }
    let mut tr = new.segment;
    tr.attr |= 2;
    cpu.state.tr = tr;
    load_new(cpu, &image, how);
    let ext = faults.ext;
    enter(cpu, &image, ext, io).map_err(|trap| match trap.into_kind() {
        TrapKind::Exception(e) => TrapKind::NewTask(e).into(),
        other => other.into(),
    })
}

fn find(
    cpu: &mut Cpu,
    selector: Selector,
    how: Switch,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Tss, Trap> {
    let bad = match how {
        Switch::Return => Vector::Ts,
        _ => Vector::Gp,
    };
    let wrong = || faults.at(bad, selector);
    if selector.is_null() || selector.local() {
        return Err(wrong());
    }
    let at = segment::address(cpu, selector, 8, Table::Gdt).ok_or_else(wrong)?;
    let d = Descriptor(cpu.read_system(at, io)?);
    let busy = how == Switch::Return;
    let wide = match d.kind() {
        system_type::TSS => !busy,
        system_type::TSS_BUSY => busy,
        system_type::TSS16 | system_type::TSS16_BUSY => false,
        _ => return Err(wrong()),
    };
    let is_busy = d.0 & Descriptor::BUSY != 0;
    if !d.is_system() || is_busy != busy {
        return Err(wrong());
    }
    if !d.present() {
        return Err(faults.at(Vector::Np, selector));
    }
    let wide = wide || d.kind() == system_type::TSS_BUSY;
    let least = if wide { tss32::LIMIT } else { tss16::LIMIT };
    if d.limit() < least {
        return Err(faults.at(Vector::Ts, selector));
    }
    Ok(Tss {
        selector,
        segment: d.segment(selector.0),
        wide,
    })
}

fn is_wide(tr: &Segment) -> bool {
    tr.attr & 8 != 0
}

/// The part of the old TSS that the switch writes: from IP to the segment registers.
fn check_old(
    cpu: &mut Cpu,
    old: &Segment,
    selector: Selector,
    faults: Faults,
    _: &mut dyn CpuIo,
) -> Exec {
    let (first, last, least) = if is_wide(old) {
        (tss32::EIP, tss32::LDT, tss32::LIMIT)
    } else {
        (tss16::IP, tss16::LDT, tss16::LIMIT)
    };
    if old.unusable() || old.limit < least {
        return Err(faults.at(Vector::Ts, selector));
    }
    let at = old.base.wrapping_add(first.into());
    let len = (last - first) as usize;
    cpu.as_system(|cpu| cpu.probe(SYSTEM, at, len, Access::Write))
}

fn read_image(cpu: &mut Cpu, tss: &Tss, io: &mut dyn CpuIo) -> Result<Image, Trap> {
    let base = tss.segment.base;
    let mut bytes = [0u8; 0x68];
    let len = if tss.wide { 0x68 } else { 0x2c };
    let buf = &mut bytes[..len];
    cpu.as_system(|cpu| cpu.read_bytes(SYSTEM, base, buf, io))?;
    let word = |at: u32| u16::from_le_bytes([bytes[at as usize], bytes[at as usize + 1]]);
    let dword = |at: u32| u64::from(word(at)) | u64::from(word(at + 2)) << 16;
    let mut image = Image {
        wide: tss.wide,
        ..Image::default()
    };
    if tss.wide {
        image.cr3 = dword(tss32::CR3);
        image.ip = dword(tss32::EIP);
        image.flags = dword(tss32::EFLAGS);
        for (n, r) in image.gpr.iter_mut().enumerate() {
            *r = dword(tss32::EAX + 4 * n as u32);
        }
        for (n, s) in image.seg.iter_mut().enumerate() {
            *s = word(tss32::ES + 4 * n as u32);
        }
        image.ldt = word(tss32::LDT);
        image.trap = word(tss32::TRAP) & 1 != 0;
    } else {
        image.ip = u64::from(word(tss16::IP));
        image.flags = u64::from(word(tss16::FLAGS));
        for (n, r) in image.gpr.iter_mut().enumerate() {
            // The upper halves become all ones.
            *r = 0xffff_0000 | u64::from(word(tss16::AX + 2 * n as u32));
        }
        for (n, s) in image.seg[..4].iter_mut().enumerate() {
            *s = word(tss16::ES + 2 * n as u32);
        }
        image.ldt = word(tss16::LDT);
    }
    Ok(image)
}

/// Writes the old task's registers into its TSS.
fn save_old(cpu: &mut Cpu, old: &Segment, how: Switch, io: &mut dyn CpuIo) -> Exec {
    let s = &cpu.state;
    let mut flags = s.rflags;
    if how == Switch::Return {
        flags -= RFlags::NT;
    }
    let mut bytes = [0u8; 0x40];
    let mut len = 0;
    let mut put = |value: u64, size: usize| {
        bytes[len..len + size].copy_from_slice(&value.to_le_bytes()[..size]);
        len += size;
    };
    let wide = is_wide(old);
    let size = if wide { 4 } else { 2 };
    put(s.rip, size);
    put(flags.bits(), size);
    for r in &s.gpr[..8] {
        put(*r, size);
    }
    // A 16-bit TSS has no FS and GS.
    for seg in &s.seg[..if wide { 6 } else { 4 }] {
        put(seg.selector.into(), size);
    }
    let first = if wide { tss32::EIP } else { tss16::IP };
    let at = old.base.wrapping_add(first.into());
    cpu.as_system(|cpu| cpu.write_bytes(SYSTEM, at, &bytes[..len], io))
}

/// Loads what cannot fault: registers, flags, and the segment registers' selectors, all unusable
/// until their descriptors have been looked at.
fn load_new(cpu: &mut Cpu, image: &Image, how: Switch) {
    let s = &mut cpu.state;
    s.rip = image.ip;
    s.gpr[..8].copy_from_slice(&image.gpr);
    let mut flags = RFlags::from_bits_truncate(image.flags) | RFlags::FIXED1;
    if !image.wide {
        flags = RFlags::from_bits_truncate(image.flags & 0xffff) | RFlags::FIXED1;
    }
    if how == Switch::Call {
        flags |= RFlags::NT;
    }
    s.rflags = flags;
    for (seg, selector) in s.seg.iter_mut().zip(image.seg) {
        *seg = Segment {
            selector,
            attr: Segment::UNUSABLE,
            ..Segment::default()
        };
    }
    s.ldtr = Segment {
        selector: image.ldt,
        attr: Segment::UNUSABLE,
        ..Segment::default()
    };
    s.cr0 |= Cr0::TS;
    s.dr7 &= !super::debug::DR7_LOCAL;
    // Until CS is loaded, its selector's RPL is the privilege level.
    s.cpl = if flags.contains(RFlags::VM) {
        3
    } else {
        (image.seg[Seg::Cs as usize] & 3) as u8
    };
    cpu.refresh();
}

/// The part of the switch that happens in the new task: CR3, LDTR, segment registers, T flag.
fn enter(cpu: &mut Cpu, image: &Image, ext: bool, io: &mut dyn CpuIo) -> Exec {
    if image.wide && cpu.state.cr0.contains(Cr0::PG) {
        load_cr3(cpu, image.cr3)?;
    }
    let ts = Faults {
        bad: Vector::Ts,
        ext,
    };
    let ldt = Selector(image.ldt);
    cpu.state.ldtr = tables::load_ldt(cpu, ldt, Vector::Ts, io)?;
    if cpu.state.rflags.contains(RFlags::VM) {
        for (seg, selector) in cpu.state.seg.iter_mut().zip(image.seg) {
            *seg = segment::v86_segment(selector);
        }
    } else {
        load_segments(cpu, image, ts, io)?;
    }
    cpu.refresh();
    let limit = cpu.state.segment(Seg::Cs).limit;
    if cpu.state.rip > u64::from(limit) {
        return Err(Exception::gp(0).into());
    }
    if image.trap {
        return Err(Exception::db(super::debug::DR6_BT).into());
    }
    Ok(())
}

/// CR3 of the new task: a full flush of what is not global (SDM vol. 3, 5.10.4.1).
fn load_cr3(cpu: &mut Cpu, cr3: u64) -> Exec {
    let s = &cpu.state;
    if PagingMode::of(s.cr0, s.cr4, s.efer) == PagingMode::Pae {
        let bits = cpu.model.physical_bits();
        let pdptes = load_pdptes(&crate::mem::Phys(&cpu.memory), cr3, bits);
        cpu.state.pdptr = pdptes.ok_or_else(|| Trap::from(Exception::gp(0)))?;
    }
    cpu.state.cr3 = cr3;
    cpu.flush_tlb(MmuEvent::NonGlobal);
    cpu.refresh();
    Ok(())
}

fn load_segments(cpu: &mut Cpu, image: &Image, ts: Faults, io: &mut dyn CpuIo) -> Exec {
    let cs = Selector(image.seg[Seg::Cs as usize]);
    let target = code_segment::of_task(cpu, cs, ts, io)?;
    target.enter(cpu, image.ip);
    let ss = Selector(image.seg[Seg::Ss as usize]);
    let cpl = target.cpl;
    cpu.state.seg[Seg::Ss as usize] = segment::load_ss(cpu, ss, cpl, ts, io)?;
    for n in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
        let (old, selector) = (cpu.state.seg[n as usize], image.seg[n as usize]);
        cpu.state.seg[n as usize] = segment::load_data(cpu, old, Selector(selector), ts, io)?;
    }
    Ok(())
}

/// Pushes the error code of an exception that was delivered through a task gate, in the new task.
///
/// # Errors
/// [`TrapKind::NewTask`].
pub(super) fn push_error_code(cpu: &mut Cpu, code: u32, ext: bool, io: &mut dyn CpuIo) -> Exec {
    use super::stack::{Frame, Stack};
    let mut frame = Frame::new(if is_wide(&cpu.state.tr) { 4 } else { 2 });
    frame.push(code);
    let pushed = Stack::current(cpu, ext.into()).push(cpu, &frame, io);
    let sp = pushed.map_err(|trap| match trap.into_kind() {
        TrapKind::Exception(e) => Trap::from(TrapKind::NewTask(e)),
        other => other.into(),
    })?;
    cpu.set_sp(sp);
    Ok(())
}

/// The selector that IRET with NT set returns to: the back link of the current TSS.
///
/// # Errors
/// Page faults.
pub(super) fn back_link(cpu: &mut Cpu, io: &mut dyn CpuIo) -> Result<Selector, Trap> {
    let base = cpu.state.tr.base;
    cpu.read_system(base, io).map(Selector)
}
