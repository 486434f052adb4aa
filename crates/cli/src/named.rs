//! A machine's own side of its name: the state folder, the console for many, the control socket.

use crate::args::{RunArgs, VsockArg};
use crate::status::{Failure, Status};
use anyhow::{Context, anyhow};
use mimeo_bus::StreamHost;
use mimeo_control::{
    Actions, Console, ControlError, Folder, RecordV1, Root, Server, client, generate_name, now,
    start_time,
};
use mimeo_jail::{JailError, Removable};
use mimeo_machines::spec::{DEFAULT_CID, VsockSpec};
use mimeo_vm::VmHandle;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// The files of a folder that its own process removes; the lock last, so that the folder counts as in
/// use until there is nothing else in it.
const FILES: &[&str] = &[
    "vm.json",
    "vm.new",
    "end.json",
    "control",
    "vsock",
    "console.log",
    "monitor.log",
    "lock",
];
/// How often a name is made up before that counts as a failure.
const TRIES: usize = 100;

/// The VM for the control socket, once there is one.
#[derive(Clone, Default)]
struct Handle(Arc<OnceLock<VmHandle>>);

impl Handle {
    fn get(&self) -> Result<&VmHandle, String> {
        let starting = || String::from("the machine is still being prepared: try again");
        self.0.get().ok_or_else(starting)
    }
}

impl Actions for Handle {
    fn power_button(&self) -> Result<(), String> {
        self.get().map(VmHandle::press_power_button)
    }

    fn stop(&self) -> Result<(), String> {
        self.get().map(VmHandle::stop)
    }

    fn phase(&self) -> &'static str {
        if self.0.get().is_some() {
            "running"
        } else {
            "starting"
        }
    }
}

/// A claimed name.
pub struct Named {
    folder: Folder,
    parent: File,
    own: File,
    record: RecordV1,
    handle: Handle,
    server: Option<Server>,
    /// The jail lets us remove the folder.
    removable: bool,
}

/// The arguments that start the same machine again: those of `mimeo run`.
fn arguments() -> Vec<String> {
    let all = std::env::args_os().skip(2);
    let text = all.map(|a| a.to_string_lossy().into_owned());
    let mut kept: Vec<String> = text.collect();
    if let Some(at) = kept.iter().position(|a| a == "--detached-as") {
        kept.truncate(at);
    }
    kept
}

fn record(args: &RunArgs, name: String) -> Result<RecordV1, Failure> {
    let pid = std::process::id() as i32;
    let kernel = |k: &PathBuf| k.display().to_string();
    let guest = args
        .guest
        .clone()
        .or_else(|| args.kernel.as_ref().map(kernel));
    let unnamed = args.name.is_none() && args.detached_as.is_none();
    Ok(RecordV1 {
        version: 1,
        name,
        pid,
        pid_start: start_time(pid).unwrap_or(0),
        created: now(),
        guest: guest.unwrap_or_default(),
        cpus: args.machine.cpus,
        memory: args.machine.memory,
        arguments: arguments(),
        directory: std::env::current_dir().map_err(Failure::host)?,
        remove: args.rm || unnamed,
        vsock: None,
    })
}

/// Claims the wanted name, or one that is made up.
fn claim(root: &Root, args: &RunArgs) -> Result<(Folder, RecordV1), Failure> {
    let wanted = args.detached_as.as_ref().or(args.name.as_ref());
    for _ in 0..TRIES {
        let record = record(args, wanted.cloned().unwrap_or_else(generate_name))?;
        match root.claim(&record) {
            Ok(folder) => return Ok((folder, record)),
            Err(ControlError::InUse(_)) if wanted.is_none() => {}
            Err(e) => return Err(Failure::usage(e)),
        }
    }
    Err(Failure::host(anyhow!(
        "no name is free: give one with --name"
    )))
}

impl Named {
    /// Claims a name for the machine that `args` describe. A machine in the foreground that nobody
    /// named does without where there is no place for its state.
    pub fn claim(args: &RunArgs) -> Result<Option<Self>, Failure> {
        let root = match Root::open() {
            Ok(root) => root,
            Err(e) if args.name.is_none() && args.detached_as.is_none() => {
                eprintln!("mimeo: {e}; this machine runs without a name");
                return Ok(None);
            }
            Err(e) => return Err(Failure::usage(e)),
        };
        let (folder, mut record) = claim(&root, args)?;
        record.vsock = match &args.machine.vsock {
            Some(VsockArg::Off) => None,
            Some(VsockArg::On(spec)) => {
                Some(std::path::absolute(&spec.path).map_err(Failure::host)?)
            }
            None => Some(folder.dir().join("vsock")),
        };
        folder.write(&record).map_err(Failure::host)?;
        let open = |path| File::open(path).map_err(Failure::host);
        Ok(Some(Self {
            parent: open(root.dir())?,
            own: open(folder.dir())?,
            folder,
            record,
            handle: Handle::default(),
            server: None,
            removable: false,
        }))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The socket device that a machine has by itself, for exec, cp and stop.
    pub fn vsock(&self, args: &RunArgs) -> Option<VsockSpec> {
        let path = self
            .record
            .vsock
            .clone()
            .filter(|_| args.machine.vsock.is_none())?;
        let cid = DEFAULT_CID;
        Some(VsockSpec { cid, path })
    }

    /// Puts the console for many before `primary` and opens the control socket. Gives the end for
    /// the machine.
    pub fn open(&mut self, primary: Arc<dyn StreamHost>) -> Result<Arc<dyn StreamHost>, Failure> {
        let console = Console::new(primary).map_err(Failure::host)?;
        let path = self.folder.dir().join("control");
        let listener = client::listen(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))
            .map_err(Failure::Host)?;
        let log = self.folder.create("console.log").map_err(Failure::host)?;
        let server = Server::start(
            listener,
            console.clone(),
            log,
            Box::new(self.handle.clone()),
        );
        self.server = Some(server.map_err(Failure::host)?);
        Ok(console)
    }

    /// From now on the control socket reaches the VM.
    pub fn connect(&self, vm: VmHandle) {
        let _ = self.handle.0.set(vm);
    }

    /// The file for what a monitor in the background says.
    pub fn monitor_log(&self) -> Result<File, Failure> {
        self.folder.create("monitor.log").map_err(Failure::host)
    }

    /// Takes the file system away, but for the own folder where that is to be removed at the end.
    /// Gives whether it is.
    pub fn jail(&mut self) -> Result<bool, JailError> {
        if !self.record.remove {
            return mimeo_jail::restrict_files(&[]).map(|()| false);
        }
        let (parent, folder) = (self.parent.as_fd(), self.own.as_fd());
        mimeo_jail::restrict_files_except(Removable { parent, folder })?;
        self.removable = true;
        Ok(true)
    }

    /// The VM has ended: says so, and removes the folder where nobody wants it.
    pub fn finish(
        mut self,
        status: Result<Status, Failure>,
        jailed: bool,
    ) -> Result<Status, Failure> {
        // The last words go to the log.
        self.server = None;
        let (code, how) = match &status {
            Ok(status) => (status.code(), format!("{status:?}").to_lowercase()),
            Err(failure) => (failure.status().code(), failure.to_string()),
        };
        self.folder.end(code, &how);
        let forgotten = self.record.remove && (self.removable || !jailed);
        // A machine that could not be made never was; the jail comes with its making.
        if forgotten || self.handle.0.get().is_none() {
            // What cannot be removed is swept by the next mimeo.
            for file in FILES {
                let _ = fs::remove_file(self.folder.dir().join(file));
            }
            let _ = fs::remove_dir(self.folder.dir());
        }
        status
    }
}
