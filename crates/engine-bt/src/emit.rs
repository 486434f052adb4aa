//! The byte emitter: x86-64 machine code from fields, one instruction a call.
//!
//! Encodings: SDM vol. 2, 2.1 to 2.3 (legacy and VEX prefixes, ModRM, SIB, displacement). Nothing
//! here knows what a guest is; registers are host registers by number.

/// A host general-purpose register, 0 (RAX) to 15 (R15), in encoding order.
pub(crate) type Reg = u8;

/// Host register numbers by name.
pub(crate) mod reg {
    use super::Reg;
    pub(crate) const RAX: Reg = 0;
    pub(crate) const RCX: Reg = 1;
    pub(crate) const RSP: Reg = 4;
    pub(crate) const R10: Reg = 10;
    pub(crate) const R11: Reg = 11;
    pub(crate) const R14: Reg = 14;
    pub(crate) const R15: Reg = 15;
}

/// In place of a base register: `[index * scale + disp32]`.
pub(crate) const NO_BASE: Reg = 0x10;

/// A host memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mem {
    /// Base register, or [`NO_BASE`].
    pub(crate) base: Reg,
    /// Index register (never RSP) and scale shift (0 to 3).
    pub(crate) index: Option<(Reg, u8)>,
    /// Displacement.
    pub(crate) disp: i32,
    /// GS segment override: only ever used for the write table.
    pub(crate) gs: bool,
}

impl Mem {
    /// `[base + disp]`.
    pub(crate) const fn base(base: Reg, disp: i32) -> Self {
        Self {
            base,
            index: None,
            disp,
            gs: false,
        }
    }

    /// `[base + index << shift + disp]`.
    pub(crate) const fn indexed(base: Reg, index: Reg, shift: u8, disp: i32) -> Self {
        Self {
            base,
            index: Some((index, shift)),
            disp,
            gs: false,
        }
    }
}

/// What ModRM.rm names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rm {
    /// A register (general, MMX, XMM or YMM by the opcode).
    Reg(Reg),
    /// Memory.
    Mem(Mem),
}

/// Opcode maps (SDM vol. 2, appendix A; VEX.mmmmm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Map {
    /// One byte.
    One,
    /// 0F.
    M0F,
    /// 0F 38.
    M0F38,
    /// 0F 3A.
    M0F3A,
}

/// Mandatory prefixes (VEX.pp).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pp {
    /// None.
    None,
    /// 66.
    P66,
    /// F3.
    PF3,
    /// F2.
    PF2,
}

/// Condition codes as the low four bits of Jcc (SDM vol. 2, B.1.4.7).
pub(crate) mod cc {
    pub(crate) const O: u8 = 0;
    pub(crate) const C: u8 = 2;
    pub(crate) const Z: u8 = 4;
    pub(crate) const NZ: u8 = 5;
}

/// An instruction's fields, ready to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    /// VEX-encoded: (L, vvvv) with vvvv not yet inverted.
    pub(crate) vex: Option<(bool, Reg)>,
    /// Mandatory prefix, or 66 as operand-size prefix.
    pub(crate) pp: Pp,
    /// A 66 operand-size prefix beside an F2/F3 mandatory one.
    pub(crate) opsize: bool,
    /// LOCK.
    pub(crate) lock: bool,
    /// REX.W or VEX.W.
    pub(crate) w: bool,
    /// A REX prefix is needed even if empty (SPL, BPL, SIL, DIL).
    pub(crate) force_rex: bool,
    /// Opcode map.
    pub(crate) map: Map,
    /// Opcode byte (or the first of two when `second` is given).
    pub(crate) op: u8,
    /// A fixed second byte in place of ModRM (x87 register forms, rm groups).
    pub(crate) second: Option<u8>,
}

impl Fields {
    /// A legacy-encoded instruction.
    pub(crate) const fn legacy(map: Map, op: u8, w: bool) -> Self {
        Self {
            vex: None,
            pp: Pp::None,
            opsize: false,
            lock: false,
            w,
            force_rex: false,
            map,
            op,
            second: None,
        }
    }
}

/// Machine code under construction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Asm {
    /// The bytes so far.
    pub(crate) buf: Vec<u8>,
}

impl Asm {
    /// Bytes so far, which is the offset of the next instruction.
    pub(crate) fn pos(&self) -> usize {
        self.buf.len()
    }

