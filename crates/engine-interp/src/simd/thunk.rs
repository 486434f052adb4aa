//! Generated thunks: one instruction on the host CPU, its operands redirected to the monitor's
//! own buffers.
//!
//! A thunk is made from decoded fields: the form's code with canonical registers, a memory operand
//! that is a pointer handed in by the monitor, and the immediate. Prefix bytes, registers and
//! addresses of the guest never reach it (ENGINE-REVIEW F1, F2). Operand n lives in xmm n+1 (or
//! mm n, or r9+n) and is loaded from and stored to the n-th pointer; xmm0, RAX, RCX, RDX and RFLAGS go
//! through [`Aux`] where the table's row says that the form uses them implicitly.
//!
//! Thunks are shared by all vCPUs of the process and live for ever; their number is bounded by the
//! number of forms times 256 immediates.

use super::native::Entry;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpKind, Register};
use mimeo_codemem::CodeMemory;
use mimeo_isa_x86::{Access, Form, Unit, form::gpr};
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::{LazyLock, Mutex, PoisonError};

/// What goes in and out of a thunk besides its operands.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(32))]
pub(super) struct Aux {
    /// XMM0 (and the rest of YMM0), when implicit.
    pub(super) xmm0: [u64; 4],
    /// RFLAGS: in for FCMOVcc (status flags only), out for forms that write flags.
    pub(super) flags: u64,
    /// RAX, when implicit.
    pub(super) rax: u64,
    /// RCX, when implicit.
    pub(super) rcx: u64,
    /// RDX, when implicit.
    pub(super) rdx: u64,
    /// MXCSR to execute with: every exception masked; flags that are set already are the guest's.
    pub(super) mxcsr_in: u32,
    /// MXCSR afterwards.
    pub(super) mxcsr_out: u32,
    /// MXCSR for the monitor's own code, left by the thunk: [`HOST_MXCSR`], with any flags.
    pub(super) mxcsr_host: u32,
}

/// MXCSR of Rust code: everything masked, round to nearest (System V ABI, 3.2.1).
pub(super) const HOST_MXCSR: u32 = 0x1f80;

/// What distinguishes thunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    code: Code,
    memory: bool,
    imm: u8,
    sti: u8,
}

const CODE_BYTES: usize = 16 << 20;

struct Cache {
    memory: Option<CodeMemory>,
    used: usize,
    map: HashMap<Key, Entry>,
}

static CACHE: LazyLock<Mutex<Cache>> = LazyLock::new(|| {
    Mutex::new(Cache {
        memory: CodeMemory::new(CODE_BYTES).ok(),
        used: 0,
        map: HashMap::new(),
    })
});

/// The thunk of an instruction; `None` where the host allows no executable memory or the
/// instruction cannot be encoded (which the tests exclude for every native form).
pub(super) fn thunk(i: &Instruction, form: &Form) -> Option<Entry> {
    let key = Key {
        code: i.code(),
        memory: (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory),
        imm: (0..i.op_count())
            .find(|n| i.op_kind(*n) == OpKind::Immediate8)
            .map_or(0, |_| i.immediate8()),
        sti: sti(i),
    };
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = &mut *cache;
    if let Some(entry) = cache.map.get(&key) {
        return Some(*entry);
    }
    let code = if form.unit == Unit::X87 {
        x87(i, form)?
    } else {
        vector(i, form)?
    };
    let memory = cache.memory.as_mut()?;
    memory.write(cache.used, &code).ok()?;
    let entry = Entry::new(memory, cache.used);
    cache.used = (cache.used + code.len()).next_multiple_of(16);
    cache.map.insert(key, entry);
    Some(entry)
}

/// The number of the ST(i) operand that is not ST(0), 0 if there is none.
fn sti(i: &Instruction) -> u8 {
    (0..i.op_count())
        .filter(|n| i.op_kind(*n) == OpKind::Register && i.op_register(*n).is_st())
        .map(|n| i.op_register(n).number() as u8)
        .max()
        .unwrap_or(0)
}

