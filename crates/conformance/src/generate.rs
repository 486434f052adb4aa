//! Random instances of a form.

use crate::case::{self, Case, Registers, State};
use crate::exclude;
use crate::layout::{DATA, DATA_LEN, NOTHING, PAGE, READ_ONLY, START};
use crate::random::Random;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind, OpKind, Register,
};
use mimeo_isa_x86::form::{Access, gpr};
use mimeo_isa_x86::{Form, Group, ImplicitMemory, Modes, Unit};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Registers by name, for operands that are one certain register.
static FIXED: LazyLock<HashMap<String, Register>> = LazyLock::new(|| {
    Register::values()
        .map(|r| (format!("{r:?}").to_lowercase(), r))
        .collect()
});

/// How many instances are tried before a form counts as not encodable.
const ATTEMPTS: u32 = 40;

/// One random case of a form. `None`: no instance of it can be encoded in this code size.
#[must_use]
pub fn case(form: &Form, r: &mut Random) -> Option<Case> {
    let bits = match form.modes {
        Modes::Only64 => 64,
        Modes::Legacy => 32,
        Modes::Any => {
            if r.chance(20) {
                32
            } else {
                64
            }
        }
    };
    (0..ATTEMPTS).find_map(|_| Builder::new(form, bits, r).build())
}

/// An address for a memory operand of `size` bytes: mostly accessible, sometimes straddling the
/// pages, sometimes into the read-only or the missing page, sometimes not canonical.
fn address(r: &mut Random, size: u64, align: u64, bits: u32) -> u64 {
    let size = size.max(1);
    let inside = |r: &mut Random| DATA + 512 + r.below(DATA_LEN as u64 - 1024 - size.min(512));
    let straddle = |r: &mut Random, page: u64| page - r.below(size + 1);
    let a = match r.below(100) {
        0..=69 => inside(r),
        70..=81 => straddle(r, DATA + PAGE),
        82..=87 => straddle(r, READ_ONLY),
        88..=93 => straddle(r, NOTHING),
        94..=95 => READ_ONLY + 64 * r.below(32),
        96..=97 => DATA - 1 - r.below(64),
        _ if bits == 64 => 1 << 47 | r.next() >> 17,
        _ => inside(r),
    };
    // Mostly as the form wants it, so that alignment faults stay a small part.
    if r.chance(if align > 1 { 90 } else { 40 }) {
        a & !(align.max(size.next_power_of_two().min(64)) - 1)
    } else {
        a
    }
}

struct Builder<'a> {
    form: &'a Form,
    bits: u32,
    r: &'a mut Random,
    i: Instruction,
    gpr: [u64; 16],
    /// Registers whose value is decided.
    fixed: u16,
    target: Option<u64>,
    bases: [u64; 2],
}

impl<'a> Builder<'a> {
    fn new(form: &'a Form, bits: u32, r: &'a mut Random) -> Self {
        let mut i = Instruction::default();
        i.set_code(form.code);
        let gpr = std::array::from_fn(|_| r.integer());
        Self {
            form,
            bits,
            r,
            i,
            gpr,
            fixed: 0,
            target: None,
            bases: [0; 2],
        }
    }

