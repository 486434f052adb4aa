//! Frequent moves and logic in Rust, without a thunk (SDM vol. 2 by mnemonic).
//!
//! `VEX` handlers clear the rest of the destination's YMM register, legacy ones leave it.

use super::native::Vector;
use super::{check, memory};
use crate::op::is_mem;
use crate::{Access, Cpu, Exec, Handler, Op};
use iced_x86::{Code, Instruction};
use mimeo_isa_x86::{MemOperand, form};
use mimeo_vcpu::CpuIo;

/// The handler of a form that has one here.
pub(super) fn handler(i: &Instruction, op: &Op) -> Option<Handler> {
    let memory = is_mem(i, 0) || is_mem(i, 1) || is_mem(i, 2);
    full_moves(i.code(), is_mem(i, 0), memory)
        .or_else(|| partial_moves(i.code(), memory))
        .or_else(|| general_moves(i, op, memory))
        .or_else(|| logic(i.code(), memory))
        .or_else(|| zero(i.code()))
}

fn full_moves(code: Code, store: bool, memory: bool) -> Option<Handler> {
    use Code as C;
    // (bytes, alignment, VEX)
    let (bytes, align, vex) = match code {
        C::Movups_xmm_xmmm128
        | C::Movupd_xmm_xmmm128
        | C::Movdqu_xmm_xmmm128
        | C::Movups_xmmm128_xmm
        | C::Movupd_xmmm128_xmm
        | C::Movdqu_xmmm128_xmm
        | C::Lddqu_xmm_m128 => (16, 1, false),
        C::Movaps_xmm_xmmm128
        | C::Movapd_xmm_xmmm128
        | C::Movdqa_xmm_xmmm128
        | C::Movaps_xmmm128_xmm
        | C::Movapd_xmmm128_xmm
        | C::Movdqa_xmmm128_xmm
        | C::Movntdq_m128_xmm
        | C::Movntps_m128_xmm
        | C::Movntpd_m128_xmm => (16, 16, false),
        C::VEX_Vmovups_xmm_xmmm128
        | C::VEX_Vmovupd_xmm_xmmm128
        | C::VEX_Vmovdqu_xmm_xmmm128
        | C::VEX_Vmovups_xmmm128_xmm
        | C::VEX_Vmovupd_xmmm128_xmm
        | C::VEX_Vmovdqu_xmmm128_xmm
        | C::VEX_Vlddqu_xmm_m128 => (16, 1, true),
        C::VEX_Vmovaps_xmm_xmmm128
        | C::VEX_Vmovapd_xmm_xmmm128
        | C::VEX_Vmovdqa_xmm_xmmm128
        | C::VEX_Vmovaps_xmmm128_xmm
        | C::VEX_Vmovapd_xmmm128_xmm
        | C::VEX_Vmovdqa_xmmm128_xmm
        | C::VEX_Vmovntdq_m128_xmm
        | C::VEX_Vmovntps_m128_xmm
        | C::VEX_Vmovntpd_m128_xmm => (16, 16, true),
        C::VEX_Vmovups_ymm_ymmm256
        | C::VEX_Vmovupd_ymm_ymmm256
        | C::VEX_Vmovdqu_ymm_ymmm256
        | C::VEX_Vmovups_ymmm256_ymm
        | C::VEX_Vmovupd_ymmm256_ymm
        | C::VEX_Vmovdqu_ymmm256_ymm
        | C::VEX_Vlddqu_ymm_m256 => (32, 1, true),
        C::VEX_Vmovaps_ymm_ymmm256
        | C::VEX_Vmovapd_ymm_ymmm256
        | C::VEX_Vmovdqa_ymm_ymmm256
        | C::VEX_Vmovaps_ymmm256_ymm
        | C::VEX_Vmovapd_ymmm256_ymm
        | C::VEX_Vmovdqa_ymmm256_ymm
        | C::VEX_Vmovntdq_m256_ymm
        | C::VEX_Vmovntps_m256_ymm
        | C::VEX_Vmovntpd_m256_ymm => (32, 32, true),
        _ => return None,
    };
    Some(match (memory, store, bytes, align, vex) {
        (false, _, 16, _, false) => register::<16, false>,
        (false, _, 16, _, true) => register::<16, true>,
        (false, ..) => register::<32, true>,
        (_, false, 16, 1, false) => load::<16, 1, false>,
        (_, false, 16, _, false) => load::<16, 16, false>,
        (_, false, 16, 1, true) => load::<16, 1, true>,
        (_, false, 16, _, true) => load::<16, 16, true>,
        (_, false, _, 1, _) => load::<32, 1, true>,
        (_, false, ..) => load::<32, 32, true>,
        (_, true, 16, 1, false) => store_low::<16, 1, false>,
        (_, true, 16, _, false) => store_low::<16, 16, false>,
        (_, true, 16, 1, true) => store_low::<16, 1, true>,
        (_, true, 16, _, true) => store_low::<16, 16, true>,
        (_, true, _, 1, _) => store_low::<32, 1, true>,
        (_, true, ..) => store_low::<32, 32, true>,
    })
}

