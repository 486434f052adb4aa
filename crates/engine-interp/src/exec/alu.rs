//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, ADCX, ADOX (SDM vol. 2).

use super::flags::{self, CF, OF, STATUS};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::op::is_mem;
use crate::{Cpu, Exec, Handler, Op, Prefix, Width};
use iced_x86::{Instruction, Mnemonic, OpKind};
use mimeo_vcpu::CpuIo;

/// A two-operand operation: the result, and its flags.
trait Alu {
    /// Whether the destination is written.
    const WRITES: bool;
    /// The result for destination `a` and source `b`; `c` is CF.
    fn result<T: Width>(a: T, b: T, c: u64) -> T;
    /// The six flags.
    fn flags<T: Width>(a: T, b: T, r: T) -> u64;
}

macro_rules! alu {
    ($name:ident, $writes:expr, |$a:ident, $b:ident, $c:ident| $result:expr, $flags:ident) => {
        struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn result<T: Width>(a: T, b: T, $c: u64) -> T {
                let ($a, $b) = (a.zext(), b.zext());
                T::trunc($result)
            }
            #[inline(always)]
            fn flags<T: Width>(a: T, b: T, r: T) -> u64 {
                $flags(a, b, r)
            }
        }
    };
}

#[inline(always)]
fn logic<T: Width>(_: T, _: T, r: T) -> u64 {
    flags::szp(r)
}

use flags::{add as add_flags, sub as sub_flags};

alu!(Add, true, |a, b, _c| a.wrapping_add(b), add_flags);
alu!(
    Adc,
    true,
    |a, b, c| a.wrapping_add(b).wrapping_add(c),
    add_flags
);
alu!(Sub, true, |a, b, _c| a.wrapping_sub(b), sub_flags);
alu!(
    Sbb,
    true,
    |a, b, c| a.wrapping_sub(b).wrapping_sub(c),
    sub_flags
);
alu!(Cmp, false, |a, b, _c| a.wrapping_sub(b), sub_flags);
alu!(And, true, |a, b, _c| a & b, logic);
alu!(Or, true, |a, b, _c| a | b, logic);
alu!(Xor, true, |a, b, _c| a ^ b, logic);
alu!(Test, false, |a, b, _c| a & b, logic);

#[inline(always)]
fn carry(cpu: &Cpu) -> u64 {
    cpu.state.rflags.bits() & CF
}

#[inline(always)]
fn compute<O: Alu, T: Width>(cpu: &mut Cpu, a: T, b: T) -> T {
    let r = O::result(a, b, carry(cpu));
    flags::put(cpu, STATUS, O::flags(a, b, r));
    r
}

fn rr<O: Alu, T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let (a, b) = (get::<T>(cpu, op.r0), get::<T>(cpu, op.r1));
    let r = compute::<O, T>(cpu, a, b);
    if O::WRITES {
        set(cpu, op.r0, r);
    }
    Ok(())
}

fn ri<O: Alu, T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let a = get::<T>(cpu, op.r0);
    let r = compute::<O, T>(cpu, a, T::trunc(op.imm));
    if O::WRITES {
        set(cpu, op.r0, r);
    }
    Ok(())
}

/// As `rr`, `ri` and `rm`, where nobody sees the flags.
fn quiet<O: Alu, T: Width, const SHAPE: u8>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = match SHAPE {
        QUIET_RR => get::<T>(cpu, op.r1),
        QUIET_RI => T::trunc(op.imm),
        _ => cpu.load_op::<T>(op, io)?,
    };
    if O::WRITES {
        set(cpu, op.r0, O::result(get::<T>(cpu, op.r0), b, 0));
    }
    Ok(())
}

const QUIET_RR: u8 = 0;
const QUIET_RI: u8 = 1;
const QUIET_RM: u8 = 2;

fn rm<O: Alu, T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = cpu.load_op::<T>(op, io)?;
    let a = get::<T>(cpu, op.r0);
    let r = compute::<O, T>(cpu, a, b);
    if O::WRITES {
        set(cpu, op.r0, r);
    }
    Ok(())
}

#[inline(always)]
fn to_mem<O: Alu, T: Width>(cpu: &mut Cpu, op: &Op, b: T, io: &mut dyn CpuIo) -> Exec {
    if !O::WRITES {
        let a = cpu.load_op::<T>(op, io)?;
        compute::<O, T>(cpu, a, b);
        return Ok(());
    }
    let offset = cpu.ea(op);
    if op.prefix.has(Prefix::LOCK) {
        let c = carry(cpu);
        let a = cpu.modify_locked::<T>(op.seg, offset, io, |a| O::result(a, b, c))?;
        compute::<O, T>(cpu, a, b);
        return Ok(());
    }
    cpu.modify::<T>(op.seg, offset, io, |cpu, a| compute::<O, T>(cpu, a, b))
}

