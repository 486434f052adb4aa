//! INVLPG, INVPCID (SDM vol. 3, 5.10.4.1), and the caches that are not modelled: INVD, WBINVD,
//! WBNOINVD do nothing but their privilege check.

use super::operand::{cpl0, get, is_v86, register};
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, MmuEvent, Op};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::{Cr4, Exception};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, end): (Handler, bool) = match i.code() {
        Code::Invlpg_m => (invlpg, true),
        Code::Invpcid_r32_m128 | Code::Invpcid_r64_m128 => (invpcid, true),
        Code::Invd | Code::Wbinvd | Code::Wbnoinvd => (cache, false),
        _ => return None,
    };
    op.run = run;
    if i.op_count() > 1 {
        op.r0 = register(i, 0);
    }
    Some(if end { Lower::End } else { Lower::Plain })
}

fn cache(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)
}

/// INVLPG: of a non-canonical address nothing.
fn invlpg(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    let base = match op.seg {
        n if cpu.code64 && n < 4 => 0,
        n => cpu.state.seg[usize::from(n).min(5)].base,
    };
    let linear = base.wrapping_add(cpu.ea(op));
    let linear = if cpu.long_mode {
        linear
    } else {
        linear & 0xffff_ffff
    };
    if cpu.is_canonical(linear) {
        cpu.flush_tlb(MmuEvent::Page { linear });
    }
    Ok(())
}

/// INVPCID: by address, by PCID, all with globals, all without.
fn invpcid(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    let gp = || Exception::gp(0).into();
    if is_v86(cpu) {
        return Err(gp());
    }
    let mut bytes = [0; 16];
    let ea = cpu.ea(op);
    cpu.load_bytes(op.seg, ea, &mut bytes, io)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (low, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let kind = match cpu.code64 {
        true => get(cpu, op.r0),
        false => get(cpu, op.r0) & 0xffff_ffff,
    };
    let pcid = (low & 0xfff) as u16;
    let foreign = pcid != 0 && !cpu.state.cr4.contains(Cr4::PCIDE);
    if kind > 3 || low >> 12 != 0 || (kind <= 1 && foreign) {
        return Err(gp());
    }
    let event = match kind {
        0 if !cpu.is_canonical(linear) => return Err(gp()),
        0 => MmuEvent::PcidPage { linear, pcid },
        1 => MmuEvent::Pcid(pcid),
        2 => MmuEvent::All,
        _ => MmuEvent::NonGlobal,
    };
    cpu.flush_tlb(event);
    Ok(())
}
