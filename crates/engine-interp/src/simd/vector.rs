//! MMX, SSE and AVX instructions that run in a thunk.

use super::native::{self, Operands, Place, Vector};
use super::thunk::{Aux, HOST_MXCSR};
use super::{Kind, Native, check, memory, mmx, native_of, register_of, vex};
use crate::{Access, Cpu, Exec, Handler, Op, Trap};
use mimeo_arch_x86::RFlags;
use mimeo_isa_x86::form::{Access as Use, gpr};
use mimeo_isa_x86::{Form, Unit};
use mimeo_vcpu::CpuIo;

// MXCSR: the masks of all exceptions; rounding, FTZ and DAZ; the exceptions' flags.
const MASKED: u32 = 0x1f80;
const CONTROL: u32 = 0xe040;
const FLAGS: u32 = 0x3f;
const FTZ: u32 = 1 << 15;
const UNDERFLOW: u32 = 1 << 4;
const UNDERFLOW_MASK: u32 = 1 << 11;

/// The handler for a form.
pub(super) fn handler(form: &Form) -> Handler {
    let explicit = form.gpr_read | form.gpr_written == 0
        && !form.xmm0_read
        && !form.xmm0_written
        && form.mem.access != Use::Write;
    let quiet = !form.mxcsr && form.flags.changed() == 0;
    match form.unit {
        Unit::Sse if explicit && quiet => simple::<false>,
        Unit::Avx if explicit && quiet => simple::<true>,
        Unit::Sse if explicit && form.mxcsr => masked::<false>,
        Unit::Avx if explicit && form.mxcsr => masked::<true>,
        _ => general,
    }
}

fn place(kind: Kind, n: u8) -> Place {
    match kind {
        Kind::None => Place::None,
        Kind::Ymm => Place::Ymm(n),
        Kind::Mm => Place::Mm(n),
        Kind::Gpr => Place::Gpr(n),
        Kind::Memory => Place::Memory,
    }
}

fn places(op: &Op, t: &Native) -> [Place; 4] {
    std::array::from_fn(|n| place(t.kinds[n], register_of(op, n as u32)))
}

/// Registers and perhaps a loaded memory operand; no flags, no exceptions.
fn simple<const VEX: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    in_place::<VEX>(cpu, op, io, &mut Aux::default())?;
    Ok(())
}

/// Arithmetic while every SIMD exception is masked: nothing can fault behind the operation, so that
/// the result goes to its register at once.
fn masked<const VEX: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let (mxcsr_in, mxcsr_host) = control(cpu.state.fp.mxcsr);
    if cpu.state.fp.mxcsr & MASKED != MASKED {
        return general(cpu, op, io);
    }
    let mut aux = Aux {
        mxcsr_in,
        mxcsr_host,
        ..Aux::default()
    };
    let form = in_place::<VEX>(cpu, op, io, &mut aux)?;
    cpu.state.fp.mxcsr |= aux.mxcsr_out & FLAGS;
    aux_out(cpu, form, &aux);
    Ok(())
}

/// Runs a thunk on the registers themselves and a copy of the memory operand; gives the form.
#[inline(always)]
fn in_place<const VEX: bool>(
    cpu: &mut Cpu,
    op: &Op,
    io: &mut dyn CpuIo,
    aux: &mut Aux,
) -> Result<&'static Form, Trap> {
    if VEX {
        check::avx(cpu)?;
    } else {
        check::sse(cpu)?;
    }
    let t = native_of(cpu, op);
    let mut buffer = Vector::default();
    if t.kinds.contains(&Kind::Memory) {
        let m = &t.form.mem;
        let linear = memory::address(cpu, op, m, Access::Read)?;
        memory::load(cpu, op.seg, linear, usize::from(m.size), &mut buffer, io)?;
    }
    let mut staged = Vector::default();
    run(cpu, &t, places(op, &t), &mut buffer, &mut staged, aux);
    Ok(t.form)
}

