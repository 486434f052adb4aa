//! `mimeo logs`.

use super::chosen;
use crate::args::LogsArgs;
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_control::client;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::time::Duration;

/// How often a log that is followed is looked at.
const STEP: Duration = Duration::from_millis(100);

/// Prints; false when the reader has gone.
fn print(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::host(e)),
    }
}

/// `mimeo logs`.
pub fn logs(args: &LogsArgs) -> Result<Status, Failure> {
    let (_, seen) = chosen(std::slice::from_ref(&args.name), false)?;
    let vm = seen
        .first()
        .ok_or_else(|| Failure::command(anyhow!("no machine")))?;
    let path = vm.dir().join("console.log");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // It has not come so far.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Status::Done),
        Err(e) => {
            let error = Err(e).with_context(|| path.display().to_string());
            return error.map_err(Failure::Command);
        }
    };
    let text = client::tail(&file, args.tail).map_err(Failure::command)?;
    if !print(&text)? || !args.follow {
        return Ok(Status::Done);
    }
    let mut at = file.stream_position().map_err(Failure::command)?;
    loop {
        // Asked before the log is read, so that its last words are not missed.
        let ended = !vm.running();
        let len = file.metadata().map_err(Failure::command)?.len();
        if len < at {
            // Its older half was dropped.
            at = file.seek(SeekFrom::Start(0)).map_err(Failure::command)?;
        }
        let mut more = Vec::new();
        at += file.read_to_end(&mut more).map_err(Failure::command)? as u64;
        if !print(&more)? || ended {
            return Ok(Status::Done);
        }
        std::thread::sleep(STEP);
    }
}
