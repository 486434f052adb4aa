//! FXSAVE, FXRSTOR, and the MXCSR register (SDM vol. 1, 10.5; vol. 2, FXSAVE, LDMXCSR).

use super::layout::{self, REGISTER, get16, get32, get64};
use super::memory::misaligned;
use super::{check, vex};
use crate::{Access, Cpu, Exec, Handler, Op};
use iced_x86::Code;
use mimeo_arch_x86::{Cr4, Exception};
use mimeo_isa_x86::{Unit, lookup};
use mimeo_vcpu::CpuIo;

/// Bits of MXCSR that exist.
pub(super) const MXCSR_MASK: u32 = 0xffff;
/// Offset of XMM0 in the area.
pub(super) const XMM: usize = 160;
/// End of XMM15 in the area.
pub(super) const XMM_END: usize = XMM + 16 * 16;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fxsave_m512byte => save::<false>,
        Code::Fxsave64_m512byte => save::<true>,
        Code::Fxrstor_m512byte => restore::<false>,
        Code::Fxrstor64_m512byte => restore::<true>,
        Code::Ldmxcsr_m32 | Code::VEX_Vldmxcsr_m32 => load_mxcsr,
        Code::Stmxcsr_m32 | Code::VEX_Vstmxcsr_m32 => store_mxcsr,
        _ => return None,
    })
}

/// XMM registers that the state areas reach: eight outside 64-bit mode.
pub(super) fn xmm_count(cpu: &Cpu) -> usize {
    if cpu.code64 { 16 } else { 8 }
}

/// Writes bytes 0 to 23 and 32 to 159: the x87 part of an FXSAVE or XSAVE area. `WIDE`: the layout of
/// REX.W, with 64-bit pointers.
pub(super) fn put_x87(cpu: &Cpu, wide: bool, area: &mut [u8]) {
    let fp = &cpu.state.fp;
    layout::put(area, 0, &fp.fcw.to_le_bytes());
    layout::put(area, 2, &fp.fsw.to_le_bytes());
    area[4] = fp.ftw;
    area[5] = 0;
    layout::put(area, 6, &(fp.fop & 0x7ff).to_le_bytes());
    if wide {
        layout::put(area, 8, &fp.fip.to_le_bytes());
        layout::put(area, 16, &fp.fdp.to_le_bytes());
    } else {
        layout::put(area, 8, &(fp.fip as u32).to_le_bytes());
        layout::put(area, 12, &u32::from(fp.fcs).to_le_bytes());
        layout::put(area, 16, &(fp.fdp as u32).to_le_bytes());
        layout::put(area, 20, &u32::from(fp.fds).to_le_bytes());
    }
    for (n, st) in fp.st.iter().enumerate() {
        layout::put(area, 32 + 16 * n, &(st & REGISTER).to_le_bytes());
    }
}

/// Loads the x87 part of an area.
pub(super) fn take_x87(cpu: &mut Cpu, wide: bool, area: &[u8]) {
    let fp = &mut cpu.state.fp;
    layout::set_control(fp, get16(area, 0));
    layout::set_status(fp, get16(area, 2));
    fp.ftw = area[4];
    fp.fop = get16(area, 6) & 0x7ff;
    if wide {
        fp.fip = get64(area, 8);
        fp.fdp = get64(area, 16);
        (fp.fcs, fp.fds) = (0, 0);
    } else {
        fp.fip = u64::from(get32(area, 8));
        fp.fcs = get16(area, 12);
        fp.fdp = u64::from(get32(area, 16));
        fp.fds = get16(area, 20);
    }
    for (n, st) in fp.st.iter_mut().enumerate() {
        let low = u128::from(get64(area, 32 + 16 * n));
        *st = low | u128::from(get16(area, 40 + 16 * n)) << 64;
    }
}

/// Writes the XMM registers of an area.
pub(super) fn put_xmm(cpu: &Cpu, area: &mut [u8]) {
    for (n, r) in cpu.state.fp.ymm.iter().enumerate().take(xmm_count(cpu)) {
        layout::put(area, XMM + 16 * n, &r[0].to_le_bytes());
        layout::put(area, XMM + 16 * n + 8, &r[1].to_le_bytes());
    }
}

/// Loads the XMM registers of an area; the upper halves of YMM stay.
pub(super) fn take_xmm(cpu: &mut Cpu, area: &[u8]) {
    let count = xmm_count(cpu);
    for (n, r) in cpu.state.fp.ymm.iter_mut().enumerate().take(count) {
        r[0] = get64(area, XMM + 16 * n);
        r[1] = get64(area, XMM + 16 * n + 8);
    }
}

/// Writes MXCSR and MXCSR_MASK.
pub(super) fn put_mxcsr(cpu: &Cpu, area: &mut [u8]) {
    layout::put(area, 24, &cpu.state.fp.mxcsr.to_le_bytes());
    layout::put(area, 28, &MXCSR_MASK.to_le_bytes());
}

fn save<const WIDE: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::fxsave(cpu)?;
    let linear = cpu.linear(op.seg, cpu.ea(op), 512, Access::Write)?;
    if linear & 15 != 0 {
        return Err(misaligned());
    }
    // The area's reserved and unused bytes keep what they hold.
    cpu.probe(op.seg, linear, 512, Access::Write)?;
    let mut area = [0; XMM_END];
    put_x87(cpu, WIDE, &mut area);
    let end = if cpu.state.cr4.contains(Cr4::OSFXSR) {
        put_mxcsr(cpu, &mut area);
        put_xmm(cpu, &mut area);
        XMM + 16 * xmm_count(cpu)
    } else {
        XMM
    };
    cpu.write_bytes(op.seg, linear, &area[..end], io)
}

fn restore<const WIDE: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::fxsave(cpu)?;
    let linear = cpu.linear(op.seg, cpu.ea(op), 512, Access::Read)?;
    if linear & 15 != 0 {
        return Err(misaligned());
    }
    let mut area = [0; 512];
    cpu.read_bytes(op.seg, linear, &mut area, io)?;
    let sse = cpu.state.cr4.contains(Cr4::OSFXSR);
    if sse {
        check_mxcsr(get32(&area, 24))?;
    }
    take_x87(cpu, WIDE, &area);
    if sse {
        cpu.state.fp.mxcsr = get32(&area, 24);
        take_xmm(cpu, &area);
    }
    Ok(())
}

/// #GP(0) for bits of MXCSR that do not exist.
pub(super) fn check_mxcsr(mxcsr: u32) -> Exec {
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

fn mxcsr_unit(op: &Op) -> Unit {
    match lookup(op.code) {
        Some(form) if vex(form.unit) => Unit::Avx,
        _ => Unit::Sse,
    }
}

fn load_mxcsr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::unit(cpu, mxcsr_unit(op))?;
    let mxcsr = cpu.load_op::<u32>(op, io)?;
    check_mxcsr(mxcsr)?;
    cpu.state.fp.mxcsr = mxcsr;
    Ok(())
}

fn store_mxcsr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::unit(cpu, mxcsr_unit(op))?;
    cpu.store_op(op, cpu.state.fp.mxcsr, io)
}
