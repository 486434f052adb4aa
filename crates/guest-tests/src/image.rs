//! Building the guest programs: one C file a program, `*64.c` for long mode and `*32.c` for
//! protected mode, linked with `guests/lib` into a Multiboot 1 ELF32 image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A tool could not be started.
    #[error("cannot start {tool} ({source}): install gcc and binutils")]
    Tool {
        /// The program that was to run.
        tool: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A tool failed.
    #[error("{tool} failed on {file}: {message}")]
    Failed {
        /// The program that ran.
        tool: &'static str,
        /// What it ran on.
        file: String,
        /// What it said.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A built program.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name: the source file's stem.
    pub name: String,
    /// The ELF32 image.
    pub path: PathBuf,
    /// The cases in the order in which the guest runs them.
    pub cases: Vec<String>,
    /// How many CPUs it needs.
    pub cpus: u32,
    /// (engine, case) in which the engine is known to deviate from the manual, and why.
    pub known: BTreeMap<(String, String), String>,
}

const CFLAGS: &str = "-std=gnu11 -O1 -ffreestanding -nostdlib -fno-pic -fno-pie -mno-red-zone \
    -mgeneral-regs-only -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
    -fno-strict-aliasing -fno-toplevel-reorder -Wall -Wextra -Werror";

/// Builds every program of `source` (the `guests` directory) below `out`.
///
/// # Errors
/// If a tool is missing or refuses a source, or a file cannot be read or written.
pub fn build_all(source: &Path, out: &Path) -> Result<Vec<Image>, BuildError> {
    let mut library: BTreeMap<u32, Vec<PathBuf>> = BTreeMap::new();
    for bits in [32, 64] {
        let dir = out.join(format!("lib{bits}"));
        std::fs::create_dir_all(&dir).map_err(|source| BuildError::File {
            path: dir.clone(),
            source,
        })?;
        for file in sources(&source.join("lib"))? {
            let stem = stem(&file);
            if stem.starts_with("trap") && stem != format!("trap{bits}") {
                continue;
            }
            let object = dir.join(format!("{stem}.o"));
            compile(source, &file, &object, bits)?;
            library.entry(bits).or_default().push(object);
        }
    }
    let mut images = Vec::new();
    for file in sources(source)? {
        let name = stem(&file);
        let bits = if name.ends_with("64") { 64 } else { 32 };
        images.push(link(source, out, &file, &name, bits, &library[&bits])?);
    }
    Ok(images)
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The C and assembly files of a directory, sorted.
fn sources(dir: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let error = |source| BuildError::File {
        path: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == "c" || e == "S") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn run(tool: &'static str, file: &Path, command: &mut Command) -> Result<(), BuildError> {
    let output = command
        .output()
        .map_err(|source| BuildError::Tool { tool, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(BuildError::Failed {
        tool,
        file: file.display().to_string(),
        message: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn compile(source: &Path, file: &Path, object: &Path, bits: u32) -> Result<(), BuildError> {
    let mut command = Command::new("gcc");
    command
        .arg(format!("-m{bits}"))
        .args(CFLAGS.split_whitespace())
        .arg("-I")
        .arg(source.join("lib"))
        .arg("-c")
        .arg(file)
        .arg("-o")
        .arg(object);
    run("gcc", file, &mut command)
}

fn link(
    source: &Path,
    out: &Path,
    file: &Path,
    name: &str,
    bits: u32,
    library: &[PathBuf],
) -> Result<Image, BuildError> {
    let object = out.join(format!("{name}.o"));
    let elf = out.join(format!("{name}.elf"));
    let path = out.join(format!("{name}.img"));
    let names = out.join(format!("{name}.names"));
    compile(source, file, &object, bits)?;
    let emulation = if bits == 64 { "elf_x86_64" } else { "elf_i386" };
    let mut ld = Command::new("ld");
    ld.args(["-m", emulation, "-z", "max-page-size=4096"])
        .args(["-z", "noexecstack", "--no-warn-rwx-segments", "-T"])
        .arg(source.join("lib/link.ld"))
        .arg("-o")
        .arg(&elf)
        .args(library)
        .arg(&object);
    run("ld", file, &mut ld)?;
    let mut objcopy = Command::new("objcopy");
    objcopy
        .args(["-O", "elf32-i386", "--dump-section"])
        .arg(format!(".testnames={}", names.display()))
        .arg(&elf)
        .arg(&path);
    run("objcopy", file, &mut objcopy)?;
    let table = std::fs::read(&names).map_err(|source| BuildError::File {
        path: names.clone(),
        source,
    })?;
    Ok(parse_names(name, path, &table))
}

/// Reads the section `.testnames`: strings that end in NUL, each a case, `#cpus N` or
/// `!ENGINE CASE REASON` (see `guests/lib/guest.h`).
fn parse_names(name: &str, path: PathBuf, table: &[u8]) -> Image {
    let mut image = Image {
        name: name.to_owned(),
        path,
        cases: Vec::new(),
        cpus: 1,
        known: BTreeMap::new(),
    };
    for entry in table.split(|b| *b == 0).filter(|e| !e.is_empty()) {
        let entry = String::from_utf8_lossy(entry);
        if let Some(count) = entry.strip_prefix("#cpus ") {
            image.cpus = count.trim().parse().unwrap_or(1);
        } else if let Some(known) = entry.strip_prefix('!') {
            let mut words = known.splitn(3, ' ').map(str::to_owned);
            if let (Some(engine), Some(case), Some(why)) =
                (words.next(), words.next(), words.next())
            {
                image.known.insert((engine, case), why);
            }
        } else {
            image.cases.push(entry.into_owned());
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_section_is_read() {
        let table = b"first\0#cpus 3\0!kvm second no such thing\0second\0\0";
        let image = parse_names("p", PathBuf::new(), table);
        assert_eq!(image.cases, ["first", "second"]);
        assert_eq!(image.cpus, 3);
        let key = ("kvm".to_owned(), "second".to_owned());
        assert_eq!(image.known[&key], "no such thing");
    }
}
