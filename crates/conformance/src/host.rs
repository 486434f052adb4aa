//! The host side: a child process, single-stepped.
//!
//! The child maps the region of [`crate::layout`] from a memfd that this process also has mapped,
//! and never runs anything but the one instruction of each case. It dies with its tracer.
#![expect(
    unsafe_code,
    reason = "fork, ptrace and mmap at fixed addresses in a child process"
)]

use crate::case::{Case, Fault, Outcome, Registers, State};
use crate::layout::{CODE, DATA, DATA_LEN, PAGE, READ_ONLY, REGION, START};
use mimeo_arch_x86::state::FpState;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

const PAGES: u64 = 5;
const NT_X86_XSTATE: usize = 0x202;
const AVX: usize = 576;

/// The traced child.
#[derive(Debug)]
pub struct Host {
    pid: libc::pid_t,
    file: File,
    xstate: Vec<u8>,
    regs: libc::user_regs_struct,
}

fn check(r: libc::c_long) -> io::Result<libc::c_long> {
    if r == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

fn memfd() -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: a NUL-terminated name; the call touches nothing else.
        let fd = unsafe { libc::memfd_create(c"mimeo-conformance".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: just created, owned by nobody else.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(PAGES * PAGE)?;
            return Ok(file);
        }
    }
    Err(io::Error::last_os_error())
}

/// Runs in the child: maps the region, asks to be traced, stops.
fn child(fd: libc::c_int) -> ! {
    let parts = [
        (CODE, 1, libc::PROT_READ | libc::PROT_EXEC),
        (DATA, 2, libc::PROT_READ | libc::PROT_WRITE),
        (READ_ONLY, 1, libc::PROT_READ),
    ];
    // SAFETY: only async-signal-safe calls on this process's own, so far unused addresses; the
    // child never returns to Rust code.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for (at, pages, prot) in parts {
            let got = libc::mmap(
                at as *mut libc::c_void,
                pages * PAGE as usize,
                prot,
                libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE,
                fd,
                (at - REGION) as libc::off_t,
            );
            if got as u64 != at {
                libc::_exit(1);
            }
        }
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        libc::raise(libc::SIGSTOP);
        libc::_exit(2);
    }
}

impl Host {
    /// Starts the child. `read_only` is the content of the read-only page.
    ///
    /// # Errors
    /// The host refuses fork, ptrace, executable memory or the addresses.
    pub fn new(read_only: &[u8]) -> io::Result<Self> {
        let file = memfd()?;
        file.write_all_at(read_only, READ_ONLY - REGION)?;
        // SAFETY: the child only calls `child`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child(file.as_raw_fd());
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all-zero is a valid value of this plain C struct.
        let regs = unsafe { std::mem::zeroed() };
        let mut host = Self {
            pid,
            file,
            xstate: vec![0; 16384],
            regs,
        };
        if host.wait()? != libc::SIGSTOP {
            return Err(io::Error::other("the child did not stop for its tracer"));
        }
        host.ptrace(libc::PTRACE_SETOPTIONS, 0, libc::PTRACE_O_EXITKILL as usize)?;
        host.regs = host.get_regs()?;
        host.regs.orig_rax = u64::MAX;
        (host.regs.fs_base, host.regs.gs_base) = (0, 0);
        let len = host.get_xstate()?;
        host.xstate.truncate(len);
        Ok(host)
    }

    fn ptrace(&self, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
        // SAFETY: `data` is an integer or the address of a live structure of the size that the
        // request wants, by the callers below.
        check(unsafe { libc::ptrace(request, self.pid, address, data) }).map(|_| ())
    }

    fn get_regs(&self) -> io::Result<libc::user_regs_struct> {
        let mut regs = self.regs;
        self.ptrace(libc::PTRACE_GETREGS, 0, ptr::from_mut(&mut regs) as usize)?;
        Ok(regs)
    }

