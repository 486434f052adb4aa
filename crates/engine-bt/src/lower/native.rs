//! Instructions that run on the host as they are, with operands replaced.

use super::Lower;
use super::mem::Want;
use crate::ctx::{E, HOST, T, at, field, in_memory, slot};
use crate::decode::{Insn, memory};
use crate::emit::{Mem, Reg};
use crate::reencode::{Subst, Unencodable, encode};
use iced_x86::{Code, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind, Register};
use mimeo_isa_x86::{Access, Unit};

/// An operand register that lives in the context block.
#[derive(Debug, Clone, Copy)]
struct Borrowed {
    guest: usize,
    temp: Reg,
    written: bool,
    read: bool,
}

impl Lower<'_> {
    /// Lowers a native instruction, or hands it to the interpreter where it has no encoding.
    pub(super) fn native(&mut self, insn: &Insn) {
        let mark = self.mark();
        if self.try_native(insn).is_err() {
            self.rewind(&mark);
            self.interpret(insn);
        }
    }

    fn try_native(&mut self, insn: &Insn) -> Result<(), Unencodable> {
        let form = insn.form.ok_or(Unencodable)?;
        let i = &insn.i;
        match i.code() {
            Code::Cld | Code::Std => {
                self.direction(if i.code() == Code::Std { 1 << 10 } else { 0 });
                return Ok(());
            }
            _ => {}
        }
        if !memory(i) {
            return self.registers_only(insn);
        }
        let (size, write) = match form.mem.access {
            Access::Read => (form.mem.size, false),
            Access::Write | Access::ReadWrite => (form.mem.size, true),
            Access::Address => return self.lea(insn),
            Access::Hint => return Ok(()),
            Access::None => return Err(Unencodable),
        };
        if size == 0 || form.mem.masked {
            return Err(Unencodable);
        }
        let want = Want {
            size: usize::from(size),
            write,
            // CVTPD2PI and its like are not relied on to check alignment on every host.
            aligned: form.mem.align > 1
                && u16::from(form.mem.align) >= size
                && form.unit != Unit::MmxSse,
        };
        if moffs(i.code()) {
            return self.moffs(insn, want);
        }
        let borrowed = operands(insn);
        let ea = self.effective_address(i);
        let m = self.lookup(ea, want);
        match borrowed.as_slice() {
            [] => self.encode(insn, &[], m),
            [b] => {
                let b = Borrowed { temp: T, ..*b };
                if b.read {
                    self.hot.lea(E, m);
                    self.hot.load(T, slot(b.guest));
                    self.encode(insn, &[b], Mem::base(E, 0))?;
                } else {
                    self.encode(insn, &[b], m)?;
                }
                if b.written {
                    self.hot.store(slot(b.guest), T);
                }
                Ok(())
            }
            [a, b] if !want.aligned => {
                // A third temporary: a register that the instruction does not name, set aside.
                let spare = spare(insn).ok_or(Unencodable)?;
                let (a, b) = (Borrowed { temp: T, ..*a }, Borrowed { temp: spare, ..*b });
                self.hot.lea(E, m);
                self.hot.store(slot(usize::from(spare)), spare);
                for x in [a, b].iter().filter(|x| x.read) {
                    self.hot.load(x.temp, slot(x.guest));
                }
                self.encode(insn, &[a, b], Mem::base(E, 0))?;
                // Nothing faults any more, and no boundary lies in between.
                for x in [a, b].iter().filter(|x| x.written) {
                    self.hot.store(slot(x.guest), x.temp);
                }
                self.hot.load(spare, slot(usize::from(spare)));
                Ok(())
            }
            _ => Err(Unencodable),
        }
    }

    /// CLD and STD: the guest's DF lives in the context, the host's stays clear.
    fn direction(&mut self, df: u32) {
        self.hot.store_imm32(field(at!(df)), df);
    }

    fn encode(&mut self, insn: &Insn, borrowed: &[Borrowed], mem: Mem) -> Result<(), Unencodable> {
        let mut gpr = HOST;
        for b in borrowed {
            gpr[b.guest] = b.temp;
        }
        encode(
            &mut self.hot,
            &insn.i,
            &Subst {
                gpr,
                mem: Some(mem),
            },
        )
    }

    fn registers_only(&mut self, insn: &Insn) -> Result<(), Unencodable> {
        let mut borrowed = operands(insn);
        if borrowed.len() > 2 {
            return Err(Unencodable);
        }
        for (b, temp) in borrowed.iter_mut().zip([T, E]) {
            b.temp = temp;
            if b.read {
                self.hot.load(temp, slot(b.guest));
            }
        }
        self.encode(insn, &borrowed, Mem::base(E, 0))?;
        for b in borrowed.iter().filter(|b| b.written) {
            self.hot.store(slot(b.guest), b.temp);
        }
        Ok(())
    }

    fn lea(&mut self, insn: &Insn) -> Result<(), Unencodable> {
        let i = &insn.i;
        let ea = self.offset(i);
        if let Some(v) = ea.konst {
            self.hot.mov_imm(E, v);
        }
        let dst = i.op0_register();
        let n = dst.full_register().number();
        let to = if in_memory(n) { T } else { HOST[n] };
        match i.code() {
            Code::Lea_r64_m => self.hot.mov_rr(to, ea.reg),
            Code::Lea_r32_m => self.hot.mov_rr32(to, ea.reg),
            _ => return Err(Unencodable),
        }
        if to == T {
            self.hot.store(slot(n), T);
        }
        Ok(())
    }

    /// MOV with an absolute offset: the same as MOV with a ModRM operand.
    fn moffs(&mut self, insn: &Insn, want: Want) -> Result<(), Unencodable> {
        let i = &insn.i;
        let ea = self.effective_address(i);
        let m = self.lookup(ea, want);
        match i.code() {
            Code::Mov_RAX_moffs64 => self.hot.load(0, m),
            Code::Mov_EAX_moffs32 => self.hot.load32(0, m),
            Code::Mov_moffs64_RAX => self.hot.store(m, 0),
            Code::Mov_moffs32_EAX => self.hot.store32(m, 0),
            Code::Mov_moffs16_AX => self.hot.store16(m, 0),
            _ => return Err(Unencodable),
        }
        Ok(())
    }
}

