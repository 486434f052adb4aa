//! BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, CRC32 (SDM vol. 2).
//!
//! Undefined flags: BT's family changes only CF. BSF and BSR of zero leave the destination alone
//! (as the APM promises and Intel's processors do) and set PF as the source does.

use super::flags::{self, CF, PF, STATUS, ZF};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::{NO_REG, is_mem};
use crate::{Cpu, Exec, Handler, Op, Prefix, Trap, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};
use mimeo_vcpu::CpuIo;

const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

#[inline(always)]
fn changed<const KIND: u8>(v: u64, bit: u64) -> u64 {
    match KIND {
        SET => v | bit,
        RESET => v & !bit,
        COMPLEMENT => v ^ bit,
        _ => v,
    }
}

/// Register operand; the bit number is `r1` or the immediate, modulo the width.
fn bt_r<T: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let n = if op.r1 == NO_REG {
        op.imm
    } else {
        cpu.state.gpr[usize::from(op.r1 & 15)]
    };
    let bit = 1u64 << (n & u64::from(T::BITS - 1));
    let v = get::<T>(cpu, op.r0).zext();
    flags::put(cpu, CF, u64::from(v & bit != 0));
    if KIND != TEST {
        set(cpu, op.r0, T::trunc(changed::<KIND>(v, bit)));
    }
    Ok(())
}

/// Memory operand; a register bit number reaches beyond the operand, signed.
fn bt_m<T: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mut offset = cpu.ea(op);
    let n = if op.r0 == NO_REG {
        op.imm
    } else {
        let n = get::<T>(cpu, op.r0).sext();
        let units = n >> T::BITS.trailing_zeros();
        let bytes = units.wrapping_mul(T::BYTES as i64) as u64;
        offset = offset.wrapping_add(bytes) & super::address_mask(op.addr);
        n as u64
    };
    let bit = 1u64 << (n & u64::from(T::BITS - 1));
    let old = if KIND == TEST {
        cpu.load::<T>(op.seg, offset, io)?
    } else if op.prefix.has(Prefix::LOCK) {
        cpu.modify_locked::<T>(op.seg, offset, io, |v| {
            T::trunc(changed::<KIND>(v.zext(), bit))
        })?
    } else {
        let mut old = T::trunc(0);
        cpu.modify::<T>(op.seg, offset, io, |_, v| {
            old = v;
            T::trunc(changed::<KIND>(v.zext(), bit))
        })?;
        old
    };
    flags::put(cpu, CF, u64::from(old.zext() & bit != 0));
    Ok(())
}

fn pick_bt<const KIND: u8>(mem: bool, size: u8) -> Handler {
    match (mem, size) {
        (false, 2) => bt_r::<u16, KIND>,
        (false, 4) => bt_r::<u32, KIND>,
        (false, _) => bt_r::<u64, KIND>,
        (true, 2) => bt_m::<u16, KIND>,
        (true, 4) => bt_m::<u32, KIND>,
        (true, _) => bt_m::<u64, KIND>,
    }
}

/// The second operand: `r1`, or memory.
#[inline(always)]
fn source<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Result<T, Trap> {
    if op.r1 == NO_REG {
        cpu.load_op(op, io)
    } else {
        Ok(get(cpu, op.r1))
    }
}

fn scan<T: Width, const REVERSE: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = source::<T>(cpu, op, io)?.zext();
    if v == 0 {
        flags::put(cpu, STATUS, ZF | PF);
        return Ok(());
    }
    let r = T::trunc(u64::from(if REVERSE {
        63 - v.leading_zeros()
    } else {
        v.trailing_zeros()
    }));
    flags::put(cpu, STATUS, flags::szp(r) & PF);
    set(cpu, op.r0, r);
    Ok(())
}

/// LZCNT and TZCNT: CF for a zero source, ZF for a zero result.
fn count<T: Width, const LEADING: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = source::<T>(cpu, op, io)?.zext();
    let n = if LEADING {
        v.leading_zeros() - (64 - T::BITS)
    } else {
        v.trailing_zeros().min(T::BITS)
    };
    set(cpu, op.r0, T::trunc(u64::from(n)));
    let zf = if n == 0 { ZF } else { 0 };
    flags::put(cpu, STATUS, zf | u64::from(v == 0));
    Ok(())
}

fn popcnt<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = source::<T>(cpu, op, io)?.zext();
    set(cpu, op.r0, T::trunc(u64::from(v.count_ones())));
    flags::put(cpu, STATUS, if v == 0 { ZF } else { 0 });
    Ok(())
}

const fn crc_table() -> [u32; 256] {
    let mut t = [0u32; 256];
    let mut n = 0;
    while n < 256 {
        let mut v = n as u32;
        let mut k = 0;
        while k < 8 {
            // The reflected CRC-32C polynomial (SDM vol. 2, CRC32: 11EDC6F41h).
            v = if v & 1 != 0 {
                v >> 1 ^ 0x82f6_3b78
            } else {
                v >> 1
            };
            k += 1;
        }
        t[n] = v;
        n += 1;
    }
    t
}

static CRC: [u32; 256] = crc_table();

fn crc32<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = source::<T>(cpu, op, io)?.zext().to_le_bytes();
    let mut crc = get::<u32>(cpu, op.r0);
    for b in &v[..T::BYTES] {
        crc = CRC[usize::from((crc as u8) ^ b)] ^ crc >> 8;
    }
    set(cpu, op.r0, u64::from(crc));
    Ok(())
}

macro_rules! by_size {
    ($f:ident, $size:expr $(, $c:expr)?) => {
        match $size {
            2 => $f::<u16 $(, $c)?> as Handler,
            4 => $f::<u32 $(, $c)?>,
            _ => $f::<u64 $(, $c)?>,
        }
    };
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let mem = is_mem(i, 0);
    let run = match i.mnemonic() {
        Mnemonic::Bt => pick_bt::<TEST>(mem, op.size),
        Mnemonic::Bts => pick_bt::<SET>(mem, op.size),
        Mnemonic::Btr => pick_bt::<RESET>(mem, op.size),
        Mnemonic::Btc => pick_bt::<COMPLEMENT>(mem, op.size),
        Mnemonic::Bsf => by_size!(scan, op.size, false),
        Mnemonic::Bsr => by_size!(scan, op.size, true),
        Mnemonic::Tzcnt => by_size!(count, op.size, false),
        Mnemonic::Lzcnt => by_size!(count, op.size, true),
        Mnemonic::Popcnt => by_size!(popcnt, op.size),
        Mnemonic::Crc32 => {
            let source = if i.op_kind(1) == OpKind::Register {
                i.op_register(1).size() as u8
            } else {
                crate::op::mem_bytes(i)
            };
            match source {
                1 => crc32::<u8>,
                2 => crc32::<u16>,
                4 => crc32::<u32>,
                _ => crc32::<u64>,
            }
        }
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}
