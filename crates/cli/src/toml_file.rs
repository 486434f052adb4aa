//! A machine in a TOML file: `mimeo run -f FILE`, and `mimeo spec`, which prints one.
//!
//! A setting's name is the long flag's (and `guest`), its value what the flag takes: text, a number,
//! true or false, a list for flags that can be given several times. A table is a value with commas:
//! `disk = [{ file = "root.qcow2", snapshot = true }]` is `--disk root.qcow2,snapshot`. Nothing here
//! knows any flag: a file means the command line with its settings put in, so that whatever has a
//! flag has a setting. A flag that is given as well replaces all of the file's values for it.

use crate::args::Cli;
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory};
use std::ffi::OsString;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The setting that has no flag: the named guest.
const GUEST: &str = "guest";
/// Settings of which one excludes the other: a flag for one replaces the file's other.
const EITHER: &[(&str, &str)] = &[(GUEST, "kernel"), ("record", "replay")];
/// Flags that make no sense in a file, or that `mimeo spec` does not print.
const NOT_IN_FILES: &[&str] = &["file", "help", "detached-as"];

/// The command line with the settings of the file that it names.
pub fn merged(matches: ArgMatches) -> Result<ArgMatches, Failure> {
    let Some((name, sub)) = matches.subcommand() else {
        return Ok(matches);
    };
    let reads_files = matches!(name, "run" | "spec");
    let Some(path) = reads_files
        .then(|| sub.get_one::<std::path::PathBuf>("file"))
        .flatten()
    else {
        return Ok(matches);
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(Failure::Usage)?;
    let more = arguments(path, &text, sub).map_err(Failure::Usage)?;
    let mut all = std::env::args_os();
    let mut line: Vec<OsString> = all.by_ref().take(2).collect();
    line.extend(more.into_iter().map(OsString::from));
    line.extend(all);
    Cli::command()
        .try_get_matches_from(line)
        .map_err(|e| match e.kind() {
            clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => {
                e.exit()
            }
            _ => Failure::usage(anyhow!("with the settings of {}: {e}", path.display())),
        })
}

/// The flags of `mimeo run`.
fn flags() -> Vec<Arg> {
    let command = Cli::command();
    let run = command.find_subcommand("run");
    let all = run.map(|r| r.get_arguments().cloned().collect::<Vec<_>>());
    all.unwrap_or_default()
}

/// A flag's name in a file.
fn setting(arg: &Arg) -> Option<&str> {
    let name = arg
        .get_long()
        .or((arg.get_id() == GUEST).then_some(GUEST))?;
    (!NOT_IN_FILES.contains(&name)).then_some(name)
}

/// Line and column of a byte, from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}

/// The arguments that a file's settings are, but for those that `given` replaces.
fn arguments(path: &Path, text: &str, given: &ArgMatches) -> anyhow::Result<Vec<String>> {
    let at = |span: std::ops::Range<usize>| {
        let (line, column) = place(text, span.start);
        format!("{}:{line}:{column}", path.display())
    };
    let table = DeTable::parse(text)
        .map_err(|e| anyhow!("{}: {}", at(e.span().unwrap_or(0..0)), e.message()))?;
    let flags = flags();
    let on_line = |name: &str| {
        let flag = flags.iter().find(|f| setting(f) == Some(name));
        let id = flag.map(|f| f.get_id().as_str());
        id.is_some_and(|id| given.value_source(id) == Some(ValueSource::CommandLine))
    };
    let mut more = Vec::new();
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        let Some(flag) = flags.iter().find(|f| setting(f) == Some(name)) else {
            let names: Vec<&str> = flags.iter().filter_map(setting).collect();
            let hint =
                nearest(name, &names).map_or_else(String::new, |n| format!(": did you mean {n}?"));
            return Err(anyhow!(
                "{}: there is no setting `{name}`{hint}",
                at(key.span())
            ));
        };
        let other = EITHER.iter().find_map(|&(a, b)| match name {
            n if n == a => Some(b),
            n if n == b => Some(a),
            _ => None,
        });
        if on_line(name) || other.is_some_and(on_line) {
            continue;
        }
        let values =
            values(flag, value).map_err(|e| anyhow!("{}: {name}: {e}", at(value.span())))?;
        for v in values {
            more.push(match (name, v) {
                (GUEST, v) => v.unwrap_or_default(),
                (name, Some(v)) => format!("--{name}={v}"),
                (name, None) => format!("--{name}"),
            });
        }
    }
    Ok(more)
}

/// A setting's values as a flag takes them; `None` for a flag without a value.
fn values(flag: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<Option<String>>, String> {
    let switch = matches!(flag.get_action(), ArgAction::SetTrue);
    let many = matches!(flag.get_action(), ArgAction::Append);
    match value.get_ref() {
        DeValue::Boolean(on) if switch => Ok(if *on { vec![None] } else { Vec::new() }),
        _ if switch => Err("it is true or false".into()),
        DeValue::Array(list) if many => {
            let each = list.iter().map(|v| plain(v.get_ref()).map(Some));
            each.collect()
        }
        DeValue::Array(_) => Err("it has one value, not a list".into()),
        one => Ok(vec![Some(plain(one)?)]),
    }
}

/// A value as text.
fn plain(value: &DeValue<'_>) -> Result<String, String> {
    Ok(match value {
        DeValue::String(s) => s.to_string(),
        DeValue::Integer(n) => n.to_string(),
        DeValue::Float(n) => n.to_string(),
        DeValue::Boolean(on) => if *on { "on" } else { "off" }.into(),
        DeValue::Table(table) => parts(table)?.join(","),
        DeValue::Array(_) => return Err("a list in a list means nothing".into()),
        DeValue::Datetime(_) => return Err("a date means nothing here".into()),
    })
}

/// `{ file = "a", ro = true, serial = "x" }` as `a`, `ro`, `serial=x`.
fn parts(table: &DeTable<'_>) -> Result<Vec<String>, String> {
    let mut parts = Vec::new();
    for (key, value) in table {
        let key = key.get_ref();
        match value.get_ref() {
            DeValue::Boolean(true) => parts.push(key.to_string()),
            DeValue::Boolean(false) => {}
            DeValue::Table(_) => return Err("a table in a table means nothing".into()),
            value if key == "file" => parts.insert(0, plain(value)?),
            value => parts.push(format!("{key}={}", plain(value)?)),
        }
    }
    Ok(parts)
}

/// The name that is most like `wanted`, if any is.
fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let far = |n: &str| distance(wanted, n);
    let best = names.iter().min_by_key(|n| far(n))?;
    (far(best) <= 1 + wanted.len() / 3).then_some(best)
}

