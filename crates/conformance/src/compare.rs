//! Differences between the two sides after a case.

use crate::case::{Case, Fault, Outcome, State};
use crate::layout::DATA;
use iced_x86::{Code, Mnemonic};
use mimeo_arch_x86::state::FpState;
use mimeo_isa_x86::{Form, Group, ImplicitMemory, Unit, X87};

/// RFLAGS bits that unprivileged code can see change.
const FLAGS: u64 = 0x0004_0cd5;

/// What differs, in words; empty if nothing does.
#[must_use]
pub fn differences(
    form: &Form,
    case: &Case,
    host: &(Outcome, State),
    guest: &(Outcome, State),
) -> Vec<String> {
    let mut found = Vec::new();
    if skipped_bytes_fault(form, host.0, guest.0) {
        return found;
    }
    let mut note = |what: &str, host: &dyn std::fmt::Debug, guest: &dyn std::fmt::Debug| {
        found.push(format!("{what}: host {host:x?}, interpreter {guest:x?}"));
    };
    if dot_product_underflow(form, case, host.0, guest.0) {
        return found;
    }
    if !same_outcome(form, host.0, guest.0) {
        note("outcome", &host.0, &guest.0);
        return found;
    }
    if partial(form, host.0) {
        return found;
    }
    let (h, g) = (&host.1, &guest.1);
    for n in 0..16 {
        // In compatibility mode the upper registers and halves are out of sight.
        let (a, b) = (h.registers.gpr[n], g.registers.gpr[n]);
        let visible = if case.bits == 64 {
            u64::MAX
        } else if n < 8 {
            0xffff_ffff
        } else {
            0
        };
        if (a ^ b) & visible != 0 {
            note(&format!("register {n}"), &a, &b);
        }
    }
    if h.registers.rip != g.registers.rip {
        note("RIP", &h.registers.rip, &g.registers.rip);
    }
    let defined = if host.0 == Outcome::Done {
        FLAGS & !u64::from(form.flags.undefined)
    } else {
        FLAGS
    };
    let (a, b) = (h.registers.rflags & defined, g.registers.rflags & defined);
    if a != b {
        note("RFLAGS", &a, &b);
    }
    // A call that faults for its target may have stored the return address below the stack
    // pointer, and an 80-bit store that straddles pages its first part.
    let partly_stored = match host.0 {
        Outcome::Fault(Fault::General) => form.group == Group::Control,
        Outcome::Fault(Fault::Page(_)) => form.unit == Unit::X87 && form.mem.size == 10,
        _ => false,
    };
    if !partly_stored && let Some(at) = h.data.iter().zip(&g.data).position(|(a, b)| a != b) {
        let end = (at + 16).min(h.data.len());
        let linear = DATA + at as u64;
        note(
            &format!("memory at {linear:#x}"),
            &&h.data[at..end],
            &&g.data[at..end],
        );
    }
    if case.uses_fp {
        let mut host_fp = h.fp.clone();
        if host.0 == Outcome::Fault(Fault::FloatingPoint) {
            forgive_flags(form, case, &mut host_fp, &g.fp);
        }
        fp(form, &host_fp, &g.fp, &mut note);
    }
    found
}

fn is_dot_product(form: &Form) -> bool {
    matches!(
        form.code.mnemonic(),
        Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd
    )
}

/// Known deviation, stated in the interpreter: with underflow unmasked, an exact denormal between the
/// stages of a dot product.
fn dot_product_underflow(form: &Form, case: &Case, host: Outcome, guest: Outcome) -> bool {
    const UNDERFLOW_MASK: u32 = 1 << 11;
    is_dot_product(form)
        && case.state.fp.mxcsr & UNDERFLOW_MASK == 0
        && host == Outcome::Fault(Fault::FloatingPoint)
        && guest == Outcome::Done
}

/// Processors may fault for bytes that the mask leaves out (SDM vol. 2, MASKMOVDQU).
fn skipped_bytes_fault(form: &Form, host: Outcome, guest: Outcome) -> bool {
    form.implicit_memory == ImplicitMemory::MaskMove
        && guest == Outcome::Done
        && matches!(host, Outcome::Fault(Fault::Page(_) | Fault::General))
}

