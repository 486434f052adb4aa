//! The byte emitter: x86-64 machine code from fields, one instruction a call.
//!
//! Encodings: SDM vol. 2, 2.1 to 2.3 (legacy and VEX prefixes, ModRM, SIB, displacement). Nothing
//! here knows what a guest is; registers are host registers by number.

mod insns;
#[cfg(test)]
mod tests;

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
    /// An empty buffer with room for `bytes`.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            buf: Vec::with_capacity(bytes),
        }
    }

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
}
