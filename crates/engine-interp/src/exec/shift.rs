//! Shifts and rotates (SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD; RORX, SARX, SHLX,
//! SHRX).
//!
//! Undefined flags: OF of counts other than one is computed as for a count of one on the last step,
//! AF is cleared.

use super::flags::{self, CF, OF, STATUS};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::{NO_REG, is_mem};
use crate::{Cpu, Exec, Handler, Op, Width};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use mimeo_arch_x86::Gpr;
use mimeo_vcpu::CpuIo;

/// A shift or rotate by a masked, non-zero count.
trait Shift {
    /// The result, and the flags changed with their values.
    fn apply<T: Width>(a: T, count: u32, carry: u64) -> (T, u64, u64);
}

#[inline(always)]
fn msb<T: Width>(v: u64) -> u64 {
    v >> (T::BITS - 1) & 1
}

struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, _: u64) -> (T, u64, u64) {
        // At most 63: u128 holds the bit shifted out of 64.
        let wide = u128::from(a.zext()) << count;
        let r = T::trunc(wide as u64);
        let cf = (wide >> T::BITS) as u64 & 1;
        let of = msb::<T>(r.zext()) ^ cf;
        (r, STATUS, flags::szp(r) | cf | of << 11)
    }
}

struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, _: u64) -> (T, u64, u64) {
        let v = a.zext();
        let r = T::trunc(v >> count);
        let cf = v >> (count - 1) & 1;
        let of = if count == 1 { msb::<T>(v) } else { 0 };
        (r, STATUS, flags::szp(r) | cf | of << 11)
    }
}

struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, _: u64) -> (T, u64, u64) {
        let v = a.sext();
        let r = T::trunc((v >> count) as u64);
        let cf = (v >> (count - 1)) as u64 & 1;
        (r, STATUS, flags::szp(r) | cf)
    }
}

struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, _: u64) -> (T, u64, u64) {
        let (v, n) = (a.zext(), count % T::BITS);
        let r = if n == 0 {
            v
        } else {
            T::trunc(v << n | v >> (T::BITS - n)).zext()
        };
        let cf = r & 1;
        (T::trunc(r), CF | OF, cf | (msb::<T>(r) ^ cf) << 11)
    }
}

struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, _: u64) -> (T, u64, u64) {
        let (v, n) = (a.zext(), count % T::BITS);
        let r = if n == 0 {
            v
        } else {
            T::trunc(v >> n | v << (T::BITS - n)).zext()
        };
        let cf = msb::<T>(r);
        let of = cf ^ (r >> (T::BITS - 2) & 1);
        (T::trunc(r), CF | OF, cf | of << 11)
    }
}

/// Rotates through carry work on BITS + 1 bits, carry on top.
#[inline(always)]
fn through_carry<T: Width>(a: T, left: u32, carry: u64) -> (u64, u64) {
    let bits = T::BITS + 1;
    let v = u128::from(a.zext()) | u128::from(carry & 1) << T::BITS;
    let r = if left == 0 {
        v
    } else {
        v << left | v >> (bits - left)
    };
    (T::trunc(r as u64).zext(), (r >> T::BITS) as u64 & 1)
}

struct Rcl;
impl Shift for Rcl {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, carry: u64) -> (T, u64, u64) {
        let (r, cf) = through_carry(a, count % (T::BITS + 1), carry);
        (T::trunc(r), CF | OF, cf | (msb::<T>(r) ^ cf) << 11)
    }
}

struct Rcr;
impl Shift for Rcr {
    #[inline(always)]
    fn apply<T: Width>(a: T, count: u32, carry: u64) -> (T, u64, u64) {
        let bits = T::BITS + 1;
        let (r, cf) = through_carry(a, (bits - count % bits) % bits, carry);
        let of = msb::<T>(r) ^ (r >> (T::BITS - 2) & 1);
        (T::trunc(r), CF | OF, cf | of << 11)
    }
}

#[inline(always)]
fn masked<T: Width>(count: u64) -> u32 {
    (count & if T::BYTES == 8 { 63 } else { 31 }) as u32
}

/// The count: CL (`r1` set) or the immediate.
#[inline(always)]
fn count<T: Width>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<T>(if op.r2 == 1 {
        cpu.gpr(Gpr::Rcx)
    } else {
        op.imm
    })
}

fn shift_r<O: Shift, T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let n = count::<T>(cpu, op);
    let a = get::<T>(cpu, op.r0);
    if n == 0 {
        // A 32-bit destination is zero-extended even so.
        set(cpu, op.r0, a);
        return Ok(());
    }
    let (r, mask, value) = O::apply(a, n, cpu.state.rflags.bits() & CF);
    flags::put(cpu, mask, value);
    set(cpu, op.r0, r);
    Ok(())
}

fn shift_m<O: Shift, T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let n = count::<T>(cpu, op);
    let offset = cpu.ea(op);
    cpu.modify::<T>(op.seg, offset, io, |cpu, a| {
        if n == 0 {
            return a;
        }
        let (r, mask, value) = O::apply(a, n, cpu.state.rflags.bits() & CF);
        flags::put(cpu, mask, value);
        r
    })
}

