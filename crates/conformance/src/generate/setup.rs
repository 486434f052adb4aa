//! What surrounds the operands: registers of implicit memory, prefixes, and memory contents that forms
//! need to get beyond their checks.

use super::{Builder, address};
use crate::case;
use crate::exclude;
use crate::layout::START;
use iced_x86::{Code, OpKind};
use mimeo_isa_x86::form::{Access, gpr};
use mimeo_isa_x86::{Group, ImplicitMemory, Unit};

impl Builder<'_> {
    /// Sets a register unless an operand's address depends on it.
    fn set(&mut self, register: u16, value: u64) {
        if self.fixed & register == 0 {
            self.gpr[register.trailing_zeros() as usize] = value;
        }
    }

    /// Registers that implicit memory and counts come from.
    pub(super) fn implicit(&mut self) {
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

    pub(super) fn prefixes(&mut self) {
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
    pub(super) fn special_data(&mut self, data: &mut [u8]) {
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
    pub(super) fn vsib_indices(&mut self, ymm: &mut [[u64; 4]; 16]) {
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
