//! State in and out of the context block, and what is derived from it.

use super::BtVcpu;
use crate::ctx::Ctx;
use crate::decode::Mode;
use crate::host;
use mimeo_arch_x86::{Activity, Cr0, Cr4, RFlags, Seg, X86State};
use mimeo_engine_interp::{Op, Step};
use mimeo_vcpu::{CpuIo, EngineError};

/// The bits of RFLAGS that live in `Ctx::status`.
const STATUS: u64 = RFlags::STATUS.bits();
const DF: u64 = RFlags::DF.bits();
pub(super) const IF: u64 = RFlags::IF.bits();
const AC: u64 = RFlags::AC.bits();

impl BtVcpu {
    /// General registers, flags and RIP from the context to the state.
    pub(super) fn store_regs(&mut self, rip: u64) {
        let c = self.peer.ctx();
        let s = &mut self.cpu.state;
        for (g, slot) in s.gpr.iter_mut().zip(&c.gpr) {
            *g = slot.get();
        }
        s.rflags = flags_of(c);
        s.seg[Seg::Fs as usize].base = c.fs_base.get();
        s.seg[Seg::Gs as usize].base = c.gs_base.get();
        s.msr.kernel_gs_base = c.kernel_gs.get();
        s.rip = rip;
    }

    /// The reverse, after the interpreter has run.
    pub(super) fn load_regs(&mut self) {
        let c = self.peer.ctx();
        let s = &self.cpu.state;
        for (g, slot) in s.gpr.iter().zip(&c.gpr) {
            slot.set(*g);
        }
        let flags = s.rflags.bits();
        c.set_status(flags);
        c.sysflags.set(flags & !(STATUS | DF | IF | AC));
        c.df.set((flags & DF) as u32);
        c.iflag.set((flags & IF) as u32);
        c.ac.set((flags & AC) as u32);
        c.kernel_gs.set(s.msr.kernel_gs_base);
        c.fs_base.set(s.segment(Seg::Fs).base);
        c.gs_base.set(s.segment(Seg::Gs).base);
        self.load_system();
    }

    /// FP state from the context and the host's x87 to the state.
    pub(super) fn store_fp(&mut self) {
        let c = self.peer.ctx();
        let fp = &mut self.cpu.state.fp;
        fp.ymm = c.ymm_registers();
        fp.mxcsr = c.mxcsr.get();
        let fip = host::store_x87(fp);
        let range = self.shared.range();
        if range.contains(&fip)
            && let Some(f) = self.shared.index.find((fip - range.start) as u32)
        {
            fp.fip = f.rip;
            fp.fdp = 0;
            // As the interpreter has it: what the 32-bit formats store.
            fp.fcs = self.cpu.state.seg[Seg::Cs as usize].selector;
        }
    }

    pub(super) fn load_fp(&mut self) {
        let c = self.peer.ctx();
        let fp = &self.cpu.state.fp;
        c.set_ymm_registers(fp.ymm);
        c.mxcsr.set(fp.mxcsr);
        host::load_x87(fp);
    }

    /// Recomputes mode and view from the state, after anything may have changed it.
    pub(super) fn derive(&mut self) {
        if self.cpu.mmu_log_pending() {
            for e in self.cpu.take_mmu_log() {
                self.mmu.event(e);
            }
        }
        let s = &self.cpu.state;
        let singled = RFlags::TF | RFlags::RF;
        self.translatable = s.code64()
            && s.cr0.contains(Cr0::PG)
            && !s.cr4.contains(Cr4::LA57)
            && s.activity == Activity::Running
            && !s.rflags.intersects(singled)
            && !s.sti_shadow
            && !s.mov_ss_shadow
            && s.dr7 & 0xff == 0
            && self.cpu.pending_debug == 0
            && !(s.cpl == 3 && s.cr0.contains(Cr0::AM) && s.rflags.contains(RFlags::AC));
        if !self.translatable {
            return;
        }
        let mode = mode_of(s);
        if (mode.0 ^ self.mode.0) & Mode::UNITS != 0 {
            // The branch caches are keyed by privilege alone.
            self.mmu.purge_all();
        }
        self.mode = mode;
        self.mmu.select(&self.shared, s);
        let (sup, ac) = self.mmu.supervisor_bases();
        let rl = self.mmu.base(self.mmu.view);
        let user = self.mmu.user_base(&self.cpu.state);
        let c = self.peer.ctx();
        c.view_user.set(user);
        let smap = s.cr4.contains(Cr4::SMAP);
        c.view_sup.set(if smap { sup } else { ac });
        c.view_ac.set(ac);
        c.rl.set(rl);
    }

    /// One interpreter step of the instruction at `rip`, which is that of site `site` if one is given.
    /// The context is stored before and loaded afterwards.
    pub(super) fn interpret(
        &mut self,
        rip: u64,
        site: Option<u32>,
        fp: bool,
        io: &mut dyn CpuIo,
    ) -> Result<Step, EngineError> {
        self.stats.interp += 1;
        self.store_regs(rip);
        if fp {
            self.store_fp();
        }
        self.cpu.refresh();
        let step = match site.and_then(|n| self.site_op(n)) {
            Some(op) => self.cpu.step_op(&op, io),
            None => self.cpu.step(io),
        };
        if fp {
            self.load_fp();
        }
        self.load_regs();
        self.derive();
        step
    }

    /// The instruction of a site, at which the state stands.
    fn site_op(&mut self, site: u32) -> Option<Op> {
        let known = self.ops.get(site, self.shared.generation());
        if known.is_some() {
            return known;
        }
        let op = self.cpu.decode()?;
        self.ops.put(site, op);
        Some(op)
    }
}

/// RFLAGS, put together from the context's pieces.
pub(super) fn flags_of(c: &Ctx) -> RFlags {
    let pieces = c.df.get() | c.iflag.get() | c.ac.get();
    RFlags::from_bits_retain(c.sysflags.get() | u64::from(pieces) | c.status_flags())
}

/// The translation mode of a state in 64-bit code.
fn mode_of(s: &X86State) -> Mode {
    let mut m = 0;
    if s.cpl == 3 {
        m |= Mode::USER;
    } else if s.cpl == 0 {
        m |= Mode::KERNEL;
    }
    let blocked = s.cr0.intersects(Cr0::EM | Cr0::TS);
    if !blocked {
        m |= Mode::X87;
        if s.cr4.contains(Cr4::OSFXSR) {
            m |= Mode::SSE;
        }
        if s.cr4.contains(Cr4::OSXSAVE) && s.xcr0 & 6 == 6 {
            m |= Mode::AVX;
        }
    }
    Mode(m)
}
