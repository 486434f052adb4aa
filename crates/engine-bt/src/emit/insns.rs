//! One method an instruction: the forms that lowering asks for by name.

use super::{Asm, Fields, Map, Mem, Pp, Reg, Rm, cc};

impl Asm {
    fn op64(&mut self, op: u8, r: Reg, rm: Rm) {
        self.insn(&Fields::legacy(Map::One, op, true), r, rm);
    }

    fn op32(&mut self, op: u8, r: Reg, rm: Rm) {
        self.insn(&Fields::legacy(Map::One, op, false), r, rm);
    }

    /// mov dst, src (64 bits).
    pub(crate) fn mov_rr(&mut self, dst: Reg, src: Reg) {
        self.op64(0x8b, dst, Rm::Reg(src));
    }

    /// mov dst32, src32.
    pub(crate) fn mov_rr32(&mut self, dst: Reg, src: Reg) {
        self.op32(0x8b, dst, Rm::Reg(src));
    }

    /// mov dst, [m] (64 bits).
    pub(crate) fn load(&mut self, dst: Reg, m: Mem) {
        self.op64(0x8b, dst, Rm::Mem(m));
    }

    /// mov dst32, [m] (zero-extends).
    pub(crate) fn load32(&mut self, dst: Reg, m: Mem) {
        self.op32(0x8b, dst, Rm::Mem(m));
    }

    /// mov [m], src (64 bits).
    pub(crate) fn store(&mut self, m: Mem, src: Reg) {
        self.op64(0x89, src, Rm::Mem(m));
    }

    /// mov [m], src (32 bits).
    pub(crate) fn store32(&mut self, m: Mem, src: Reg) {
        self.op32(0x89, src, Rm::Mem(m));
    }

    /// mov dst16, [m] (the rest of dst stays).
    pub(crate) fn load16(&mut self, dst: Reg, m: Mem) {
        let mut f = Fields::legacy(Map::One, 0x8b, false);
        f.opsize = true;
        self.insn(&f, dst, Rm::Mem(m));
    }

    /// mov [m], src (16 bits).
    pub(crate) fn store16(&mut self, m: Mem, src: Reg) {
        let mut f = Fields::legacy(Map::One, 0x89, false);
        f.opsize = true;
        self.insn(&f, src, Rm::Mem(m));
    }

    /// mov dword [m], imm.
    pub(crate) fn store_imm32(&mut self, m: Mem, imm: u32) {
        self.op32(0xc7, 0, Rm::Mem(m));
        self.dword(imm);
    }

    /// mov qword [m], imm (sign-extended).
    pub(crate) fn store_imm64(&mut self, m: Mem, imm: i32) {
        self.op64(0xc7, 0, Rm::Mem(m));
        self.dword(imm as u32);
    }

    /// lea dst, [m] (64 bits).
    pub(crate) fn lea(&mut self, dst: Reg, m: Mem) {
        self.op64(0x8d, dst, Rm::Mem(m));
    }

    /// lea dst32, [m]: the low 32 bits, zero-extended.
    pub(crate) fn lea32(&mut self, dst: Reg, m: Mem) {
        self.op32(0x8d, dst, Rm::Mem(m));
    }

    /// mov dst, imm, in the shortest form that leaves flags alone.
    pub(crate) fn mov_imm(&mut self, dst: Reg, imm: u64) {
        if let Ok(v) = u32::try_from(imm) {
            if dst >= 8 {
                self.byte(0x41);
            }
            self.byte(0xb8 | (dst & 7));
            self.dword(v);
        } else if i32::try_from(imm as i64).is_ok() {
            self.op64(0xc7, 0, Rm::Reg(dst));
            self.dword(imm as u32);
        } else {
            self.byte(0x48 | (dst >> 3));
            self.byte(0xb8 | (dst & 7));
            self.qword(imm);
        }
    }

    /// rorx dst, src, imm (BMI2; flags untouched).
    pub(crate) fn rorx(&mut self, dst: Reg, src: Reg, imm: u8) {
        let mut f = Fields::legacy(Map::M0F3A, 0xf0, true);
        f.vex = Some((false, 0));
        f.pp = Pp::PF2;
        self.insn(&f, dst, Rm::Reg(src));
        self.byte(imm);
    }

    /// shrx dst, src, count (BMI2; flags untouched; count taken modulo 64).
    pub(crate) fn shrx(&mut self, dst: Reg, src: Reg, count: Reg) {
        let mut f = Fields::legacy(Map::M0F38, 0xf7, true);
        f.vex = Some((false, count));
        f.pp = Pp::PF2;
        self.insn(&f, dst, Rm::Reg(src));
    }

