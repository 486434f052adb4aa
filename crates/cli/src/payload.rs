//! What is booted: the files are opened once, before the jail, and read again at every reset.

use crate::status::Failure;
use mimeo_arch_x86::X86State;
use mimeo_boot::{BootOptions, Module, Payload};
use mimeo_machines::machine::Machine;
use mimeo_vm::Loader;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// An initial RAM disk or module.
#[derive(Debug)]
pub enum Disk {
    /// A file.
    File(PathBuf),
    /// Made by ourselves: a name for messages, and the bytes.
    Bytes(String, Vec<u8>),
}

/// A kernel with its initial RAM disks and command line.
#[derive(Debug)]
pub struct Boot {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// Initial RAM disks or modules, in order.
    pub initrds: Vec<Disk>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Opened files of a [`Boot`].
#[derive(Debug)]
pub struct OpenBoot {
    name: String,
    file: File,
    options: BootOptions,
    /// The kernel as the first check read it; later loads read the file again, so that its bytes
    /// do not stay in the monitor's memory.
    first: Option<Payload>,
}

impl Boot {
    /// Opens everything and recognises the kernel.
    pub fn open(self, deterministic: bool) -> Result<OpenBoot, Failure> {
        let first = Payload::open(&self.kernel).map_err(Failure::usage)?;
        let file = open(&self.kernel)?;
        let mut options = BootOptions {
            cmdline: self.cmdline,
            ..BootOptions::default()
        };
        for disk in self.initrds {
            options.initrds.push(match disk {
                Disk::File(path) => Module::open(&path).map_err(Failure::usage)?,
                Disk::Bytes(name, bytes) => Module::from_bytes(name, bytes),
            });
        }
        if !deterministic {
            options.rng_seed = random_seed();
        }
        Ok(OpenBoot {
            name: self.kernel.display().to_string(),
            file,
            options,
            first: Some(first),
        })
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e| Failure::usage(anyhow::anyhow!("{}: {e}", path.display())))
}

/// 32 bytes for the guest's random number generator; none where the host has none to give.
fn random_seed() -> Option<[u8; 32]> {
    let mut seed = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut seed))
        .ok()
        .map(|()| seed)
}

impl OpenBoot {
    /// What the kernel is, for people.
    pub fn description(&self) -> String {
        self.first
            .as_ref()
            .map_or_else(String::new, Payload::description)
    }

    fn load(&mut self, machine: &Machine) -> Result<X86State, String> {
        let payload = match self.first.take() {
            Some(payload) => payload,
            None => self.read_again()?,
        };
        let tables = machine.board.firmware()?;
        self.options.memory_map = tables.memory_map;
        self.options.acpi_rsdp = tables.acpi_rsdp;
        mimeo_boot::load(&machine.memory, &payload, &self.options).map_err(|e| e.to_string())
    }

    fn read_again(&mut self) -> Result<Payload, String> {
        let read = |mut file: &File| -> std::io::Result<Vec<u8>> {
            file.seek(SeekFrom::Start(0))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes =
            read(&self.file).map_err(|e| format!("{} cannot be read again: {e}", self.name))?;
        Payload::from_bytes(self.name.clone(), bytes).map_err(|e| e.to_string())
    }

    /// The VM's loader.
    pub fn into_loader(mut self) -> Loader {
        Box::new(move |machine| self.load(machine))
    }
}