fn pick<O: Shift>(mem: bool, size: u8) -> Handler {
    match (mem, size) {
        (false, 1) => shift_r::<O, u8>,
        (false, 2) => shift_r::<O, u16>,
        (false, 4) => shift_r::<O, u32>,
        (false, _) => shift_r::<O, u64>,
        (true, 1) => shift_m::<O, u8>,
        (true, 2) => shift_m::<O, u16>,
        (true, 4) => shift_m::<O, u32>,
        (true, _) => shift_m::<O, u64>,
    }
}

/// SHLD (left) and SHRD; the count is not zero. A 16-bit operand shifted by more than 16 is
/// undefined; it takes its bits from the source again, as processors do.
#[inline(always)]
fn double<T: Width, const LEFT: bool>(cpu: &mut Cpu, a: T, b: T, n: u32) -> T {
    let (x, y) = (u128::from(a.zext()), u128::from(b.zext()));
    let (r, cf) = if LEFT {
        let wide = if T::BYTES == 2 {
            (x << 32 | y << 16 | x) << n
        } else {
            (x << T::BITS | y) << n
        };
        let top = if T::BYTES == 2 { 32 } else { T::BITS };
        // The bit last shifted out of the top.
        let out = if T::BYTES == 8 {
            x >> (64 - n)
        } else {
            wide >> (top + T::BITS)
        };
        (wide >> top, out as u64 & 1)
    } else {
        let wide = if T::BYTES == 2 {
            x << 32 | y << 16 | x
        } else {
            y << T::BITS | x
        };
        (wide >> n, (wide >> (n - 1)) as u64 & 1)
    };
    let r = T::trunc(r as u64);
    let of = msb::<T>(r.zext() ^ a.zext());
    flags::put(cpu, STATUS, flags::szp(r) | cf | of << 11);
    r
}

fn double_r<T: Width, const LEFT: bool>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let n = count::<T>(cpu, op);
    let (a, b) = (get::<T>(cpu, op.r0), get::<T>(cpu, op.r1));
    let r = if n == 0 {
        a
    } else {
        double::<T, LEFT>(cpu, a, b, n)
    };
    set(cpu, op.r0, r);
    Ok(())
}

fn double_m<T: Width, const LEFT: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let n = count::<T>(cpu, op);
    let b = get::<T>(cpu, op.r0);
    let offset = cpu.ea(op);
    cpu.modify::<T>(op.seg, offset, io, |cpu, a| {
        if n == 0 {
            a
        } else {
            double::<T, LEFT>(cpu, a, b, n)
        }
    })
}

fn pick_double<const LEFT: bool>(mem: bool, size: u8) -> Handler {
    match (mem, size) {
        (false, 2) => double_r::<u16, LEFT>,
        (false, 4) => double_r::<u32, LEFT>,
        (false, _) => double_r::<u64, LEFT>,
        (true, 2) => double_m::<u16, LEFT>,
        (true, 4) => double_m::<u32, LEFT>,
        (true, _) => double_m::<u64, LEFT>,
    }
}

/// SHLX, SHRX, SARX, RORX: no flags. `r2` names the count register, or the immediate counts.
fn flagless<T: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let mem = op.size & 0x80 != 0;
    let a = if mem {
        cpu.load_op::<T>(op, io)?
    } else {
        get(cpu, op.r1)
    };
    let counter = if mem { op.r1 } else { op.r2 };
    let n = masked::<T>(if counter == NO_REG {
        op.imm
    } else {
        cpu.state.gpr[usize::from(counter & 15)]
    });
    let r = match KIND {
        0 => a.zext() << n,
        1 => a.zext() >> n,
        2 => (a.sext() >> n) as u64,
        _ if n == 0 => a.zext(),
        _ => a.zext() >> n | a.zext() << (T::BITS - n),
    };
    set(cpu, op.r0, T::trunc(r));
    Ok(())
}

fn lower_flagless<const KIND: u8>(i: &Instruction, op: &mut Op) -> Lower {
    let wide = op.size == 8;
    if is_mem(i, 1) {
        op.size |= 0x80;
    }
    Lower::plain(
        op,
        if wide {
            flagless::<u64, KIND>
        } else {
            flagless::<u32, KIND>
        },
    )
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let mem = is_mem(i, 0);
    match i.mnemonic() {
        Mnemonic::Shlx => return lower_flagless::<0>(i, op),
        Mnemonic::Shrx => return lower_flagless::<1>(i, op),
        Mnemonic::Sarx => return lower_flagless::<2>(i, op),
        Mnemonic::Rorx => return lower_flagless::<3>(i, op),
        _ => {}
    }
    let run = match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => pick::<Shl>(mem, op.size),
        Mnemonic::Shr => pick::<Shr>(mem, op.size),
        Mnemonic::Sar => pick::<Sar>(mem, op.size),
        Mnemonic::Rol => pick::<Rol>(mem, op.size),
        Mnemonic::Ror => pick::<Ror>(mem, op.size),
        Mnemonic::Rcl => pick::<Rcl>(mem, op.size),
        Mnemonic::Rcr => pick::<Rcr>(mem, op.size),
        Mnemonic::Shld => pick_double::<true>(mem, op.size),
        Mnemonic::Shrd => pick_double::<false>(mem, op.size),
        _ => return Lower::No,
    };
    let last = i.op_count() - 1;
    let by_cl = i.op_kind(last) == OpKind::Register && i.op_register(last) == Register::CL;
    op.r2 = u8::from(by_cl);
    if !by_cl {
        op.imm = i.immediate(last);
    }
    Lower::plain(op, run)
}
