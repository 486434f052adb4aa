//! FNSTENV, FLDENV, FNSAVE and FRSTOR in their 14/94- and 28/108-byte forms, each with a
//! protected-mode and a real-mode layout (SDM vol. 1, 8.1.10, figures 8-9 to 8-12).
//!
//! In real and virtual-8086 mode the pointers are linear addresses, else offsets with selectors.
//! In 64-bit mode the 32-bit protected-mode layout is used, pointers truncated.

use super::check;
use super::layout::{self, REGISTER, get16, get32};
use crate::{Access, Cpu, Exec, Handler, Op, Trap, decode};
use iced_x86::Code;
use mimeo_arch_x86::state::FpState;
use mimeo_vcpu::CpuIo;

/// The largest area: 28 bytes of environment, eight registers of 10 bytes.
const MAX: usize = 108;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fnstenv_m14byte => store_environment::<14>,
        Code::Fnstenv_m28byte => store_environment::<28>,
        Code::Fldenv_m14byte => load_environment::<14>,
        Code::Fldenv_m28byte => load_environment::<28>,
        Code::Fnsave_m94byte => save::<14>,
        Code::Fnsave_m108byte => save::<28>,
        Code::Frstor_m94byte => restore::<14>,
        Code::Frstor_m108byte => restore::<28>,
        _ => return None,
    })
}

fn store_environment<const LEN: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    let mut area = [0; MAX];
    environment::<LEN>(cpu, &mut area);
    write(cpu, op, &area[..LEN], io)?;
    // All exceptions are masked afterwards (SDM vol. 2, FSTENV).
    let fp = &mut cpu.state.fp;
    fp.fcw |= 0x3f;
    layout::summarise(fp);
    Ok(())
}

fn load_environment<const LEN: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    check::pending(cpu)?;
    let area = read::<LEN>(cpu, op, io)?;
    take_environment::<LEN>(cpu, &area);
    Ok(())
}

fn save<const LEN: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    let mut area = [0; MAX];
    environment::<LEN>(cpu, &mut area);
    for (n, st) in cpu.state.fp.st.iter().enumerate() {
        layout::put(&mut area, LEN + 10 * n, &st.to_le_bytes()[..10]);
    }
    write(cpu, op, &area[..LEN + 80], io)?;
    layout::initialise(&mut cpu.state.fp);
    Ok(())
}

fn restore<const LEN: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::x87(cpu)?;
    check::pending(cpu)?;
    let linear = address(cpu, op, LEN + 80, Access::Read)?;
    let mut area = [0; MAX];
    cpu.read_bytes(op.seg, linear, &mut area[..LEN + 80], io)?;
    take_environment::<LEN>(cpu, &area);
    for (n, st) in cpu.state.fp.st.iter_mut().enumerate() {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&area[LEN + 10 * n..LEN + 10 * n + 10]);
        *st = u128::from_le_bytes(bytes) & REGISTER;
    }
    Ok(())
}

fn address(cpu: &Cpu, op: &Op, len: usize, access: Access) -> Result<u64, Trap> {
    cpu.linear(op.seg, cpu.ea(op), len, access)
}

fn write(cpu: &mut Cpu, op: &Op, bytes: &[u8], io: &mut dyn CpuIo) -> Exec {
    let linear = address(cpu, op, bytes.len(), Access::Write)?;
    cpu.write_bytes(op.seg, linear, bytes, io)
}

fn read<const LEN: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<[u8; MAX], Trap> {
    let linear = address(cpu, op, LEN, Access::Read)?;
    let mut area = [0; MAX];
    cpu.read_bytes(op.seg, linear, &mut area[..LEN], io)?;
    Ok(area)
}

/// The linear address of a real-mode pointer.
fn real(selector: u16, offset: u64) -> u32 {
    (u32::from(selector) << 4).wrapping_add(offset as u32)
}

