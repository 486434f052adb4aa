//! Comparison of two states field by field, for lockstep verification.

use super::{Activity, DescriptorTable, FpState, Gpr, Msrs, Segment, X86State};
use crate::Exception;

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field, as in `rax`, `cs.base` or `ymm3[2]`.
    pub field: String,
    /// Its value in the first state.
    pub a: u128,
    /// Its value in the second state.
    pub b: u128,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:#x} / {:#x}", self.field, self.a, self.b)
    }
}

/// The fields in which two states differ, in the order of the structure; empty when they are equal.
#[must_use]
pub fn diff(a: &X86State, b: &X86State) -> Vec<Difference> {
    if a == b {
        return Vec::new();
    }
    let pairs = fields(a).into_iter().zip(fields(b));
    pairs
        .filter(|((_, a), (_, b))| a != b)
        .map(|((field, a), (_, b))| Difference { field, a, b })
        .collect()
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEG: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

impl Gpr {
    /// The 64-bit register's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        GPR[self as usize]
    }
}

type Fields = Vec<(String, u128)>;

/// Every field as (name, value). The number and order do not depend on the values.
fn fields(state: &X86State) -> Fields {
    // Taken apart in full, so that a new field cannot be forgotten here.
    let X86State {
        gpr,
        rip,
        rflags,
        seg,
        ldtr,
        tr,
        gdtr,
        idtr,
        cpl,
        cr0,
        cr2,
        cr3,
        cr4,
        efer,
        xcr0,
        pkru,
        dr,
        dr6,
        dr7,
        pdptr,
        fp,
        msr,
        activity,
        sti_shadow,
        mov_ss_shadow,
        nmi_blocked,
        nmi_pending,
        pending_exception,
        monitor,
    } = state;
    let mut out = Fields::with_capacity(256);
    let mut put = |name: &str, value: u128| out.push((name.to_owned(), value));
    for (name, value) in GPR.iter().zip(gpr) {
        put(name, u128::from(*value));
    }
    for (name, value) in [
        ("rip", *rip),
        ("rflags", rflags.bits()),
        ("cr0", cr0.bits()),
        ("cr2", *cr2),
        ("cr3", *cr3),
        ("cr4", cr4.bits()),
        ("efer", efer.bits()),
        ("xcr0", *xcr0),
        ("pkru", u64::from(*pkru)),
        ("dr6", *dr6),
        ("dr7", *dr7),
        ("cpl", u64::from(*cpl)),
        ("activity", activity_code(*activity)),
        ("sti_shadow", u64::from(*sti_shadow)),
        ("mov_ss_shadow", u64::from(*mov_ss_shadow)),
        ("nmi_blocked", u64::from(*nmi_blocked)),
        ("nmi_pending", u64::from(*nmi_pending)),
        ("monitor", monitor.unwrap_or(0)),
        ("monitor.armed", u64::from(monitor.is_some())),
    ] {
        put(name, u128::from(value));
    }
    for (name, s) in SEG.iter().zip(seg).chain([(&"ldtr", ldtr), (&"tr", tr)]) {
        segment(&mut out, name, s);
    }
    for (name, DescriptorTable { base, limit }) in [("gdtr", gdtr), ("idtr", idtr)] {
        out.push((format!("{name}.base"), u128::from(*base)));
        out.push((format!("{name}.limit"), u128::from(*limit)));
    }
    list(&mut out, "dr", dr);
    list(&mut out, "pdptr", pdptr);
    exception(&mut out, pending_exception.as_ref());
    float(&mut out, fp);
    msrs(&mut out, msr);
    out
}

const fn activity_code(activity: Activity) -> u64 {
    match activity {
        Activity::Running => 0,
        Activity::Halted => 1,
        Activity::WaitForSipi => 2,
        Activity::Shutdown => 3,
    }
}

fn list(out: &mut Fields, name: &str, values: &[u64]) {
    for (n, value) in values.iter().enumerate() {
        out.push((format!("{name}[{n}]"), u128::from(*value)));
    }
}

fn segment(out: &mut Fields, name: &str, segment: &Segment) {
    let Segment {
        selector,
        base,
        limit,
        attr,
    } = *segment;
    out.push((format!("{name}.selector"), selector.into()));
    out.push((format!("{name}.base"), base.into()));
    out.push((format!("{name}.limit"), limit.into()));
    out.push((format!("{name}.attr"), attr.into()));
}

