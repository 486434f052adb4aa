//! `kvm-run --kernel IMAGE [--append LINE] [--cpus N]`: runs a guest program over /dev/kvm.
//!
//! Serial output goes to standard output. Exit status: the debug-exit port's `(v << 1) | 1`, or one
//! of those in [`mimeo_guest_tests::kvm`]. `kvm-run --probe` says whether KVM really works here.

use mimeo_guest_tests::kvm::{self, Machine};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut kernel = None;
    let mut line = String::new();
    let mut cpus = 1;
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--probe" {
            return match kvm::probe() {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => failed(&e.to_string()),
            };
        }
        let Some(value) = args.next() else {
            return failed(&format!("{flag}: a value is missing"));
        };
        match flag.as_str() {
            "--kernel" => kernel = Some(value),
            "--append" => line = value,
            "--cpus" => match value.parse() {
                Ok(n) => cpus = n,
                Err(_) => return failed(&format!("--cpus {value}: not a number")),
            },
            _ => return failed(&format!("{flag}: no such option")),
        }
    }
    let Some(kernel) = kernel else {
        return failed("--kernel IMAGE is needed");
    };
    let result = std::fs::read(&kernel)
        .map_err(|source| kvm::KvmError::Image(format!("{kernel}: {source}")))
        .and_then(|image| Machine::new(&image, &line, cpus))
        .and_then(Machine::run);
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => failed(&e.to_string()),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("kvm-run: {message}");
    ExitCode::from(kvm::STATUS_HOST_ERROR)
}
