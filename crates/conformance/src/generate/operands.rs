//! Operands: registers, immediates, and memory operands that lead to a chosen address.

use super::{Builder, address};
use crate::exclude;
use crate::layout::{DATA, DATA_LEN, START};
use iced_x86::{OpCodeOperandKind, OpKind, Register};
use mimeo_isa_x86::{Group, Unit};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Registers by name, for operands that are one certain register.
static FIXED: LazyLock<HashMap<String, Register>> = LazyLock::new(|| {
    Register::values()
        .map(|r| (format!("{r:?}").to_lowercase(), r))
        .collect()
});

impl Builder<'_> {
    pub(super) fn registers(&self) -> u64 {
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

    pub(super) fn operand(&mut self, n: u32, kind: OpCodeOperandKind) -> Option<()> {
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
}