fn exception(out: &mut Fields, e: Option<&Exception>) {
    // A vector plus one, so that "none" is zero.
    let vector = e.map_or(0, |e| e.vector as u128 + 1);
    let code = e.and_then(|e| e.error_code);
    let cr2 = e.and_then(|e| e.cr2);
    out.push(("pending_exception".into(), vector));
    out.push((
        "pending_exception.code".into(),
        code.map_or(0, |c| u128::from(c) + 1),
    ));
    out.push((
        "pending_exception.cr2".into(),
        cr2.map_or(0, |c| u128::from(c) + 1),
    ));
    out.push((
        "pending_exception.dr6".into(),
        e.map_or(0, |e| e.dr6.into()),
    ));
}

fn float(out: &mut Fields, fp: &FpState) {
    let FpState {
        fcw,
        fsw,
        ftw,
        fop,
        fip,
        fdp,
        fcs,
        fds,
        st,
        mxcsr,
        ymm,
    } = fp;
    for (name, value) in [
        ("fcw", u64::from(*fcw)),
        ("fsw", u64::from(*fsw)),
        ("ftw", u64::from(*ftw)),
        ("fop", u64::from(*fop)),
        ("fip", *fip),
        ("fdp", *fdp),
        ("fcs", u64::from(*fcs)),
        ("fds", u64::from(*fds)),
        ("mxcsr", u64::from(*mxcsr)),
    ] {
        out.push((name.to_owned(), value.into()));
    }
    for (n, value) in st.iter().enumerate() {
        out.push((format!("st{n}"), *value));
    }
    for (n, quads) in ymm.iter().enumerate() {
        list(out, &format!("ymm{n}"), quads);
    }
}

fn msrs(out: &mut Fields, msr: &Msrs) {
    let Msrs {
        star,
        lstar,
        cstar,
        fmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        tsc_aux,
        pat,
        mtrr_def_type,
        mtrr_var,
        mtrr_fixed,
        misc_enable,
        debugctl,
        spec_ctrl,
        tsc_adjust,
        xss,
        mcg_status,
    } = msr;
    for (name, value) in [
        ("star", *star),
        ("lstar", *lstar),
        ("cstar", *cstar),
        ("fmask", *fmask),
        ("kernel_gs_base", *kernel_gs_base),
        ("sysenter_cs", *sysenter_cs),
        ("sysenter_esp", *sysenter_esp),
        ("sysenter_eip", *sysenter_eip),
        ("tsc_aux", u64::from(*tsc_aux)),
        ("pat", *pat),
        ("mtrr_def_type", *mtrr_def_type),
        ("misc_enable", *misc_enable),
        ("debugctl", *debugctl),
        ("spec_ctrl", *spec_ctrl),
        ("tsc_adjust", *tsc_adjust),
        ("xss", *xss),
        ("mcg_status", *mcg_status),
    ] {
        out.push((name.to_owned(), value.into()));
    }
    for (n, (base, mask)) in mtrr_var.iter().enumerate() {
        list(out, &format!("mtrr_var{n}"), &[*base, *mask]);
    }
    list(out, "mtrr_fixed", mtrr_fixed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_values_found() {
        let a = X86State::reset(0x806f8);
        let mut names: Vec<_> = fields(&a).into_iter().map(|(n, _)| n).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(diff(&a, &a).is_empty());
        let mut b = a.clone();
        b.gpr[Gpr::Rsi as usize] = 5;
        b.seg[1].base = 7;
        b.fp.ymm[3][2] = 9;
        b.msr.mtrr_fixed[10] = 11;
        b.pending_exception = Some(Exception::gp(0));
        let d: Vec<_> = diff(&a, &b).iter().map(ToString::to_string).collect();
        assert_eq!(
            d,
            [
                "rsi: 0x0 / 0x5",
                "cs.base: 0xffff0000 / 0x7",
                "pending_exception: 0x0 / 0xe",
                "pending_exception.code: 0x0 / 0x1",
                "ymm3[2]: 0x0 / 0x9",
                "mtrr_fixed[10]: 0x0 / 0xb",
            ]
        );
    }
}
