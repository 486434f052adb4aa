//! Every case of every guest program on every engine, each reported by itself.
//!
//! `MIMEO_GUEST_ENGINES` chooses engines: a list of `kvm`, `interp`, `bt`, `verify` (the last two in
//! lockstep), `qemu`. The default is the first three; KVM only where it really runs a guest (else its
//! cases are ignored, that is, skipped).

use libtest_mimic::{Arguments, Failed, Trial};
use mimeo_guest_tests::engine::Engine;
use mimeo_guest_tests::image::{Image, build_all};
use mimeo_guest_tests::report::{Verdict, run_all};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, LazyLock};

type Report =
    LazyLock<BTreeMap<String, Verdict>, Box<dyn FnOnce() -> BTreeMap<String, Verdict> + Send>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let images = match build_all(&source, &out) {
        Ok(images) => images,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let chosen =
        std::env::var("MIMEO_GUEST_ENGINES").unwrap_or_else(|_| "kvm,interp,bt".to_owned());
    let mut trials = Vec::new();
    for name in chosen.split(',') {
        match engine(name, arguments.list) {
            Ok((engine, works)) => {
                for image in images.iter().filter(|i| suits(name, i)) {
                    trials.extend(trials_of(&engine, image, works));
                }
            }
            Err(e) => {
                eprintln!("{name}: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// In lockstep the CPUs take turns, and guests in which they wait for each other take minutes:
/// those only with `MIMEO_SOAK=1`.
fn suits(engine: &str, image: &Image) -> bool {
    engine != "verify" || image.cpus == 1 || std::env::var_os("MIMEO_SOAK").is_some()
}

/// An engine by name, and whether it works on this host.
fn engine(name: &str, listing: bool) -> Result<(Engine, bool), String> {
    match name {
        "kvm" => {
            let binary = PathBuf::from(env!("CARGO_BIN_EXE_kvm-run"));
            let probe = Command::new(&binary).arg("--probe").output();
            let works = probe.is_ok_and(|o| o.status.success());
            if !works && !listing {
                eprintln!("kvm: /dev/kvm does not run a guest here; its cases are skipped");
            }
            Ok((Engine::kvm(binary), works))
        }
        "interp" => Ok((Engine::mimeo(mimeo()?, "interp"), true)),
        "bt" => Ok((Engine::mimeo(mimeo()?, "bt"), true)),
        "verify" => Ok((Engine::mimeo(mimeo()?, "verify"), true)),
        "qemu" => Ok((Engine::qemu(), true)),
        _ => Err("no such engine; there are kvm, interp, bt, verify, qemu".to_owned()),
    }
}

/// Builds `mimeo` in this test's profile and finds it beside our own binaries.
fn mimeo() -> Result<PathBuf, String> {
    let beside = Path::new(env!("CARGO_BIN_EXE_kvm-run"));
    let profile = beside.parent().ok_or("no target directory")?;
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "-p", "mimeo-cli"]);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let status = build
        .status()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !status.success() {
        return Err("mimeo does not build".to_owned());
    }
    Ok(profile.join("mimeo"))
}

fn trials_of(engine: &Engine, image: &Image, works: bool) -> Vec<Trial> {
    let run = {
        let (engine, image) = (engine.clone(), image.clone());
        move || run_all(&engine, &image)
    };
    let report: Arc<Report> = Arc::new(LazyLock::new(Box::new(run)));
    let may_skip = engine.may_skip;
    let trial = |case: &String| {
        let key = (engine.name.to_owned(), case.clone());
        let known = image.known.contains_key(&key);
        let report = report.clone();
        let wanted = case.clone();
        let body = move || match report.get(&wanted) {
            Some(Verdict::Pass) => Ok(()),
            Some(Verdict::Skip(_)) if may_skip => Ok(()),
            Some(Verdict::Skip(why)) => {
                Err(Failed::from(format!("skipped, yet Mimeo has it: {why}")))
            }
            Some(Verdict::Fail(what)) => Err(Failed::from(what.clone())),
            None => Err(Failed::from("no verdict")),
        };
        Trial::test(format!("{}/{}/{case}", engine.name, image.name), body)
            .with_ignored_flag(!works || known)
    };
    image.cases.iter().map(trial).collect()
}