fn mr<O: Alu, T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = get::<T>(cpu, op.r0);
    to_mem::<O, T>(cpu, op, b, io)
}

fn mi<O: Alu, T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    to_mem::<O, T>(cpu, op, T::trunc(op.imm), io)
}

/// Operand shapes of two-operand instructions.
#[derive(Clone, Copy)]
enum Shape {
    Rr,
    Ri,
    Rm,
    Mr,
    Mi,
}

fn shape(i: &Instruction) -> Option<Shape> {
    let reg = |n| i.op_kind(n) == OpKind::Register;
    Some(match (is_mem(i, 0), reg(0), is_mem(i, 1), reg(1)) {
        (true, _, _, true) => Shape::Mr,
        (true, ..) => Shape::Mi,
        (_, true, true, _) => Shape::Rm,
        (_, true, _, true) => Shape::Rr,
        (_, true, ..) => Shape::Ri,
        _ => return None,
    })
}

fn sized<O: Alu, T: Width>(shape: Shape) -> Handler {
    match shape {
        Shape::Rr => rr::<O, T>,
        Shape::Ri => ri::<O, T>,
        Shape::Rm => rm::<O, T>,
        Shape::Mr => mr::<O, T>,
        Shape::Mi => mi::<O, T>,
    }
}

fn pick<O: Alu>(shape: Shape, size: u8) -> Handler {
    match size {
        1 => sized::<O, u8>(shape),
        2 => sized::<O, u16>(shape),
        4 => sized::<O, u32>(shape),
        _ => sized::<O, u64>(shape),
    }
}

/// A one-operand operation.
trait Unary {
    fn result<T: Width>(a: T) -> T;
    /// Flags changed and their values.
    fn flags<T: Width>(a: T, r: T) -> (u64, u64);
}

struct Inc;
impl Unary for Inc {
    #[inline(always)]
    fn result<T: Width>(a: T) -> T {
        T::trunc(a.zext().wrapping_add(1))
    }
    #[inline(always)]
    fn flags<T: Width>(a: T, r: T) -> (u64, u64) {
        (STATUS & !CF, flags::add(a, T::trunc(1), r))
    }
}

struct Dec;
impl Unary for Dec {
    #[inline(always)]
    fn result<T: Width>(a: T) -> T {
        T::trunc(a.zext().wrapping_sub(1))
    }
    #[inline(always)]
    fn flags<T: Width>(a: T, r: T) -> (u64, u64) {
        (STATUS & !CF, flags::sub(a, T::trunc(1), r))
    }
}

struct Neg;
impl Unary for Neg {
    #[inline(always)]
    fn result<T: Width>(a: T) -> T {
        T::trunc(0u64.wrapping_sub(a.zext()))
    }
    #[inline(always)]
    fn flags<T: Width>(a: T, r: T) -> (u64, u64) {
        (STATUS, flags::sub(T::trunc(0), a, r))
    }
}

struct Not;
impl Unary for Not {
    #[inline(always)]
    fn result<T: Width>(a: T) -> T {
        T::trunc(!a.zext())
    }
    #[inline(always)]
    fn flags<T: Width>(_: T, _: T) -> (u64, u64) {
        (0, 0)
    }
}

fn unary_r<O: Unary, T: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let a = get::<T>(cpu, op.r0);
    let r = O::result(a);
    let (mask, value) = O::flags(a, r);
    flags::put(cpu, mask, value);
    set(cpu, op.r0, r);
    Ok(())
}

fn unary_m<O: Unary, T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let offset = cpu.ea(op);
    if op.prefix.has(Prefix::LOCK) {
        let a = cpu.modify_locked::<T>(op.seg, offset, io, O::result)?;
        let (mask, value) = O::flags(a, O::result(a));
        flags::put(cpu, mask, value);
        return Ok(());
    }
    cpu.modify::<T>(op.seg, offset, io, |cpu, a| {
        let r = O::result(a);
        let (mask, value) = O::flags(a, r);
        flags::put(cpu, mask, value);
        r
    })
}

fn pick_unary<O: Unary>(mem: bool, size: u8) -> Handler {
    match (mem, size) {
        (false, 1) => unary_r::<O, u8>,
        (false, 2) => unary_r::<O, u16>,
        (false, 4) => unary_r::<O, u32>,
        (false, _) => unary_r::<O, u64>,
        (true, 1) => unary_m::<O, u8>,
        (true, 2) => unary_m::<O, u16>,
        (true, 4) => unary_m::<O, u32>,
        (true, _) => unary_m::<O, u64>,
    }
}

