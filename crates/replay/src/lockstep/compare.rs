//! When two vCPUs agree.

use super::LockstepVcpu;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_arch_x86::paging::{PagingContext, PhysMem, probe};
use mimeo_arch_x86::{RFlags, Seg, X86State};
use mimeo_memory::{GuestMemory, PAGE_SIZE};
use std::collections::VecDeque;

/// Steps that are remembered, from the first and up to the last.
const REMEMBERED: usize = 128;

type Page = [u8; PAGE_SIZE as usize];

/// Words of 64 bits differ in nothing but the accessed flag of entries that are present.
fn only_accessed(a: &Page, b: &Page) -> bool {
    const PRESENT: u8 = 1;
    const ACCESSED: u8 = 1 << 5;
    let same = |(n, (a, b)): (usize, (&u8, &u8))| {
        a == b
            || (n % 8 == 0 && a ^ b == ACCESSED && a & (PRESENT | ACCESSED) == PRESENT | ACCESSED)
    };
    a.iter().zip(b).enumerate().all(same)
}

/// One step of the second engine: what it stood before.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepAt {
    pub(super) rip: u64,
    /// The linear address of the instruction.
    pub(super) linear: u64,
    pub(super) bits: u32,
}

/// The first and the last steps of the second engine.
#[derive(Debug, Default)]
pub(super) struct Path {
    pub(super) first: Vec<StepAt>,
    pub(super) last: VecDeque<StepAt>,
    /// Steps between them that are no longer remembered.
    pub(super) lost: u64,
}

impl Path {
    pub(super) fn clear(&mut self) {
        self.first.clear();
        self.last.clear();
        self.lost = 0;
    }

    /// Remembers where the second engine stands.
    pub(super) fn push(&mut self, s: &X86State) {
        let code64 = s.code64();
        let cs = s.segment(Seg::Cs);
        let step = StepAt {
            rip: s.rip,
            linear: if code64 {
                s.rip
            } else {
                cs.base.wrapping_add(s.rip)
            },
            bits: match (code64, cs.db()) {
                (true, _) => 64,
                (false, true) => 32,
                (false, false) => 16,
            },
        };
        if self.first.len() < REMEMBERED {
            return self.first.push(step);
        }
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
            self.lost += 1;
        }
        self.last.push_back(step);
    }

    pub(super) fn steps(&self) -> impl DoubleEndedIterator<Item = &StepAt> {
        self.first.iter().chain(&self.last)
    }

    /// The last two steps stood at the same place.
    pub(super) fn stands(&self) -> bool {
        let mut last = self.steps().rev().map(|s| s.linear);
        matches!((last.next(), last.next()), (Some(a), Some(b)) if a == b)
    }
}

/// Page tables, read only.
struct Tables<'a>(&'a GuestMemory);

impl PhysMem for Tables<'_> {
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        self.0.read_u32(gpa)
    }
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        self.0.read_u64(gpa)
    }
    fn cas_u32(&self, _: u64, _: u32, _: u32) -> Option<bool> {
        None
    }
    fn cas_u64(&self, _: u64, _: u64, _: u64) -> Option<bool> {
        None
    }
}

/// The instruction at a step, through the page tables as they are now.
pub(super) fn instruction(
    s: &X86State,
    model: &CpuModel,
    memory: &GuestMemory,
    at: &StepAt,
) -> Instruction {
    let context = PagingContext::new(s, model);
    let mut bytes = Vec::with_capacity(15);
    for n in 0..15 {
        let mut linear = at.linear.wrapping_add(n);
        if !s.long_mode() {
            linear &= 0xffff_ffff;
        }
        let mut byte = [0];
        match probe(&Tables(memory), &context, linear) {
            Some(t) if memory.read(t.gpa, &mut byte).is_ok() => bytes.push(byte[0]),
            _ => break,
        }
    }
    Decoder::with_ip(at.bits, &bytes, at.rip, DecoderOptions::NONE).decode()
}

impl LockstepVcpu {
    /// Whether the second stands where the first stopped. Carries over what may differ.
    pub(super) fn agree(&mut self) -> bool {
        let (a, b) = (self.lead.state(), self.check.state());
        if a.rip != b.rip {
            return false;
        }
        let tracker = self.pair.copy.tracker().clone();
        tracker.collect_dirty(|page| self.pages.push(page));
        if a.gpr != b.gpr {
            return false;
        }
        let carry = if a == b {
            None
        } else {
            match self.excused(a, b) {
                Some(state) => Some(state),
                None => return false,
            }
        };
        self.pages.sort_unstable();
        self.pages.dedup();
        if !self.pages.iter().all(|page| self.same(*page)) {
            return false;
        }
        if self.stopped {
            self.carry_accessed();
        }
        if let Some(state) = carry {
            self.carried += 1;
            self.check.restore(state);
        }
        true
    }

    /// `b` with what may differ taken from `a`, if that makes them equal.
    fn excused(&self, a: &X86State, b: &X86State) -> Option<X86State> {
        let mut state = b.clone();
        state.fp.fip = a.fp.fip;
        state.fp.fdp = a.fp.fdp;
        state.fp.fop = a.fp.fop;
        state.fp.fcs = a.fp.fcs;
        state.fp.fds = a.fp.fds;
        let differ = a.rflags ^ b.rflags;
        if !differ.is_empty() {
            let undefined = self.undefined_flags(b);
            if !(differ - undefined).is_empty() {
                return None;
            }
            state.rflags = a.rflags;
        }
        (*a == state).then_some(state)
    }

    /// Status flags that some instruction since the last agreement left undefined and none has
    /// defined after it.
    fn undefined_flags(&self, s: &X86State) -> RFlags {
        let mut undefined = if self.path.lost > 0 {
            RFlags::STATUS
        } else {
            RFlags::empty()
        };
        for at in self.path.steps() {
            let i = instruction(s, &self.pair.model, &self.pair.copy, at);
            let Some(form) = mimeo_isa_x86::lookup(i.code()) else {
                continue;
            };
            let f = form.flags;
            if !f.conditional {
                undefined -= RFlags::from_bits_retain(u64::from(f.written | f.cleared | f.set));
            }
            undefined |= RFlags::from_bits_retain(u64::from(f.undefined));
        }
        undefined & RFlags::STATUS
    }

    pub(super) fn same(&self, page: usize) -> bool {
        match self.both(page) {
            None => true,
            Some((_, a, b)) => a == b || (self.stopped && only_accessed(&a, &b)),
        }
    }

    /// The address of a page and its bytes in both memories.
    fn both(&self, page: usize) -> Option<(u64, Page, Page)> {
        let gpa = self.pair.memory.page_address(page)?;
        let (mut a, mut b) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        self.pair.memory.read(gpa, &mut a).ok()?;
        self.pair.copy.read(gpa, &mut b).ok()?;
        Some((gpa, a, b))
    }

    /// Accessed flags that only the first engine has set are set for the second too.
    fn carry_accessed(&self) {
        for (gpa, a, b) in self.pages.iter().filter_map(|p| self.both(*p)) {
            if a != b {
                // In memory by construction: it was read from there.
                let _ = self.pair.copy.write(gpa, &a);
            }
        }
    }

    /// The first byte of a page that differs: its physical address and both values.
    pub(super) fn first_difference(&self, page: usize) -> Option<(u64, Vec<u8>, Vec<u8>)> {
        let (gpa, a, b) = self.both(page)?;
        if a == b {
            return None;
        }
        let n = a.iter().zip(&b).position(|(a, b)| a != b)? & !7;
        Some((gpa + n as u64, a[n..n + 8].to_vec(), b[n..n + 8].to_vec()))
    }
}
