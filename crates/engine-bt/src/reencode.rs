//! Re-encoding a decoded guest instruction for the host, with other registers and another memory
//! operand.
//!
//! No byte of the guest's is ever copied: prefixes, opcode, ModRM and immediates are written anew
//! from iced's decoded fields, so that ignored prefixes, redundant REX bytes and segment overrides
//! cannot survive (ENGINE-REVIEW F2). Encodings: SDM vol. 2, 2.1 to 2.3; the place of each operand
//! comes from iced's opcode information.

use crate::emit::{Asm, Fields, Map, Mem, Pp, Reg, Rm};
use iced_x86::{
    EncodingKind, Instruction, MandatoryPrefix, OpCodeOperandKind as K, OpCodeTableKind, OpKind,
    Register,
};

/// The instruction has no encoding with these operands (a high-byte register beside one that needs
/// REX), or an operand kind that never runs natively.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unencodable;

/// What the guest's operands become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subst {
    /// Host register of each guest register.
    pub(crate) gpr: [Reg; 16],
    /// In place of the memory operand, if there is one.
    pub(crate) mem: Option<Mem>,
}

/// A general register as it is written in an encoding.
struct Gpr8 {
    number: Reg,
    force_rex: bool,
    high: bool,
}

fn gpr(r: Register, s: &Subst) -> Gpr8 {
    let full = r.full_register();
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    if high {
        // Only registers that keep their host number have a high byte.
        let number = s.gpr[full.number() & 15];
        return Gpr8 {
            number: 4 | (number & 3),
            force_rex: false,
            high: true,
        };
    }
    let number = s.gpr[full.number() & 15];
    Gpr8 {
        number,
        force_rex: r.is_gpr8() && (4..8).contains(&number),
        high: false,
    }
}

/// Operands as they fall into the encoding's places.
#[derive(Default)]
struct Places {
    reg: Reg,
    rm: Option<Rm>,
    vvvv: Reg,
    opcode: Reg,
    imm: [u8; 8],
    imm_len: usize,
    force_rex: bool,
    high: bool,
}

impl Places {
    fn any_reg(&mut self, r: Register, s: &Subst) -> Reg {
        if !r.is_gpr() {
            return r.number() as Reg;
        }
        let g = gpr(r, s);
        self.force_rex |= g.force_rex;
        self.high |= g.high;
        g.number
    }

    fn immediate(&mut self, v: u64, len: usize) {
        self.imm[..len].copy_from_slice(&v.to_le_bytes()[..len]);
        self.imm_len = len;
    }
}

fn place(i: &Instruction, n: u32, kind: K, s: &Subst, p: &mut Places) -> Result<(), Unencodable> {
    match kind {
        K::mem
        | K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::mm_or_mem
        | K::xmm_or_mem
        | K::ymm_or_mem => {
            p.rm = Some(if i.op_kind(n) == OpKind::Memory {
                Rm::Mem(s.mem.ok_or(Unencodable)?)
            } else {
                Rm::Reg(p.any_reg(i.op_register(n), s))
            });
        }
        K::r16_rm | K::r32_rm | K::r64_rm | K::mm_rm | K::xmm_rm | K::ymm_rm => {
            p.rm = Some(Rm::Reg(p.any_reg(i.op_register(n), s)));
        }
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::mm_reg | K::xmm_reg | K::ymm_reg => {
            p.reg = p.any_reg(i.op_register(n), s);
        }
        K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => {
            p.vvvv = p.any_reg(i.op_register(n), s);
        }
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode | K::sti_opcode => {
            p.opcode = p.any_reg(i.op_register(n), s);
        }
        K::xmm_is4 | K::ymm_is4 => {
            let r = i.op_register(n).number() as u64;
            p.immediate(r << 4, 1);
        }
        // Implied by the opcode. RAX, RCX and RDX keep their numbers on the host.
        K::al | K::cl | K::ax | K::dx | K::eax | K::rax => {
            let g = gpr(i.op_register(n), s);
            if g.number as usize != i.op_register(n).full_register().number() {
                return Err(Unencodable);
            }
        }
        K::st0 | K::imm8_const_1 => {}
        K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => p.immediate(i.immediate(n), 1),
        K::imm16 => p.immediate(i.immediate(n), 2),
        K::imm32 | K::imm32sex64 => p.immediate(i.immediate(n), 4),
        K::imm64 => p.immediate(i.immediate(n), 8),
        _ => return Err(Unencodable),
    }
    Ok(())
}

