//! A predecoded instruction.

use crate::{Cpu, Trap};
use iced_x86::{Instruction, MemorySize, OpKind, Register};
use mimeo_vcpu::CpuIo;

/// The result of a handler.
pub type Exec = Result<(), Trap>;

/// Executes one instruction. See the crate's rules for handlers.
pub type Handler = fn(&mut Cpu, &Op, &mut dyn CpuIo) -> Exec;

/// Prefixes that change what a handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefix(pub u8);

impl Prefix {
    /// LOCK (F0h), on an instruction that allows it.
    pub const LOCK: u8 = 1;
    /// REP or REPE (F3h).
    pub const REP: u8 = 2;
    /// REPNE (F2h).
    pub const REPNE: u8 = 4;
    /// Not a prefix: in this block the status flags are not kept up behind this op, since the ops up
    /// to the next that sets all of them neither read them nor can fault.
    pub const STALE: u8 = 8;

    /// Whether any of the bits is set.
    #[inline]
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }
}

/// Register number that stands for "none" in [`Op::base`] and [`Op::index`].
pub const NO_REG: u8 = 0xff;
/// Register number that stands for the instruction pointer in [`Op::base`].
pub const RIP_REG: u8 = 0xfe;

/// A decoded instruction with its operands resolved.
///
/// General registers are numbers 0 to 15; in 8-bit operands 16 to 19 are AH, CH, DH and BH.
#[derive(Clone, Copy)]
pub struct Op {
    /// The handler.
    pub run: Handler,
    /// Immediate, sign-extended where the instruction says so; for near branches the displacement
    /// relative to the next instruction.
    pub imm: u64,
    /// Displacement of the memory operand; relative to the next instruction with [`RIP_REG`].
    pub disp: i32,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// The index is shifted left by this.
    pub scale: u8,
    /// Segment of the memory operand, as [`mimeo_arch_x86::Seg`].
    pub seg: u8,
    /// First register operand.
    pub r0: u8,
    /// Second register operand.
    pub r1: u8,
    /// Third register operand.
    pub r2: u8,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Instructions before this one in its block (for an exact count of retired instructions).
    pub pos: u8,
    /// Operand size in bytes where the handler needs it.
    pub size: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub addr: u8,
    /// Prefixes.
    pub prefix: Prefix,
    /// The instruction's form.
    pub code: iced_x86::Code,
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Op")
            .field("code", &self.code)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The number of a general register as handlers want it (AH to BH are 16 to 19).
#[must_use]
pub fn reg_number(r: Register) -> u8 {
    match r {
        Register::AH => 16,
        Register::CH => 17,
        Register::DH => 18,
        Register::BH => 19,
        // iced numbers 8-bit registers 0 to 19, SPL being 8.
        _ => r.full_register().number() as u8,
    }
}

/// The number of a segment register, as [`mimeo_arch_x86::Seg`].
#[must_use]
pub fn seg_number(r: Register) -> u8 {
    match r {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

/// Whether operand `n` is an ordinary memory operand.
#[must_use]
pub fn is_mem(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Memory
}

/// Bytes of the memory operand, 0 if the form has none of a fixed size.
#[must_use]
pub fn mem_bytes(i: &Instruction) -> u8 {
    match i.memory_size() {
        MemorySize::Unknown => 0,
        m => u8::try_from(m.size()).unwrap_or(0),
    }
}

fn immediate(i: &Instruction) -> u64 {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => return i.immediate(n),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                return i.near_branch_target().wrapping_sub(i.next_ip());
            }
            _ => {}
        }
    }
    0
}

impl Op {
    /// The parts of an op that come straight from the decoded instruction: registers in operand
    /// order, immediate, memory operand, prefixes. The handler raises #UD until a group sets it.
    #[must_use]
    pub fn from_instruction(i: &Instruction, bits: u32) -> Self {
        let mut regs = [NO_REG; 3];
        let (mut n, mut size) = (0, 0);
        for k in 0..i.op_count() {
            if i.op_kind(k) == OpKind::Register {
                let r = i.op_register(k);
                if n < 3 {
                    regs[n] = if r.is_segment_register() {
                        seg_number(r)
                    } else {
                        reg_number(r)
                    };
                    n += 1;
                }
                if k == 0 {
                    size = r.size().min(64) as u8;
                }
            } else if k == 0 && is_mem(i, 0) {
                size = mem_bytes(i);
            }
        }
        let base = i.memory_base();
        let rip_relative = i.is_ip_rel_memory_operand();
        let reg = |r: Register| match r {
            Register::None => NO_REG,
            Register::RIP | Register::EIP => RIP_REG,
            r => r.number() as u8,
        };
        // iced gives an absolute address for RIP-relative operands.
        let disp = if rip_relative {
            i.ip_rel_memory_address().wrapping_sub(i.next_ip())
        } else {
            i.memory_displacement64()
        };
        Self {
            run: crate::exec::undefined,
            imm: immediate(i),
            disp: disp as i32,
            base: reg(base),
            index: reg(i.memory_index()),
            scale: i.memory_index_scale().trailing_zeros() as u8,
            seg: seg_number(i.memory_segment()),
            r0: regs[0],
            r1: regs[1],
            r2: regs[2],
            len: i.len() as u8,
            pos: 0,
            size,
            addr: address_size(i, bits),
            prefix: Prefix(
                (u8::from(i.has_lock_prefix()) * Prefix::LOCK)
                    | (u8::from(i.has_rep_prefix()) * Prefix::REP)
                    | (u8::from(i.has_repne_prefix()) * Prefix::REPNE),
            ),
            code: i.code(),
        }
    }
}

/// Address size in bytes of the instruction's memory operand or string operands; that of the code
/// segment where it has none.
fn address_size(i: &Instruction, bits: u32) -> u8 {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => {
                let (b, x) = (i.memory_base(), i.memory_index());
                return if b == Register::RIP {
                    8
                } else if b == Register::EIP {
                    4
                } else if b != Register::None {
                    b.size() as u8
                } else if x.is_gpr() {
                    x.size() as u8
                } else {
                    i.memory_displ_size().clamp(2, 8) as u8
                };
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 8,
            _ => {}
        }
    }
    (bits / 8) as u8
}