/// Collects encoded instructions.
struct Emitter {
    encoder: Encoder,
    failed: bool,
}

impl Emitter {
    fn new() -> Self {
        Self {
            encoder: Encoder::new(64),
            failed: false,
        }
    }

    fn put(&mut self, i: &Instruction) {
        // The address only matters to branches and RIP-relative operands, which there are none of.
        self.failed |= self.encoder.encode(i, 0).is_err();
    }

    fn load(&mut self, code: Code, register: Register, base: Register, disp: usize) {
        match Instruction::with2(code, register, at(base, disp)) {
            Ok(i) => self.put(&i),
            Err(_) => self.failed = true,
        }
    }

    fn store(&mut self, code: Code, base: Register, disp: usize, register: Register) {
        match Instruction::with2(code, at(base, disp), register) {
            Ok(i) => self.put(&i),
            Err(_) => self.failed = true,
        }
    }

    fn memory(&mut self, code: Code, base: Register, disp: usize) {
        match Instruction::with1(code, at(base, disp)) {
            Ok(i) => self.put(&i),
            Err(_) => self.failed = true,
        }
    }

    fn plain(&mut self, code: Code) {
        self.put(&Instruction::with(code));
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        self.plain(Code::Retnq);
        (!self.failed).then(|| self.encoder.take_buffer())
    }
}

fn at(base: Register, disp: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, disp as i64)
}

/// Where the thunk gets its pointers: System V arguments 1 to 4, then [`Aux`].
const POINTERS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];
const AUX: Register = Register::R8;

/// The canonical register of operand `n` and the codes that load and store all of it.
fn canonical(r: Register, n: u32, vex: bool) -> Option<(Register, Register, Code, Code)> {
    Some(if r.is_xmm() || r.is_ymm() {
        let (xmm, ymm) = (Register::XMM1 + n, Register::YMM1 + n);
        let operand = if r.is_ymm() { ymm } else { xmm };
        if vex {
            let (load, store) = (Code::VEX_Vmovdqu_ymm_ymmm256, Code::VEX_Vmovdqu_ymmm256_ymm);
            (operand, ymm, load, store)
        } else {
            let (load, store) = (Code::Movups_xmm_xmmm128, Code::Movups_xmmm128_xmm);
            (operand, xmm, load, store)
        }
    } else if r.is_mm() {
        let mm = Register::MM0 + n;
        (mm, mm, Code::Movq_mm_mmm64, Code::Movq_mmm64_mm)
    } else if r.is_gpr() {
        let full = Register::R9 + n;
        let operand = if r.is_gpr64() {
            full
        } else if r.is_gpr32() {
            Register::R9D + n
        } else {
            return None;
        };
        (operand, full, Code::Mov_r64_rm64, Code::Mov_rm64_r64)
    } else {
        return None;
    })
}

fn redirect_memory(i: &mut Instruction, base: Register) {
    i.set_memory_base(base);
    i.set_memory_index(Register::None);
    i.set_memory_index_scale(1);
    i.set_memory_displacement64(0);
    i.set_memory_displ_size(0);
    i.set_segment_prefix(Register::None);
}

/// The instruction without anything that came from prefix bytes.
fn bare(i: &Instruction) -> Instruction {
    let mut i = *i;
    i.set_has_lock_prefix(false);
    i.set_has_rep_prefix(false);
    i.set_has_repne_prefix(false);
    i
}

