//! What translated code needs to know of the system registers, and what it has done to CS and SS.

use super::BtVcpu;
use super::state::flags_of;
use mimeo_arch_x86::{Cr4, Efer, RFlags, Seg, Segment, X86State};

/// What SYSCALL must mask for its inline form: everything that translated code keeps apart.
const MASKED: u64 = RFlags::STATUS
    .union(RFlags::TF)
    .union(RFlags::IF)
    .union(RFlags::DF)
    .union(RFlags::AC)
    .bits();

/// Values of `Ctx::cs_kind` and `Ctx::ss_kind`.
const USER: u32 = 2;
const NULL: u32 = 3;

/// A flat 64-bit code segment.
fn flat_code(selector: u64, dpl: u8) -> Segment {
    Segment {
        selector: selector as u16,
        base: 0,
        limit: u32::MAX,
        attr: 0xa09b | u32::from(dpl) << 5,
    }
}

/// A flat writable data segment.
fn flat_data(selector: u64, dpl: u8) -> Segment {
    Segment {
        selector: selector as u16,
        base: 0,
        limit: u32::MAX,
        attr: 0xc093 | u32::from(dpl) << 5,
    }
}

/// The linear address of a selector's descriptor, if it is a whole one of the GDT.
fn descriptor_at(s: &X86State, selector: u64) -> Option<u64> {
    let in_gdt = selector & 4 == 0 && selector > 3;
    (in_gdt && selector | 7 <= u64::from(s.gdtr.limit))
        .then(|| s.gdtr.base.wrapping_add(selector & !7))
}

/// No data segment that CPL 3 may not use would become null on the way there.
fn segments_stay(s: &X86State) -> bool {
    [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs].iter().all(|n| {
        let d = s.segment(*n);
        d.unusable() || d.attr & 0x1c == 0x1c || d.dpl() == 3
    })
}

impl BtVcpu {
    /// System registers from the state to the context.
    pub(super) fn load_system(&mut self) {
        let c = self.peer.ctx();
        let s = &self.cpu.state;
        for (word, v) in c.cr.iter().zip([s.cr0.bits(), s.cr2, s.cr3, s.cr4.bits()]) {
            word.set(v);
        }
        for (seg, word) in s.seg.iter().zip(&c.selectors) {
            word.set(u64::from(seg.selector));
        }
        c.cs_kind.set(0);
        c.ss_kind.set(0);
        let m = &s.msr;
        let (kernel, user) = ((m.star >> 32) & 0xfffc, m.star >> 48);
        c.lstar.set(m.lstar);
        c.fmask_kept.set(!m.fmask | 2);
        c.syscall_cs.set(kernel);
        c.syscall_ss.set(kernel.wrapping_add(8) & 0xffff);
        let (cs, ss) = (
            user.wrapping_add(16) & 0xffff | 3,
            user.wrapping_add(8) & 0xffff | 3,
        );
        c.sysret_cs.set(cs);
        c.sysret_ss.set(ss);
        let sce = s.efer.contains(Efer::SCE);
        c.syscall_ok
            .set(u32::from(sce && m.fmask & MASKED == MASKED));
        c.sysret_ok.set(u32::from(sce));
        let plain = !s.nmi_blocked && !s.rflags.contains(RFlags::NT);
        let (ucs, uss) = (descriptor_at(s, cs), descriptor_at(s, ss));
        c.user_cs_at.set(ucs.unwrap_or_default());
        c.user_ss_at.set(uss.unwrap_or_default());
        let user_ok = plain && ucs.is_some() && uss.is_some() && segments_stay(s);
        c.iret_user_ok.set(u32::from(user_ok));
        self.load_own_selectors(plain);
        let c = self.peer.ctx();
        let s = &self.cpu.state;
        c.tsc_aux.set(u64::from(s.msr.tsc_aux));
        let offset = self.tsc_offset.map(|o| o.wrapping_add(s.msr.tsc_adjust));
        c.tsc_offset.set(offset.unwrap_or_default());
        let tsc = offset.is_some() && !s.cr4.contains(Cr4::TSD);
        c.tsc_ok.set(u32::from(tsc));
        c.fsgsbase_ok.set(u32::from(s.cr4.contains(Cr4::FSGSBASE)));
    }

    /// The CS and SS of CPL 0 that an inline IRET within it knows: the present ones, or those that
    /// SYSCALL loads.
    fn load_own_selectors(&self, plain: bool) {
        let c = self.peer.ctx();
        let s = &self.cpu.state;
        let (cs, ss) = if s.cpl == 3 {
            (c.syscall_cs.get(), c.syscall_ss.get())
        } else {
            (c.selectors[1].get(), c.selectors[2].get())
        };
        let (cs_at, ss_at) = (descriptor_at(s, cs), descriptor_at(s, ss));
        c.own_cs.set(cs);
        c.own_ss.set(ss);
        c.own_ss_kind.set(if ss == 0 { NULL } else { 1 });
        c.own_cs_at.set(cs_at.unwrap_or_default());
        c.own_ss_at.set(ss_at.unwrap_or_default());
        let known = cs_at.is_some() && (ss == 0 || ss_at.is_some());
        let ok = plain && known && (cs | ss) & 3 == 0;
        c.iret_own_ok.set(u32::from(ok));
    }

    /// Makes CS, SS and CPL of the state what translated code has made of them. True if that was
    /// anything.
    pub(super) fn sync_world(&mut self) -> bool {
        let c = self.peer.ctx();
        let (cs, ss) = (c.cs_kind.replace(0), c.ss_kind.replace(0));
        if cs == 0 && ss == 0 {
            return false;
        }
        let level = |kind| if kind == USER { 3 } else { 0 };
        let s = &mut self.cpu.state;
        if cs != 0 {
            s.seg[Seg::Cs as usize] = flat_code(c.selectors[1].get(), level(cs));
            s.cpl = level(cs);
        }
        let selector = c.selectors[2].get();
        match ss {
            0 => s.seg[Seg::Ss as usize].selector = selector as u16,
            NULL => s.seg[Seg::Ss as usize] = Segment::null_stack(0, 0),
            _ => s.seg[Seg::Ss as usize] = flat_data(selector, level(ss)),
        }
        s.rflags = flags_of(c);
        self.cpu.refresh();
        true
    }
}