    fn byte(&mut self, b: u8) {
        self.buf.push(b);
    }

    /// Appends a little-endian doubleword.
    pub(crate) fn dword(&mut self, v: u32) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Appends a little-endian quadword.
    pub(crate) fn qword(&mut self, v: u64) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Writes prefixes and opcode, ModRM, SIB and displacement. `reg` is ModRM.reg (a register or a
    /// group digit).
    pub(crate) fn insn(&mut self, f: &Fields, reg: Reg, rm: Rm) {
        let (r, x, b) = match rm {
            Rm::Reg(n) => (reg >> 3, 0, n >> 3),
            Rm::Mem(m) => (
                reg >> 3,
                m.index.map_or(0, |(i, _)| i >> 3),
                m.base >> 3 & 1,
            ),
        };
        if let Rm::Mem(Mem { gs: true, .. }) = rm {
            self.byte(0x65);
        }
        if let Some((l, vvvv)) = f.vex {
            self.vex_prefix(f, r, x, b, l, vvvv);
        } else {
            self.legacy_prefix(f, r, x, b);
        }
        self.byte(f.op);
        if let Some(second) = f.second {
            self.byte(second);
            return;
        }
        self.modrm(reg, rm);
    }

    /// Writes an instruction without ModRM; `opcode_reg` is the register in the opcode byte, if any.
    pub(crate) fn opcode_only(&mut self, f: &Fields, opcode_reg: Reg) {
        if let Some((l, vvvv)) = f.vex {
            self.vex_prefix(f, 0, 0, 0, l, vvvv);
        } else {
            self.legacy_prefix(f, 0, 0, opcode_reg >> 3);
        }
        self.byte(f.op);
        if let Some(second) = f.second {
            self.byte(second);
        }
    }

    fn vex_prefix(&mut self, f: &Fields, r: u8, x: u8, b: u8, l: bool, vvvv: Reg) {
        let pp = f.pp as u8;
        let tail = ((!vvvv & 15) << 3) | (u8::from(l) << 2) | pp;
        if x == 0 && b == 0 && !f.w && f.map == Map::M0F {
            self.byte(0xc5);
            self.byte(((r ^ 1) << 7) | tail);
        } else {
            let map = match f.map {
                Map::One | Map::M0F => 1,
                Map::M0F38 => 2,
                Map::M0F3A => 3,
            };
            self.byte(0xc4);
            self.byte(((r ^ 1) << 7) | ((x ^ 1) << 6) | ((b ^ 1) << 5) | map);
            self.byte((u8::from(f.w) << 7) | tail);
        }
    }

    fn legacy_prefix(&mut self, f: &Fields, r: u8, x: u8, b: u8) {
        if f.lock {
            self.byte(0xf0);
        }
        if f.opsize && f.pp != Pp::P66 {
            self.byte(0x66);
        }
        match f.pp {
            Pp::None => {}
            Pp::P66 => self.byte(0x66),
            Pp::PF3 => self.byte(0xf3),
            Pp::PF2 => self.byte(0xf2),
        }
        let rex = 0x40 | (u8::from(f.w) << 3) | (r << 2) | (x << 1) | b;
        if rex != 0x40 || f.force_rex {
            self.byte(rex);
        }
        match f.map {
            Map::One => {}
            Map::M0F => self.byte(0x0f),
            Map::M0F38 => {
                self.byte(0x0f);
                self.byte(0x38);
            }
            Map::M0F3A => {
                self.byte(0x0f);
                self.byte(0x3a);
            }
        }
    }

    fn modrm(&mut self, reg: Reg, rm: Rm) {
        let reg = (reg & 7) << 3;
        let m = match rm {
            Rm::Reg(n) => return self.byte(0xc0 | reg | (n & 7)),
            Rm::Mem(m) => m,
        };
        // mod 0 with base 101 means "no base", so RBP and R13 need a displacement.
        if m.base == NO_BASE {
            let (index, shift) = m.index.unwrap_or((self::reg::RSP, 0));
            self.byte(reg | 4);
            self.byte((shift << 6) | ((index & 7) << 3) | 5);
            return self.dword(m.disp as u32);
        }
        let (mode, wide) = if m.disp == 0 && m.base & 7 != 5 {
            (0x00, None)
        } else if i8::try_from(m.disp).is_ok() {
            (0x40, Some(false))
        } else {
            (0x80, Some(true))
        };
        match m.index {
            Some((index, shift)) => {
                debug_assert!(index != self::reg::RSP && shift < 4);
                self.byte(mode | reg | 4);
                self.byte((shift << 6) | ((index & 7) << 3) | (m.base & 7));
            }
            // RSP and R12 as base need a SIB byte.
            None if m.base & 7 == 4 => {
                self.byte(mode | reg | 4);
                self.byte(0x24);
            }
            None => self.byte(mode | reg | (m.base & 7)),
        }
        match wide {
            None => {}
            Some(false) => self.byte(m.disp as u8),
            Some(true) => self.dword(m.disp as u32),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn text(asm: &Asm) -> Vec<String> {
        let mut f = IntelFormatter::new();
        let mut d = Decoder::new(64, &asm.buf, DecoderOptions::NONE);
        let mut out = Vec::new();
        while d.can_decode() {
            let mut s = String::new();
            let i = d.decode();
            assert!(!i.is_invalid());
            f.format(&i, &mut s);
            out.push(s);
        }
        out
    }

    #[test]
    fn every_base_and_index_decodes_back() {
        for base in 0..16u8 {
            for index in (0..16u8).filter(|&i| i != reg::RSP) {
                for disp in [0, 5, -128, 128, -70000] {
                    for shift in 0..4 {
                        let mut a = Asm::default();
                        a.load(9, Mem::indexed(base, index, shift, disp));
                        let i = Decoder::new(64, &a.buf, DecoderOptions::NONE).decode();
                        assert_eq!(i.len(), a.buf.len());
                        assert_eq!(i.memory_base().number(), base as usize);
                        assert_eq!(i.memory_index().number(), index as usize);
                        assert_eq!(i.memory_index_scale(), 1 << shift);
                        assert_eq!(i.memory_displacement64() as i64, i64::from(disp));
                        assert_eq!(i.op0_register().number(), 9);
                    }
                }
            }
        }
    }

    #[test]
    fn each_helper_is_what_its_name_says() {
        let mut a = Asm::default();
        a.mov_rr(3, 12);
        a.lea(10, Mem::indexed(NO_BASE, 9, 3, 0x1000));
        a.store16(Mem::base(4, 8), 1);
        a.store_imm64(Mem::base(13, 0), -2);
        a.mov_imm(11, 7);
        a.mov_imm(0, u64::MAX);
        a.mov_imm(10, 0x1234_5678_9abc);
        a.rorx(11, 6, 48);
        a.shrx(11, 11, 15);
        a.load(
            11,
            Mem {
                gs: true,
                ..Mem::indexed(15, 11, 3, -28)
            },
        );
        a.test_rr(11, 11);
        a.test_r8_imm(6, 7);
        a.alu32_imm(1, 11, -4096);
        a.lahf();
        a.seto_al();
        a.add_al(0x7f);
        a.sahf();
        a.jmp_mem(Mem::base(10, 8));
        a.cmp_rm(11, Mem::base(10, 0));
        a.shl32(10, 4);
        a.movzx16(1, 11);
        assert_eq!(
            text(&a),
            [
                "mov rbx,r12",
                "lea r10,[r9*8+1000h]",
                "mov [rsp+8],cx",
                "mov qword ptr [r13],0FFFFFFFFFFFFFFFEh",
                "mov r11d,7",
                "mov rax,0FFFFFFFFFFFFFFFFh",
                "mov r10,123456789ABCh",
                "rorx r11,rsi,30h",
                "shrx r11,r11,r15",
                "mov r11,gs:[r15+r11*8-1Ch]",
                "test r11,r11",
                "test sil,7",
                "or r11d,0FFFFF000h",
                "lahf",
                "seto al",
                "add al,7Fh",
                "sahf",
                "jmp qword ptr [r10+8]",
                "cmp r11,[r10]",
                "shl r10d,4",
                "movzx ecx,r11w"
            ]
        );
    }

    #[test]
    fn nops_fill_exactly() {
        for n in 0..40 {
            let mut a = Asm::default();
            a.nops(n);
            assert_eq!(a.pos(), n);
            assert!(
                text(&a)
                    .iter()
                    .all(|s| s.starts_with("nop") || s.starts_with("xchg"))
            );
        }
    }
}