/// MXCSR to execute with, and the one to leave to the monitor's own code.
///
/// Changing MXCSR costs a host CPU some 10 ns each time; loading the value that it has, nothing. So
/// where the guest's control bits are those that the ABI wants, its sticky flags stay behind (they
/// belong to nobody there: System V ABI, 3.2.3), and neither load changes anything.
#[inline(always)]
fn control(guest: u32) -> (u32, u32) {
    if guest & MASKED == MASKED {
        let all = guest & (MASKED | CONTROL | FLAGS);
        let host = if guest & CONTROL == 0 {
            all
        } else {
            HOST_MXCSR
        };
        return (all, host);
    }
    let mut bits = guest & CONTROL | MASKED;
    if guest & UNDERFLOW_MASK == 0 {
        // Flush-to-zero has no effect while underflow is unmasked (SDM vol. 1, 10.2.3.3).
        bits &= !FTZ;
    }
    (bits, HOST_MXCSR)
}

fn run(
    cpu: &mut Cpu,
    t: &Native,
    places: [Place; 4],
    buffer: &mut Vector,
    staged: &mut Vector,
    aux: &mut Aux,
) {
    let s = &mut cpu.state;
    let mut operands = Operands {
        ymm: &mut s.fp.ymm,
        st: &mut s.fp.st,
        gpr: &mut s.gpr,
        memory: buffer,
        staged,
    };
    native::vector(t.entry, places, &mut operands, aux);
}

/// Everything: exceptions, flags, implicit registers, stores, MMX.
fn general(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let t = native_of(cpu, op);
    let form = t.form;
    check::unit(cpu, form.unit)?;
    let size = usize::from(form.mem.size);
    let mut buffer = Vector::default();
    let mut store_at = None;
    if t.kinds.contains(&Kind::Memory) {
        if form.mem.access == Use::Write {
            store_at = Some(memory::address(cpu, op, &form.mem, Access::Write)?);
        } else {
            let linear = memory::address(cpu, op, &form.mem, Access::Read)?;
            memory::load(cpu, op.seg, linear, size, &mut buffer, io)?;
        }
    }
    let uses_mmx = t.kinds.contains(&Kind::Mm);
    let tags = cpu.state.fp.ftw;
    if uses_mmx {
        mmx::enter(&mut cpu.state.fp);
    }
    let mut places = places(op, &t);
    let mut staged = Vector::default();
    let mut aux = aux_in(cpu, form);
    if form.mxcsr {
        // The destination must survive an unmasked exception: work on a copy.
        places = stage(cpu, places, &mut staged);
    }
    run(cpu, &t, places, &mut buffer, &mut staged, &mut aux);
    if form.mxcsr {
        let mut raised = aux.mxcsr_out & FLAGS;
        if cpu.state.fp.mxcsr & UNDERFLOW_MASK == 0 {
            raised |= exact_underflow(form, &staged, &buffer, store_at.is_some());
        }
        check::simd_exceptions(cpu, raised)?;
        commit(cpu, op, &t, &staged);
    }
    if let Some(linear) = store_at {
        let stored = memory::store(cpu, op.seg, linear, size, &buffer, io);
        if stored.is_err() && uses_mmx {
            // TOP has moved by now, the tags have not.
            cpu.state.fp.ftw = tags;
        }
        stored?;
    }
    aux_out(cpu, form, &aux);
    if t.kinds[0] == Kind::Mm {
        mmx::written(&mut cpu.state.fp, register_of(op, 0));
    }
    Ok(())
}

fn aux_in(cpu: &Cpu, form: &Form) -> Aux {
    let s = &cpu.state;
    let (mxcsr_in, mxcsr_host) = control(s.fp.mxcsr);
    Aux {
        xmm0: s.fp.ymm[0],
        flags: 0,
        rax: if form.gpr_read & gpr::RAX != 0 {
            s.gpr[0]
        } else {
            0
        },
        rcx: s.gpr[1],
        rdx: if form.gpr_read & gpr::RDX != 0 {
            s.gpr[2]
        } else {
            0
        },
        mxcsr_in,
        mxcsr_out: 0,
        mxcsr_host,
    }
}

fn aux_out(cpu: &mut Cpu, form: &Form, aux: &Aux) {
    let changed = u64::from(form.flags.changed());
    if changed != 0 {
        let old = cpu.state.rflags.bits();
        cpu.state.rflags = RFlags::from_bits_retain(old & !changed | aux.flags & changed);
    }
    if form.gpr_written & gpr::RCX != 0 {
        cpu.state.gpr[1] = aux.rcx;
    }
    if form.xmm0_written {
        let ymm = &mut cpu.state.fp.ymm[0];
        if vex(form.unit) {
            *ymm = aux.xmm0;
        } else {
            ymm[..2].copy_from_slice(&aux.xmm0[..2]);
        }
    }
}

