//! What a person gets wrong: one sentence that names the thing and the remedy, and a status of its
//! own. No guest instruction runs in these tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn mimeo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mimeo"))
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

/// Runs, expects the status, and gives the one line that was said.
fn complaint(status: i32, args: &[&str]) -> String {
    let out = mimeo(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(status), "{args:?}: {said}");
    assert!(out.stdout.is_empty(), "{args:?} wrote to standard output");
    said
}

/// A usage error: status 2 and a sentence with all of `words`.
fn refused(args: &[&str], words: &[&str]) {
    let said = complaint(2, args);
    for word in words {
        assert!(
            said.contains(word),
            "{args:?}: `{word}` is missing in: {said}"
        );
    }
    assert!(!said.contains("panicked"), "{said}");
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mimeo-errors-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A bzImage of `size` bytes whose header says boot protocol 2.15, 64-bit entry, relocatable, and
/// that it needs `init_size` bytes: enough to be recognised, not to run.
fn bzimage(size: usize, init_size: u32) -> Vec<u8> {
    let mut image = vec![0u8; size];
    image[0x1f1] = 4; // setup_sects
    image[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1; // LOADED_HIGH
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    image[0x234] = 1; // relocatable_kernel
    image[0x236..0x238].copy_from_slice(&3u16.to_le_bytes()); // XLF_KERNEL_64, above 4 GB
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    let paragraphs = ((size - 5 * 512) / 16) as u32;
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes()); // pref_address
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image
}

#[test]
fn files() {
    let s = Scratch::new("files");
    let kernel = s.file("bzImage", &bzimage(64 << 10, 1 << 20));
    refused(
        &["run", "--kernel", "/no/such/kernel"],
        &["/no/such/kernel", "--kernel"],
    );
    let dir = s.path().display().to_string();
    refused(&["run", "--kernel", &dir], &[&dir, "directory"]);
    let text = s.file("text", b"#!/bin/sh\necho this is no kernel\n");
    refused(&["run", "--kernel", &text], &["text", "not a kernel"]);
    let empty = s.file("empty", b"");
    refused(&["run", "--kernel", &empty], &["empty"]);
    let mut cut = bzimage(64 << 10, 1 << 20);
    cut.truncate(20 << 10);
    let cut = s.file("cut", &cut);
    refused(&["run", "--kernel", &cut], &["cut", "truncated"]);
    // An ELF file for AArch64.
    let mut elf = vec![0u8; 128];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16..20].copy_from_slice(&[2, 0, 183, 0]);
    let arm = s.file("arm", &elf);
    refused(&["run", "--kernel", &arm], &["arm", "ARM"]);
    refused(
        &["run", "--kernel", &kernel, "--initrd", "/no/such"],
        &["/no/such", "--initrd"],
    );
    refused(&["run", "--kernel", &kernel, "--initrd", &dir], &[&dir]);
    let log = format!("file:{dir}");
    refused(&["run", "--kernel", &kernel, "--serial", &log], &[&dir]);
}

#[test]
fn memory() {
    let s = Scratch::new("memory");
    let kernel = s.file("bzImage", &bzimage(14 << 20, 50 << 20));
    refused(
        &["run", "--kernel", &kernel, "-m", "8M"],
        &["bzImage", "-m"],
    );
    refused(
        &["run", "--kernel", &kernel, "-m", "nonsense"],
        &["nonsense", "256M"],
    );
    refused(&["run", "--kernel", &kernel, "-m", "0"], &["-m"]);
    refused(&["run", "--kernel", &kernel, "-m", "900000G"], &["-m"]);
    let small = s.file("small", &bzimage(64 << 10, 1 << 20));
    let initrd = s.file("initrd", &vec![0; 40 << 20]);
    let args = ["run", "--kernel", &small, "--initrd", &initrd, "-m", "32M"];
    refused(&args, &["initrd", "-m"]);
}

#[test]
fn processors() {
    let s = Scratch::new("cpus");
    let kernel = s.file("bzImage", &bzimage(64 << 10, 1 << 20));
    refused(
        &["run", "--kernel", &kernel, "--cpus", "0"],
        &["0 CPUs", "--cpus"],
    );
    refused(
        &["run", "--kernel", &kernel, "--cpus", "1000"],
        &["1000", "254"],
    );
    refused(&["run", "--kernel", &kernel, "--cpus", "many"], &["many"]);
    refused(
        &["run", "--kernel", &kernel, "--cpu", "x86-64-v3,+avx9"],
        &["avx9"],
    );
    refused(
        &["run", "--kernel", &kernel, "--cpu", "pentium"],
        &["pentium", "x86-64-v3"],
    );
    refused(
        &["run", "--kernel", &kernel, "--engine", "warp"],
        &["warp", "interp"],
    );
    refused(
        &["run", "--kernel", &kernel, "--machine", "pc98"],
        &["pc98", "microvm"],
    );
    refused(
        &["run", "--kernel", &kernel, "--device", "floppy"],
        &["floppy", "testdev"],
    );
    let twice = ["--device", "testdev", "--device", "testdev"];
    refused(
        &[&["run", "--kernel", kernel.as_str()], &twice[..]].concat(),
        &["testdev", "twice"],
    );
}

#[test]
fn command_lines() {
    let s = Scratch::new("cmdline");
    let kernel = s.file("bzImage", &bzimage(64 << 10, 1 << 20));
    let long = "x".repeat(5000);
    refused(
        &["run", "--kernel", &kernel, "--append", &long],
        &["command line"],
    );
    refused(&["run"], &["--kernel"]);
    refused(&["run", "windows"], &["windows", "debian"]);
    refused(&["fly"], &["fly"]);
    refused(
        &["run", "--kernel", &kernel, "--timeout", "soon"],
        &["soon"],
    );
    refused(
        &["run", "--kernel", &kernel, "--replay", "/no/log"],
        &["/no/log"],
    );
    let bad = s.file("log", b"not a log");
    refused(&["run", "--kernel", &kernel, "--replay", &bad], &["log"]);
}

#[test]
fn help_teaches() {
    let out = mimeo(&["run", "--help"]);
    assert_eq!(out.status.code(), Some(0));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in [
        "Examples:",
        "mimeo run debian",
        "Exit status:",
        "Ctrl-A x",
        "--on-triple-fault",
    ] {
        assert!(text.contains(word), "{word} is missing");
    }
}