/// PUSHA, POPA and XRSTOR that fault have done a part on some processors; they are restarted as a
/// whole.
fn partial(form: &Form, outcome: Outcome) -> bool {
    outcome != Outcome::Done
        && matches!(
            form.code,
            Code::Pushaw
                | Code::Pushad
                | Code::Popaw
                | Code::Popad
                | Code::Xrstor_mem
                | Code::Xrstor64_mem
        )
}

/// Which of several faulting bytes CR2 names is the processor's own affair for masked accesses
/// and for state areas, and so is which operand of CMPS and MOVS is looked at first. A call
/// through a pointer that is not canonical may push before it looks.
fn same_outcome(form: &Form, host: Outcome, guest: Outcome) -> bool {
    let area = form.unit == Unit::Xsave
        || form.mem.size > 32
        || form.implicit_memory == ImplicitMemory::MaskMove;
    let two = form.implicit_memory == ImplicitMemory::SourceAndDestination;
    match (host, guest) {
        (Outcome::Fault(Fault::Page(_)), Outcome::Fault(Fault::Page(_))) if area => true,
        (Outcome::Fault(Fault::Page(a)), Outcome::Fault(Fault::Page(b)))
            if form.mem.masked || form.mem.size > 8 && form.unit == Unit::X87 =>
        {
            a >> 12 == b >> 12
        }
        (Outcome::Fault(_), Outcome::Fault(_)) if two || form.unit == Unit::Xsave => true,
        (Outcome::Fault(Fault::Page(_) | Fault::Stack), Outcome::Fault(Fault::General)) => {
            form.code == Code::Call_rm64
        }
        _ => host == guest,
    }
}

/// Known deviations of MXCSR's flags after #XM, stated in the interpreter: PE next to an unmasked
/// overflow or underflow (hardware then judges precision with an unbounded exponent, masked
/// execution with the format's own), and all flags of the dot products, whose stages hardware
/// stops one by one.
fn forgive_flags(form: &Form, case: &Case, host: &mut FpState, guest: &FpState) {
    const PRECISION: u32 = 0x20;
    const RANGE: u32 = 0x18;
    if is_dot_product(form) {
        host.mxcsr = host.mxcsr & !0x3f | guest.mxcsr & 0x3f;
    }
    let unmasked = !(case.state.fp.mxcsr >> 7);
    if host.mxcsr & unmasked & RANGE != 0 {
        host.mxcsr = host.mxcsr & !PRECISION | guest.mxcsr & PRECISION;
    }
}

type Note<'a> = dyn FnMut(&str, &dyn std::fmt::Debug, &dyn std::fmt::Debug) + 'a;

fn fp(form: &Form, h: &FpState, g: &FpState, note: &mut Note<'_>) {
    let words = [
        ("FCW", u64::from(h.fcw), u64::from(g.fcw)),
        ("FSW", u64::from(h.fsw), u64::from(g.fsw)),
        ("FTW", u64::from(h.ftw), u64::from(g.ftw)),
        ("MXCSR", u64::from(h.mxcsr), u64::from(g.mxcsr)),
    ];
    for (name, a, b) in words {
        if a != b {
            note(name, &a, &b);
        }
    }
    // The data pointer and the selectors are recorded differently by processor generations.
    if form.x87 == X87::Data {
        if h.fip != g.fip {
            note("FIP", &h.fip, &g.fip);
        }
        if h.fop != g.fop {
            note("FOP", &h.fop, &g.fop);
        }
    }
    for n in 0..8 {
        if h.st[n] != g.st[n] {
            note(&format!("ST({n})"), &h.st[n], &g.st[n]);
        }
    }
    for n in 0..16 {
        if h.ymm[n] != g.ymm[n] {
            note(&format!("YMM{n}"), &h.ymm[n], &g.ymm[n]);
        }
    }
}
