//! Sensitive instructions that are frequent enough to be worth code of their own: flags (PUSHF, POPF,
//! CLI, STI, STAC, CLAC), SWAPGS and reading control registers at CPL 0; reading segment registers, FS and
//! GS bases and the time-stamp counter (SDM vol. 2).
//!
//! RFLAGS lives in pieces: the status flags in the host's, DF, IF and AC each in a word of the context, in
//! its place, and the rest in `sysflags`. Anything unusual (a pending interrupt when IF becomes set,
//! POPF that changes another flag) is left to the interpreter, before anything has changed.

use super::Lower;
use super::mem::{Ea, Want};
use crate::ctx::{E, GSP, HOST, RL, T, at, field, in_memory, slot};
use crate::decode::{Insn, memory};
use crate::emit::{Mem, Reg, Rm, cc, reg};
use crate::index::SiteKind;
use iced_x86::{Code, Instruction, Register};

const IF: u32 = 1 << 9;
const AC: u32 = 1 << 18;
/// CF, PF, AF, ZF, SF, OF, IF.
const PLAIN: i32 = 0xad5 | 1 << 9;

/// Whether the instruction has a lowering here.
pub(crate) fn inline(i: &Instruction, kernel: bool) -> bool {
    match i.code() {
        Code::Cli | Code::Sti | Code::Stac | Code::Clac | Code::Swapgs => kernel,
        Code::Pushfq | Code::Popfq => kernel,
        Code::Mov_r64_cr => kernel && control_register(i).is_some(),
        Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => !memory(i),
        Code::Mov_rm16_Sreg => true,
        Code::Rdtsc | Code::Rdtscp => true,
        Code::Rdfsbase_r64 | Code::Rdgsbase_r64 | Code::Wrfsbase_r64 | Code::Wrgsbase_r64 => true,
        Code::Ldmxcsr_m32 | Code::Stmxcsr_m32 | Code::VEX_Vldmxcsr_m32 | Code::VEX_Vstmxcsr_m32 => {
            true
        }
        _ => false,
    }
}

/// The place in the context of the control register that a MOV reads.
fn control_register(i: &Instruction) -> Option<i32> {
    let n = match i.op1_register() {
        Register::CR0 => 0,
        Register::CR2 => 1,
        Register::CR3 => 2,
        Register::CR4 => 3,
        _ => return None,
    };
    Some(at!(cr) + 8 * n)
}