    fn build(mut self) -> Option<Case> {
        let info = self.form.code.op_code();
        for n in 0..info.op_count() {
            self.operand(n, info.op_kind(n))?;
        }
        if self.form.unit == Unit::Xsave && self.fixed & (gpr::RAX | gpr::RDX) != 0 {
            // EDX:EAX must name components that both sides have.
            return None;
        }
        self.implicit();
        self.prefixes();
        let bytes = self.encode()?;
        let mut data = case::data(self.r);
        self.special_data(&mut data);
        let mut fp = case::fp(self.r);
        if exclude::may_start_pending(self.form) && self.r.chance(5) {
            // An unmasked exception that is pending.
            fp.fcw &= !1;
            fp.fsw |= 0x8081;
        }
        self.vsib_indices(&mut fp.ymm);
        if self.bits == 32 {
            for g in &mut self.gpr {
                *g &= 0xffff_ffff;
            }
            self.gpr[8..].fill(0);
        }
        let uses_fp = !matches!(self.form.unit, Unit::None | Unit::VexGpr);
        let restarts = self.i.has_rep_prefix() || self.i.has_repne_prefix() || self.i.is_vsib();
        Some(Case {
            bytes,
            restarts,
            bits: self.bits,
            state: State {
                registers: Registers {
                    gpr: self.gpr,
                    rip: START,
                    rflags: case::flags(self.r),
                    bases: self.bases,
                },
                fp,
                data,
            },
            uses_fp,
        })
    }

    /// Encodes, and checks that what is decoded is this form again.
    fn encode(&mut self) -> Option<Vec<u8>> {
        let mut encoder = Encoder::try_new(self.bits).ok()?;
        encoder.encode(&self.i, START).ok()?;
        let bytes = encoder.take_buffer();
        let mut decoder = Decoder::with_ip(self.bits, &bytes, START, DecoderOptions::NONE);
        let back = decoder.decode();
        (back.code() == self.form.code && back.len() == bytes.len()).then_some(bytes)
    }

    fn registers(&self) -> u64 {
        if self.bits == 64 { 16 } else { 8 }
    }

    fn general(&mut self, width: u32) -> Register {
        let n = self.r.below(self.registers()) as u32;
        match width {
            8 if self.r.chance(20) => Register::AH + self.r.below(4) as u32,
            // Without REX, numbers 4 to 7 are AH to BH.
            8 if self.bits == 32 => Register::AL + (n & 3),
            8 => Register::AL + if n < 4 { n } else { n + 4 },
            16 => Register::AX + n,
            32 => Register::EAX + n,
            _ => Register::RAX + n,
        }
    }

    fn operand(&mut self, n: u32, kind: OpCodeOperandKind) -> Option<()> {
        let name = format!("{kind:?}").to_lowercase();
        if name.starts_with("imm") {
            return self.immediate(n, &name);
        }
        if name.starts_with("br") {
            let distance = self.r.below(100) + 20;
            let target = START
                + if self.r.chance(50) {
                    distance
                } else {
                    0u64.wrapping_sub(distance)
                };
            match (name.starts_with("br64"), name.starts_with("br32")) {
                (true, _) => {
                    self.i.set_op_kind(n, OpKind::NearBranch64);
                    self.i.set_near_branch64(target);
                }
                (_, true) => {
                    self.i.set_op_kind(n, OpKind::NearBranch32);
                    self.i.set_near_branch32(target as u32);
                }
                _ => return None,
            }
            return Some(());
        }
        if let Some(kind) = self.string_operand(&name) {
            self.i.set_op_kind(n, kind);
            return Some(());
        }
        if name == "seg_rbx_al" {
            self.i.set_op_kind(n, OpKind::Memory);
            let base = if self.bits == 64 {
                Register::RBX
            } else {
                Register::EBX
            };
            self.i.set_memory_base(base);
            self.i.set_memory_index(Register::AL);
            return Some(());
        }
        if name == "mem_offs" {
            self.i.set_op_kind(n, OpKind::Memory);
            let at = address(self.r, u64::from(self.form.mem.size), 1, 32);
            self.i.set_memory_displacement64(at);
            self.i.set_memory_displ_size(self.bits / 8);
            return Some(());
        }
        let either = name.contains("or_mem");
        if name.starts_with("mem") || (either && self.r.chance(60)) {
            self.i.set_op_kind(n, OpKind::Memory);
            self.memory(&name);
            return Some(());
        }
        self.i.set_op_kind(n, OpKind::Register);
        let register = self.register(&name)?;
        self.i.set_op_register(n, register);
        Some(())
    }