/// Writes `i` with the operands that `s` gives.
///
/// # Errors
/// [`Unencodable`]; nothing has been written then.
pub(crate) fn encode(asm: &mut Asm, i: &Instruction, s: &Subst) -> Result<(), Unencodable> {
    let info = i.op_code();
    let vex = match info.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return Err(Unencodable),
    };
    if info.fwait() || i.has_rep_prefix() || i.has_repne_prefix() {
        return Err(Unencodable);
    }
    let mut p = Places::default();
    for n in 0..i.op_count() {
        place(i, n, info.op_kind(n), s, &mut p)?;
    }
    let map = match info.table() {
        OpCodeTableKind::Normal => Map::One,
        OpCodeTableKind::T0F => Map::M0F,
        OpCodeTableKind::T0F38 => Map::M0F38,
        OpCodeTableKind::T0F3A => Map::M0F3A,
        _ => return Err(Unencodable),
    };
    let pp = match info.mandatory_prefix() {
        MandatoryPrefix::None | MandatoryPrefix::PNP => Pp::None,
        MandatoryPrefix::P66 => Pp::P66,
        MandatoryPrefix::PF3 => Pp::PF3,
        MandatoryPrefix::PF2 => Pp::PF2,
    };
    let op = info.op_code();
    let (op, second) = if info.op_code_len() == 2 {
        ((op >> 8) as u8, Some(op as u8 | (p.opcode & 7)))
    } else if p.rm.is_none() {
        (op as u8 | (p.opcode & 7), None)
    } else {
        (op as u8, None)
    };
    let fields = Fields {
        vex: vex.then(|| (info.l() == 1, p.vvvv)),
        pp,
        opsize: !vex && info.operand_size() == 16,
        lock: i.has_lock_prefix(),
        w: if vex {
            info.w() == 1
        } else {
            info.operand_size() == 64 && !info.default_op_size64()
        },
        force_rex: p.force_rex,
        map,
        op,
        second,
    };
    let digit = if info.is_group() {
        info.group_index() as Reg
    } else {
        p.reg
    };
    if p.high {
        let far = |r: Reg| r >= 8;
        let rex = fields.w
            || p.force_rex
            || far(digit)
            || far(p.opcode)
            || match p.rm {
                Some(Rm::Reg(r)) => far(r),
                Some(Rm::Mem(m)) => far(m.base) || m.index.is_some_and(|(r, _)| far(r)),
                None => false,
            };
        if rex {
            return Err(Unencodable);
        }
    }
    match p.rm {
        Some(rm) => asm.insn(&fields, digit, rm),
        None => asm.opcode_only(&fields, p.opcode),
    }
    asm.buf.extend_from_slice(&p.imm[..p.imm_len]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};
    use mimeo_isa_x86::{Class, Modes};
    use std::collections::HashSet;

    struct Rng(u64);

    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    /// Random bytes shaped like an instruction: prefixes, REX or VEX, a map, the rest at random.
    fn candidate(r: &mut Rng) -> [u8; 15] {
        let mut b = [0u8; 15];
        for (k, x) in b.iter_mut().enumerate() {
            *x = (r.next() >> (k % 8)) as u8;
        }
        let mut at = 0;
        let mut put = |v: u8| {
            b[at] = v;
            at += 1;
        };
        match r.next() % 8 {
            0 => put(0xf0),
            1 => put(0x65),
            2 | 3 => put(0x66),
            4 => put(0xf2),
            5 => put(0xf3),
            _ => {}
        }
        match r.next() % 8 {
            0..=2 => put(0x40 | (r.next() & 15) as u8),
            3 | 4 => {
                // Half of them without a third operand (vvvv all ones).
                let none = if r.next() & 1 == 0 { 0x78 } else { 0 };
                if r.next() & 3 == 0 {
                    put(0xc5);
                } else {
                    put(0xc4);
                    put((r.next() & 0xe0) as u8 | (1 + r.next() % 3) as u8);
                }
                put((r.next() & 0xff) as u8 | none);
                return b;
            }
            5 => {
                // An operand-size prefix before a mandatory one.
                put(if r.next() & 1 == 0 { 0xf2 } else { 0xf3 });
            }
            _ => {}
        }
        match r.next() % 4 {
            0 => put(0x0f),
            1 => {
                put(0x0f);
                put(if r.next() & 1 == 0 { 0x38 } else { 0x3a });
            }
            _ => {}
        }
        b
    }

    fn own_mem(i: &Instruction) -> Option<Mem> {
        let base = i.memory_base();
        if base == Register::None || !base.is_gpr64() {
            return None;
        }
        let index = i.memory_index();
        let index = (index != Register::None).then(|| {
            (
                index.number() as Reg,
                i.memory_index_scale().trailing_zeros() as u8,
            )
        });
        Some(Mem {
            base: base.number() as Reg,
            index,
            disp: i.memory_displacement64() as i32,
            gs: false,
        })
    }

    #[test]
    fn native_forms_survive_decode_encode_decode() {
        let mut r = Rng(0x1234_5678_9abc_def1);
        let mut seen = HashSet::new();
        let identity = std::array::from_fn(|n| n as Reg);
        for _ in 0..4_000_000 {
            let bytes = candidate(&mut r);
            let i = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            let Some(form) = mimeo_isa_x86::lookup(i.code()) else {
                continue;
            };
            if form.class != Class::Native || form.modes == Modes::Legacy {
                continue;
            }
            let s = Subst {
                gpr: identity,
                mem: own_mem(&i),
            };
            let mut a = Asm::default();
            if encode(&mut a, &i, &s).is_err() {
                continue;
            }
            let mut back = Decoder::new(64, &a.buf, DecoderOptions::NONE).decode();
            assert_eq!(back.len(), a.buf.len(), "{i} {:02x?}", a.buf);
            assert_eq!(back.code(), i.code(), "{i} became {back}");
            assert_eq!(back.has_lock_prefix(), i.has_lock_prefix());
            let mut want = i;
            want.set_segment_prefix(Register::None);
            back.set_segment_prefix(Register::None);
            for x in [&mut want, &mut back] {
                x.set_has_xacquire_prefix(false);
                x.set_has_xrelease_prefix(false);
            }
            // Displacement size and scale of an absent index are encoding details.
            if want.op_kinds().any(|k| k == OpKind::Memory) {
                back.set_memory_displ_size(want.memory_displ_size());
                back.set_memory_index_scale(want.memory_index_scale());
            }
            assert_eq!(back, want, "{i} became {back}");
            seen.insert(i.code());
        }
        let missing: Vec<_> = mimeo_isa_x86::forms()
            .filter(|f| f.class == Class::Native && f.modes != Modes::Legacy)
            .map(|f| f.code)
            .filter(|c| !seen.contains(c))
            .collect();
        assert!(
            missing.len() <= 12,
            "{} seen, missing {missing:?}",
            seen.len()
        );
    }

    #[test]
    fn high_byte_beside_rex_is_refused() {
        // mov ah, [rdi] with the operand at r10.
        let i = Decoder::new(64, &[0x8a, 0x27], DecoderOptions::NONE).decode();
        let s = Subst {
            gpr: std::array::from_fn(|n| n as Reg),
            mem: Some(Mem::base(10, 0)),
        };
        assert_eq!(encode(&mut Asm::default(), &i, &s), Err(Unencodable));
    }
}
