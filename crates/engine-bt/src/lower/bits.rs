//! BT, BTS, BTR and BTC on memory with the bit number in a register (SDM vol. 2, BT): the operand lies
//! the signed number of bits, in whole operands, beyond the address.

use super::Lower;
use super::flags::Afterwards;
use super::mem::Ea;
use crate::ctx::{E, HOST, T, in_memory, slot};
use crate::decode::Insn;
use crate::emit::{Mem, Rm, cc};
use iced_x86::{Code, Instruction};

/// Opcode byte (after 0F) and operand size of the forms that are lowered here.
pub(crate) fn inline_bits(i: &Instruction) -> Option<(u8, usize)> {
    let shape = match i.code() {
        Code::Bt_rm16_r16 => (0xa3, 2),
        Code::Bt_rm32_r32 => (0xa3, 4),
        Code::Bt_rm64_r64 => (0xa3, 8),
        Code::Bts_rm16_r16 => (0xab, 2),
        Code::Bts_rm32_r32 => (0xab, 4),
        Code::Bts_rm64_r64 => (0xab, 8),
        Code::Btr_rm16_r16 => (0xb3, 2),
        Code::Btr_rm32_r32 => (0xb3, 4),
        Code::Btr_rm64_r64 => (0xb3, 8),
        Code::Btc_rm16_r16 => (0xbb, 2),
        Code::Btc_rm32_r32 => (0xbb, 4),
        Code::Btc_rm64_r64 => (0xbb, 8),
        _ => return None,
    };
    // With 32-bit addresses the sum wraps at 2^32.
    let narrow = i.memory_base().is_gpr32() || i.memory_index().is_gpr32();
    (crate::decode::memory(i) && !narrow).then_some(shape)
}

impl Lower<'_> {
    /// Lowers one of them. A misaligned operand is the interpreter's.
    pub(super) fn bit_string(&mut self, insn: &Insn) {
        let i = &insn.i;
        let Some((op, size)) = inline_bits(i) else {
            return self.interpret(insn);
        };
        let live = self.live();
        let ea = self.effective_address(i);
        let base = ea.reg;
        if base != E {
            self.hot.mov_rr(E, base);
        }
        if live {
            self.save_flags();
        }
        let n = i.op1_register().full_register().number();
        // With the flags saved, RAX is in its slot.
        let number = if in_memory(n) || (live && n == 0) {
            Rm::Mem(slot(n))
        } else {
            Rm::Reg(HOST[n])
        };
        match (size, number) {
            (8, Rm::Reg(r)) => self.hot.mov_rr(T, r),
            (8, Rm::Mem(m)) => self.hot.load(T, m),
            _ => self.hot.sign_extend(T, number, size),
        }
        let bits = size as u8 * 8;
        self.hot.shift64(7, T, bits.trailing_zeros() as u8);
        let scale = size.trailing_zeros() as u8;
        self.hot.lea(E, Mem::indexed(E, T, scale, 0));
        self.hot.test_r8_imm(E, size as u8 - 1);
        let misaligned = self.hot.jcc(cc::NZ);
        self.slow_stub(misaligned, live, Afterwards::Flags);
        let ea = Ea {
            reg: E,
            konst: None,
        };
        let write = op != 0xa3;
        let miss = self.addend(ea, write);
        let cold = self.cold.pos();
        self.to_cold.push((miss, cold));
        self.refill(ea, write, live);
        self.hot.lea(E, Mem::indexed(E, T, 0, 0));
        match number {
            Rm::Reg(r) => self.hot.mov_rr32(T, r),
            Rm::Mem(m) => self.hot.load32(T, m),
        }
        self.hot.alu32_imm(4, T, i32::from(bits) - 1);
        if live {
            Self::restore_flags(&mut self.hot);
        }
        self.hot
            .bit_test(op, Mem::base(E, 0), T, size, i.has_lock_prefix());
    }
}