/// Scalars and quadwords. A load into a register clears the rest of the XMM register.
fn partial_moves(code: Code, memory: bool) -> Option<Handler> {
    use Code as C;
    Some(match (code, memory) {
        (C::Movss_xmm_xmmm32, true) => load::<4, 1, false>,
        (C::Movsd_xmm_xmmm64 | C::Movq_xmm_xmmm64, true) => load::<8, 1, false>,
        (C::VEX_Vmovss_xmm_m32, _) => load::<4, 1, true>,
        (C::VEX_Vmovsd_xmm_m64, _) | (C::VEX_Vmovq_xmm_xmmm64, true) => load::<8, 1, true>,
        (C::Movss_xmmm32_xmm, true) => store_low::<4, 1, false>,
        (C::Movsd_xmmm64_xmm | C::Movq_xmmm64_xmm, true) => store_low::<8, 1, false>,
        (C::Movlps_m64_xmm | C::Movlpd_m64_xmm, _) => store_low::<8, 1, false>,
        (C::VEX_Vmovss_m32_xmm, _) => store_low::<4, 1, true>,
        (C::VEX_Vmovsd_m64_xmm, _) | (C::VEX_Vmovq_xmmm64_xmm, true) => store_low::<8, 1, true>,
        (C::VEX_Vmovlps_m64_xmm | C::VEX_Vmovlpd_m64_xmm, _) => store_low::<8, 1, true>,
        (C::Movhps_m64_xmm | C::Movhpd_m64_xmm, _) => store_high::<false>,
        (C::VEX_Vmovhps_m64_xmm | C::VEX_Vmovhpd_m64_xmm, _) => store_high::<true>,
        (C::Movlps_xmm_m64 | C::Movlpd_xmm_m64, _) => load_half::<0>,
        (C::Movhps_xmm_m64 | C::Movhpd_xmm_m64, _) => load_half::<1>,
        (C::Movss_xmm_xmmm32 | C::Movss_xmmm32_xmm, false) => merge_single,
        (C::Movsd_xmm_xmmm64 | C::Movsd_xmmm64_xmm, false) => merge_double,
        (C::Movq_xmm_xmmm64 | C::Movq_xmmm64_xmm, false) => quadword::<false>,
        (C::VEX_Vmovq_xmm_xmmm64 | C::VEX_Vmovq_xmmm64_xmm, false) => quadword::<true>,
        _ => return None,
    })
}

