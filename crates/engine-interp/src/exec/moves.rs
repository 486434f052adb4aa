//! MOV, MOVZX, MOVSX, MOVSXD, LEA, XCHG, BSWAP, MOVBE, CMOVcc, SETcc, conversions, XLAT, LAHF,
//! SAHF, SALC, flag instructions (SDM vol. 2). MOV to and from segment, control and debug
//! registers are in `system`.

use super::flags::{self, CF};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::is_mem;
use crate::{Cpu, Exec, Handler, Op, Width};
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};
use mimeo_arch_x86::Gpr;
use mimeo_vcpu::CpuIo;

fn mov_rr<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, op.r1);
    set(cpu, op.r0, v);
    Ok(())
}

fn mov_ri<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    set(cpu, op.r0, T::trunc(op.imm));
    Ok(())
}

fn mov_rm<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.load_op::<T>(op, io)?;
    set(cpu, op.r0, v);
    Ok(())
}

fn mov_mr<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, op.r0);
    cpu.store_op(op, v, io)
}

fn mov_mi<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpu.store_op(op, T::trunc(op.imm), io)
}

/// MOV with a 64-bit absolute address (in `imm`).
fn mov_load_abs<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.load::<T>(op.seg, op.imm, io)?;
    set(cpu, op.r0, v);
    Ok(())
}

fn mov_store_abs<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, op.r0);
    cpu.store(op.seg, op.imm, v, io)
}

macro_rules! by_size {
    ($f:ident, $size:expr) => {
        match $size {
            1 => $f::<u8> as Handler,
            2 => $f::<u16>,
            4 => $f::<u32>,
            _ => $f::<u64>,
        }
    };
}

fn lower_mov(i: &Instruction, op: &mut Op) -> Lower {
    let segment_or_control = |n| i.op_kind(n) == OpKind::Register && !i.op_register(n).is_gpr();
    if segment_or_control(0) || segment_or_control(1) {
        return Lower::No;
    }
    let absolute = (is_mem(i, 0) || is_mem(i, 1)) && i.memory_displ_size() == 8 && {
        matches!(
            i.code(),
            Code::Mov_AL_moffs8
                | Code::Mov_AX_moffs16
                | Code::Mov_EAX_moffs32
                | Code::Mov_RAX_moffs64
                | Code::Mov_moffs8_AL
                | Code::Mov_moffs16_AX
                | Code::Mov_moffs32_EAX
                | Code::Mov_moffs64_RAX
        )
    };
    let run = if absolute {
        op.imm = i.memory_displacement64();
        if is_mem(i, 0) {
            by_size!(mov_store_abs, op.size)
        } else {
            by_size!(mov_load_abs, op.size)
        }
    } else if is_mem(i, 0) {
        if i.op_kind(1) == OpKind::Register {
            by_size!(mov_mr, op.size)
        } else {
            by_size!(mov_mi, op.size)
        }
    } else if is_mem(i, 1) {
        by_size!(mov_rm, op.size)
    } else if i.op_kind(1) == OpKind::Register {
        by_size!(mov_rr, op.size)
    } else {
        by_size!(mov_ri, op.size)
    };
    Lower::plain(op, run)
}

fn movzx_r<D: Width, S: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = get::<S>(cpu, op.r1).zext();
    set(cpu, op.r0, D::trunc(v));
    Ok(())
}

fn movzx_m<D: Width, S: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.load_op::<S>(op, io)?.zext();
    set(cpu, op.r0, D::trunc(v));
    Ok(())
}

fn movsx_r<D: Width, S: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = get::<S>(cpu, op.r1).sext() as u64;
    set(cpu, op.r0, D::trunc(v));
    Ok(())
}

fn movsx_m<D: Width, S: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.load_op::<S>(op, io)?.sext() as u64;
    set(cpu, op.r0, D::trunc(v));
    Ok(())
}

