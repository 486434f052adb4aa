//! Builds the guest agent: two calls of the compiler that cargo itself uses, for a static program.
//!
//! Not a nested cargo: that would need its own target directory, its own look at the lock file and
//! the network, and it would inherit half of the outer one's variables. The agent and its protocol
//! have no dependencies so that the compiler alone is enough.
//!
//! The musl target is taken where it is installed; otherwise the C library's static archive, which
//! Debian's libc6-dev brings and some other systems have in a package of its own. Without either,
//! mimeo is built all the same and says what is missing when the agent is wanted.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "x86_64-unknown-linux-gnu"];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let (proto, agent) = (here.join("../agent-proto/src"), here.join("../agent/src"));
    for source in [&proto, &agent] {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let mut why = String::new();
    let built = TARGETS
        .iter()
        .any(|target| match build(target, &proto, &agent, &out) {
            Ok(()) => true,
            Err(e) => {
                why = e;
                false
            }
        });
    if built {
        why.clear();
    } else {
        println!("cargo::warning=the guest agent was not built: {why}");
        std::fs::write(out.join("mimeo-agent"), b"").expect("OUT_DIR is writable");
    }
    std::fs::write(out.join("why-not"), why).expect("OUT_DIR is writable");
}

fn build(target: &str, proto: &Path, agent: &Path, out: &Path) -> Result<(), String> {
    let rlib = out.join("libmimeo_agent_proto.rlib");
    rustc(
        target,
        &proto.join("lib.rs"),
        "mimeo_agent_proto",
        &rlib,
        &["--crate-type", "rlib"],
    )?;
    let library = format!("mimeo_agent_proto={}", rlib.display());
    let options = [
        "--extern",
        &library,
        "-Cstrip=symbols",
        "-Crelocation-model=static",
    ];
    rustc(
        target,
        &agent.join("main.rs"),
        "mimeo_agent",
        &out.join("mimeo-agent"),
        &options,
    )
}

fn rustc(target: &str, source: &Path, name: &str, to: &Path, more: &[&str]) -> Result<(), String> {
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let result = Command::new(compiler)
        .args([
            "--edition",
            "2024",
            "--crate-name",
            name,
            "--target",
            target,
        ])
        .args([
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Ctarget-feature=+crt-static",
        ])
        .args(["--cap-lints", "allow"])
        .args(more)
        .arg("-o")
        .arg(to)
        .arg(source)
        .output();
    let result = result.map_err(|e| format!("the compiler cannot be run: {e}"))?;
    if result.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&result.stderr);
    let error = text
        .lines()
        .find(|l| l.starts_with("error"))
        .unwrap_or("the compiler failed");
    let missing = text
        .lines()
        .find(|l| l.contains("cannot find"))
        .unwrap_or_default();
    Err(format!(
        "{error} {missing} (install the C library's static archive: libc6-dev on Debian)"
    ))
}
