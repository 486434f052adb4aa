//! Descriptors as they are read from the GDT and LDT (SDM vol. 3, 3.4.5).

use crate::{Cpu, Trap};
use mimeo_arch_x86::Segment;
use mimeo_vcpu::CpuIo;

/// Reads the 8-byte descriptor of `selector`; `None` beyond the table's limit or without an LDT.
pub(crate) fn read_descriptor(
    cpu: &mut Cpu,
    selector: u16,
    io: &mut dyn CpuIo,
) -> Result<Option<u64>, Trap> {
    let (base, limit) = if selector & 4 != 0 {
        if cpu.state.ldtr.unusable() || cpu.state.ldtr.selector & !3 == 0 {
            return Ok(None);
        }
        (cpu.state.ldtr.base, cpu.state.ldtr.limit)
    } else {
        (cpu.state.gdtr.base, u32::from(cpu.state.gdtr.limit))
    };
    let offset = u32::from(selector & !7);
    if offset + 7 > limit {
        return Ok(None);
    }
    cpu.read_system(base.wrapping_add(u64::from(offset)), io)
        .map(Some)
}

/// A segment register loaded with `selector`, whose descriptor is `d`.
pub(crate) fn from_descriptor(selector: u16, d: u64) -> Segment {
    let attr = (d >> 40 & 0xff | d >> 40 & 0xf000) as u32;
    let raw = (d & 0xffff | d >> 32 & 0xf_0000) as u32;
    let limit = if attr & 0x8000 != 0 {
        raw << 12 | 0xfff
    } else {
        raw
    };
    Segment {
        selector,
        base: d >> 16 & 0xff_ffff | d >> 32 & 0xff00_0000,
        limit,
        attr,
    }
}
