//! Memory under a mask, lane by lane: VMASKMOV, VPMASKMOV, gathers, MASKMOVQ and MASKMOVDQU.
//!
//! Only selected lanes are accessed and only they fault (SDM vol. 2, VMASKMOV, VPGATHERDD,
//! MASKMOVDQU). Stores are checked as a whole before the first byte is written. A gather that
//! faults keeps the lanes it has loaded and clears their masks, so that it can be restarted.

use super::{check, mmx};
use crate::op::{NO_REG, RIP_REG};
use crate::{Access, Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_isa_x86::{Form, Unit};
use mimeo_vcpu::CpuIo;

pub(super) fn handler(i: &Instruction, op: &mut Op, form: &Form) -> Option<Handler> {
    if form.mem.masked && i.is_vsib() {
        return gather_handler(i, op);
    }
    use Code as C;
    Some(match form.code {
        C::VEX_Vmaskmovps_xmm_xmm_m128 | C::VEX_Vpmaskmovd_xmm_xmm_m128 => load::<4, 4>,
        C::VEX_Vmaskmovps_ymm_ymm_m256 | C::VEX_Vpmaskmovd_ymm_ymm_m256 => load::<4, 8>,
        C::VEX_Vmaskmovpd_xmm_xmm_m128 | C::VEX_Vpmaskmovq_xmm_xmm_m128 => load::<8, 2>,
        C::VEX_Vmaskmovpd_ymm_ymm_m256 | C::VEX_Vpmaskmovq_ymm_ymm_m256 => load::<8, 4>,
        C::VEX_Vmaskmovps_m128_xmm_xmm | C::VEX_Vpmaskmovd_m128_xmm_xmm => store::<4, 4>,
        C::VEX_Vmaskmovps_m256_ymm_ymm | C::VEX_Vpmaskmovd_m256_ymm_ymm => store::<4, 8>,
        C::VEX_Vmaskmovpd_m128_xmm_xmm | C::VEX_Vpmaskmovq_m128_xmm_xmm => store::<8, 2>,
        C::VEX_Vmaskmovpd_m256_ymm_ymm | C::VEX_Vpmaskmovq_m256_ymm_ymm => store::<8, 4>,
        C::Maskmovdqu_rDI_xmm_xmm | C::VEX_Vmaskmovdqu_rDI_xmm_xmm => {
            op.size = u8::from(form.unit == Unit::Avx);
            bytes_xmm
        }
        C::Maskmovq_rDI_mm_mm => bytes_mmx,
        _ => return None,
    })
}

/// Lane `n` of `SIZE` bytes.
fn lane<const SIZE: usize>(v: &[u64; 4], n: usize) -> u64 {
    if SIZE == 8 {
        v[n & 3]
    } else {
        v[(n / 2) & 3] >> (32 * (n & 1)) & 0xffff_ffff
    }
}

fn set_lane<const SIZE: usize>(v: &mut [u64; 4], n: usize, value: u64) {
    if SIZE == 8 {
        v[n & 3] = value;
    } else {
        let shift = 32 * (n & 1);
        let q = &mut v[(n / 2) & 3];
        *q = *q & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
    }
}

/// The sign bit of a lane selects it.
fn selected<const SIZE: usize>(mask: &[u64; 4], n: usize) -> bool {
    lane::<SIZE>(mask, n) >> (8 * SIZE - 1) & 1 != 0
}

fn truncate(address: u64, op: &Op) -> u64 {
    match op.addr {
        8 => address,
        4 => address & 0xffff_ffff,
        _ => address & 0xffff,
    }
}

fn read<const SIZE: usize>(
    cpu: &mut Cpu,
    op: &Op,
    offset: u64,
    io: &mut dyn CpuIo,
) -> Result<u64, Trap> {
    if SIZE == 8 {
        cpu.load::<u64>(op.seg, offset, io)
    } else {
        cpu.load::<u32>(op.seg, offset, io).map(u64::from)
    }
}

fn load<const SIZE: usize, const LANES: usize>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::avx(cpu)?;
    let mask = cpu.state.fp.ymm[usize::from(op.r1 & 15)];
    let base = cpu.ea(op);
    let mut v = [0; 4];
    for n in (0..LANES).filter(|n| selected::<SIZE>(&mask, *n)) {
        let offset = truncate(base.wrapping_add((n * SIZE) as u64), op);
        set_lane::<SIZE>(&mut v, n, read::<SIZE>(cpu, op, offset, io)?);
    }
    cpu.state.fp.ymm[usize::from(op.r0 & 15)] = v;
    Ok(())
}

fn store<const SIZE: usize, const LANES: usize>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
) -> Exec {
    check::avx(cpu)?;
    let mask = cpu.state.fp.ymm[usize::from(op.r0 & 15)];
    let v = cpu.state.fp.ymm[usize::from(op.r1 & 15)];
    let base = cpu.ea(op);
    let mut at = [0; LANES];
    for n in (0..LANES).filter(|n| selected::<SIZE>(&mask, *n)) {
        let offset = truncate(base.wrapping_add((n * SIZE) as u64), op);
        at[n] = cpu.linear(op.seg, offset, SIZE, Access::Write)?;
        cpu.probe(op.seg, at[n], SIZE, Access::Write)?;
    }
    for n in (0..LANES).filter(|n| selected::<SIZE>(&mask, *n)) {
        let value = lane::<SIZE>(&v, n);
        if SIZE == 8 {
            cpu.write(op.seg, at[n], value, io)?;
        } else {
            cpu.write(op.seg, at[n], value as u32, io)?;
        }
    }
    Ok(())
}

