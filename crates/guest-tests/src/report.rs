//! Reading a guest's report: which cases passed, failed, were skipped or never reported.
//!
//! The protocol (`guests/lib/test.c`): `RUN name`, then `PASS name`, `FAIL name: what` or
//! `SKIP name: why`; `DYING name` before an intended triple fault; `END`. A case that ends the
//! machine is judged, and the guest is started again at the next one (`from=N`).

use crate::engine::{Ending, Engine, Outcome};
use crate::image::Image;
use std::collections::BTreeMap;
use std::time::Duration;

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All its checks held.
    Pass,
    /// What did not.
    Fail(String),
    /// The CPU lacks what it needs.
    Skip(String),
}

/// Longest time for one start of a guest. Whole programs take a second or two; this is for a guest
/// that hangs, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs every case of an image on an engine.
#[must_use]
pub fn run_all(engine: &Engine, image: &Image) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    let mut from = 0;
    while from < image.cases.len() {
        let outcome = match engine.run(image, &format!("from={from}"), LIMIT) {
            Ok(outcome) => outcome,
            Err(e) => {
                let what = format!("cannot run {}: {e}", engine.name);
                mark_rest(&mut verdicts, image, from, &what);
                break;
            }
        };
        match read(&outcome, &image.cases[from..], &mut verdicts) {
            Some(done) => from += done,
            None => break,
        }
    }
    mark_rest(
        &mut verdicts,
        image,
        0,
        "the guest never reported this case",
    );
    verdicts
}

fn mark_rest(verdicts: &mut BTreeMap<String, Verdict>, image: &Image, from: usize, what: &str) {
    for case in &image.cases[from..] {
        verdicts
            .entry(case.clone())
            .or_insert_with(|| Verdict::Fail(what.to_owned()));
    }
}

/// Reads one run's report. `Some(n)`: the first `n` of `cases` are done and the guest must be
/// started again; `None`: it came to its end.
fn read(
    outcome: &Outcome,
    cases: &[String],
    verdicts: &mut BTreeMap<String, Verdict>,
) -> Option<usize> {
    let mut last: Option<&str> = None;
    let mut dying = false;
    let mut ended = false;
    for line in outcome.serial.lines() {
        let line = line.trim_end();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, what) = rest.split_once(": ").unwrap_or((rest, ""));
        match word {
            "RUN" => (last, dying) = (Some(name), false),
            "DYING" => dying = last == Some(name),
            "PASS" if last == Some(name) => {
                verdicts.entry(name.to_owned()).or_insert(Verdict::Pass);
            }
            "SKIP" if last == Some(name) => {
                let skip = Verdict::Skip(what.to_owned());
                verdicts.entry(name.to_owned()).or_insert(skip);
            }
            "FAIL" if last == Some(name) => match verdicts.get_mut(name) {
                Some(Verdict::Fail(before)) => {
                    before.push('\n');
                    before.push_str(what);
                }
                _ => {
                    verdicts.insert(name.to_owned(), Verdict::Fail(what.to_owned()));
                }
            },
            "END" => ended = true,
            _ => {}
        }
    }
    if ended && outcome.ending == Ending::Finished {
        return None;
    }
    let Some(last) = last else {
        let what = format!("the guest said nothing: {}", describe(outcome));
        for case in cases {
            verdicts.insert(case.clone(), Verdict::Fail(what.clone()));
        }
        return None;
    };
    let verdict = if dying && outcome.ending == Ending::TripleFault {
        Verdict::Pass
    } else {
        let before = match verdicts.get(last) {
            Some(Verdict::Fail(what)) => format!("{what}\n"),
            _ => String::new(),
        };
        Verdict::Fail(format!(
            "{before}the machine ended in it: {}",
            describe(outcome)
        ))
    };
    verdicts.insert(last.to_owned(), verdict);
    let index = cases.iter().position(|c| c == last)?;
    Some(index + 1)
}

fn describe(outcome: &Outcome) -> String {
    let tail = |text: &str| {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    };
    format!("{:?}\n{}", outcome.ending, tail(&outcome.said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(serial: &str, ending: Ending) -> Outcome {
        Outcome {
            serial: serial.to_owned(),
            said: String::new(),
            ending,
        }
    }

    fn cases() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_failure_stays_one() {
        let mut v = BTreeMap::new();
        let o = outcome(
            "RUN a\nFAIL a: x got 1 want 2\nPASS a\nRUN b\nPASS b\nRUN c\nSKIP c: no LA57\nEND\n",
            Ending::Finished,
        );
        assert_eq!(read(&o, &cases(), &mut v), None);
        assert_eq!(v["a"], Verdict::Fail("x got 1 want 2".to_owned()));
        assert_eq!(v["b"], Verdict::Pass);
        assert_eq!(v["c"], Verdict::Skip("no LA57".to_owned()));
    }

    #[test]
    fn an_intended_triple_fault_passes_and_goes_on() {
        let mut v = BTreeMap::new();
        let o = outcome("RUN a\nPASS a\nRUN b\nDYING b\n", Ending::TripleFault);
        assert_eq!(read(&o, &cases(), &mut v), Some(2));
        assert_eq!(v["b"], Verdict::Pass);
        let o = outcome("RUN a\n", Ending::TripleFault);
        let mut v = BTreeMap::new();
        assert_eq!(read(&o, &cases(), &mut v), Some(1));
        assert!(matches!(v["a"], Verdict::Fail(_)));
    }

    #[test]
    fn silence_and_a_missing_end_are_failures() {
        let mut v = BTreeMap::new();
        assert_eq!(read(&outcome("", Ending::Timeout), &cases(), &mut v), None);
        assert!(v.values().all(|x| matches!(x, Verdict::Fail(_))) && v.len() == 3);
        let mut v = BTreeMap::new();
        let o = outcome("RUN a\nPASS a\nRUN b\n", Ending::Finished);
        assert_eq!(read(&o, &cases(), &mut v), Some(2));
        assert!(matches!(v["b"], Verdict::Fail(_)));
    }
}