    fn get_xstate(&mut self) -> io::Result<usize> {
        let mut iov = libc::iovec {
            iov_base: self.xstate.as_mut_ptr().cast(),
            iov_len: self.xstate.len(),
        };
        self.ptrace(
            libc::PTRACE_GETREGSET,
            NT_X86_XSTATE,
            ptr::from_mut(&mut iov) as usize,
        )?;
        Ok(iov.iov_len)
    }

    fn set_xstate(&mut self) -> io::Result<()> {
        let mut iov = libc::iovec {
            iov_base: self.xstate.as_mut_ptr().cast(),
            iov_len: self.xstate.len(),
        };
        self.ptrace(
            libc::PTRACE_SETREGSET,
            NT_X86_XSTATE,
            ptr::from_mut(&mut iov) as usize,
        )
    }

    /// Waits for the child to stop; the signal that stopped it.
    fn wait(&self) -> io::Result<libc::c_int> {
        let mut status = 0;
        // SAFETY: `status` is a live integer.
        check(unsafe { libc::waitpid(self.pid, &mut status, 0) }.into())?;
        if libc::WIFSTOPPED(status) {
            Ok(libc::WSTOPSIG(status))
        } else {
            Err(io::Error::other(format!(
                "the child died, status {status:#x}"
            )))
        }
    }

    /// Executes one case.
    ///
    /// # Errors
    /// ptrace fails or the child dies: the test is broken.
    pub fn run(&mut self, case: &Case) -> io::Result<(Outcome, State)> {
        self.file.write_all_at(&case.bytes, START - REGION)?;
        self.file.write_all_at(&case.state.data, DATA - REGION)?;
        let mut regs = self.regs;
        put_registers(&mut regs, &case.state.registers, case.bits);
        self.ptrace(libc::PTRACE_SETREGS, 0, ptr::from_mut(&mut regs) as usize)?;
        if case.uses_fp {
            put_fp(&mut self.xstate, &case.state.fp);
            self.set_xstate()?;
        }
        let (outcome, registers) = loop {
            self.ptrace(libc::PTRACE_SINGLESTEP, 0, 0)?;
            let signal = self.wait()?;
            let regs = self.get_regs()?;
            if signal != libc::SIGTRAP {
                break (Outcome::Fault(self.fault(signal)?), take_registers(&regs));
            }
            // A repeated string instruction traps after each iteration, a gather may between lanes.
            if regs.rip != START || !case.restarts {
                break (Outcome::Done, take_registers(&regs));
            }
        };
        let mut state = State {
            registers,
            fp: case.state.fp.clone(),
            data: vec![0; DATA_LEN],
        };
        self.file.read_exact_at(&mut state.data, DATA - REGION)?;
        if case.uses_fp {
            self.get_xstate()?;
            state.fp = take_fp(&self.xstate);
        }
        Ok((outcome, state))
    }

    fn fault(&self, signal: libc::c_int) -> io::Result<Fault> {
        const SI_KERNEL: i32 = 0x80;
        const FPE_INTDIV: i32 = 1;
        // SAFETY: all-zero is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        self.ptrace(
            libc::PTRACE_GETSIGINFO,
            0,
            ptr::from_mut(&mut info) as usize,
        )?;
        Ok(match signal {
            libc::SIGILL => Fault::Undefined,
            libc::SIGBUS => Fault::Stack,
            libc::SIGFPE if info.si_code == FPE_INTDIV => Fault::Divide,
            libc::SIGFPE => Fault::FloatingPoint,
            libc::SIGSEGV if info.si_code == SI_KERNEL => Fault::General,
            libc::SIGSEGV => {
                // SAFETY: the kernel fills the address for this signal.
                let address = unsafe { info.si_addr() } as u64;
                Fault::Page(address)
            }
            other => return Err(io::Error::other(format!("unexpected signal {other}"))),
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: our own child, by its id; then reaped.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), 0);
        }
    }
}