    /// pext dst, src, [mask] (BMI2; flags untouched).
    pub(crate) fn pext(&mut self, dst: Reg, src: Reg, mask: Mem) {
        let mut f = Fields::legacy(Map::M0F38, 0xf5, true);
        f.vex = Some((false, src));
        f.pp = Pp::PF3;
        self.insn(&f, dst, Rm::Mem(mask));
    }

    /// test a, b (64 bits).
    pub(crate) fn test_rr(&mut self, a: Reg, b: Reg) {
        self.op64(0x85, b, Rm::Reg(a));
    }

    /// test r8, imm8.
    pub(crate) fn test_r8_imm(&mut self, r: Reg, imm: u8) {
        let mut f = Fields::legacy(Map::One, 0xf6, false);
        f.force_rex = r >= 4;
        self.insn(&f, 0, Rm::Reg(r));
        self.byte(imm);
    }

    /// Group 1 (add 0, or 1, adc 2, sbb 3, and 4, sub 5, xor 6, cmp 7) r32, imm.
    pub(crate) fn alu32_imm(&mut self, digit: u8, r: Reg, imm: i32) {
        self.alu_imm(digit, Rm::Reg(r), imm, false);
    }

    /// Group 1 on a 32- or 64-bit operand.
    pub(crate) fn alu_imm(&mut self, digit: u8, rm: Rm, imm: i32, w: bool) {
        if let Ok(v) = i8::try_from(imm) {
            self.insn(&Fields::legacy(Map::One, 0x83, w), digit, rm);
            self.byte(v as u8);
        } else {
            self.insn(&Fields::legacy(Map::One, 0x81, w), digit, rm);
            self.dword(imm as u32);
        }
    }

    /// add al, imm8.
    pub(crate) fn add_al(&mut self, imm: u8) {
        self.byte(0x04);
        self.byte(imm);
    }

    /// cmp a, [m] (64 bits).
    pub(crate) fn cmp_rm(&mut self, a: Reg, m: Mem) {
        self.op64(0x3b, a, Rm::Mem(m));
    }

    /// cmp qword [m], imm (sign-extended).
    pub(crate) fn cmp_m_imm(&mut self, m: Mem, imm: i32) {
        self.alu_imm(7, Rm::Mem(m), imm, true);
    }

    /// shl r32, imm8.
    pub(crate) fn shl32(&mut self, r: Reg, imm: u8) {
        self.op32(0xc1, 4, Rm::Reg(r));
        self.byte(imm);
    }

    /// Group 2 (shl 4, shr 5) r32, imm8.
    pub(crate) fn shift32(&mut self, digit: u8, r: Reg, imm: u8) {
        self.op32(0xc1, digit, Rm::Reg(r));
        self.byte(imm);
    }

    /// or dst32, src32.
    pub(crate) fn or_rr32(&mut self, dst: Reg, src: Reg) {
        self.op32(0x0b, dst, Rm::Reg(src));
    }

    /// or dst32, [m].
    pub(crate) fn or_rm32(&mut self, dst: Reg, m: Mem) {
        self.op32(0x0b, dst, Rm::Mem(m));
    }

    /// test [m], src32.
    pub(crate) fn test_rm32(&mut self, src: Reg, m: Mem) {
        self.op32(0x85, src, Rm::Mem(m));
    }

    /// Group 2 (shl 4, shr 5, sar 7) r64, imm8.
    pub(crate) fn shift64(&mut self, digit: u8, r: Reg, imm: u8) {
        self.op64(0xc1, digit, Rm::Reg(r));
        self.byte(imm);
    }

    /// cmp a, b (64 bits).
    pub(crate) fn cmp_rr(&mut self, a: Reg, b: Reg) {
        self.op64(0x3b, a, Rm::Reg(b));
    }

    /// sub dst, src (64 bits).
    pub(crate) fn sub_rr(&mut self, dst: Reg, src: Reg) {
        self.op64(0x2b, dst, Rm::Reg(src));
    }

    /// and dst, [m] (64 bits).
    pub(crate) fn and_rm(&mut self, dst: Reg, m: Mem) {
        self.op64(0x23, dst, Rm::Mem(m));
    }

    /// neg r64.
    pub(crate) fn neg(&mut self, r: Reg) {
        self.op64(0xf7, 3, Rm::Reg(r));
    }

    /// cmovb dst, src (64 bits).
    pub(crate) fn cmovb(&mut self, dst: Reg, src: Reg) {
        self.insn(&Fields::legacy(Map::M0F, 0x42, true), dst, Rm::Reg(src));
    }

