//! SYSCALL, SYSRET and IRET between 64-bit levels (SDM vol. 2), in the plain case: flat segments, no
//! flag set but the status flags, IF, ID and RF, no interrupt that waits. Every check comes before the
//! first change; whatever fails one is the interpreter's from the start.
//!
//! CS and SS become `cs_kind` and `ss_kind`, from which the run loop makes the segments. The tables, the
//! branch cache and with them the rights change here: [`Ctx::view_user`](crate::ctx::Ctx::view_user)
//! and its like belong to the address space, which only the run loop changes.
//!
//! RF (set in the frame of every fault) only matters to instruction breakpoints, with which nothing runs
//! translated: IRET drops it, but not where flags are to be exact to the instruction (lockstep).

use super::Lower;
use super::flags::{Afterwards, Recipe};
use super::mem::Ea;
use crate::ctx::{E, GSP, RL, T, at, field, slot};
use crate::decode::Insn;
use crate::emit::{Mem, Reg, Rm, cc, reg};
use crate::index::SiteKind;
use iced_x86::Code;

const IF: i32 = 1 << 9;
const ID: i32 = 1 << 21;
const RF: i32 = 1 << 16;
/// CF, PF, AF, ZF, SF, OF and IF.
const PLAIN: i32 = 0x8d5 | IF;
/// Flags in R11 that make SYSRET the interpreter's: TF, DF, IOPL, NT, AC, VIF, VIP.
const NOT_FOR_SYSRET: i32 = 0x1c_7500;
/// The descriptors of a flat 64-bit code segment and of a flat writable data segment, accessed, by DPL.
const FLAT_CODE: [u64; 2] = [0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff];
const FLAT_DATA: [u64; 2] = [0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff];

/// A level to go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Kernel,
    User,
}

/// Whether the form is lowered here, at CPL 0 (`kernel`) or CPL 3.
pub(crate) fn inline_world(code: Code, kernel: bool, user: bool) -> bool {
    match code {
        Code::Syscall => user,
        Code::Sysretq | Code::Iretq => kernel,
        _ => false,
    }
}

