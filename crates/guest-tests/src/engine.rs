//! The ways of running an image: commands that put the guest's serial output on standard output
//! and say by their exit status how the machine ended.

use crate::image::Image;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The exit status after the guest wrote 0x10 to the debug-exit port: `(0x10 << 1) | 1`.
pub const FINISHED: i32 = 0x21;

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest said so through the debug-exit port.
    Finished,
    /// A triple fault.
    TripleFault,
    /// Neither within the time allowed.
    Timeout,
    /// Anything else: the command's exit status.
    Other(String),
}

/// What a run gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The guest's serial output.
    pub serial: String,
    /// What the monitor said on standard error.
    pub said: String,
    /// How it ended.
    pub ending: Ending,
}

/// A way of running guests.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Its name, as in the test names.
    pub name: &'static str,
    /// The command with its fixed arguments.
    pub command: Vec<OsString>,
    /// Its exit status at a triple fault.
    pub triple_fault: i32,
    /// Whether a case may say that the CPU lacks what it needs. Mimeo's model has it all.
    pub may_skip: bool,
    /// What goes before the number of CPUs.
    pub cpus_flag: &'static str,
    /// What goes before the command line.
    pub append_flag: &'static str,
}

/// `mimeo run`'s exit status at a triple fault (its --help lists them).
const MIMEO_TRIPLE_FAULT: i32 = 8;

/// CPU model for Mimeo: the default and what it keeps off by default.
const MIMEO_CPU: &str = "x86-64-v3,+pku,+la57,+monitor";

impl Engine {
    /// `kvm-run`, our own monitor over /dev/kvm.
    #[must_use]
    pub fn kvm(binary: PathBuf) -> Self {
        Self {
            name: "kvm",
            command: vec![binary.into()],
            triple_fault: crate::kvm::STATUS_TRIPLE_FAULT,
            may_skip: true,
            cpus_flag: "--cpus",
            append_flag: "--append",
        }
    }

    /// `mimeo run` with one of its engines; `verify` is the translator and the interpreter in lockstep.
    #[must_use]
    pub fn mimeo(binary: PathBuf, name: &'static str) -> Self {
        let fixed = "run --machine microvm -m 64M --serial stdio --device debug-exit \
            --device testdev --on-triple-fault exit --cpu";
        let mut command: Vec<OsString> = vec![binary.into()];
        command.extend(fixed.split_whitespace().map(OsString::from));
        command.push(MIMEO_CPU.into());
        command.push(match name {
            "verify" => "--verify=1".into(),
            _ => format!("--engine={name}").into(),
        });
        Self {
            name,
            command,
            triple_fault: MIMEO_TRIPLE_FAULT,
            may_skip: false,
            cpus_flag: "--cpus",
            append_flag: "--append",
        }
    }

    /// QEMU's TCG, for comparison. It has no status of its own for a triple fault: without reboot
    /// it ends with 0.
    #[must_use]
    pub fn qemu() -> Self {
        let fixed = "qemu-system-x86_64 -accel tcg -cpu max -m 64M -nodefaults -display none \
            -serial stdio -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 -device pc-testdev";
        Self {
            name: "qemu",
            command: fixed.split_whitespace().map(OsString::from).collect(),
            triple_fault: 0,
            may_skip: true,
            cpus_flag: "-smp",
            append_flag: "-append",
        }
    }

    /// Runs an image with a command line until it ends, at most `limit`.
    ///
    /// # Errors
    /// If the command cannot be started or waited for.
    pub fn run(&self, image: &Image, line: &str, limit: Duration) -> std::io::Result<Outcome> {
        let scratch = Scratch::new(self, image)?;
        let long = if self.name == "qemu" { "-" } else { "--" };
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .arg(format!("{long}kernel"))
            .arg(&image.path)
            .arg(self.append_flag)
            .arg(line)
            .arg(self.cpus_flag)
            .arg(image.cpus.to_string())
            .args(&scratch.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let start = Instant::now();
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                late = true;
                child.kill()?;
                break child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let ending = match status.code() {
            _ if late => Ending::Timeout,
            Some(FINISHED) => Ending::Finished,
            Some(code) if code == self.triple_fault => Ending::TripleFault,
            _ => Ending::Other(status.to_string()),
        };
        Ok(Outcome {
            serial: stdout.join().unwrap_or_default(),
            said: stderr.join().unwrap_or_default(),
            ending,
        })
    }
}

/// What a program about devices is given besides: a disk and a folder that go away with the run. The
/// engines in lockstep take none (their devices follow instructions, not the host).
struct Scratch {
    dir: Option<PathBuf>,
    arguments: Vec<String>,
}

impl Scratch {
    fn new(engine: &Engine, image: &Image) -> std::io::Result<Self> {
        let virtio = image.name.starts_with("virtio");
        let wanted = virtio && matches!(engine.name, "interp" | "bt");
        let mut scratch = Self {
            dir: None,
            arguments: Vec::new(),
        };
        // The program knows the places of the devices over MMIO; others look for theirs on PCI.
        if virtio && (wanted || engine.name == "verify") {
            scratch.arguments = ["--transport", "mmio"].map(str::to_owned).to_vec();
        }
        if wanted {
            static RUNS: AtomicU32 = AtomicU32::new(0);
            let (process, run) = (std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
            let dir = std::env::temp_dir().join(format!("mimeo-guest-{process}-{run}"));
            std::fs::create_dir(&dir)?;
            let disk = dir.join("disk.img");
            std::fs::File::create(&disk)?.set_len(1 << 20)?;
            let folder = dir.display();
            let devices = [
                ("--disk", format!("{},queues=2", disk.display())),
                ("--share", format!("{folder}:a")),
                ("--share", format!("{folder}:b,9p")),
                ("--console", format!("file:{folder}/console")),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
            scratch.arguments.extend(devices);
            scratch.dir = Some(dir);
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            // A folder of temporary files that stays costs nothing but room.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Reads a pipe to its end beside the wait, so that the child never blocks on it.
fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error still tells what happened.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
