//! `mimeo ps`, `inspect` and `wait`.

use super::chosen;
use crate::args::PsArgs;
use crate::status::{Failure, Status};
use mimeo_control::{Reply, Request, Seen, client, now};
use serde_json::{Value, json};
use std::io::Write;

/// The status that is told for a machine whose process was killed, as a shell tells it for SIGKILL.
const KILLED: u8 = 137;

/// What is known of a machine.
fn describe(vm: &Seen) -> Value {
    let running = vm.running();
    let end = vm.end();
    let phase = running.then(|| match client::ask(vm, &Request::Status) {
        Ok(Reply::Status(status)) => status.phase,
        // It is on its way up, down, or stopped by a signal.
        _ => "running".to_owned(),
    });
    let status = match (&phase, &end) {
        (Some(phase), _) => phase.clone(),
        (None, Some(_)) => "exited".into(),
        (None, None) => "killed".into(),
    };
    let mut value = json!({
        "name": vm.name(),
        "status": status,
        "running": running,
        "exit": end,
        "directory": vm.dir(),
    });
    if let Some(record) = vm.record()
        && let (Value::Object(to), Ok(Value::Object(from))) =
            (&mut value, serde_json::to_value(record))
    {
        for (key, item) in from {
            let key = if key == "directory" {
                "working_directory".into()
            } else {
                key
            };
            to.entry(key).or_insert(item);
        }
    }
    value
}

/// A time span in one number, as people say it.
fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn row(vm: &Seen) -> [String; 7] {
    let record = vm.record();
    let status = match (vm.running(), vm.end()) {
        (true, _) => "running".to_owned(),
        (false, Some(end)) => format!("exited ({})", end.status),
        (false, None) => "killed".to_owned(),
    };
    let text =
        |f: fn(&mimeo_control::RecordV1) -> String| record.as_ref().map_or_else(String::new, f);
    [
        vm.name(),
        status,
        text(|r| r.guest.clone()),
        text(|r| r.cpus.to_string()),
        text(|r| format!("{}M", r.memory >> 20)),
        text(|r| r.pid.to_string()),
        text(|r| ago(now().saturating_sub(r.created))),
    ]
}

fn table(rows: &[[String; 7]]) -> String {
    let head = ["NAME", "STATUS", "GUEST", "CPUS", "MEMORY", "PID", "AGE"].map(str::to_owned);
    let rows: Vec<&[String; 7]> = std::iter::once(&head).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints; a reader that has gone is no failure.
fn print(text: &str) -> Result<Status, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::host(e)),
        _ => Ok(Status::Done),
    }
}

/// `mimeo ps`.
pub fn ps(args: &PsArgs) -> Result<Status, Failure> {
    let (_, all) = chosen(&[], true)?;
    let shown: Vec<Seen> = all
        .into_iter()
        .filter(|vm| args.all || vm.running())
        .collect();
    if args.json {
        let list: Vec<Value> = shown.iter().map(describe).collect();
        return print(&format!("{:#}\n", Value::Array(list)));
    }
    if args.quiet {
        let names: String = shown.iter().map(|vm| vm.name() + "\n").collect();
        return print(&names);
    }
    let rows: Vec<_> = shown.iter().map(row).collect();
    print(&table(&rows))
}

/// `mimeo inspect`.
pub fn inspect(names: &[String]) -> Result<Status, Failure> {
    let (_, seen) = chosen(names, false)?;
    let list: Vec<Value> = seen.iter().map(describe).collect();
    print(&format!("{:#}\n", Value::Array(list)))
}

/// `mimeo wait`.
pub fn wait(names: &[String]) -> Result<Status, Failure> {
    let (_, seen) = chosen(names, false)?;
    for vm in &seen {
        // A folder that goes with its machine takes the status along, which is then not told.
        vm.wait().map_err(Failure::command)?;
        let status = vm.end().map_or(KILLED, |e| e.status);
        print(&format!("{status}\n"))?;
    }
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = ["a_long_name", "running", "debian", "1", "256M", "77", "5s"].map(str::to_owned);
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("STATUS"), lines[1].find("running"));
        assert_eq!(lines[0].find("AGE"), lines[1].find("5s"));
    }

    #[test]
    fn ages() {
        assert_eq!(
            [5, 90, 7200, 200_000].map(ago),
            ["5s", "1m", "2h", "2d"].map(str::to_owned)
        );
    }
}
