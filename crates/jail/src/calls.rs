//! The seccomp filters (seccomp(2), Documentation/userspace-api/seccomp_filter.rst).

use crate::JailError;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// What a running monitor calls, whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Open files: terminal, log, disk images, eventfds, timerfds.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_dup,
    // Sockets that were opened before: new ones come by accept and by recvmsg (SCM_RIGHTS), never
    // by socket and connect.
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    // Time, sleeping, locks.
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    // Memory. mmap and mprotect are in `filter` with their arguments.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Signals within the process, thread ends.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
];

/// What the user network calls besides, for a guest's connections: `socket` is in `allow_list` with its
/// families.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_accept4,
    libc::SYS_shutdown,
];

/// What a file server calls besides. Where they lead is Landlock's affair: the threads that serve
/// no folder reach none.
const FOLDERS: &[libc::c_long] = &[
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_syncfs,
    libc::SYS_copy_file_range,
];

/// What a machine needs beyond an ordinary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// It serves folders of the host's.
    pub folders: bool,
    /// It makes sockets of the internet families while it runs.
    pub sockets: bool,
    /// It removes its own state at the end. Only with Landlock in force, which says what that is.
    pub removes: bool,
}

/// Calls that no running monitor makes by mistake: whoever makes them is not us.
const DEADLY: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
];

/// A condition on a 32-bit argument.
fn arg(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
}

/// One rule for each value that the 32-bit argument `index` may have.
fn one_of(index: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values
        .iter()
        .map(|&v| SeccompRule::new(vec![arg(index, SeccompCmpOp::Eq, v)?]))
        .collect()
}

/// Memory protections without "writable and executable at once".
fn no_writable_code(index: u8) -> Result<Vec<SeccompRule>, BackendError> {
    let both = (libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    [0, libc::PROT_WRITE as u64, libc::PROT_EXEC as u64]
        .into_iter()
        .map(|v| SeccompRule::new(vec![arg(index, SeccompCmpOp::MaskedEq(both), v)?]))
        .collect()
}

fn allow_list(calls: Calls) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&n| (n, Vec::new())).collect();
    if calls.sockets {
        rules.extend(SOCKETS.iter().map(|&n| (n, Vec::new())));
        let families = [libc::AF_INET, libc::AF_INET6].map(|f| f as u64);
        rules.insert(libc::SYS_socket, one_of(0, &families)?);
    }
    rules.insert(libc::SYS_mmap, no_writable_code(2)?);
    rules.insert(libc::SYS_mprotect, no_writable_code(2)?);
    let terminal = [
        libc::TCGETS,
        libc::TCSETS,
        libc::TCSETSW,
        libc::TCSETSF,
        libc::TIOCGWINSZ,
        libc::FIONREAD,
        libc::FIONBIO,
    ];
    rules.insert(libc::SYS_ioctl, one_of(1, &terminal)?);
    let mut fcntl = vec![libc::F_GETFL, libc::F_SETFL, libc::F_GETFD];
    if calls.removes {
        rules.insert(libc::SYS_unlink, Vec::new());
        rules.insert(libc::SYS_rmdir, Vec::new());
    }
    if calls.folders {
        rules.extend(FOLDERS.iter().map(|&n| (n, Vec::new())));
        fcntl.push(libc::F_DUPFD_CLOEXEC);
    }
    let fcntl: Vec<u64> = fcntl.into_iter().map(|c| c as u64).collect();
    rules.insert(libc::SYS_fcntl, one_of(1, &fcntl)?);
    // Kicking our own threads out of guest code.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    // The allocator and the standard library name their memory.
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_VMA as u64])?);
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

fn deny_list() -> Result<BpfProgram, BackendError> {
    let rules = DEADLY.iter().map(|&n| (n, Vec::new())).collect();
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// Limits every thread of the process to the calls of a running monitor and to `calls`; sets `no_new_privs`.
/// No thread can be started afterwards.
///
/// # Errors
/// [`JailError::Seccomp`].
pub fn restrict_calls(calls: Calls) -> Result<(), JailError> {
    let build =
        |r: Result<BpfProgram, BackendError>| r.map_err(|e| JailError::Seccomp(e.to_string()));
    // The deny list first: installing a filter needs calls that the allow-list has not got.
    for program in [build(deny_list())?, build(allow_list(calls))?] {
        apply_filter_all_threads(&program).map_err(|e| JailError::Seccomp(e.to_string()))?;
    }
    Ok(())
}