/// Between general registers (or memory) and XMM.
fn general_moves(i: &Instruction, _: &Op, memory: bool) -> Option<Handler> {
    use Code as C;
    Some(match (i.code(), memory) {
        (C::Movd_xmm_rm32, true) => load::<4, 1, false>,
        (C::Movq_xmm_rm64, true) => load::<8, 1, false>,
        (C::VEX_Vmovd_xmm_rm32, true) => load::<4, 1, true>,
        (C::VEX_Vmovq_xmm_rm64, true) => load::<8, 1, true>,
        (C::Movd_rm32_xmm, true) => store_low::<4, 1, false>,
        (C::Movq_rm64_xmm, true) => store_low::<8, 1, false>,
        (C::VEX_Vmovd_rm32_xmm, true) => store_low::<4, 1, true>,
        (C::VEX_Vmovq_rm64_xmm, true) => store_low::<8, 1, true>,
        (C::Movd_xmm_rm32, false) => from_general::<4, false>,
        (C::Movq_xmm_rm64, false) => from_general::<8, false>,
        (C::VEX_Vmovd_xmm_rm32, false) => from_general::<4, true>,
        (C::VEX_Vmovq_xmm_rm64, false) => from_general::<8, true>,
        (C::Movd_rm32_xmm, false) => to_general::<4, false>,
        (C::Movq_rm64_xmm, false) => to_general::<8, false>,
        (C::VEX_Vmovd_rm32_xmm, false) => to_general::<4, true>,
        (C::VEX_Vmovq_rm64_xmm, false) => to_general::<8, true>,
        (C::Movnti_m32_r32, _) => store_general::<4>,
        (C::Movnti_m64_r64, _) => store_general::<8>,
        _ => return None,
    })
}

const AND: u8 = 0;
const ANDN: u8 = 1;
const OR: u8 = 2;
const XOR: u8 = 3;

fn logic(code: Code, memory: bool) -> Option<Handler> {
    use Code as C;
    let (operation, vex, wide) = match code {
        C::Pand_xmm_xmmm128 | C::Andps_xmm_xmmm128 | C::Andpd_xmm_xmmm128 => (AND, false, false),
        C::Pandn_xmm_xmmm128 | C::Andnps_xmm_xmmm128 | C::Andnpd_xmm_xmmm128 => {
            (ANDN, false, false)
        }
        C::Por_xmm_xmmm128 | C::Orps_xmm_xmmm128 | C::Orpd_xmm_xmmm128 => (OR, false, false),
        C::Pxor_xmm_xmmm128 | C::Xorps_xmm_xmmm128 | C::Xorpd_xmm_xmmm128 => (XOR, false, false),
        C::VEX_Vpand_xmm_xmm_xmmm128
        | C::VEX_Vandps_xmm_xmm_xmmm128
        | C::VEX_Vandpd_xmm_xmm_xmmm128 => (AND, true, false),
        C::VEX_Vpandn_xmm_xmm_xmmm128
        | C::VEX_Vandnps_xmm_xmm_xmmm128
        | C::VEX_Vandnpd_xmm_xmm_xmmm128 => (ANDN, true, false),
        C::VEX_Vpor_xmm_xmm_xmmm128
        | C::VEX_Vorps_xmm_xmm_xmmm128
        | C::VEX_Vorpd_xmm_xmm_xmmm128 => (OR, true, false),
        C::VEX_Vpxor_xmm_xmm_xmmm128
        | C::VEX_Vxorps_xmm_xmm_xmmm128
        | C::VEX_Vxorpd_xmm_xmm_xmmm128 => (XOR, true, false),
        C::VEX_Vpand_ymm_ymm_ymmm256
        | C::VEX_Vandps_ymm_ymm_ymmm256
        | C::VEX_Vandpd_ymm_ymm_ymmm256 => (AND, true, true),
        C::VEX_Vpandn_ymm_ymm_ymmm256
        | C::VEX_Vandnps_ymm_ymm_ymmm256
        | C::VEX_Vandnpd_ymm_ymm_ymmm256 => (ANDN, true, true),
        C::VEX_Vpor_ymm_ymm_ymmm256
        | C::VEX_Vorps_ymm_ymm_ymmm256
        | C::VEX_Vorpd_ymm_ymm_ymmm256 => (OR, true, true),
        C::VEX_Vpxor_ymm_ymm_ymmm256
        | C::VEX_Vxorps_ymm_ymm_ymmm256
        | C::VEX_Vxorpd_ymm_ymm_ymmm256 => (XOR, true, true),
        _ => return None,
    };
    macro_rules! pick {
        ($($op:ident)*) => {
            match (operation, vex, wide, memory) {
                $(($op, false, _, false) => legacy_logic::<$op, false>,
                ($op, false, _, true) => legacy_logic::<$op, true>,
                ($op, true, false, false) => vex_logic::<$op, 16, false>,
                ($op, true, false, true) => vex_logic::<$op, 16, true>,
                ($op, true, true, false) => vex_logic::<$op, 32, false>,
                ($op, true, true, true) => vex_logic::<$op, 32, true>,)*
                _ => return None,
            }
        };
    }
    Some(pick!(AND ANDN OR XOR))
}