/// A guest register in its own host register that the instruction neither reads nor writes.
fn spare(insn: &Insn) -> Option<Reg> {
    let form = insn.form?;
    let implied = form.gpr_read | form.gpr_written;
    [3, 5, 6, 7, 8, 9, 12, 13].into_iter().find(|&n| {
        let named = |r: Register| r.is_gpr() && r.full_register().number() == usize::from(n);
        implied >> n & 1 == 0
            && HOST[usize::from(n)] == n
            && !(0..insn.i.op_count())
                .any(|k| insn.i.op_kind(k) == OpKind::Register && named(insn.i.op_register(k)))
    })
}

fn moffs(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    )
}

/// The register operands (not those of the address) that live in the context block.
fn operands(insn: &Insn) -> Vec<Borrowed> {
    let i = &insn.i;
    let lives_in_memory = |r: Register| r.is_gpr() && in_memory(r.full_register().number());
    let mut out: Vec<Borrowed> = Vec::new();
    if !(0..i.op_count())
        .any(|n| i.op_kind(n) == OpKind::Register && lives_in_memory(i.op_register(n)))
    {
        return out;
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(
        i,
        InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE,
    );
    for n in 0..i.op_count() {
        let r = i.op_register(n);
        if i.op_kind(n) != OpKind::Register || !lives_in_memory(r) {
            continue;
        }
        let access = info.op_access(n);
        let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        // A write of all 64 bits (32-bit writes zero-extend) needs no old value.
        let whole = access == OpAccess::Write && (r.is_gpr64() || r.is_gpr32());
        let guest = r.full_register().number();
        if let Some(b) = out.iter_mut().find(|b| b.guest == guest) {
            b.written |= written;
            b.read |= !whole;
        } else {
            out.push(Borrowed {
                guest,
                temp: T,
                written,
                read: !whole,
            });
        }
    }
    out
}
