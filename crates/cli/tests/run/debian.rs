//! Debian's stock kernels, from the first instruction to power-off, driven over the serial console.
//! Needs the host's package client (or its cache) for the kernels.

use crate::support::Guest;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Whether the quickstart image can be had. Prepared once; says why not.
pub fn available(guest: &'static str) -> bool {
    static CLOUD: OnceLock<bool> = OnceLock::new();
    static GENERIC: OnceLock<bool> = OnceLock::new();
    static STABLE: OnceLock<bool> = OnceLock::new();
    let cell = match guest {
        "busybox" => &CLOUD,
        "busybox-generic" => &GENERIC,
        _ => &STABLE,
    };
    *cell.get_or_init(|| {
        // An impossible machine: the image is prepared, nothing is run.
        let out = Command::new(env!("CARGO_BIN_EXE_mimeo"))
            .args(["run", guest, "--serial", "file:/no/such/directory/log"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let ready = said.contains("/no/such/directory/log");
        if !ready {
            assert!(
                std::env::var_os("CI").is_none() || guest == "debian-stable",
                "CI must be able to prepare {guest}: {said}"
            );
            println!("skipped: {guest} cannot be prepared here: {said}");
        }
        ready
    })
}

/// Boots, and returns when the shell reads (it prompts only where it sees a terminal).
pub fn boot(args: &[&str]) -> Guest {
    let mut guest = Guest::start(&[&["run"], args].concat());
    guest.shell("true");
    guest
}

/// Lines of a kernel log that a real machine would not give.
fn complaints(dmesg: &str) -> Vec<&str> {
    let bad = [
        "WARNING:",
        "BUG:",
        "Oops",
        "Call Trace",
        "Firmware Bug",
        "ACPI Error",
        "ACPI Warning",
        "ACPI BIOS",
        "unstable",
        "TSC calibration",
        "Unable to calibrate",
        "clocksource: timekeeping watchdog",
        "soft lockup",
        "rcu_sched",
        "spurious",
        "nobody cared",
        "mismatch",
        "APIC error",
        "failed to boot",
        "do_IRQ",
    ];
    dmesg
        .lines()
        .filter(|l| bad.iter().any(|b| l.contains(b)))
        .collect()
}

/// The whole life of a guest with `cpus` CPUs.
fn life(guest: &'static str, engine: &str, cpus: u32) {
    if !available(guest) {
        return;
    }
    let n = cpus.to_string();
    let mut g = boot(&[guest, "--engine", engine, "--cpus", &n]);
    assert!(g.shell("uname -s -m").contains("Linux x86_64"));
    assert_eq!(g.shell("echo $((6 * 7))").trim(), "42");
    assert_eq!(g.shell("nproc").trim(), n);
    assert_eq!(
        g.shell("cat /sys/devices/system/cpu/online").trim().len(),
        if cpus == 1 { 1 } else { 3 }
    );
    let clock = g.shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert!(["kvm-clock", "tsc"].contains(&clock.trim()), "{clock}");
    let log = g.shell("dmesg");
    assert!(log.contains("Linux version"), "{log}");
    assert_eq!(complaints(&log), Vec::<&str>::new());
    let holes = g.shell("grep . /sys/devices/system/cpu/vulnerabilities/*");
    assert!(holes.contains("meltdown"), "{holes}");
    for costly in [
        "PTI",
        "Retpoline",
        "retpoline",
        "return thunk",
        "Return thunk",
    ] {
        assert!(!holes.contains(costly), "{holes}");
    }
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

#[test]
fn interp_one_cpu() {
    life("busybox", "interp", 1);
}

#[test]
fn interp_two_cpus() {
    life("busybox", "interp", 2);
}

#[test]
fn bt_two_cpus() {
    life("busybox", "bt", 2);
}

/// The whole boot on the translator and the interpreter in lockstep: minutes.
#[test]
fn lockstep() {
    if std::env::var_os("MIMEO_SOAK").is_none() || !available("busybox") {
        return;
    }
    for (stride, cpus) in [
        ("--verify=1", "1"),
        ("--verify=chained", "1"),
        ("--verify=8", "2"),
    ] {
        let mut g = Guest::start(&["run", "busybox", "--cpus", cpus, stride]);
        g.send("echo ve''rified; poweroff -f\n");
        g.end_of_input();
        assert_eq!(g.wait().code(), Some(0), "{stride}: {}", g.errors());
        assert!(g.console().contains("verified"));
    }
}

#[test]
fn interp_four_cpus() {
    life("busybox", "interp", 4);
}

#[test]
fn interp_generic_kernel() {
    life("busybox-generic", "interp", 1);
}

#[test]
fn bt_generic_kernel() {
    life("busybox-generic", "bt", 2);
}

#[test]
fn bt_current_release() {
    life("debian-stable", "bt", 1);
}

#[test]
fn bt_one_cpu() {
    life("busybox", "bt", 1);
}

#[test]
fn bt_four_cpus() {
    life("busybox", "bt", 4);
}

#[test]
fn commands_from_a_pipe_and_the_end_of_input() {
    if !available("busybox") {
        return;
    }
    let mut g = Guest::start(&["run", "busybox", "--engine", "interp"]);
    // Typed before the guest has executed an instruction.
    g.send("echo pi''ped; poweroff -f\n");
    g.end_of_input();
    g.expect("piped");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

#[test]
fn reboot_starts_again_or_ends() {
    if !available("busybox") {
        return;
    }
    let mut g = boot(&["busybox", "--engine", "interp"]);
    g.reboot();
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    let mut g = boot(&["busybox", "--engine", "interp", "--no-reboot"]);
    g.send("reboot -f\n");
    assert_eq!(g.wait().code(), Some(6), "{}", g.errors());
}

/// User and system time of a process, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub fn status_field(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Resident kilobytes of guest RAM: mappings of the memfd.
fn guest_resident(pid: u32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut inside, mut sum) = (false, 0);
    for line in smaps.lines() {
        if line.contains("memfd:mimeo-guest") {
            inside = true;
        } else if line
            .split_whitespace()
            .next()
            .is_some_and(|w| w.contains('-'))
        {
            inside = false;
        } else if inside && line.starts_with("Rss:") {
            sum += line
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap();
        }
    }
    sum
}

#[test]
fn an_idle_guest_is_jailed_quiet_and_small() {
    if !available("busybox") {
        return;
    }
    let mut g = boot(&["busybox", "--engine", "interp", "--cpus", "2"]);
    let pid = g.pid();
    assert_eq!(status_field(pid, "Seccomp:"), 2, "no seccomp filter");
    assert_eq!(status_field(pid, "NoNewPrivs:"), 1);
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(
            status.contains("Seccomp:\t2"),
            "a thread is outside:\n{status}"
        );
    }
    // Let the boot's last work end: wait until a second passes with hardly any.
    let settled = Instant::now() + Duration::from_secs(60);
    let mut before = ticks(pid);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = ticks(pid);
        if now - before < 10 || Instant::now() > settled {
            break;
        }
        before = now;
    }
    let before = ticks(pid);
    std::thread::sleep(Duration::from_secs(5));
    let used = ticks(pid) - before;
    assert!(used < 50, "an idle guest used {used} of 500 clock ticks");

    let (rss, guest) = (status_field(pid, "VmRSS:"), guest_resident(pid));
    let overhead = rss.saturating_sub(guest);
    assert!(guest > 10 << 10, "guest RAM was not found in smaps");
    assert!(
        overhead < 30 << 10,
        "the monitor itself has {overhead} KB of {rss} KB"
    );
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

#[test]
fn a_recording_replays_to_the_same_state() {
    if !available("busybox") {
        return;
    }
    let log = std::env::temp_dir().join(format!("mimeo-replay-{}", std::process::id()));
    let path = log.display().to_string();
    let common = ["run", "busybox", "--engine", "interp", "-m", "128M"];
    let mut g = Guest::start(&[&common[..], &["--record", &path]].concat());
    g.send("echo re''corded; poweroff -f\n");
    g.end_of_input();
    g.expect("recorded");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    let hash = |text: String| {
        let line = text
            .lines()
            .find(|l| l.contains("state hash"))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("no hash in: {text}"))
    };
    let recorded = hash(g.errors());
    let mut g = Guest::start(&[&common[..], &["--replay", &path]].concat());
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    assert_eq!(hash(g.errors()), recorded);
    // With another machine there is nothing to replay.
    let mut g = Guest::start(&["run", "busybox", "-m", "96M", "--replay", &path]);
    assert_eq!(g.wait().code(), Some(4));
    assert!(g.errors().contains("another machine"), "{}", g.errors());
    fs::remove_file(log).unwrap();
}