impl Lower<'_> {
    /// Lowers one of them.
    pub(super) fn world(&mut self, insn: &Insn) {
        match insn.i.code() {
            Code::Syscall => self.syscall(insn),
            Code::Sysretq => self.sysret(insn),
            _ => self.iret(insn),
        }
    }

    /// RAX to its slot; in RAX the status flags, as where flags are saved.
    fn spill(&mut self) {
        self.save_flags();
    }

    /// Leaves to the interpreter on condition `cc`; the flags are saved.
    fn unless(&mut self, cc: u8) {
        let d = self.hot.jcc(cc);
        self.slow_stub(d, true, Afterwards::Flags);
    }

    fn syscall(&mut self, insn: &Insn) {
        self.spill();
        self.hot.cmp_m32_imm(field(at!(syscall_ok)), 0);
        self.unless(cc::Z);
        self.flags_image();
        self.hot.store(slot(11), T);
        self.hot.mov_imm(reg::RCX, insn.i.next_ip());
        self.hot.load(T, field(at!(sysflags)));
        self.hot.and_rm(T, field(at!(fmask_kept)));
        self.hot.store(field(at!(sysflags)), T);
        self.hot.store_imm32(field(at!(iflag)), 0);
        for (to, from) in [
            (at!(selectors) + 8, at!(syscall_cs)),
            (at!(selectors) + 16, at!(syscall_ss)),
        ] {
            self.hot.load(T, field(from));
            self.hot.store(field(to), T);
        }
        self.hot.store_imm32(field(at!(cs_kind)), 1);
        self.hot.store_imm32(field(at!(ss_kind)), 1);
        self.switch_to(Level::Kernel);
        // The mask takes all status flags (else `syscall_ok` is clear).
        self.hot.mov_imm(reg::RAX, 0);
        self.hot.load(T, field(at!(lstar)));
        self.arrive(insn);
    }

    /// To the RIP in T, with the flags that RAX holds.
    fn arrive(&mut self, insn: &Insn) {
        self.status.lost = Some(Recipe::Saved);
        self.indirect(&insn.i);
    }

    /// T = RFLAGS, from the saved flags in RAX. E is used.
    fn flags_image(&mut self) {
        self.hot.movzx16(T, reg::RAX);
        self.hot.shift32(5, T, 8);
        self.hot.mov_rr32(E, reg::RAX);
        self.hot.alu32_imm(4, E, 1);
        self.hot.shl32(E, 11);
        self.hot.or_rr32(T, E);
        for f in [at!(sysflags), at!(iflag), at!(df), at!(ac)] {
            self.hot.or_rm32(T, field(f));
        }
    }

    /// View, DF and AC of a level.
    fn switch_to(&mut self, level: Level) {
        let view = match level {
            Level::Kernel => at!(view_sup),
            Level::User => at!(view_user),
        };
        self.hot.store_imm32(field(at!(df)), 0);
        self.hot.store_imm32(field(at!(ac)), 0);
        self.hot.load(RL, field(view));
        self.hot.store(field(at!(rl)), RL);
    }

    /// Leaves unless the address in T is canonical; T is lost.
    fn canonical(&mut self, original: Rm) {
        self.hot.shift64(4, T, 16);
        self.hot.shift64(7, T, 16);
        match original {
            Rm::Reg(r) => self.hot.cmp_rr(T, r),
            Rm::Mem(m) => self.hot.cmp_rm(T, m),
        }
        self.unless(cc::NZ);
    }

    /// RAX = the status flags of the image in `r` (which may be RAX), as where flags are saved. T is
    /// used.
    fn pack_flags(&mut self, r: Reg) {
        self.hot.mov_rr32(T, r);
        self.hot.shift32(5, T, 11);
        self.hot.alu32_imm(4, T, 1);
        if r != reg::RAX {
            self.hot.mov_rr32(reg::RAX, r);
        }
        self.hot.shl32(reg::RAX, 8);
        self.hot.or_rr32(reg::RAX, T);
    }

    /// IF as in `r`; T is used.
    fn set_if(&mut self, r: Rm) {
        match r {
            Rm::Reg(r) => self.hot.mov_rr32(T, r),
            Rm::Mem(m) => self.hot.load32(T, m),
        }
        self.hot.alu32_imm(4, T, IF);
        self.hot.store32(field(at!(iflag)), T);
    }

    /// Leaves if an interrupt waits for IF and `r` sets it; T is used.
    fn unless_waiting(&mut self, r: Rm) {
        match r {
            Rm::Reg(r) => self.hot.mov_rr32(T, r),
            Rm::Mem(m) => self.hot.load32(T, m),
        }
        self.hot.alu32_imm(4, T, IF);
        self.hot.test_rm32(T, field(at!(pending)));
        self.unless(cc::NZ);
    }

    fn sysret(&mut self, insn: &Insn) {
        self.spill();
        self.hot.cmp_m32_imm(field(at!(sysret_ok)), 0);
        self.unless(cc::Z);
        self.hot.load(E, slot(11));
        self.hot.mov_rr32(T, E);
        self.hot.alu32_imm(4, T, NOT_FOR_SYSRET);
        self.unless(cc::NZ);
        self.unless_waiting(Rm::Reg(E));
        self.hot.mov_rr(T, reg::RCX);
        self.canonical(Rm::Reg(reg::RCX));
        self.set_if(Rm::Reg(E));
        self.hot.mov_rr32(T, E);
        self.hot.alu32_imm(4, T, ID);
        self.hot.alu32_imm(1, T, 2);
        self.hot.store(field(at!(sysflags)), T);
        self.user_segments();
        if self.options.amd {
            // SS keeps what it holds (APM vol. 3, SYSRET).
        } else {
            self.hot.store_imm32(field(at!(ss_kind)), 2);
        }
        self.switch_to(Level::User);
        self.pack_flags(E);
        self.hot.mov_rr(T, reg::RCX);
        self.arrive(insn);
    }

    fn user_segments(&mut self) {
        for (to, from) in [
            (at!(selectors) + 8, at!(sysret_cs)),
            (at!(selectors) + 16, at!(sysret_ss)),
        ] {
            self.hot.load(T, field(from));
            self.hot.store(field(to), T);
        }
        self.hot.store_imm32(field(at!(cs_kind)), 2);
    }

    /// IRETQ: E is the frame's host address from its lookup to the end.
    fn iret(&mut self, insn: &Insn) {
        self.spill();
        self.hot.mov_rr32(T, GSP);
        self.hot.alu32_imm(1, T, -4096);
        self.hot.alu32_imm(0, T, 39);
        self.unless(cc::C);
        self.hot.cmp_m32_imm(field(at!(ac)), 0);
        self.unless(cc::NZ);
        let frame = Ea {
            reg: GSP,
            konst: None,
        };
        let miss = self.addend(frame, false);
        self.to_cold.push((miss, self.cold.pos()));
        self.refill(frame, false, true);
        self.hot.lea(E, Mem::indexed(GSP, T, 0, 0));
        let (ip, cs, flags) = (Mem::base(E, 0), Mem::base(E, 8), Mem::base(E, 16));
        let dropped = if self.options.precise { 0 } else { RF };
        self.hot.load(T, flags);
        self.hot.alu_imm(4, Rm::Reg(T), !(PLAIN | dropped), true);
        self.hot.cmp_rm(T, field(at!(sysflags)));
        self.unless(cc::NZ);
        self.unless_waiting(Rm::Mem(flags));
        self.hot.load(T, ip);
        self.canonical(Rm::Mem(ip));
        self.hot.load(T, cs);
        self.hot.cmp_rm(T, field(at!(sysret_cs)));
        let inner = self.hot.jcc(cc::NZ);
        self.iret_to(insn, Level::User);
        self.hot.bind32(inner);
        self.hot.cmp_rm(T, field(at!(own_cs)));
        self.unless(cc::NZ);
        self.iret_to(insn, Level::Kernel);
    }

    /// The rest of IRETQ to `level`, whose CS is in the frame.
    fn iret_to(&mut self, insn: &Insn, level: Level) {
        let (flags, sp, ss) = (Mem::base(E, 16), Mem::base(E, 24), Mem::base(E, 32));
        let user = usize::from(level == Level::User);
        let (ok, wanted, cs_at, ss_at) = match level {
            Level::User => (
                at!(iret_user_ok),
                at!(sysret_ss),
                at!(user_cs_at),
                at!(user_ss_at),
            ),
            Level::Kernel => (
                at!(iret_own_ok),
                at!(own_ss),
                at!(own_cs_at),
                at!(own_ss_at),
            ),
        };
        self.hot.cmp_m32_imm(field(ok), 0);
        self.unless(cc::Z);
        self.hot.load(T, ss);
        self.hot.cmp_rm(T, field(wanted));
        self.unless(cc::NZ);
        self.hot.store(slot(1), reg::RCX);
        self.descriptor(cs_at, FLAT_CODE[user]);
        // A null SS is fine at CPL 0.
        let null = (level == Level::Kernel).then(|| {
            self.hot.cmp_m32_imm(field(at!(own_ss_kind)), 3);
            self.hot.jcc(cc::Z)
        });
        self.descriptor(ss_at, FLAT_DATA[user]);
        if let Some(d) = null {
            self.hot.bind32(d);
        }
        self.hot.load(reg::RCX, slot(1));
        // Nothing fails from here on.
        self.set_if(Rm::Mem(flags));
        match level {
            Level::User => {
                self.user_segments();
                self.hot.store_imm32(field(at!(ss_kind)), 2);
            }
            Level::Kernel => {
                self.hot.store_imm32(field(at!(cs_kind)), 1);
                self.hot.load32(T, field(at!(own_ss_kind)));
                self.hot.store32(field(at!(ss_kind)), T);
                for (to, from) in [
                    (at!(selectors) + 8, at!(own_cs)),
                    (at!(selectors) + 16, at!(own_ss)),
                ] {
                    self.hot.load(T, field(from));
                    self.hot.store(field(to), T);
                }
            }
        }
        self.switch_to(level);
        self.hot.load32(reg::RAX, flags);
        self.pack_flags(reg::RAX);
        self.hot.load(GSP, sp);
        self.hot.load(T, Mem::base(E, 0));
        self.arrive(insn);
    }

    /// Leaves unless the descriptor at the linear address in `at` is `flat`. RCX (in its slot) and T are
    /// used; E is kept but for the exits.
    fn descriptor(&mut self, at: i32, flat: u64) {
        self.hot.load(reg::RCX, field(at));
        let ea = Ea {
            reg: reg::RCX,
            konst: None,
        };
        self.hot.test_r8_imm(reg::RCX, 7);
        let misaligned = self.hot.jcc(cc::NZ);
        let miss = self.addend(ea, false);
        self.to_cold.push((miss, self.cold.pos()));
        self.cold.mov_rr(E, reg::RCX);
        self.cold.load(reg::RCX, slot(1));
        self.refill(
            Ea {
                reg: E,
                konst: None,
            },
            false,
            true,
        );
        self.hot.load(T, Mem::indexed(reg::RCX, T, 0, 0));
        self.hot.mov_imm(reg::RCX, flat);
        self.hot.cmp_rr(T, reg::RCX);
        let other = self.hot.jcc(cc::NZ);
        for d in [misaligned, other] {
            self.to_cold.push((d, self.cold.pos()));
            self.cold.load(reg::RCX, slot(1));
            self.remake_in_cold();
            self.leave(SiteKind::Interp, self.insn().i.ip(), self.after());
        }
    }
}