    fn string_operand(&self, name: &str) -> Option<OpKind> {
        let wide = self.bits == 64;
        Some(match (name, wide) {
            ("seg_rsi", true) => OpKind::MemorySegRSI,
            ("seg_rsi", false) => OpKind::MemorySegESI,
            ("es_rdi", true) => OpKind::MemoryESRDI,
            ("es_rdi", false) => OpKind::MemoryESEDI,
            ("seg_rdi", true) => OpKind::MemorySegRDI,
            ("seg_rdi", false) => OpKind::MemorySegEDI,
            _ => return None,
        })
    }

    fn immediate(&mut self, n: u32, name: &str) -> Option<()> {
        let value = self.r.integer();
        let i = &mut self.i;
        match name {
            "imm8_const_1" => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(1);
            }
            "imm8" if n > 0 && i.op_kind(0) == OpKind::Immediate16 => {
                i.set_op_kind(n, OpKind::Immediate8_2nd);
                i.set_immediate8_2nd(value as u8 & 0x23);
            }
            "imm8" => {
                i.set_op_kind(n, OpKind::Immediate8);
                let limit = exclude::limit_count(self.form.code);
                i.set_immediate8(if limit { value as u8 & 15 } else { value as u8 });
            }
            "imm8sex16" => {
                i.set_op_kind(n, OpKind::Immediate8to16);
                i.set_immediate8to16(i16::from(value as i8));
            }
            "imm8sex32" => {
                i.set_op_kind(n, OpKind::Immediate8to32);
                i.set_immediate8to32(i32::from(value as i8));
            }
            "imm8sex64" => {
                i.set_op_kind(n, OpKind::Immediate8to64);
                i.set_immediate8to64(i64::from(value as i8));
            }
            "imm16" => {
                i.set_op_kind(n, OpKind::Immediate16);
                let small = self.form.group == Group::Stack || self.form.group == Group::Control;
                i.set_immediate16(if small {
                    value as u16 & 0x7f
                } else {
                    value as u16
                });
            }
            "imm32" => {
                i.set_op_kind(n, OpKind::Immediate32);
                i.set_immediate32(value as u32);
            }
            "imm32sex64" => {
                i.set_op_kind(n, OpKind::Immediate32to64);
                i.set_immediate32to64(i64::from(value as i32));
            }
            "imm64" => {
                i.set_op_kind(n, OpKind::Immediate64);
                i.set_immediate64(value);
            }
            _ => return None,
        }
        Some(())
    }

    fn register(&mut self, name: &str) -> Option<Register> {
        if let Some(fixed) = FIXED.get(name) {
            return Some(*fixed);
        }
        let vectors = self.registers();
        Some(match name.split('_').next().unwrap_or_default() {
            "r8" => self.general(8),
            "r16" => self.general(16),
            "r32" => self.general(32),
            "r64" => self.general(64),
            "mm" => Register::MM0 + self.r.below(8) as u32,
            "xmm" => Register::XMM0 + self.r.below(vectors) as u32,
            "ymm" => Register::YMM0 + self.r.below(vectors) as u32,
            "sti" => Register::ST0 + self.r.below(8) as u32,
            _ => return None,
        })
    }

    /// A memory operand by ModRM: base, index, scale and displacement so that it leads to a chosen
    /// address.
    fn memory(&mut self, name: &str) {
        let m = &self.form.mem;
        let size = match (m.size, self.form.unit) {
            (0, Unit::Xsave) => 832,
            (size, _) => u64::from(size),
        };
        let mut target = address(self.r, size, u64::from(m.align), self.bits);
        if size > 64 && self.r.chance(85) {
            // Large areas: mostly where they fit.
            target = (DATA + self.r.below(DATA_LEN as u64 - 1024)) & !63;
        }
        self.target = Some(target);
        let vsib = name.contains("vsib");
        if self.bits == 64 && target < 1 << 46 {
            if !vsib && self.r.chance(8) {
                self.i.set_memory_base(Register::RIP);
                // The encoder wants the address itself.
                self.i.set_memory_displacement64(target);
                self.i.set_memory_displ_size(8);
                return;
            }
            target = target.wrapping_sub(self.override_segment(target));
        }
        let narrow = self.bits == 32 || (!vsib && target < 1 << 31 && self.r.chance(15));
        let first = if narrow { Register::EAX } else { Register::RAX };
        let base = self.r.below(self.registers()) as u32;
        let small = self.r.chance(50);
        let disp = i64::from(if small {
            self.r.next() as i8 as i32
        } else {
            self.r.next() as i32 >> 4
        });
        let (mut index, mut scaled) = (Register::None, 0);
        if vsib {
            let wide = name.contains("32y") || name.contains("64y");
            let vector = if wide { Register::YMM0 } else { Register::XMM0 };
            index = vector + self.r.below(self.registers()) as u32;
            self.i.set_memory_index_scale(1 << self.r.below(4));
        } else if self.r.chance(40) {
            let n = self.r.below(self.registers()) as u32;
            if n != 4 && n != base {
                let scale = self.r.below(4);
                index = first + n;
                let value = self.r.integer();
                self.gpr[n as usize] = value;
                self.fixed |= 1 << n;
                scaled = value << scale;
                self.i.set_memory_index_scale(1 << scale);
            }
        }
        let value = target.wrapping_sub(scaled).wrapping_sub(disp as u64);
        // What lies above a 32-bit address is ignored.
        let upper = if narrow { self.r.next() << 32 } else { 0 };
        self.gpr[base as usize] = if narrow {
            value & 0xffff_ffff | upper
        } else {
            value
        };
        self.fixed |= 1 << base;
        self.i.set_memory_base(first + base);
        self.i.set_memory_index(index);
        self.i.set_memory_displacement64(disp as u64);
        let full = if self.bits == 64 && !narrow { 8 } else { 4 };
        let short = i8::try_from(disp).is_ok() && base & 7 != 5;
        self.i.set_memory_displ_size(match disp {
            0 if base & 7 != 5 => 0,
            _ if short => 1,
            _ => full,
        });
    }

    /// Sometimes puts the memory operand into FS or GS; gives the segment's base.
    fn override_segment(&mut self, target: u64) -> u64 {
        if !self.r.chance(8) {
            return 0;
        }
        let n = self.r.below(2) as usize;
        self.i.set_segment_prefix([Register::FS, Register::GS][n]);
        self.bases[n] = self.r.below(target + 1);
        self.bases[n]
    }

    /// Sets a register unless an operand's address depends on it.
    fn set(&mut self, register: u16, value: u64) {
        if self.fixed & register == 0 {
            self.gpr[register.trailing_zeros() as usize] = value;
        }
    }

    /// Registers that implicit memory and counts come from.
    fn implicit(&mut self) {
        let size = u64::from(self.form.mem.size);
        let near = |b: &mut Self, size: u64| address(b.r, size, 1, b.bits);
        match self.form.implicit_memory {
            ImplicitMemory::Source
            | ImplicitMemory::Destination
            | ImplicitMemory::SourceAndDestination => {
                let (a, b) = (near(self, size), near(self, size));
                let overlap = self.r.chance(20);
                self.set(gpr::RSI, a);
                let b = if overlap {
                    a.wrapping_add(self.r.below(9))
                } else {
                    b
                };
                self.set(gpr::RDI, b);
                let count = self.r.below(7);
                self.set(gpr::RCX, count);
            }
            ImplicitMemory::Xlat => {
                let a = near(self, 1);
                self.set(gpr::RBX, a);
            }
            ImplicitMemory::MaskMove => {
                let a = near(self, 16);
                self.set(gpr::RDI, a);
            }
            ImplicitMemory::Push(bytes) => {
                let a = near(self, u64::from(bytes)).wrapping_add(u64::from(bytes));
                self.set(gpr::RSP, a);
                if self.form.gpr_read & gpr::RBP != 0 {
                    let frame = near(self, 8);
                    self.set(gpr::RBP, frame);
                }
            }
            ImplicitMemory::Pop(bytes) => {
                let a = near(self, u64::from(bytes));
                self.set(gpr::RSP, a);
                if self.form.gpr_read & gpr::RBP != 0 {
                    self.set(gpr::RBP, a);
                }
            }
            ImplicitMemory::None | ImplicitMemory::Moffs | ImplicitMemory::Monitor => {}
        }
        self.special_registers();
    }

    fn special_registers(&mut self) {
        if exclude::limit_count(self.form.code) {
            let count = self.gpr[1] & !0xff | self.r.below(17);
            self.set(gpr::RCX, count);
        }
        if self.form.unit == Unit::Xsave {
            // Components that both sides have; the host's others stay out.
            let mask = self.r.below(8);
            self.set(gpr::RAX, mask);
            self.set(gpr::RDX, 0);
        }
        if self.form.mem.bit_string && self.i.op_kind(0) == OpKind::Memory {
            // A bit offset that stays near.
            let n = self.i.op1_register().number();
            let offset = (self.r.below(1024) as i64 - 512) as u64;
            if self.fixed & 1 << n == 0 {
                self.gpr[n] = offset;
            }
        }
        if matches!(
            self.form.code,
            Code::Jmp_rm64 | Code::Jmp_rm32 | Code::Call_rm64 | Code::Call_rm32
        ) && self.i.op_kind(0) == OpKind::Register
            && self.r.chance(80)
        {
            let n = self.i.op0_register().full_register().number();
            self.gpr[n] = START + self.r.below(64);
        }
    }

    fn prefixes(&mut self) {
        let string = matches!(
            self.form.implicit_memory,
            ImplicitMemory::Source
                | ImplicitMemory::Destination
                | ImplicitMemory::SourceAndDestination
        );
        if string {
            match self.r.below(3) {
                0 => self.i.set_has_rep_prefix(true),
                1 if self.form.flags.written != 0 => self.i.set_has_repne_prefix(true),
                _ => {}
            }
        }
        let destination = self.i.op_count() > 0 && self.i.op_kind(0) == OpKind::Memory;
        // Split locks can be forbidden by the host's kernel.
        let whole = self.target.is_some_and(|t| {
            t & 63 <= 64 - u64::from(self.form.mem.size.max(1)) && !self.form.mem.bit_string
        });
        if self.form.lockable && destination && whole && self.r.chance(25) {
            self.i.set_has_lock_prefix(true);
        }
    }

    /// Memory contents that forms need to get beyond their checks.
    fn special_data(&mut self, data: &mut [u8]) {
        let Some(target) = self.target else {
            self.return_address(data);
            return;
        };
        match self.form.code {
            Code::Ldmxcsr_m32 | Code::VEX_Vldmxcsr_m32 => {
                let value =
                    self.r.next() as u32 & if self.r.chance(90) { 0xffff } else { u32::MAX };
                fill(data, target, &value.to_le_bytes());
            }
            Code::Fxrstor_m512byte | Code::Fxrstor64_m512byte => {
                let value =
                    self.r.next() as u32 & if self.r.chance(90) { 0xffff } else { u32::MAX };
                fill(data, target.wrapping_add(24), &value.to_le_bytes());
                self.fxsave_words(data, target);
            }
            _ if self.form.unit == Unit::Xsave => self.xsave_header(data, target),
            Code::Jmp_rm64 | Code::Call_rm64 if self.r.chance(80) => {
                fill(data, target, &(START + self.r.below(64)).to_le_bytes());
            }
            _ if self.form.mem.access != Access::None && self.form.unit == Unit::X87 => {
                self.x87_words(data, target);
            }
            _ => {}
        }
    }

    fn return_address(&mut self, data: &mut [u8]) {
        if self.form.group == Group::Control
            && let ImplicitMemory::Pop(_) = self.form.implicit_memory
            && self.r.chance(80)
        {
            let to = START + self.r.below(64);
            fill(data, self.gpr[4], &to.to_le_bytes());
        }
    }

    /// Control and status words without reserved bits, whose fate is the processor's own affair.
    fn fxsave_words(&mut self, data: &mut [u8], target: u64) {
        let fcw = self.r.next() as u16 & 0x0f3f | 0x37f;
        let fsw = self.r.next() as u16 & 0x7f3f;
        fill(data, target, &fcw.to_le_bytes());
        fill(data, target.wrapping_add(2), &fsw.to_le_bytes());
        fill(data, target.wrapping_add(5), &[0]);
        for n in 0..8 {
            let st = self.r.extended().to_le_bytes();
            fill(data, target.wrapping_add(32 + 16 * n), &st);
        }
    }

    fn x87_words(&mut self, data: &mut [u8], target: u64) {
        match self.form.mem.size {
            2 if self.form.code == Code::Fldcw_m2byte => {
                let fcw = self.r.next() as u16 & 0x0f3f | 0x0340;
                fill(data, target, &fcw.to_le_bytes());
            }
            10 => fill(data, target, &self.r.extended().to_le_bytes()[..10]),
            4 if self.r.chance(70) => fill(data, target, &self.r.single().to_le_bytes()),
            8 if self.r.chance(70) => fill(data, target, &self.r.double().to_le_bytes()),
            14 | 94 | 28 | 108 => {
                let fcw = self.r.next() as u16 & 0x0f3f | 0x0340;
                let fsw = self.r.next() as u16 & 0x7f3f;
                let second = if self.form.mem.size & 15 == 14 { 2 } else { 4 };
                fill(data, target, &fcw.to_le_bytes());
                fill(data, target.wrapping_add(second), &fsw.to_le_bytes());
            }
            _ => {}
        }
    }

    fn xsave_header(&mut self, data: &mut [u8], target: u64) {
        let header = target.wrapping_add(512);
        fill(data, header, &[0; 64]);
        let restore = matches!(self.form.code, Code::Xrstor_mem | Code::Xrstor64_mem);
        let mut components = self.r.below(8);
        if restore && self.r.chance(50) {
            let room = self.r.below(8) | components;
            if self.r.chance(90) {
                fill(
                    data,
                    header.wrapping_add(8),
                    &(room | 1 << 63).to_le_bytes(),
                );
            }
        }
        if self.r.chance(5) {
            components |= 1 << 40;
        }
        fill(data, header, &components.to_le_bytes());
        if self.r.chance(5) {
            let at = header.wrapping_add(self.r.below(64));
            fill(data, at, &[1]);
        }
        let mxcsr = self.r.next() as u32 & if self.r.chance(95) { 0xffff } else { u32::MAX };
        self.fxsave_words(data, target);
        fill(data, target.wrapping_add(24), &mxcsr.to_le_bytes());
    }

    /// Small offsets in the index register of a gather, so that most lanes hit the data pages.
    fn vsib_indices(&mut self, ymm: &mut [[u64; 4]; 16]) {
        let index = self.i.memory_index();
        if !(index.is_xmm() || index.is_ymm()) {
            return;
        }
        let name = format!("{:?}", self.form.code);
        let wide = name.contains("vm64");
        for q in &mut ymm[index.number() & 15] {
            let mut offset = || (self.r.below(300) as i64 - 150) as u64;
            *q = if wide {
                offset()
            } else {
                offset() & 0xffff_ffff | offset() << 32
            };
        }
    }
}

fn fill(data: &mut [u8], linear: u64, bytes: &[u8]) {
    if let Some(to) = case::slice(data, linear, bytes.len()) {
        to.copy_from_slice(bytes);
    }
}
