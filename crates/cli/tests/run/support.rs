//! A guest at the other end of pipes: start it, read its console, type, wait for its end.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What a guest may take for one step. Generous: the machine may be busy with other things, and a
/// test that waits longer than necessary still ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(240);

#[derive(Default)]
struct Console {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

/// A running `mimeo`.
pub struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Console>,
    errors: Arc<Console>,
    /// How much of the console has been looked at.
    seen: usize,
}

fn follow(mut from: impl Read + Send + 'static) -> Arc<Console> {
    let console = Arc::new(Console::default());
    let c = console.clone();
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        loop {
            let n = from.read(&mut buf).unwrap_or(0);
            let mut text = c.text.lock().unwrap();
            text.0.push_str(&String::from_utf8_lossy(&buf[..n]));
            text.1 = n == 0;
            c.changed.notify_all();
            if n == 0 {
                return;
            }
        }
    });
    console
}

impl Guest {
    /// Runs `mimeo` with these arguments.
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_mimeo")).args(args))
    }

    /// Runs a command that becomes `mimeo`.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take(),
            console: follow(child.stdout.take().unwrap()),
            errors: follow(child.stderr.take().unwrap()),
            child,
            seen: 0,
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        self.stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Nothing more is typed.
    pub fn end_of_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for `what` on the console and gives everything from the last such place up to it.
    pub fn expect(&mut self, what: &str) -> String {
        self.comes(what, PATIENCE).unwrap_or_else(|| {
            panic!(
                "`{what}` did not come; the console:\n{}\nerrors:\n{}",
                self.console(),
                self.errors()
            )
        })
    }

    /// As [`Self::expect`]; `None` when `what` does not come in time.
    fn comes(&mut self, what: &str, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        let mut text = self.console.text.lock().unwrap();
        loop {
            if let Some(at) = text.0[self.seen..].find(what) {
                let end = self.seen + at + what.len();
                let found = text.0[self.seen..end].to_owned();
                self.seen = end;
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.1 || left.is_zero() {
                return None;
            }
            text = self.console.changed.wait_timeout(text, left).unwrap().0;
        }
    }

    /// Reboots the guest; returns when the shell of the new boot reads. What is typed before that is
    /// lost with the old one, so it is typed again and again.
    pub fn reboot(&mut self) {
        self.send("reboot -f\n");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.send("echo boo''ted\n");
            if self.comes("booted", Duration::from_secs(3)).is_some() {
                return;
            }
        }
        panic!(
            "the guest did not come back; the console:\n{}",
            self.console()
        );
    }

    /// Runs a shell command in the guest and gives its output.
    pub fn shell(&mut self, command: &str) -> String {
        // The markers are assembled by the shell, so that an echo of the line is not taken for them.
        self.send(&format!("echo BE''GIN; {command}; echo MA''RK=$?=\n"));
        self.expect("BEGIN");
        let text = self.expect("MARK=").replace('\r', "");
        self.expect("=");
        text.trim_start().trim_end_matches("MARK=").to_owned()
    }

    /// Everything that came on the console.
    pub fn console(&self) -> String {
        self.console.text.lock().unwrap().0.clone()
    }

    /// Everything that Mimeo itself said.
    pub fn errors(&self) -> String {
        self.errors.text.lock().unwrap().0.clone()
    }

    /// Ends the process as SIGKILL does: without notice.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the guest does not end; the console:\n{}\nerrors:\n{}",
                self.console(),
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