fn zero(code: Code) -> Option<Handler> {
    match code {
        Code::VEX_Vzeroupper => Some(zero_upper),
        Code::VEX_Vzeroall => Some(zero_all),
        _ => None,
    }
}

#[inline(always)]
fn check_unit<const VEX: bool>(cpu: &Cpu) -> Exec {
    if VEX {
        check::avx(cpu)
    } else {
        check::sse(cpu)
    }
}

const fn operand(size: usize, align: u8) -> MemOperand {
    MemOperand {
        access: form::Access::Read,
        size: size as u16,
        align,
        masked: false,
        bit_string: false,
    }
}

/// Writes the low 16 bytes of a register, with what the encoding does to the rest.
#[inline(always)]
fn set_low<const VEX: bool>(cpu: &mut Cpu, n: u8, low: [u64; 2]) {
    let r = &mut cpu.state.fp.ymm[usize::from(n & 15)];
    r[0] = low[0];
    r[1] = low[1];
    if VEX {
        r[2] = 0;
        r[3] = 0;
    }
}

#[inline(always)]
fn get(cpu: &Cpu, n: u8) -> [u64; 4] {
    cpu.state.fp.ymm[usize::from(n & 15)]
}

fn register<const BYTES: usize, const VEX: bool>(
    cpu: &mut Cpu,
    op: &Op,
    _: &mut dyn CpuIo,
) -> Exec {
    check_unit::<VEX>(cpu)?;
    let v = get(cpu, op.r1);
    if BYTES == 32 {
        cpu.state.fp.ymm[usize::from(op.r0 & 15)] = v;
    } else {
        set_low::<VEX>(cpu, op.r0, [v[0], v[1]]);
    }
    Ok(())
}

/// Loads the low part of a register and clears the rest of XMM (with VEX: of YMM).
fn load<const BYTES: usize, const ALIGN: u8, const VEX: bool>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
) -> Exec {
    check_unit::<VEX>(cpu)?;
    let linear = memory::address(cpu, op, &const { operand(BYTES, ALIGN) }, Access::Read)?;
    let mut v = Vector::default();
    memory::load(cpu, op.seg, linear, BYTES, &mut v, io)?;
    if BYTES == 32 {
        cpu.state.fp.ymm[usize::from(op.r0 & 15)] = v.0;
    } else {
        set_low::<VEX>(cpu, op.r0, [v.0[0], v.0[1]]);
    }
    Ok(())
}

fn store_low<const BYTES: usize, const ALIGN: u8, const VEX: bool>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
) -> Exec {
    check_unit::<VEX>(cpu)?;
    let linear = memory::address(cpu, op, &const { operand(BYTES, ALIGN) }, Access::Write)?;
    let v = Vector(get(cpu, op.r0));
    memory::store(cpu, op.seg, linear, BYTES, &v, io)
}

fn store_high<const VEX: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check_unit::<VEX>(cpu)?;
    cpu.store_op(op, get(cpu, op.r0)[1], io)
}

/// MOVLPS, MOVHPS and their kin: one half of XMM from memory.
fn load_half<const HALF: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::sse(cpu)?;
    let v = cpu.load_op::<u64>(op, io)?;
    cpu.state.fp.ymm[usize::from(op.r0 & 15)][HALF] = v;
    Ok(())
}