    /// movsx dst64, src of 2 or 4 bytes.
    pub(crate) fn sign_extend(&mut self, dst: Reg, src: Rm, size: usize) {
        let f = if size == 4 {
            Fields::legacy(Map::One, 0x63, true)
        } else {
            Fields::legacy(Map::M0F, 0xbf, true)
        };
        self.insn(&f, dst, src);
    }

    /// cmp dword [m], imm.
    pub(crate) fn cmp_m32_imm(&mut self, m: Mem, imm: i32) {
        self.alu_imm(7, Rm::Mem(m), imm, false);
    }

    /// BT (A3), BTS (AB), BTR (B3) or BTC (BB) of an operand of `size` bytes, the bit number in a
    /// register.
    pub(crate) fn bit_test(&mut self, op: u8, m: Mem, bit: Reg, size: usize, lock: bool) {
        let mut f = Fields::legacy(Map::M0F, op, size == 8);
        f.opsize = size == 2;
        f.lock = lock;
        self.insn(&f, bit, Rm::Mem(m));
    }

    /// rep movs or rep stos with elements of `size` bytes.
    pub(crate) fn rep_string(&mut self, stos: bool, size: usize) {
        if size == 2 {
            self.byte(0x66);
        }
        self.byte(0xf3);
        if size == 8 {
            self.byte(0x48);
        }
        self.byte(if stos { 0xaa } else { 0xa4 } | u8::from(size > 1));
    }

    /// rdtsc.
    pub(crate) fn rdtsc(&mut self) {
        self.buf.extend_from_slice(&[0x0f, 0x31]);
    }

    /// lfence.
    pub(crate) fn lfence(&mut self) {
        self.buf.extend_from_slice(&[0x0f, 0xae, 0xe8]);
    }

    /// movzx dst32, src16.
    pub(crate) fn movzx16(&mut self, dst: Reg, src: Reg) {
        self.insn(&Fields::legacy(Map::M0F, 0xb7, false), dst, Rm::Reg(src));
    }

    /// pause.
    pub(crate) fn pause(&mut self) {
        self.buf.extend_from_slice(&[0xf3, 0x90]);
    }

    /// lahf.
    pub(crate) fn lahf(&mut self) {
        self.byte(0x9f);
    }

    /// sahf.
    pub(crate) fn sahf(&mut self) {
        self.byte(0x9e);
    }

    /// seto al.
    pub(crate) fn seto_al(&mut self) {
        self.insn(
            &Fields::legacy(Map::M0F, 0x90 | cc::O, false),
            0,
            Rm::Reg(0),
        );
    }

    /// jmp [m].
    pub(crate) fn jmp_mem(&mut self, m: Mem) {
        self.op32(0xff, 4, Rm::Mem(m));
    }

    /// jmp rel32 with the displacement still zero; gives the displacement's position.
    pub(crate) fn jmp(&mut self) -> usize {
        self.byte(0xe9);
        self.dword(0);
        self.pos() - 4
    }

    /// jcc rel32 with the displacement still zero; gives the displacement's position.
    pub(crate) fn jcc(&mut self, cc: u8) -> usize {
        self.byte(0x0f);
        self.byte(0x80 | cc);
        self.dword(0);
        self.pos() - 4
    }

    /// jrcxz rel8 with the displacement still zero; gives the displacement's position.
    pub(crate) fn jrcxz(&mut self) -> usize {
        self.byte(0xe3);
        self.byte(0);
        self.pos() - 1
    }

    /// A byte-displacement jump or loop form (`E0` to `E3`, `EB`), address size 32 when `a32`.
    pub(crate) fn short(&mut self, op: u8, a32: bool) -> usize {
        if a32 {
            self.byte(0x67);
        }
        self.byte(op);
        self.byte(0);
        self.pos() - 1
    }

    /// Makes the byte displacement at `at` point to the current position.
    ///
    /// The distance must be below 128 bytes: every caller emits a fixed, short sequence.
    pub(crate) fn bind8(&mut self, at: usize) {
        let d = self.pos() - at - 1;
        debug_assert!(d < 128);
        self.buf[at] = d as u8;
    }

    /// Lets the 32-bit displacement at `at` lead here.
    pub(crate) fn bind32(&mut self, at: usize) {
        let d = (self.pos() - at - 4) as u32;
        self.buf[at..at + 4].copy_from_slice(&d.to_le_bytes());
    }

    /// Recommended multi-byte NOPs (SDM vol. 2, NOP) of `n` bytes in all.
    pub(crate) fn nops(&mut self, mut n: usize) {
        const NOPS: [&[u8]; 9] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        ];
        while n > 0 {
            let k = n.min(9);
            self.buf.extend_from_slice(NOPS[k - 1]);
            n -= k;
        }
    }
}
