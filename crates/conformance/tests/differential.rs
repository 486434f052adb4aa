//! Every form against the host's CPU, one test a group so that they run in parallel.
//!
//! Where the host refuses to be traced the tests say so and compare nothing.

use mimeo_conformance::run::{self, Unavailable, Verdict};
use mimeo_isa_x86::{Form, Group};

/// Cases a form unless `MIMEO_CONFORMANCE_CASES` says otherwise.
const CASES: u64 = 400;

fn compare(wanted: impl Fn(&Form) -> bool) {
    let results = match run::all(run::cases(CASES), wanted) {
        Ok(results) => results,
        Err(Unavailable(why)) => {
            println!("skipped: {why}");
            return;
        }
    };
    assert!(!results.is_empty(), "no such forms");
    let wrong: Vec<&str> = results
        .iter()
        .filter_map(|(_, v)| match v {
            Verdict::Differs(what) => Some(what.as_str()),
            _ => None,
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} forms differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

macro_rules! groups {
    ($($name:ident: $($group:ident)|+;)+) => {
        $(#[test]
        fn $name() {
            compare(|f| matches!(f.group, $(Group::$group)|+));
        })+

        /// No group is forgotten.
        #[test]
        fn all_groups_are_tested() {
            for form in mimeo_isa_x86::forms() {
                let tested = false $(|| matches!(form.group, $(Group::$group)|+))+;
                assert!(tested || form.group == Group::System, "{:?}", form.group);
            }
        }
    };
}

groups! {
    integer: Integer;
    shifts: Shifts;
    bits_and_flags: Bits | Flags;
    moves: Moves;
    strings_and_stack: Strings | Stack | Segments;
    control_and_hints: Control | Hints;
    state: Xsave;
    x87: X87;
    mmx: Mmx;
    sse: Sse;
    sse2: Sse2;
    sse3_and_sse4: Sse3 | Sse4;
    crypto_and_fma: Crypto | Fma;
    avx: Avx;
    avx2: Avx2;
}