fn merge_single(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    check::sse(cpu)?;
    let v = get(cpu, op.r1)[0] & 0xffff_ffff;
    let r = &mut cpu.state.fp.ymm[usize::from(op.r0 & 15)][0];
    *r = *r & !0xffff_ffff | v;
    Ok(())
}

fn merge_double(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    check::sse(cpu)?;
    cpu.state.fp.ymm[usize::from(op.r0 & 15)][0] = get(cpu, op.r1)[0];
    Ok(())
}

fn quadword<const VEX: bool>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    check_unit::<VEX>(cpu)?;
    let v = get(cpu, op.r1)[0];
    set_low::<VEX>(cpu, op.r0, [v, 0]);
    Ok(())
}

fn from_general<const BYTES: usize, const VEX: bool>(
    cpu: &mut Cpu,
    op: &Op,
    _: &mut dyn CpuIo,
) -> Exec {
    check_unit::<VEX>(cpu)?;
    let mut v = cpu.state.gpr[usize::from(op.r1 & 15)];
    if BYTES == 4 {
        v &= 0xffff_ffff;
    }
    set_low::<VEX>(cpu, op.r0, [v, 0]);
    Ok(())
}

fn to_general<const BYTES: usize, const VEX: bool>(
    cpu: &mut Cpu,
    op: &Op,
    _: &mut dyn CpuIo,
) -> Exec {
    check_unit::<VEX>(cpu)?;
    let mut v = get(cpu, op.r1)[0];
    if BYTES == 4 {
        v &= 0xffff_ffff;
    }
    cpu.state.gpr[usize::from(op.r0 & 15)] = v;
    Ok(())
}

/// MOVNTI: an ordinary store here; ordering is stronger than asked for.
fn store_general<const BYTES: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let v = cpu.state.gpr[usize::from(op.r0 & 15)];
    if BYTES == 4 {
        cpu.store_op(op, v as u32, io)
    } else {
        cpu.store_op(op, v, io)
    }
}

#[inline(always)]
fn compute<const OP: u8>(a: u64, b: u64) -> u64 {
    match OP {
        AND => a & b,
        ANDN => !a & b,
        OR => a | b,
        _ => a ^ b,
    }
}

fn legacy_logic<const OP: u8, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
) -> Exec {
    check::sse(cpu)?;
    let b = if MEMORY {
        let linear = memory::address(cpu, op, &const { operand(16, 16) }, Access::Read)?;
        let mut v = Vector::default();
        memory::load(cpu, op.seg, linear, 16, &mut v, io)?;
        v.0
    } else {
        get(cpu, op.r1)
    };
    let a = &mut cpu.state.fp.ymm[usize::from(op.r0 & 15)];
    a[0] = compute::<OP>(a[0], b[0]);
    a[1] = compute::<OP>(a[1], b[1]);
    Ok(())
}

fn vex_logic<const OP: u8, const BYTES: usize, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
) -> Exec {
    check::avx(cpu)?;
    let b = if MEMORY {
        let linear = memory::address(cpu, op, &const { operand(BYTES, 1) }, Access::Read)?;
        let mut v = Vector::default();
        memory::load(cpu, op.seg, linear, BYTES, &mut v, io)?;
        v.0
    } else {
        get(cpu, op.r2)
    };
    let a = get(cpu, op.r1);
    let mut v = [0; 4];
    for n in 0..BYTES / 8 {
        v[n] = compute::<OP>(a[n], b[n]);
    }
    cpu.state.fp.ymm[usize::from(op.r0 & 15)] = v;
    Ok(())
}

/// Registers that VZEROUPPER and VZEROALL reach: eight outside 64-bit mode.
fn count(cpu: &Cpu) -> usize {
    if cpu.code64 { 16 } else { 8 }
}

fn zero_upper(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::avx(cpu)?;
    let n = count(cpu);
    for r in &mut cpu.state.fp.ymm[..n] {
        r[2] = 0;
        r[3] = 0;
    }
    Ok(())
}

fn zero_all(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    check::avx(cpu)?;
    let n = count(cpu);
    cpu.state.fp.ymm[..n].fill([0; 4]);
    Ok(())
}