/// Writes the environment to the start of `area`.
fn environment<const LEN: usize>(cpu: &Cpu, area: &mut [u8; MAX]) {
    let fp = &cpu.state.fp;
    let words = [fp.fcw, fp.fsw, layout::full_tags(fp)];
    if LEN == 14 {
        for (n, word) in words.iter().chain(&pointers16(cpu, fp)).enumerate() {
            layout::put(area, 2 * n, &word.to_le_bytes());
        }
        return;
    }
    for (n, word) in words.iter().enumerate() {
        // The reserved halves read as ones.
        layout::put(area, 4 * n, &(0xffff_0000 | u32::from(*word)).to_le_bytes());
    }
    for (n, dword) in pointers32(cpu, fp).iter().enumerate() {
        layout::put(area, 12 + 4 * n, &dword.to_le_bytes());
    }
}

fn pointers16(cpu: &Cpu, fp: &FpState) -> [u16; 4] {
    if decode::real_or_v86(cpu) {
        let (ip, dp) = (real(fp.fcs, fp.fip), real(fp.fds, fp.fdp));
        [
            ip as u16,
            (ip >> 4) as u16 & 0xf000 | fp.fop & 0x7ff,
            dp as u16,
            (dp >> 4) as u16 & 0xf000,
        ]
    } else {
        [fp.fip as u16, fp.fcs, fp.fdp as u16, fp.fds]
    }
}

fn pointers32(cpu: &Cpu, fp: &FpState) -> [u32; 4] {
    let fop = u32::from(fp.fop & 0x7ff);
    if decode::real_or_v86(cpu) {
        let (ip, dp) = (real(fp.fcs, fp.fip), real(fp.fds, fp.fdp));
        [
            0xffff_0000 | ip & 0xffff,
            (ip >> 16 & 0xffff) << 12 | fop,
            0xffff_0000 | dp & 0xffff,
            (dp >> 16 & 0xffff) << 12,
        ]
    } else {
        [
            fp.fip as u32,
            u32::from(fp.fcs) | fop << 16,
            fp.fdp as u32,
            0xffff_0000 | u32::from(fp.fds),
        ]
    }
}

/// Loads the environment from the start of `area`. Registers keep their physical contents.
fn take_environment<const LEN: usize>(cpu: &mut Cpu, area: &[u8; MAX]) {
    let is_real = decode::real_or_v86(cpu);
    let fp = &mut cpu.state.fp;
    let step = if LEN == 14 { 2 } else { 4 };
    layout::set_control(fp, get16(area, 0));
    layout::set_status(fp, get16(area, step));
    fp.ftw = layout::abridged(get16(area, 2 * step));
    let at = 3 * step;
    match (LEN == 14, is_real) {
        (true, false) => {
            fp.fip = u64::from(get16(area, at));
            fp.fcs = get16(area, at + 2);
            fp.fdp = u64::from(get16(area, at + 4));
            fp.fds = get16(area, at + 6);
        }
        (true, true) => {
            let high = get16(area, at + 2);
            fp.fip = u64::from(get16(area, at)) | u64::from(high & 0xf000) << 4;
            fp.fop = high & 0x7ff;
            fp.fdp = u64::from(get16(area, at + 4)) | u64::from(get16(area, at + 6) & 0xf000) << 4;
            (fp.fcs, fp.fds) = (0, 0);
        }
        (false, false) => {
            fp.fip = u64::from(get32(area, at));
            fp.fcs = get16(area, at + 4);
            fp.fop = get16(area, at + 6) & 0x7ff;
            fp.fdp = u64::from(get32(area, at + 8));
            fp.fds = get16(area, at + 12);
        }
        (false, true) => {
            let high = get32(area, at + 4);
            fp.fip = u64::from(get16(area, at)) | u64::from(high >> 12 & 0xffff) << 16;
            fp.fop = high as u16 & 0x7ff;
            fp.fdp = u64::from(get16(area, at + 8))
                | u64::from(get32(area, at + 12) >> 12 & 0xffff) << 16;
            (fp.fcs, fp.fds) = (0, 0);
        }
    }
}