/// Stores the bytes of `data` whose mask byte has its top bit set, at seg:rDI.
fn store_bytes(cpu: &mut Cpu, op: &Op, data: &[u8], mask: &[u8], io: &mut dyn CpuIo) -> Exec {
    let base = truncate(cpu.state.gpr[7], op);
    let mut at = [0; 16];
    let chosen = |n: &usize| mask[*n] & 0x80 != 0;
    for n in (0..data.len()).filter(chosen) {
        let offset = truncate(base.wrapping_add(n as u64), op);
        at[n] = cpu.linear(op.seg, offset, 1, Access::Write)?;
        cpu.probe(op.seg, at[n], 1, Access::Write)?;
    }
    for n in (0..data.len()).filter(chosen) {
        cpu.write(op.seg, at[n], data[n], io)?;
    }
    Ok(())
}

fn xmm_bytes(v: &[u64; 4]) -> [u8; 16] {
    (u128::from(v[0]) | u128::from(v[1]) << 64).to_le_bytes()
}

fn bytes_xmm(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    if op.size != 0 {
        check::avx(cpu)?;
    } else {
        check::sse(cpu)?;
    }
    let data = xmm_bytes(&cpu.state.fp.ymm[usize::from(op.r0 & 15)]);
    let mask = xmm_bytes(&cpu.state.fp.ymm[usize::from(op.r1 & 15)]);
    store_bytes(cpu, op, &data, &mask, io)
}

fn bytes_mmx(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    check::mmx(cpu)?;
    let top = mmx::top(&cpu.state.fp);
    let register = |n: u8| cpu.state.fp.st[usize::from(n.wrapping_sub(top) & 7)] as u64;
    let (data, mask) = (register(op.r0), register(op.r1));
    mmx::enter(&mut cpu.state.fp);
    store_bytes(cpu, op, &data.to_le_bytes(), &mask.to_le_bytes(), io)
}

fn gather_handler(i: &Instruction, op: &mut Op) -> Option<Handler> {
    use Code as C;
    let run: Handler = match i.code() {
        C::VEX_Vpgatherdd_xmm_vm32x_xmm | C::VEX_Vgatherdps_xmm_vm32x_xmm => gather::<4, 4, 4, 16>,
        C::VEX_Vpgatherdd_ymm_vm32y_ymm | C::VEX_Vgatherdps_ymm_vm32y_ymm => gather::<4, 4, 8, 32>,
        C::VEX_Vpgatherdq_xmm_vm32x_xmm | C::VEX_Vgatherdpd_xmm_vm32x_xmm => gather::<4, 8, 2, 16>,
        C::VEX_Vpgatherdq_ymm_vm32x_ymm | C::VEX_Vgatherdpd_ymm_vm32x_ymm => gather::<4, 8, 4, 32>,
        C::VEX_Vpgatherqd_xmm_vm64x_xmm | C::VEX_Vgatherqps_xmm_vm64x_xmm => gather::<8, 4, 2, 16>,
        C::VEX_Vpgatherqd_xmm_vm64y_xmm | C::VEX_Vgatherqps_xmm_vm64y_xmm => gather::<8, 4, 4, 32>,
        C::VEX_Vpgatherqq_xmm_vm64x_xmm | C::VEX_Vgatherqpd_xmm_vm64x_xmm => gather::<8, 8, 2, 16>,
        C::VEX_Vpgatherqq_ymm_vm64y_ymm | C::VEX_Vgatherqpd_ymm_vm64y_ymm => gather::<8, 8, 4, 32>,
        _ => return None,
    };
    // Destination, index and mask must be three different registers.
    let distinct = op.r0 != op.r1 && op.r0 != op.index && op.r1 != op.index;
    Some(if distinct {
        run
    } else {
        crate::exec::undefined
    })
}

/// `BYTES`: the vector length. At the start each lane of the mask is filled with its sign, so that
/// a fault leaves a clean mask behind (SDM vol. 2, VPGATHERDD, operation).
fn gather<const INDEX: usize, const SIZE: usize, const LANES: usize, const BYTES: usize>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
) -> Exec {
    check::avx(cpu)?;
    let (to, mask_at) = (usize::from(op.r0 & 15), usize::from(op.r1 & 15));
    let indices = cpu.state.fp.ymm[usize::from(op.index & 15)];
    let base = match op.base {
        NO_REG => 0,
        RIP_REG => cpu.state.rip,
        n => cpu.state.gpr[usize::from(n & 15)],
    };
    let base = base.wrapping_add(i64::from(op.disp) as u64);
    let old = cpu.state.fp.ymm[mask_at];
    let mut mask = [0; 4];
    for n in (0..BYTES / SIZE).filter(|n| selected::<SIZE>(&old, *n)) {
        set_lane::<SIZE>(&mut mask, n, u64::MAX);
    }
    cpu.state.fp.ymm[mask_at] = mask;
    for n in 0..LANES {
        if selected::<SIZE>(&mask, n) {
            let index = if INDEX == 8 {
                indices[n & 3]
            } else {
                i64::from(lane::<4>(&indices, n) as i32) as u64
            };
            let offset = truncate(base.wrapping_add(index << (op.scale & 3)), op);
            let value = read::<SIZE>(cpu, op, offset, io)?;
            let to = &mut cpu.state.fp.ymm[to];
            set_lane::<SIZE>(to, n, value);
            if BYTES == 16 {
                to[2..].fill(0);
            }
        }
        set_lane::<SIZE>(&mut mask, n, 0);
        cpu.state.fp.ymm[mask_at] = mask;
    }
    cpu.state.fp.ymm[mask_at] = [0; 4];
    // The rest of the destination: everything above the lanes is cleared.
    let to = &mut cpu.state.fp.ymm[to];
    to[LANES * SIZE / 8..].fill(0);
    Ok(())
}
