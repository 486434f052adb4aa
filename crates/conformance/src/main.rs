//! `mimeo-conformance [--cases N] [--write FILE] [NAME]`: compares the forms whose code contains
//! NAME (or all), prints what differs, and writes the coverage table.

use mimeo_conformance::run::{self, Verdict};
use mimeo_isa_x86::Form;
use std::fmt::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (mut cases, mut write, mut name) = (run::cases(1000), None, String::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--cases" => {
                cases = arguments
                    .next()
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(cases)
            }
            "--write" => write = arguments.next(),
            other => name = other.to_lowercase(),
        }
    }
    let wanted = |f: &Form| format!("{:?}", f.code).to_lowercase().contains(&name);
    let results = match run::all(cases, wanted) {
        Ok(results) => results,
        Err(run::Unavailable(why)) => {
            eprintln!("nothing can be compared here: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut wrong = 0;
    for (_, verdict) in &results {
        if let Verdict::Differs(what) = verdict {
            println!("{what}");
            wrong += 1;
        }
    }
    println!("{} forms, {wrong} differ", results.len());
    if let Some(path) = write
        && let Err(e) = std::fs::write(&path, table(&results))
    {
        eprintln!("{path}: {e}");
        return ExitCode::FAILURE;
    }
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The coverage table in Markdown.
fn table(results: &[(&'static Form, Verdict)]) -> String {
    let tested = results
        .iter()
        .filter(|(_, v)| matches!(v, Verdict::Agreed(_)));
    let vectors: u64 = results
        .iter()
        .map(|(_, v)| if let Verdict::Agreed(n) = v { *n } else { 0 })
        .sum();
    let mut out = format!(
        "# Instruction coverage\n\nMade by `cargo run --release -p mimeo-conformance -- --write \
         docs/instruction-coverage.md`.\n\nEvery row of the instruction table; what has no row is \
         #UD. *Handler* is the file of that name in the interpreter, *class* how the form may be \
         carried out, *vectors* the cases in which the interpreter agreed with the host's CPU.\n\n\
         {} forms, {} compared with the host's CPU, {vectors} vectors.\n\n\
         | form | handler | class | vectors |\n|---|---|---|---|\n",
        results.len(),
        tested.count(),
    );
    for (form, verdict) in results {
        let vectors = match verdict {
            Verdict::Agreed(n) => n.to_string(),
            Verdict::Skipped(why) => format!("none: {why}"),
            Verdict::Differs(_) => "**differs**".to_owned(),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {:?} | {vectors} |",
            form.code.op_code().instruction_string(),
            format!("{:?}", form.group).to_lowercase(),
            form.class,
        );
    }
    out
}