/// Redirects the destination register to the staging buffer, with its present content.
fn stage(cpu: &Cpu, mut places: [Place; 4], staged: &mut Vector) -> [Place; 4] {
    let s = &cpu.state;
    match places[0] {
        Place::Ymm(n) => staged.0 = s.fp.ymm[usize::from(n & 15)],
        Place::Gpr(n) => staged.0[0] = s.gpr[usize::from(n & 15)],
        // What the register holds does not matter: every MMX form with exceptions overwrites it.
        Place::Mm(_) => {}
        Place::None | Place::Memory | Place::Staged => return places,
    }
    places[0] = Place::Staged;
    places
}

/// Writes the staged destination to its register.
fn commit(cpu: &mut Cpu, op: &Op, t: &Native, staged: &Vector) {
    let n = usize::from(register_of(op, 0));
    let s = &mut cpu.state;
    match t.kinds[0] {
        Kind::Ymm if vex(t.form.unit) => s.fp.ymm[n & 15] = staged.0,
        Kind::Ymm => s.fp.ymm[n & 15][..2].copy_from_slice(&staged.0[..2]),
        Kind::Gpr => s.gpr[n & 15] = staged.0[0],
        Kind::Mm => s.fp.st[n & 7] = u128::from(staged.0[0]),
        Kind::None | Kind::Memory => {}
    }
}

/// Underflow that masked execution does not report: with the exception unmasked a tiny result is
/// an underflow even when it is exact (SDM vol. 1, 4.9.1.5).
fn exact_underflow(form: &Form, staged: &Vector, buffer: &Vector, stored: bool) -> u32 {
    let Some(element) = Element::of_result(form) else {
        return 0;
    };
    let (data, lanes) = if stored {
        (buffer, usize::from(form.mem.size) / element.bytes())
    } else {
        (staged, element.lanes(form))
    };
    let tiny = (0..lanes).any(|n| element.is_denormal(data, n));
    if tiny { UNDERFLOW } else { 0 }
}

/// Element types of results that can underflow.
#[derive(Clone, Copy)]
enum Element {
    Half,
    Single,
    Double,
}

impl Element {
    /// The element type of a form's result; `None` where underflow cannot happen.
    fn of_result(form: &Form) -> Option<Self> {
        let name = format!("{:?}", form.code);
        let m = name.trim_start_matches("VEX_V").to_lowercase();
        let m = m.split('_').next().unwrap_or_default();
        if m.starts_with("cvtps2ph") {
            return Some(Self::Half);
        }
        let arithmetic = [
            "add", "sub", "mul", "div", "hadd", "hsub", "dpp", "fm", "fnm",
        ]
        .iter()
        .any(|p| m.starts_with(p));
        if m.starts_with("cvtpd2ps") || m.starts_with("cvtsd2ss") {
            return Some(Self::Single);
        }
        if !arithmetic {
            return None;
        }
        Some(
            if m.ends_with('s') && (m.ends_with("ps") || m.ends_with("ss")) {
                Self::Single
            } else {
                Self::Double
            },
        )
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Single => 4,
            Self::Double => 8,
        }
    }

    /// Elements that the form computes: one for scalars, else the whole register.
    fn lanes(self, form: &Form) -> usize {
        let name = format!("{:?}", form.code);
        let m = name.split("_xmm").next().unwrap_or_default();
        let m = m.split("_ymm").next().unwrap_or_default();
        if m.ends_with("ss") || m.ends_with("sd") {
            1
        } else if name.contains("ymm") {
            32 / self.bytes()
        } else {
            16 / self.bytes()
        }
    }

    fn is_denormal(self, v: &Vector, n: usize) -> bool {
        let bit = n * self.bytes() * 8;
        let Some(q) = v.0.get(bit / 64) else {
            return false;
        };
        let q = q >> (bit % 64);
        match self {
            Self::Half => q & 0x7c00 == 0 && q & 0x3ff != 0,
            Self::Single => f32::from_bits(q as u32).is_subnormal(),
            Self::Double => f64::from_bits(q).is_subnormal(),
        }
    }
}
