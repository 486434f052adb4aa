//! A kernel file: read, recognised by its bytes, and put into guest memory.

use crate::bzimage::{self, BzImage};
use crate::elf::{self, Elf};
use crate::multiboot::{self, Multiboot};
use crate::{BootError, BootOptions, Rejection, linux, pvh, recognise};
use mimeo_arch_x86::X86State;
use mimeo_memory::GuestMemory;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The largest kernel file that is read (a vmlinux with all debugging information has 1 GB).
const MAX_FILE: u64 = 4 << 30;

/// The entries that a payload can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    /// Linux's 64-bit or 32-bit boot protocol, whichever the kernel has.
    Linux,
    /// Multiboot 1.
    Multiboot,
    /// PVH: 32-bit protected mode with a `hvm_start_info`.
    Pvh,
    /// The ELF file's own entry address.
    Elf,
}

/// What a file was recognised as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Image {
    BzImage(BzImage),
    Elf(Elf),
    /// A Multiboot kernel, and its ELF reading where it is one.
    Multiboot(Multiboot, Option<Elf>),
}

/// A kernel file in memory.
#[derive(Debug)]
pub struct Payload {
    name: String,
    data: Vec<u8>,
    image: Image,
}

/// Recognises a kernel by its bytes. A pure function: what fuzzers call.
///
/// # Errors
/// [`Rejection`] says what the bytes are instead.
pub(crate) fn recognise(data: &[u8]) -> Result<Image, Rejection> {
    if bzimage::is_bzimage(data) {
        return bzimage::parse(data).map(Image::BzImage);
    }
    let elf = elf::is_elf(data).then(|| elf::parse(data));
    if let Some(at) = multiboot::find_header(data) {
        let readable = elf.as_ref().and_then(|e| e.as_ref().ok()).cloned();
        let kernel = multiboot::parse(data, at, elf)?;
        return Ok(Image::Multiboot(kernel, readable));
    }
    if let Some(elf) = elf {
        let elf = elf?;
        if elf.pvh_entry.is_none() && multiboot::has_header2(data) {
            return Err(Rejection::Unsupported {
                what: "it is a Multiboot 2 kernel".into(),
                remedy: "give it a Multiboot 1 header or a PVH note as well",
            });
        }
        return Ok(Image::Elf(elf));
    }
    Err(recognise::rejection(data))
}

impl Payload {
    /// Reads a kernel file and recognises it.
    ///
    /// # Errors
    /// [`BootError::Read`], [`BootError::Payload`].
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let data = read_file(path).map_err(|cause| BootError::Read {
            name: name.clone(),
            cause,
            remedy: "give --kernel a kernel file that exists and can be read",
        })?;
        Self::from_bytes(name, data)
    }

    /// Recognises a kernel that is at hand; `name` is for messages.
    ///
    /// # Errors
    /// [`BootError::Payload`].
    pub fn from_bytes(name: impl Into<String>, data: Vec<u8>) -> Result<Self, BootError> {
        let name = name.into();
        match recognise(&data) {
            Ok(image) => Ok(Self { name, data, image }),
            Err(reason) => Err(BootError::Payload { name, reason }),
        }
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, for people: the kind and what version it says it has.
    #[must_use]
    pub fn description(&self) -> String {
        match &self.image {
            Image::BzImage(k) => format!(
                "Linux bzImage, boot protocol {}.{:02}, {}",
                k.version >> 8,
                k.version & 0xff,
                if k.release.is_empty() {
                    "version unknown"
                } else {
                    &k.release
                }
            ),
            Image::Elf(e) => {
                let entry = if e.pvh_entry.is_some() {
                    "PVH"
                } else {
                    "plain"
                };
                let bits = if e.class64 { 64 } else { 32 };
                let os = if e.linux { "Linux, " } else { "" };
                format!("{os}{bits}-bit ELF kernel, {entry} entry")
            }
            Image::Multiboot(..) => "Multiboot 1 kernel".to_owned(),
        }
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if meta.len() > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than any kernel (4 GB)",
        ));
    }
    let mut data = Vec::with_capacity(meta.len() as usize);
    file.take(MAX_FILE).read_to_end(&mut data)?;
    Ok(data)
}

/// Puts a kernel, its modules and its boot information into guest memory and gives the boot
/// processor's state at the kernel's first instruction. The other processors wait for a SIPI.
///
/// # Errors
/// [`BootError`] names the file and the remedy. Guest memory may have been written to.
pub fn load(
    mem: &GuestMemory,
    payload: &Payload,
    opts: &BootOptions,
) -> Result<X86State, BootError> {
    use Protocol::{Elf as Plain, Linux, Multiboot, Pvh};
    let Payload { name, data, image } = payload;
    match (image, opts.protocol) {
        (Image::BzImage(k), None | Some(Linux)) => linux::load_bzimage(mem, name, data, k, opts),
        (Image::Multiboot(k, _), None | Some(Multiboot)) => k.load(mem, name, data, opts),
        (Image::Elf(e) | Image::Multiboot(_, Some(e)), p) => match (e.pvh_entry, p) {
            (Some(entry), None | Some(Pvh)) => pvh::load(mem, name, data, e, entry, opts),
            (_, None | Some(Linux | Plain)) => e.load_plain(mem, name, data, opts),
            (_, Some(p)) => Err(no_entry(name, p)),
        },
        (_, p) => Err(no_entry(name, p.unwrap_or(Plain))),
    }
}

fn no_entry(name: &str, protocol: Protocol) -> BootError {
    BootError::NoSuchEntry {
        name: name.to_owned(),
        protocol: protocol.name(),
    }
}

impl Protocol {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "Linux",
            Self::Multiboot => "Multiboot",
            Self::Pvh => "PVH",
            Self::Elf => "plain ELF",
        }
    }
}