/// Letters that must be added, removed or changed to make one of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// `mimeo spec`: every setting that has a value, as a file.
pub fn print(matches: &ArgMatches) -> Result<Status, Failure> {
    let Some((_, sub)) = matches.subcommand() else {
        return Ok(Status::Done);
    };
    print!("{}", spec(sub));
    Ok(Status::Done)
}

fn spec(given: &ArgMatches) -> String {
    let mut text = String::new();
    for flag in flags() {
        let Some(name) = setting(&flag) else {
            continue;
        };
        let id = flag.get_id().as_str();
        if matches!(flag.get_action(), ArgAction::SetTrue) {
            if given.get_flag(id) {
                text.push_str(&format!("{name} = true\n"));
            }
            continue;
        }
        let Ok(Some(raw)) = given.try_get_raw(id) else {
            continue;
        };
        let values: Vec<String> = raw.map(|v| quoted(&v.to_string_lossy())).collect();
        let value = if matches!(flag.get_action(), ArgAction::Append) {
            format!("[{}]", values.join(", "))
        } else {
            values.concat()
        };
        text.push_str(&format!("{name} = {value}\n"));
    }
    text
}

/// A value in TOML: a plain number as it is, anything else as a string (TOML 1.0, "String").
fn quoted(value: &str) -> String {
    let plain = value.parse::<u32>().is_ok_and(|n| n.to_string() == value);
    if plain {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => text.push_str(&format!("\\u{:04X}", c as u32)),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> ArgMatches {
        let line = ["mimeo", "run"].iter().chain(args);
        let matches = Cli::command().try_get_matches_from(line).unwrap();
        matches.subcommand().unwrap().1.clone()
    }

    fn read(text: &str, args: &[&str]) -> Result<Vec<String>, String> {
        arguments(Path::new("vm.toml"), text, &given(args)).map_err(|e| e.to_string())
    }

    #[test]
    fn settings_are_flags() {
        let text = "guest = \"debian\"\nmemory = \"1G\"\ncpus = 2\nno-reboot = true\nrm = false\n\
                    rng = false\ntimeout = 1.5\n\
                    disk = [\"a.img\", { snapshot = true, file = \"b.img\", ro = false, serial = \"x\" }]\n";
        let mut got = read(text, &[]).unwrap();
        got.sort();
        let want = [
            "--cpus=2",
            "--disk=a.img",
            "--disk=b.img,serial=x,snapshot",
            "--memory=1G",
            "--no-reboot",
            "--rng=off",
            "--timeout=1.5",
            "debian",
        ];
        let got: Vec<String> = got
            .iter()
            .map(|g| g.replace("snapshot,serial=x", "serial=x,snapshot"))
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn flags_replace_the_files() {
        let text = "guest = \"debian\"\ncpus = 2\ndisk = [\"a\", \"b\"]";
        assert_eq!(
            read(text, &["--cpus", "4", "--disk", "c"]).unwrap(),
            ["debian"]
        );
        assert_eq!(
            read("guest = \"debian\"", &["--kernel", "k"]).unwrap(),
            [""; 0]
        );
        // A default is not a flag that was given.
        assert_eq!(read("memory = \"1G\"", &[]).unwrap(), ["--memory=1G"]);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let error = |text: &str| read(text, &[]).unwrap_err();
        assert_eq!(
            error("cpus = 1\n  memry = \"1G\"\n"),
            "vm.toml:2:3: there is no setting `memry`: did you mean memory?"
        );
        assert_eq!(
            error("xyzzy = 1"),
            "vm.toml:1:1: there is no setting `xyzzy`"
        );
        assert!(error("file = \"x\"").contains("no setting `file`"));
        assert!(error("cpus = [1]").starts_with("vm.toml:1:8: cpus: it has one value"));
        assert!(error("no-reboot = 1").starts_with("vm.toml:1:13: no-reboot: it is true or false"));
        assert!(error("cpus = ").starts_with("vm.toml:1:"));
        assert!(error("disk = [[1]]").contains("a list in a list"));
    }

    #[test]
    fn what_is_printed_reads_back() {
        let args = [
            "debian",
            "-m",
            "1G",
            "--append",
            "a \"b\" \\",
            "--disk",
            "x,ro",
            "--no-reboot",
        ];
        let text = spec(&given(&args));
        assert!(
            text.contains("memory = \"1G\"\n") && text.contains("cpus = 1\n"),
            "{text}"
        );
        let again = read(&text, &[]).unwrap();
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        assert_eq!(spec(&given(&again)), text);
    }
}
