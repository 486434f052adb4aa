//! Code segments as targets of transfers: the checks of far JMP, CALL, RET, IRET, gates and tasks
//! (SDM vol. 3, 6.8; vol. 2, the instructions' operation sections).

use super::segment::{self, Faults};
use crate::{Cpu, Exec, Trap};
use mimeo_arch_x86::descriptor::Descriptor;
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Exception, Seg, Segment, Vector};
use mimeo_vcpu::CpuIo;

/// A code segment that passed its checks: what CS becomes.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// CS, with its RPL already the new CPL.
    pub(super) cs: Segment,
    /// The new CPL.
    pub(super) cpl: u8,
}

/// Reads the descriptor of a target.
///
/// # Errors
/// `faults.bad`(0) for a null selector, `faults.bad`(selector) beyond the table, page faults.
pub(super) fn read(
    cpu: &mut Cpu,
    selector: Selector,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Descriptor, Trap> {
    if selector.is_null() {
        return Err(faults.at(faults.bad, Selector(0)));
    }
    segment::read_descriptor(cpu, selector, io)?.ok_or_else(|| faults.at(faults.bad, selector))
}

/// L and D together are reserved in long mode.
fn bad_size(cpu: &Cpu, d: Descriptor) -> bool {
    cpu.long_mode && d.long() && d.db()
}

/// The target of a far JMP or CALL at code descriptor `d`: CPL does not change.
///
/// # Errors
/// #GP(selector), #NP(selector), page faults.
pub(super) fn direct(
    cpu: &mut Cpu,
    selector: Selector,
    d: Descriptor,
    io: &mut dyn CpuIo,
) -> Result<Target, Trap> {
    let cpl = cpu.state.cpl;
    let allowed = if d.is_conforming() {
        d.dpl() <= cpl
    } else {
        selector.rpl() <= cpl && d.dpl() == cpl
    };
    if !d.is_code() || !allowed || bad_size(cpu, d) {
        return Err(Faults::GP.at(Vector::Gp, selector));
    }
    finish(cpu, selector, d, cpl, Faults::GP, io)
}

/// The target of a call, interrupt or trap gate: at most as privileged as DPL says. `jump`: a far
/// JMP, which may not change CPL. In long mode the target must be 64-bit code.
///
/// # Errors
/// #GP(selector), #NP(selector), page faults.
pub(super) fn through_gate(
    cpu: &mut Cpu,
    selector: Selector,
    jump: bool,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Target, Trap> {
    let d = read(cpu, selector, faults, io)?;
    let cpl = cpu.state.cpl;
    let long_ok = !cpu.long_mode || (d.long() && !d.db());
    let same = d.is_conforming() || d.dpl() == cpl;
    if !d.is_code() || d.dpl() > cpl || !long_ok || (jump && !same) {
        return Err(faults.at(Vector::Gp, selector));
    }
    let new_cpl = if d.is_conforming() { cpl } else { d.dpl() };
    finish(cpu, selector, d, new_cpl, faults, io)
}

/// The target of a far RET or IRET: the selector's RPL is the new CPL, not below the present one.
///
/// # Errors
/// #GP(0), #GP(selector), #NP(selector), page faults.
pub(super) fn return_to(
    cpu: &mut Cpu,
    selector: Selector,
    io: &mut dyn CpuIo,
) -> Result<Target, Trap> {
    let d = read(cpu, selector, Faults::GP, io)?;
    let rpl = selector.rpl();
    let outward = rpl >= cpu.state.cpl;
    if !outward || !of_level(d, rpl) || bad_size(cpu, d) {
        return Err(Faults::GP.at(Vector::Gp, selector));
    }
    finish(cpu, selector, d, rpl, Faults::GP, io)
}

/// The code segment of a task that is switched to.
///
/// # Errors
/// #TS(selector), #NP(selector), page faults.
pub(super) fn of_task(
    cpu: &mut Cpu,
    selector: Selector,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Target, Trap> {
    let d = read(cpu, selector, faults, io)?;
    if !of_level(d, selector.rpl()) {
        return Err(faults.at(faults.bad, selector));
    }
    finish(cpu, selector, d, selector.rpl(), faults, io)
}

/// Code that runs at `level`.
fn of_level(d: Descriptor, level: u8) -> bool {
    d.is_code()
        && if d.is_conforming() {
            d.dpl() <= level
        } else {
            d.dpl() == level
        }
}

fn finish(
    cpu: &mut Cpu,
    selector: Selector,
    d: Descriptor,
    cpl: u8,
    faults: Faults,
    io: &mut dyn CpuIo,
) -> Result<Target, Trap> {
    if !d.present() {
        return Err(faults.at(Vector::Np, selector));
    }
    let d = segment::mark_accessed(cpu, selector, d, io)?;
    Ok(Target {
        cs: d.segment(selector.with_rpl(cpl).0),
        cpl,
    })
}

impl Target {
    /// The instruction pointer must lie in the segment, or be canonical in 64-bit code.
    ///
    /// # Errors
    /// #GP(`code`).
    pub(super) fn check_ip(&self, cpu: &Cpu, ip: u64, code: u32) -> Exec {
        let ok = if cpu.long_mode && self.cs.long() {
            cpu.is_canonical(ip)
        } else {
            ip <= u64::from(self.cs.limit)
        };
        if ok {
            Ok(())
        } else {
            Err(Exception::gp(code).into())
        }
    }

    /// Makes it the code segment, at `ip`. The caller refreshes the CPU.
    pub(super) fn enter(&self, cpu: &mut Cpu, ip: u64) {
        cpu.state.seg[Seg::Cs as usize] = self.cs;
        cpu.state.cpl = self.cpl;
        cpu.state.rip = ip;
    }
}