macro_rules! extend {
    ($r:ident, $m:ident, $d:expr, $s:expr, $mem:expr) => {
        match ($d, $s, $mem) {
            (2, 1, false) => $r::<u16, u8> as Handler,
            (4, 1, false) => $r::<u32, u8>,
            (_, 1, false) => $r::<u64, u8>,
            (2, 2, false) => $r::<u16, u16>,
            (4, 2, false) => $r::<u32, u16>,
            (_, 2, false) => $r::<u64, u16>,
            (2, _, false) => $r::<u16, u32>,
            (4, _, false) => $r::<u32, u32>,
            (_, _, false) => $r::<u64, u32>,
            (2, 1, true) => $m::<u16, u8>,
            (4, 1, true) => $m::<u32, u8>,
            (_, 1, true) => $m::<u64, u8>,
            (2, 2, true) => $m::<u16, u16>,
            (4, 2, true) => $m::<u32, u16>,
            (_, 2, true) => $m::<u64, u16>,
            (2, _, true) => $m::<u16, u32>,
            (4, _, true) => $m::<u32, u32>,
            (_, _, true) => $m::<u64, u32>,
        }
    };
}

fn lower_extend(i: &Instruction, op: &mut Op, sign: bool) -> Lower {
    let mem = is_mem(i, 1);
    let source = if mem {
        crate::op::mem_bytes(i)
    } else {
        i.op_register(1).size() as u8
    };
    // MOVSXD r16 reads 16 bits (SDM vol. 2, MOVSXD).
    let source = source.min(op.size);
    let run = if sign {
        extend!(movsx_r, movsx_m, op.size, source, mem)
    } else {
        extend!(movzx_r, movzx_m, op.size, source, mem)
    };
    Lower::plain(op, run)
}

fn lea<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let a = cpu.ea(op);
    set(cpu, op.r0, T::trunc(a));
    Ok(())
}

fn xchg_rr<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let (a, b) = (get::<T>(cpu, op.r0), get::<T>(cpu, op.r1));
    set(cpu, op.r0, b);
    set(cpu, op.r1, a);
    Ok(())
}

/// XCHG with memory is locked with or without the prefix.
fn xchg_m<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, op.r0);
    let offset = cpu.ea(op);
    let old = cpu.modify_locked::<T>(op.seg, offset, io, |_| v)?;
    set(cpu, op.r0, old);
    Ok(())
}

fn bswap<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = get::<T>(cpu, op.r0).zext();
    // BSWAP r16 is undefined; processors give zero.
    let r = match T::BYTES {
        2 => 0,
        4 => u64::from((v as u32).swap_bytes()),
        _ => v.swap_bytes(),
    };
    set(cpu, op.r0, T::trunc(r));
    Ok(())
}

fn swap<T: Width>(v: T) -> T {
    T::trunc(v.zext().swap_bytes() >> (64 - T::BITS))
}

fn movbe_load<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.load_op::<T>(op, io)?;
    set(cpu, op.r0, swap(v));
    Ok(())
}

fn movbe_store<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = swap(get::<T>(cpu, op.r0));
    cpu.store_op(op, v, io)
}

/// CMOVcc: the source is read whatever the condition; a 32-bit destination is zero-extended
/// whatever the condition.
fn cmov_r<T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let r = if flags::condition(cpu, op.r2) {
        op.r1
    } else {
        op.r0
    };
    let v = get::<T>(cpu, r);
    set(cpu, op.r0, v);
    Ok(())
}

fn cmov_m<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mut v = cpu.load_op::<T>(op, io)?;
    if !flags::condition(cpu, op.r2) {
        v = get(cpu, op.r0);
    }
    set(cpu, op.r0, v);
    Ok(())
}

fn setcc_r(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = u8::from(flags::condition(cpu, op.r2));
    set(cpu, op.r0, v);
    Ok(())
}

fn setcc_m(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = u8::from(flags::condition(cpu, op.r2));
    cpu.store_op(op, v, io)
}

/// CBW, CWDE, CDQE: `T` is the destination, half of it the source.
fn widen<T: Width, S: Width>(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = get::<S>(cpu, 0).sext() as u64;
    set(cpu, 0, T::trunc(v));
    Ok(())
}

