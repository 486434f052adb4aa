//! MMX registers: the x87 registers under another name (SDM vol. 1, 9.5 and 9.6.2).

use super::{check, layout};
use crate::{Cpu, Exec, Handler, Op};
use iced_x86::Code;
use mimeo_arch_x86::state::FpState;
use mimeo_vcpu::CpuIo;

/// TOP of the status word.
pub(super) fn top(fp: &FpState) -> u8 {
    (fp.fsw >> 11) as u8 & 7
}

/// What every MMX instruction does to the x87 state: TOP is 0, every register is valid.
///
/// It happens after a load's faults and before a store's and before #XM, as on processors (the
/// manual leaves it open).
#[inline]
pub(super) fn enter(fp: &mut FpState) {
    if top(fp) != 0 {
        layout::set_top(fp, 0);
    }
    fp.ftw = 0xff;
}

/// After a write to MMX register `n`: the exponent and sign of its x87 register are all ones.
#[inline]
pub(super) fn written(fp: &mut FpState, n: u8) {
    let st = &mut fp.st[usize::from(n & 7)];
    *st = *st & 0xffff_ffff_ffff_ffff | 0xffff << 64;
}

pub(super) fn handler(code: Code) -> Option<Handler> {
    (code == Code::Emms).then_some(emms as Handler)
}

/// EMMS: every x87 register is empty.
fn emms(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::mmx(cpu)?;
    enter(&mut cpu.state.fp);
    cpu.state.fp.ftw = 0;
    Ok(())
}
