//! What a person reads when two engines differ.

use super::LockstepVcpu;
use super::compare::instruction;
use iced_x86::{Formatter, IntelFormatter};
use mimeo_arch_x86::{X86State, state};
use mimeo_vcpu::EngineError;
use std::fmt::Write;

/// Pages whose first difference is shown.
const PAGES: usize = 8;

fn registers(out: &mut String, name: &str, s: &X86State) {
    let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let _ = writeln!(out, "state of {name}:");
    for (names, values) in names.chunks(4).zip(s.gpr.chunks(4)) {
        for (name, value) in names.iter().zip(values) {
            let _ = write!(out, "  {name} {value:016x}");
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "  rip {:016x}  rflags {:08x}  cpl {}  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  {:?}",
        s.rip,
        s.rflags.bits(),
        s.cpl,
        s.cr0.bits(),
        s.cr2,
        s.cr3,
        s.cr4.bits(),
        s.activity
    );
}

impl LockstepVcpu {
    /// The engines differ: everything about it, as an error.
    pub(super) fn difference(&mut self, what: &str) -> EngineError {
        let mut out = format!(
            "the engines differ on vCPU {} after {} comparisons, {} instructions: {what}\n",
            self.index,
            self.slices,
            self.check.retired()
        );
        match self.closest.take() {
            Some((_, text)) => out.push_str(&text),
            None => {
                out.push_str("the second was never at the RIP where the first stopped\n");
                let text = self.states();
                out.push_str(&text);
            }
        }
        self.instructions(&mut out);
        let start = self.path.first.first().map(|s| s.rip);
        if let Some(text) = start.and_then(|rip| self.lead.explain(rip)) {
            let _ = write!(out, "code of the first:\n{text}");
        }
        EngineError::Internal(out)
    }

    /// Where they differ now, and both states.
    fn states(&mut self) -> String {
        let mut out = String::from("first / second:\n");
        let (a, b) = (self.lead.state(), self.check.state());
        for d in state::diff(a, b) {
            let _ = writeln!(out, "  {d}");
        }
        self.memory(&mut out);
        registers(&mut out, "the first", a);
        registers(&mut out, "the second", b);
        out
    }

    /// The second stands where the first stopped, but not with the same state: kept for the report if it
    /// is the nearest so far.
    pub(super) fn near(&mut self) {
        const LOOKED_AT: u32 = 16;
        self.nears += 1;
        if self.nears > LOOKED_AT {
            return;
        }
        let registers = state::diff(self.lead.state(), self.check.state()).len();
        let pages = self.pages.iter().filter(|p| !self.same(**p)).count();
        let distance = registers + pages;
        if self.closest.as_ref().is_none_or(|(d, _)| distance < *d) {
            self.closest = Some((distance, self.states()));
        }
    }

    fn memory(&self, out: &mut String) {
        let all = self.pages.iter().filter_map(|p| self.first_difference(*p));
        for (gpa, a, b) in all.take(PAGES) {
            let _ = writeln!(out, "  physical {gpa:#x}: {a:02x?} / {b:02x?}");
        }
    }

    fn instructions(&self, out: &mut String) {
        let path = &self.path;
        let _ = writeln!(out, "the second executed since they agreed:");
        for (k, at) in path.steps().enumerate() {
            if path.lost > 0 && k == path.first.len() {
                let _ = writeln!(out, "    ({} instructions are not shown)", path.lost);
            }
            let i = instruction(self.check.state(), &self.pair.model, &self.pair.copy, at);
            let mut text = String::new();
            IntelFormatter::new().format(&i, &mut text);
            let _ = writeln!(out, "    {:016x}  {text}", at.rip);
        }
    }
}