impl Lower<'_> {
    /// Lowers one of them.
    pub(super) fn system(&mut self, insn: &Insn) {
        match insn.i.code() {
            Code::Cli => self.hot.store_imm32(field(at!(iflag)), 0),
            Code::Sti if self.n + 1 < self.block.insns.len() => self.sti(),
            Code::Stac => {
                self.hot.store_imm32(field(at!(ac)), AC);
                self.switch_view(at!(view_ac));
            }
            Code::Clac => {
                self.hot.store_imm32(field(at!(ac)), 0);
                self.switch_view(at!(view_sup));
            }
            Code::Swapgs => {
                self.hot.load(T, field(at!(kernel_gs)));
                self.hot.load(E, field(at!(gs_base)));
                self.hot.store(field(at!(gs_base)), T);
                self.hot.store(field(at!(kernel_gs)), E);
            }
            Code::Pushfq => self.pushf(),
            Code::Popfq => self.popf(),
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg
                if insn.i.op0_register() != Register::None =>
            {
                self.read_selector(insn);
            }
            Code::Mov_rm16_Sreg if memory(&insn.i) => self.store_selector(insn),
            Code::Mov_rm16_Sreg => self.read_selector16(insn),
            Code::Mov_r64_cr => self.read_control(insn),
            Code::Rdtsc | Code::Rdtscp => self.time_stamp(insn),
            Code::Rdfsbase_r64 | Code::Rdgsbase_r64 => self.read_base(insn),
            Code::Wrfsbase_r64 | Code::Wrgsbase_r64 => self.write_base(insn),
            _ => self.interpret(insn),
        }
    }

    fn switch_view(&mut self, view: i32) {
        self.hot.load(RL, field(view));
        self.hot.store(field(at!(rl)), RL);
    }

    /// Leaves to the interpreter if an interrupt waits for IF.
    fn sti(&mut self) {
        self.hot.store(slot(1), reg::RCX);
        self.hot.load32(reg::RCX, field(at!(pending)));
        let none = self.hot.jrcxz();
        self.hot.load(reg::RCX, slot(1));
        let waits = self.hot.jmp();
        self.hot.bind8(none);
        self.hot.load(reg::RCX, slot(1));
        self.hot.store_imm32(field(at!(iflag)), IF);
        self.leave_if(waits);
        self.marks.push((self.n + 1, super::SHADOW));
    }

    /// A branch at `from` hands the whole instruction to the interpreter.
    fn leave_if(&mut self, from: usize) {
        let cold = self.cold.pos();
        self.to_cold.push((from, cold));
        self.leave(SiteKind::Interp, self.insn().i.ip(), self.after());
    }

    /// Leaves to the interpreter if the context word is zero. Flags are kept.
    fn require(&mut self, word: i32) {
        if !self.live() {
            self.hot.cmp_m32_imm(field(word), 0);
            let d = self.hot.jcc(cc::Z);
            return self.leave_if(d);
        }
        self.hot.store(slot(1), reg::RCX);
        self.hot.load32(reg::RCX, field(word));
        let zero = self.hot.jrcxz();
        self.hot.load(reg::RCX, slot(1));
        let over = self.hot.short(0xeb, false);
        self.hot.bind8(zero);
        self.hot.load(reg::RCX, slot(1));
        let d = self.hot.jmp();
        self.hot.bind8(over);
        self.leave_if(d);
    }

    /// Loads a context word into a guest register.
    fn load_guest(&mut self, r: Register, word: i32) {
        let dst = r.full_register().number();
        let to = if in_memory(dst) { T } else { HOST[dst] };
        self.hot.load(to, field(word));
        if to == T {
            self.hot.store(slot(dst), T);
        }
    }

    fn read_control(&mut self, insn: &Insn) {
        match control_register(&insn.i) {
            Some(word) => self.load_guest(insn.i.op0_register(), word),
            None => self.interpret(insn),
        }
    }

    /// The host's counter plus the guest's offset. RDTSCP waits for what came before it.
    fn time_stamp(&mut self, insn: &Insn) {
        const RDX: Reg = 2;
        self.require(at!(tsc_ok));
        if insn.i.code() == Code::Rdtscp {
            self.hot.lfence();
        }
        self.hot.rdtsc();
        self.hot.rorx(RDX, RDX, 32);
        self.hot.lea(reg::RAX, Mem::indexed(reg::RAX, RDX, 0, 0));
        self.hot.load(T, field(at!(tsc_offset)));
        self.hot.lea(reg::RAX, Mem::indexed(reg::RAX, T, 0, 0));
        self.hot.rorx(RDX, reg::RAX, 32);
        self.hot.mov_rr32(RDX, RDX);
        self.hot.mov_rr32(reg::RAX, reg::RAX);
        if insn.i.code() == Code::Rdtscp {
            self.hot.load32(reg::RCX, field(at!(tsc_aux)));
        }
    }

    fn read_base(&mut self, insn: &Insn) {
        self.require(at!(fsgsbase_ok));
        let base = if insn.i.code() == Code::Rdfsbase_r64 {
            at!(fs_base)
        } else {
            at!(gs_base)
        };
        self.load_guest(insn.i.op0_register(), base);
    }

    /// A base that is not canonical is #GP(0): the interpreter's.
    fn write_base(&mut self, insn: &Insn) {
        if self.live() {
            return self.interpret(insn);
        }
        self.require(at!(fsgsbase_ok));
        let n = insn.i.op0_register().number();
        let value = self.fetch(n, E);
        self.hot.mov_rr(T, value);
        self.hot.shift64(4, T, 16);
        self.hot.shift64(7, T, 16);
        self.hot.cmp_rr(T, value);
        let bad = self.hot.jcc(cc::NZ);
        self.leave_if(bad);
        let base = if insn.i.code() == Code::Wrfsbase_r64 {
            at!(fs_base)
        } else {
            at!(gs_base)
        };
        self.hot.store(field(base), value);
    }

    fn selector_word(r: Register) -> i32 {
        let n = match r {
            Register::ES => 0,
            Register::CS => 1,
            Register::SS => 2,
            Register::DS => 3,
            Register::FS => 4,
            _ => 5,
        };
        at!(selectors) + 8 * n
    }

    fn read_selector(&mut self, insn: &Insn) {
        let word = Self::selector_word(insn.i.op1_register());
        self.load_guest(insn.i.op0_register(), word);
    }

    /// The rest of the destination keeps its value.
    fn read_selector16(&mut self, insn: &Insn) {
        let word = Self::selector_word(insn.i.op1_register());
        let dst = insn.i.op0_register().number();
        if in_memory(dst) {
            self.hot.load(T, field(word));
            self.hot.store16(slot(dst), T);
        } else {
            self.hot.load16(HOST[dst], field(word));
        }
    }

    fn store_selector(&mut self, insn: &Insn) {
        let ea = self.effective_address(&insn.i);
        let m = self.lookup(
            ea,
            Want {
                size: 2,
                write: true,
                aligned: false,
            },
        );
        self.hot.lea(E, m);
        let word = Self::selector_word(insn.i.op1_register());
        self.hot.load(T, field(word));
        self.hot.store16(Mem::base(E, 0), T);
    }

    /// The image: status flags by LAHF and SETO, the rest from the context. RF and VM read as zero,
    /// and are, in translated code.
    fn pushf(&mut self) {
        self.hot.lea(E, Mem::base(GSP, -8));
        let ea = Ea {
            reg: E,
            konst: None,
        };
        let m = self.lookup(
            ea,
            Want {
                size: 8,
                write: true,
                aligned: false,
            },
        );
        self.hot.lea(E, m);
        self.save_flags();
        self.hot.movzx16(T, reg::RAX);
        self.hot.store(field(at!(scratch)), reg::RAX);
        // T = AH | OF << 11.
        self.hot.shift32(5, T, 8);
        self.hot.alu32_imm(4, reg::RAX, 1);
        self.hot.shl32(reg::RAX, 11);
        self.hot.or_rr32(T, reg::RAX);
        for f in [at!(sysflags), at!(iflag), at!(df), at!(ac)] {
            self.hot.or_rm32(T, field(f));
        }
        self.hot.store(Mem::base(E, 0), T);
        self.hot.lea(GSP, Mem::base(GSP, -8));
        self.hot.load(reg::RAX, field(at!(scratch)));
        Self::restore_flags(&mut self.hot);
    }

    /// Only the status flags, IF, DF and AC may become what the image says; DF and AC only zero.
    fn popf(&mut self) {
        let m = self.top();
        self.hot.load(T, m);
        self.hot.mov_rr(E, T);
        self.hot.alu_imm(4, Rm::Reg(E), !PLAIN, true);
        self.hot.cmp_rm(E, field(at!(sysflags)));
        let other = self.hot.jcc(cc::NZ);
        self.hot.mov_rr32(E, T);
        self.hot.alu32_imm(4, E, IF as i32);
        self.hot.test_rm32(E, field(at!(pending)));
        let waits = self.hot.jcc(cc::NZ);
        self.leave_if(other);
        self.leave_if(waits);
        self.hot.store32(field(at!(iflag)), E);
        self.hot.store_imm32(field(at!(df)), 0);
        self.hot.store_imm32(field(at!(ac)), 0);
        self.switch_view(at!(view_sup));
        self.hot.lea(GSP, Mem::base(GSP, 8));
        // AH = the low byte, AL = OF, then as everywhere.
        self.hot.store(slot(0), reg::RAX);
        self.hot.mov_rr32(E, T);
        self.hot.shift32(5, E, 11);
        self.hot.alu32_imm(4, E, 1);
        self.hot.mov_rr32(reg::RAX, T);
        self.hot.shl32(reg::RAX, 8);
        self.hot.or_rr32(reg::RAX, E);
        Self::restore_flags(&mut self.hot);
    }
}
