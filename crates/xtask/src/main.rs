//! Repository chores: `cargo xtask layers`, `cargo xtask tally`.

mod layers;
mod tally;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  layers          fail when a crate depends on one that stands above it (docs/architecture.md)
  tally FILE N    sum up the `test result:` lines of a cargo test log; N of CI's steps failed
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["layers"] => layers::run(),
        ["tally", file, steps] => tally::run(file, steps),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