/// A thunk for MMX, SSE and AVX forms.
fn vector(i: &Instruction, form: &Form) -> Option<Vec<u8>> {
    let vex = form.unit == Unit::Avx;
    let mut e = Emitter::new();
    let mut body = bare(i);
    let mut result = None;
    let mut mmx = false;
    for n in 0..i.op_count() {
        let pointer = *POINTERS.get(n as usize)?;
        match i.op_kind(n) {
            OpKind::Register => {
                let r = i.op_register(n);
                let (operand, full, load, store) = canonical(r, n, vex)?;
                mmx |= r.is_mm();
                body.set_op_register(n, operand);
                e.load(load, full, pointer, 0);
                if n == 0 {
                    result = Some((store, full));
                }
            }
            OpKind::Memory => redirect_memory(&mut body, pointer),
            OpKind::Immediate8 => {}
            _ => return None,
        }
    }
    implicit_in(&mut e, form, vex);
    if form.mxcsr {
        e.memory(Code::Ldmxcsr_m32, AUX, offset_of!(Aux, mxcsr_in));
    }
    e.put(&body);
    if form.flags.changed() != 0 {
        e.plain(Code::Pushfq);
        e.memory(Code::Pop_rm64, AUX, offset_of!(Aux, flags));
    }
    if form.mxcsr {
        e.memory(Code::Stmxcsr_m32, AUX, offset_of!(Aux, mxcsr_out));
        e.memory(Code::Ldmxcsr_m32, AUX, offset_of!(Aux, mxcsr_host));
    }
    if let Some((store, full)) = result {
        e.store(store, POINTERS[0], 0, full);
    }
    if form.gpr_written & gpr::RCX != 0 {
        e.store(Code::Mov_rm64_r64, AUX, offset_of!(Aux, rcx), Register::RCX);
    }
    if form.xmm0_written {
        let (store, r) = if vex {
            (Code::VEX_Vmovdqu_ymmm256_ymm, Register::YMM0)
        } else {
            (Code::Movups_xmmm128_xmm, Register::XMM0)
        };
        e.store(store, AUX, offset_of!(Aux, xmm0), r);
    }
    if mmx {
        e.plain(Code::Emms);
    }
    if vex {
        e.plain(Code::VEX_Vzeroupper);
    }
    e.finish()
}

fn implicit_in(e: &mut Emitter, form: &Form, vex: bool) {
    if form.xmm0_read || form.xmm0_written {
        let (load, r) = if vex {
            (Code::VEX_Vmovdqu_ymm_ymmm256, Register::YMM0)
        } else {
            (Code::Movups_xmm_xmmm128, Register::XMM0)
        };
        e.load(load, r, AUX, offset_of!(Aux, xmm0));
    }
    // Only the string compares have these, with two operands: RDX and RCX are no pointers there.
    if form.gpr_read & gpr::RAX != 0 {
        e.load(Code::Mov_r64_rm64, Register::RAX, AUX, offset_of!(Aux, rax));
    }
    if form.gpr_read & gpr::RDX != 0 {
        e.load(Code::Mov_r64_rm64, Register::RDX, AUX, offset_of!(Aux, rdx));
    }
}

/// A thunk for x87 forms: pointer 1 is an FXSAVE area with the guest's x87 state (and the host's
/// MXCSR), pointer 2 the memory operand.
///
/// Unmasked exceptions stay pending in the status word that FXSAVE stores without raising them;
/// FNINIT then discards them before the monitor's own code goes on (SDM vol. 1, 8.7).
fn x87(i: &Instruction, form: &Form) -> Option<Vec<u8>> {
    let mut e = Emitter::new();
    let mut body = bare(i);
    if form.mem.access != Access::None {
        redirect_memory(&mut body, POINTERS[1]);
    }
    e.memory(Code::Fxrstor64_m512byte, POINTERS[0], 0);
    if form.flags.read != 0 {
        e.memory(Code::Push_rm64, AUX, offset_of!(Aux, flags));
        e.plain(Code::Popfq);
    }
    e.put(&body);
    if form.flags.changed() != 0 {
        e.plain(Code::Pushfq);
        e.memory(Code::Pop_rm64, AUX, offset_of!(Aux, flags));
    }
    e.memory(Code::Fxsave64_m512byte, POINTERS[0], 0);
    e.plain(Code::Fninit);
    e.finish()
}
