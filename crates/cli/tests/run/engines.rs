//! Which engine runs where the host lacks something, and what the flags about engines do. The limits are
//! real ones: of the address space, of what seccomp lets a container do.

use crate::endings::{debug_exit_kernel, kernel};
use crate::support::Guest;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// Runs a kernel that ends at once, in a process with limits.
fn run(
    name: &str,
    args: &[&str],
    limit: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> Output {
    let path = debug_exit_kernel(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mimeo"));
    command
        .args([
            "run",
            "--device",
            "debug-exit",
            "--timeout",
            "60",
            "--kernel",
        ])
        .arg(&path)
        .args(args);
    #[expect(
        unsafe_code,
        reason = "limits that must be set in the child before it starts"
    )]
    // SAFETY: the closures only make system calls that are safe between fork and exec.
    let command = unsafe { command.pre_exec(limit) };
    let output = command.output().unwrap();
    fs::remove_file(path).unwrap();
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const FINISHED: Option<i32> = Some(0x21);

/// Lines that explain why the interpreter was taken.
fn explanations(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|l| l.contains("the bt engine cannot run here"))
        .collect()
}

fn address_space(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    #[expect(unsafe_code, reason = "setrlimit")]
    // SAFETY: a plain structure that lives through the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[test]
fn auto_is_the_translator() {
    let output = run("auto", &["--stats"], || Ok(()));
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
    assert!(
        said(&output).contains("blocks translated"),
        "{}",
        said(&output)
    );
    assert!(explanations(&said(&output)).is_empty());
}

#[test]
fn little_address_space_means_the_interpreter_and_one_sentence() {
    let limit = || address_space(8 << 30);
    let output = run("as-auto", &["--engine", "auto"], limit);
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
    let text = said(&output);
    let why = explanations(&text);
    assert_eq!(why.len(), 1, "{text}");
    assert!(
        why[0].contains("address space") && why[0].contains("ulimit -v"),
        "{text}"
    );
    // Asked for by name, it is an error before anything runs.
    let output = run("as-bt", &["--engine", "bt"], limit);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    // Enough for one CPU's tables, not for those of four.
    let some = || address_space(8 << 40);
    let output = run("as-one", &["--engine", "bt"], some);
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
    let output = run("as-four", &["--cpus", "4"], some);
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
    assert_eq!(explanations(&said(&output)).len(), 1, "{}", said(&output));
}

#[test]
fn a_cpu_without_bmi_means_the_interpreter_and_one_sentence() {
    let masked = ["--mask-host-cpu", "bmi1,bmi2"];
    let output = run("bmi-auto", &masked, || Ok(()));
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
    let text = said(&output);
    assert_eq!(explanations(&text).len(), 1, "{text}");
    assert!(text.contains("lacks BMI1 and BMI2"), "{text}");
    let output = run(
        "bmi-bt",
        &["--engine", "bt", "--mask-host-cpu", "bmi2"],
        || Ok(()),
    );
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

/// System calls that Docker's default profile (moby/profiles, seccomp/default.json) refuses to a container
/// without capabilities, of those that a monitor could want.
const DOCKER_REFUSES: &[libc::c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_move_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// A seccomp program that answers EPERM to the calls of `refused` and allows the rest.
fn refuse(refused: &[libc::c_long]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![op(LOAD, 0, 0, 0)];
    for call in refused {
        program.push(op(EQUAL, 0, 1, *call as u32));
        program.push(op(
            RETURN,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ));
    }
    program.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    #[expect(unsafe_code, reason = "prctl")]
    // SAFETY: the program is complete and lives through the calls.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) != 0
    };
    if failed {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[test]
fn dockers_default_profile_is_enough_for_the_translator() {
    let program = refuse(DOCKER_REFUSES);
    let output = run("docker", &["--engine", "bt"], move || filter(&program));
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
}

#[test]
fn without_executable_memory_the_interpreter_runs() {
    // memfd_create is needed for guest memory too: refuse what only code needs, executable mappings.
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Argument 2 (protection) is at offset 32, argument 3 (flags) at 40: shared executable mappings,
    // as of a memfd, and making memory executable later; the loader's private ones stay.
    let program = vec![
        op(LOAD, 0, 0, 0),
        op(EQUAL, 3, 0, libc::SYS_mprotect as u32),
        op(EQUAL, 0, 5, libc::SYS_mmap as u32),
        op(LOAD, 0, 0, 40),
        op(SET, 0, 3, libc::MAP_SHARED as u32),
        op(LOAD, 0, 0, 32),
        op(SET, 0, 1, libc::PROT_EXEC as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let output = run("noexec", &[], move || filter(&program));
    assert_eq!(output.status.code(), FINISHED, "{}", said(&output));
    let text = said(&output);
    assert_eq!(explanations(&text).len(), 1, "{text}");
    assert!(text.contains("executable memory"), "{text}");
}

#[test]
fn paranoid_and_verified_runs_end_as_plain_ones() {
    for flags in [&["--paranoid"][..], &["--verify"], &["--verify=chained"]] {
        let output = run("proved", flags, || Ok(()));
        assert_eq!(
            output.status.code(),
            FINISHED,
            "{flags:?}: {}",
            said(&output)
        );
    }
    let bad = kernel("bad-verify", &[0xf4]);
    let file = bad.display().to_string();
    let mut guest = Guest::start(&["run", "--kernel", &file, "--verify=often"]);
    assert_eq!(guest.wait().code(), Some(2));
    fs::remove_file(bad).unwrap();
}

/// The translated code of an instruction, with what it was entered for.
#[test]
fn a_traced_instruction_is_shown_with_its_host_code() {
    if !crate::debian::available("busybox") {
        return;
    }
    // The entry of Linux's 64-bit code at its preferred address is 64-bit code for certain: the
    // system call entry's address is asked of the guest itself.
    let mut first = crate::debian::boot(&["busybox", "--engine", "bt", "--append", "nokaslr"]);
    let symbols = first.shell("grep -w -E 'do_syscall_64' /proc/kallsyms");
    let address = symbols.split_whitespace().next().unwrap_or("").to_owned();
    first.send("poweroff -f\n");
    first.wait();
    assert!(address.starts_with("ffffffff8"), "{symbols}");
    let mut g = crate::debian::boot(&[
        "busybox", "--engine", "bt", "--append", "nokaslr", "--trace", &address,
    ]);
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    let text = g.errors();
    assert!(text.contains("was entered"), "{text}");
    assert!(text.contains(&format!("block 0x{address}")), "{text}");
    // Guest and host code, and the stubs.
    assert!(
        text.contains("[r15+r11*8-1Ch]") && text.contains("cold:"),
        "{text}"
    );
}