/// ADCX and ADOX: add with one flag as carry in and out, the other flags untouched.
fn adx<T: Width, const FLAG: u64>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let b = if op.r1 == crate::op::NO_REG {
        cpu.load_op::<T>(op, io)?
    } else {
        get(cpu, op.r1)
    };
    let c = u128::from(flags::any(cpu, FLAG));
    let sum = u128::from(get::<T>(cpu, op.r0).zext()) + u128::from(b.zext()) + c;
    set(cpu, op.r0, T::trunc(sum as u64));
    flags::put(cpu, FLAG, if sum >> T::BITS != 0 { FLAG } else { 0 });
    Ok(())
}

fn quiet_sized<O: Alu, T: Width>(shape: Shape) -> Option<Handler> {
    Some(match shape {
        Shape::Rr => quiet::<O, T, QUIET_RR>,
        Shape::Ri => quiet::<O, T, QUIET_RI>,
        Shape::Rm => quiet::<O, T, QUIET_RM>,
        Shape::Mr | Shape::Mi => return None,
    })
}

fn pick_quiet<O: Alu>(shape: Shape, size: u8) -> Option<Handler> {
    match size {
        1 => quiet_sized::<O, u8>(shape),
        2 => quiet_sized::<O, u16>(shape),
        4 => quiet_sized::<O, u32>(shape),
        _ => quiet_sized::<O, u64>(shape),
    }
}

/// The handler for an instruction that writes all status flags and reads none, where nobody sees
/// them.
pub(crate) fn without_flags(i: &Instruction, op: &Op) -> Option<Handler> {
    let s = shape(i)?;
    match i.mnemonic() {
        Mnemonic::Add => pick_quiet::<Add>(s, op.size),
        Mnemonic::Or => pick_quiet::<Or>(s, op.size),
        Mnemonic::And => pick_quiet::<And>(s, op.size),
        Mnemonic::Sub => pick_quiet::<Sub>(s, op.size),
        Mnemonic::Xor => pick_quiet::<Xor>(s, op.size),
        Mnemonic::Cmp => pick_quiet::<Cmp>(s, op.size),
        Mnemonic::Test => pick_quiet::<Test>(s, op.size),
        _ => None,
    }
}

/// What an instruction means for the flags that are there before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagsBefore {
    /// It sets all of them without reading any, and cannot fault.
    Dead,
    /// It neither reads nor writes them, and cannot fault.
    Kept,
    /// They may be seen.
    Seen,
}

/// Looks at an instruction's form alone: general registers and immediates.
pub(crate) fn flags_before(i: &Instruction) -> FlagsBefore {
    let plain = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_gpr(),
        OpKind::Memory => i.mnemonic() == Mnemonic::Lea,
        kind => matches!(
            kind,
            OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        ),
    });
    if !plain || i.has_lock_prefix() {
        return FlagsBefore::Seen;
    }
    match i.mnemonic() {
        Mnemonic::Add
        | Mnemonic::Or
        | Mnemonic::And
        | Mnemonic::Sub
        | Mnemonic::Xor
        | Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::Neg => FlagsBefore::Dead,
        Mnemonic::Mov
        | Mnemonic::Lea
        | Mnemonic::Movzx
        | Mnemonic::Movsx
        | Mnemonic::Movsxd
        | Mnemonic::Not => FlagsBefore::Kept,
        _ => FlagsBefore::Seen,
    }
}

/// Completes ops of this group.
pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let mem = is_mem(i, 0);
    let run = match i.mnemonic() {
        Mnemonic::Inc => pick_unary::<Inc>(mem, op.size),
        Mnemonic::Dec => pick_unary::<Dec>(mem, op.size),
        Mnemonic::Neg => pick_unary::<Neg>(mem, op.size),
        Mnemonic::Not => pick_unary::<Not>(mem, op.size),
        Mnemonic::Adcx if op.size == 4 => adx::<u32, CF>,
        Mnemonic::Adcx => adx::<u64, CF>,
        Mnemonic::Adox if op.size == 4 => adx::<u32, OF>,
        Mnemonic::Adox => adx::<u64, OF>,
        m => {
            let Some(s) = shape(i) else {
                return Lower::No;
            };
            match m {
                Mnemonic::Add => pick::<Add>(s, op.size),
                Mnemonic::Or => pick::<Or>(s, op.size),
                Mnemonic::Adc => pick::<Adc>(s, op.size),
                Mnemonic::Sbb => pick::<Sbb>(s, op.size),
                Mnemonic::And => pick::<And>(s, op.size),
                Mnemonic::Sub => pick::<Sub>(s, op.size),
                Mnemonic::Xor => pick::<Xor>(s, op.size),
                Mnemonic::Cmp => pick::<Cmp>(s, op.size),
                Mnemonic::Test => pick::<Test>(s, op.size),
                _ => return Lower::No,
            }
        }
    };
    Lower::plain(op, run)
}