fn put_registers(regs: &mut libc::user_regs_struct, r: &Registers, bits: u32) {
    let g = &r.gpr;
    [regs.rax, regs.rcx, regs.rdx, regs.rbx] = [g[0], g[1], g[2], g[3]];
    [regs.rsp, regs.rbp, regs.rsi, regs.rdi] = [g[4], g[5], g[6], g[7]];
    [regs.r8, regs.r9, regs.r10, regs.r11] = [g[8], g[9], g[10], g[11]];
    [regs.r12, regs.r13, regs.r14, regs.r15] = [g[12], g[13], g[14], g[15]];
    regs.rip = r.rip;
    regs.eflags = r.rflags;
    [regs.fs_base, regs.gs_base] = r.bases;
    // The kernel's selectors for user code and data.
    regs.cs = if bits == 64 { 0x33 } else { 0x23 };
    (regs.ss, regs.ds, regs.es) = (0x2b, 0x2b, 0x2b);
}

fn take_registers(regs: &libc::user_regs_struct) -> Registers {
    Registers {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.eflags,
        bases: [regs.fs_base, regs.gs_base],
    }
}

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    area[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Standard-format XSAVE image (SDM vol. 1, 13.4).
fn put_fp(area: &mut [u8], fp: &FpState) {
    area.fill(0);
    put(area, 0, &fp.fcw.to_le_bytes());
    put(area, 2, &fp.fsw.to_le_bytes());
    area[4] = fp.ftw;
    put(area, 24, &fp.mxcsr.to_le_bytes());
    for (n, st) in fp.st.iter().enumerate() {
        put(area, 32 + 16 * n, &st.to_le_bytes()[..10]);
    }
    let avx = area.len() >= AVX + 256;
    for (n, y) in fp.ymm.iter().enumerate() {
        put(area, 160 + 16 * n, &y[0].to_le_bytes());
        put(area, 168 + 16 * n, &y[1].to_le_bytes());
        if avx {
            put(area, AVX + 16 * n, &y[2].to_le_bytes());
            put(area, AVX + 8 + 16 * n, &y[3].to_le_bytes());
        }
    }
    area[512] = if avx { 7 } else { 3 };
}

fn get<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
    area[at..at + N].try_into().unwrap_or([0; N])
}

fn take_fp(area: &[u8]) -> FpState {
    let present = area[512];
    let mut fp = FpState {
        fcw: 0x37f,
        ftw: 0,
        ..FpState::default()
    };
    // The kernel keeps FP state with the init optimisation: without the SSE component MXCSR has its
    // initial value, and the image may hold an older one (SDM vol. 1, 13.6).
    if present & 2 != 0 {
        fp.mxcsr = u32::from_le_bytes(get(area, 24));
    }
    if present & 1 != 0 {
        fp.fcw = u16::from_le_bytes(get(area, 0));
        fp.fsw = u16::from_le_bytes(get(area, 2));
        fp.ftw = area[4];
        fp.fop = u16::from_le_bytes(get(area, 6));
        fp.fip = u64::from_le_bytes(get(area, 8));
        fp.fdp = u64::from_le_bytes(get(area, 16));
        for (n, st) in fp.st.iter_mut().enumerate() {
            *st = u128::from_le_bytes(get(area, 32 + 16 * n));
        }
    }
    for (n, y) in fp.ymm.iter_mut().enumerate() {
        if present & 2 != 0 {
            y[0] = u64::from_le_bytes(get(area, 160 + 16 * n));
            y[1] = u64::from_le_bytes(get(area, 168 + 16 * n));
        }
        if present & 4 != 0 && area.len() >= AVX + 256 {
            y[2] = u64::from_le_bytes(get(area, AVX + 16 * n));
            y[3] = u64::from_le_bytes(get(area, AVX + 8 + 16 * n));
        }
    }
    fp
}
