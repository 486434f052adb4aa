//! Shutting the system down, as its own init likes it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// What shuts a system down, best first: systemd's own way, then whatever the init brought.
const WAYS: &[(&str, &[&str])] = &[
    (
        "/run/systemd/system",
        &["systemctl", "--no-block", "poweroff"],
    ),
    ("/", &["poweroff"]),
    ("/", &["busybox", "poweroff"]),
    ("/", &["halt", "-p"]),
];

/// Starts the shutdown.
pub fn off() -> io::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the guest has no poweroff command");
    for (condition, way) in WAYS {
        if !Path::new(condition).exists() {
            continue;
        }
        let run = Command::new(way[0])
            .args(&way[1..])
            .env("PATH", crate::user::PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match run {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => last = io::Error::other(format!("{} failed: {status}", way.join(" "))),
            Err(_) => {}
        }
    }
    Err(last)
}
