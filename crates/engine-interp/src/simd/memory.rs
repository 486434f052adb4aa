//! Memory operands of vectors: sizes up to 32 bytes, alignment.

use super::native::Vector;
use crate::{Access, Cpu, Exec, Op, Trap};
use mimeo_arch_x86::Exception;
use mimeo_isa_x86::MemOperand;
use mimeo_vcpu::CpuIo;

/// The linear address of an op's memory operand, its alignment checked (#GP(0)).
#[inline(always)]
pub(super) fn address(cpu: &Cpu, op: &Op, m: &MemOperand, access: Access) -> Result<u64, Trap> {
    let linear = cpu.linear(op.seg, cpu.ea(op), usize::from(m.size), access)?;
    if linear & (u64::from(m.align) - 1) != 0 {
        return Err(misaligned());
    }
    Ok(linear)
}

#[cold]
pub(super) fn misaligned() -> Trap {
    Exception::gp(0).into()
}

#[inline(always)]
fn in_page(linear: u64, size: usize) -> bool {
    (linear & 0xfff) as usize + size <= 4096
}

/// Loads `size` bytes (at most 32) into the low part of `to`. Nothing but `to` changes on a fault.
#[inline(always)]
pub(super) fn load(
    cpu: &mut Cpu,
    seg: u8,
    linear: u64,
    size: usize,
    to: &mut Vector,
    io: &mut dyn CpuIo,
) -> Exec {
    match size {
        1 => to.0[0] = u64::from(cpu.read::<u8>(seg, linear, io)?),
        2 => to.0[0] = u64::from(cpu.read::<u16>(seg, linear, io)?),
        4 => to.0[0] = u64::from(cpu.read::<u32>(seg, linear, io)?),
        8 => to.0[0] = cpu.read::<u64>(seg, linear, io)?,
        16 | 32 if in_page(linear, size) => {
            for n in 0..size / 8 {
                to.0[n] = cpu.read::<u64>(seg, linear + 8 * n as u64, io)?;
            }
        }
        _ => load_bytes(cpu, seg, linear, size, to, io)?,
    }
    Ok(())
}

/// Stores the low `size` bytes (at most 32) of `from`; nothing is written on a fault.
#[inline(always)]
pub(super) fn store(
    cpu: &mut Cpu,
    seg: u8,
    linear: u64,
    size: usize,
    from: &Vector,
    io: &mut dyn CpuIo,
) -> Exec {
    match size {
        1 => cpu.write(seg, linear, from.0[0] as u8, io),
        2 => cpu.write(seg, linear, from.0[0] as u16, io),
        4 => cpu.write(seg, linear, from.0[0] as u32, io),
        8 => cpu.write(seg, linear, from.0[0], io),
        // Within a page the first quadword's checks hold for the others.
        16 | 32 if in_page(linear, size) => {
            for n in 0..size / 8 {
                cpu.write(seg, linear + 8 * n as u64, from.0[n], io)?;
            }
            Ok(())
        }
        _ => store_bytes(cpu, seg, linear, size, from, io),
    }
}

#[cold]
fn load_bytes(
    cpu: &mut Cpu,
    seg: u8,
    linear: u64,
    size: usize,
    to: &mut Vector,
    io: &mut dyn CpuIo,
) -> Exec {
    let mut bytes = [0; 32];
    cpu.read_bytes(seg, linear, &mut bytes[..size], io)?;
    for (n, q) in bytes
        .as_chunks()
        .0
        .iter()
        .enumerate()
        .take(size.div_ceil(8))
    {
        to.0[n] = u64::from_le_bytes(*q);
    }
    Ok(())
}

#[cold]
fn store_bytes(
    cpu: &mut Cpu,
    seg: u8,
    linear: u64,
    size: usize,
    from: &Vector,
    io: &mut dyn CpuIo,
) -> Exec {
    let mut bytes = [0; 32];
    for (n, q) in from.0.iter().enumerate() {
        bytes[8 * n..8 * n + 8].copy_from_slice(&q.to_le_bytes());
    }
    cpu.write_bytes(seg, linear, &bytes[..size], io)
}