/// CWD, CDQ, CQO.
fn sign_to_dx<T: Width>(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = (get::<T>(cpu, 0).sext() >> 63) as u64;
    set(cpu, Gpr::Rdx as u8, T::trunc(v));
    Ok(())
}

fn xlat(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mask = super::address_mask(op.addr);
    let at = cpu.gpr(Gpr::Rbx).wrapping_add(u64::from(get::<u8>(cpu, 0))) & mask;
    let v = cpu.load::<u8>(op.seg, at, io)?;
    set(cpu, 0, v);
    Ok(())
}

const LOW_FLAGS: u64 = flags::STATUS & !flags::OF;

fn lahf(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = cpu.state.rflags.bits() & LOW_FLAGS | 2;
    set(cpu, 16, v as u8);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = u64::from(get::<u8>(cpu, 16));
    flags::put(cpu, LOW_FLAGS, v);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = if flags::any(cpu, CF) { 0xff } else { 0u8 };
    set(cpu, 0, v);
    Ok(())
}

fn set_flag<const FLAG: u64, const ON: bool>(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    flags::put(cpu, FLAG, if ON { FLAG } else { 0 });
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let c = cpu.state.rflags.bits() ^ CF;
    flags::put(cpu, CF, c);
    Ok(())
}

/// LEAVE, ENTER and the stack group are in `stack`.
pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let (mem0, mem1) = (is_mem(i, 0), is_mem(i, 1));
    let run: Handler = match i.mnemonic() {
        Mnemonic::Mov => return lower_mov(i, op),
        Mnemonic::Movzx => return lower_extend(i, op, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => return lower_extend(i, op, true),
        Mnemonic::Lea if op.size == 2 => lea::<u16>,
        Mnemonic::Lea if op.size == 4 => lea::<u32>,
        Mnemonic::Lea => lea::<u64>,
        Mnemonic::Xchg if mem0 || mem1 => {
            op.size = crate::op::mem_bytes(i);
            by_size!(xchg_m, op.size)
        }
        Mnemonic::Xchg => by_size!(xchg_rr, op.size),
        Mnemonic::Bswap if op.size == 2 => bswap::<u16>,
        Mnemonic::Bswap if op.size == 4 => bswap::<u32>,
        Mnemonic::Bswap => bswap::<u64>,
        Mnemonic::Movbe if mem0 => by_size!(movbe_store, op.size),
        Mnemonic::Movbe => by_size!(movbe_load, op.size),
        Mnemonic::Cbw => widen::<u16, u8>,
        Mnemonic::Cwde => widen::<u32, u16>,
        Mnemonic::Cdqe => widen::<u64, u32>,
        Mnemonic::Cwd => sign_to_dx::<u16>,
        Mnemonic::Cdq => sign_to_dx::<u32>,
        Mnemonic::Cqo => sign_to_dx::<u64>,
        Mnemonic::Xlatb => xlat,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Clc => set_flag::<{ flags::CF }, false>,
        Mnemonic::Stc => set_flag::<{ flags::CF }, true>,
        Mnemonic::Cld => set_flag::<{ flags::DF }, false>,
        Mnemonic::Std => set_flag::<{ flags::DF }, true>,
        Mnemonic::Cmc => cmc,
        _ => return lower_condition(i, op, mem0, mem1),
    };
    Lower::plain(op, run)
}

fn lower_condition(i: &Instruction, op: &mut Op, mem0: bool, mem1: bool) -> Lower {
    if i.condition_code() == ConditionCode::None {
        return Lower::No;
    }
    let run = match i.op_count() {
        2 if mem1 => by_size!(cmov_m, op.size),
        2 if i.op_register(0).is_gpr() => by_size!(cmov_r, op.size),
        1 if mem0 => setcc_m,
        1 if i.op_kind(0) == OpKind::Register => setcc_r,
        _ => return Lower::No,
    };
    op.r2 = super::condition_number(i.condition_code());
    Lower::plain(op, run)
}
