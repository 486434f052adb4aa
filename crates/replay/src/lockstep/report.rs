//! What a person reads when two engines differ.

use super::LockstepVcpu;
use super::compare::instruction;
use iced_x86::{Formatter, IntelFormatter};
use mimeo_arch_x86::{X86State, state};
use mimeo_vcpu::EngineError;
use std::fmt::Write;

/// Instructions of the path that are shown, from its beginning and from its end.
const SHOWN: usize = 64;
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
        let (a, b) = (self.lead.state(), self.check.state());
        let _ = writeln!(out, "first / second:");
        for d in state::diff(a, b) {
            let _ = writeln!(out, "  {d}");
        }
        self.memory(&mut out);
        self.instructions(&mut out);
        registers(&mut out, "the first", a);
        registers(&mut out, "the second", b);
        let start = self.path.steps.front().map(|s| s.rip);
        if let Some(text) = start.and_then(|rip| self.lead.explain(rip)) {
            let _ = write!(out, "code of the first:\n{text}");
        }
        EngineError::Internal(out)
    }

    fn memory(&self, out: &mut String) {
        let mut pages = self.pages.clone();
        let tracker = self.pair.copy.tracker();
        tracker.collect_dirty(|page| pages.push(page));
        pages.sort_unstable();
        pages.dedup();
        let all = pages.iter().filter_map(|p| self.first_difference(*p));
        for (gpa, a, b) in all.take(PAGES) {
            let _ = writeln!(out, "  physical {gpa:#x}: {a:02x?} / {b:02x?}");
        }
    }

    fn instructions(&self, out: &mut String) {
        let path = &self.path;
        let _ = writeln!(out, "the second executed since they agreed:");
        if path.lost > 0 {
            let _ = writeln!(out, "    ({} instructions are not shown)", path.lost);
        }
        let n = path.steps.len();
        for (k, at) in path.steps.iter().enumerate() {
            if k >= SHOWN && k + SHOWN < n {
                if k == SHOWN {
                    let _ = writeln!(out, "    ...");
                }
                continue;
            }
            let i = instruction(self.check.state(), &self.pair.model, &self.pair.copy, at);
            let mut text = String::new();
            IntelFormatter::new().format(&i, &mut text);
            let _ = writeln!(out, "    {:016x}  {text}", at.rip);
        }
    }
}
