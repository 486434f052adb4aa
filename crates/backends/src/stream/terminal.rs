//! The terminal's raw mode, left again on every way out.
//!
//! The mode is put back when the guard is dropped (a panic's unwinding included), when the process
//! exits by `exit`, and when one of the signals that usually end a process arrives and nobody else
//! handles it. After a stop by job control it is set again.
//!
//! This module is an island of unsafe code: `tcsetattr` from a signal handler needs the raw calls.
#![expect(
    unsafe_code,
    reason = "signal handlers, termios and atexit through libc"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

/// A terminal's two modes.
struct Modes {
    fd: i32,
    before: libc::termios,
    raw: libc::termios,
}

/// The modes of the terminal that is raw now, or null. What it points to is never freed.
static MODES: AtomicPtr<Modes> = AtomicPtr::new(ptr::null_mut());
/// Where a changed window size is told: an eventfd, or -1.
static RESIZE_FD: AtomicI32 = AtomicI32::new(-1);
static AT_EXIT: AtomicBool = AtomicBool::new(false);

/// Signals whose default is to end the process and that come from outside.
const FATAL: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGABRT,
];

fn set_mode(raw: bool) {
    // SAFETY: a pointer that was stored points to a leaked `Modes`, which nobody writes.
    if let Some(modes) = unsafe { MODES.load(Ordering::Acquire).as_ref() } {
        let mode = if raw { &modes.raw } else { &modes.before };
        // SAFETY: `mode` is a valid termios; tcsetattr is async-signal-safe. A failure (the
        // terminal has gone) leaves nothing to do.
        unsafe { libc::tcsetattr(modes.fd, libc::TCSANOW, mode) };
    }
}

/// Puts the terminal back into the mode that it had, if it is raw. Async-signal-safe: for handlers
/// that are about to end the process.
pub fn restore_terminal() {
    set_mode(false);
}

extern "C" fn at_exit() {
    restore_terminal();
}

extern "C" fn on_fatal(signal: i32) {
    restore_terminal();
    // SAFETY: both calls are async-signal-safe. SA_RESETHAND has put the default back; the signal
    // is blocked until this handler returns and then ends the process as it would have.
    unsafe { libc::raise(signal) };
}

extern "C" fn on_stop(_: i32) {
    restore_terminal();
    // SAFETY: async-signal-safe; stops the process here until SIGCONT.
    unsafe { libc::raise(libc::SIGSTOP) };
}

extern "C" fn on_continue(_: i32) {
    set_mode(true);
}

extern "C" fn on_resize(_: i32) {
    let fd = RESIZE_FD.load(Ordering::Acquire);
    if fd >= 0 {
        let one = 1u64;
        // SAFETY: errno is the interrupted code's and is put back; write is async-signal-safe and
        // reads eight bytes of `one`.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(fd, ptr::from_ref(&one).cast(), 8);
            *libc::__errno_location() = errno;
        }
    }
}

/// Handles `signal` unless somebody does already.
fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY: sigaction is plain data for which zeroes are valid; the handlers above are
    // async-signal-safe and keep errno where they return to interrupted code.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_DFL
        {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = handler as *const () as usize;
            new.sa_flags = libc::SA_RESTART | flags;
            libc::sigaction(signal, &new, ptr::null_mut());
        }
    }
}

/// Puts the default back where `handler` is in place.
fn unhandle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: as in `handle`.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &mut old) == 0
            && old.sa_sigaction == handler as *const () as usize
        {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &new, ptr::null_mut());
        }
    }
}

/// Keeps a terminal in raw mode. One at a time in a process.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    /// Makes the terminal `fd` raw (output processing stays, so that messages of the monitor keep
    /// their line ends). `fd` must stay open as long as the process lives.
    pub(super) fn enter(fd: BorrowedFd<'static>) -> io::Result<Self> {
        let fd = fd.as_raw_fd();
        // SAFETY: termios is plain data, filled by tcgetattr on success.
        let before = unsafe {
            let mut t: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(fd, &mut t) != 0 {
                return Err(io::Error::last_os_error());
            }
            t
        };
        let mut raw = before;
        // SAFETY: `raw` is a valid termios.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag |= before.c_oflag & (libc::OPOST | libc::ONLCR);
        let modes = Box::into_raw(Box::new(Modes { fd, before, raw }));
        if MODES
            .compare_exchange(ptr::null_mut(), modes, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: not published, so still ours alone.
            drop(unsafe { Box::from_raw(modes) });
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        if !AT_EXIT.swap(true, Ordering::AcqRel) {
            // SAFETY: the function lives as long as the process and calls tcsetattr only.
            unsafe { libc::atexit(at_exit) };
        }
        for signal in FATAL {
            handle(signal, on_fatal, libc::SA_RESETHAND);
        }
        handle(libc::SIGTSTP, on_stop, 0);
        handle(libc::SIGCONT, on_continue, 0);
        // SAFETY: `raw` is a valid termios.
        if unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw) } != 0 {
            let error = io::Error::last_os_error();
            drop(Self(()));
            return Err(error);
        }
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
        // The old value is leaked: a handler on another thread may be looking at it.
        MODES.store(ptr::null_mut(), Ordering::Release);
        for signal in FATAL {
            unhandle(signal, on_fatal);
        }
        unhandle(libc::SIGTSTP, on_stop);
        unhandle(libc::SIGCONT, on_continue);
    }
}

/// Has changes of the window's size told to the eventfd `fd` until dropped.
pub(super) struct ResizeNotice(());

impl ResizeNotice {
    /// `fd` must stay open until this is dropped.
    pub(super) fn to(fd: BorrowedFd<'_>) -> Self {
        RESIZE_FD.store(fd.as_raw_fd(), Ordering::Release);
        handle(libc::SIGWINCH, on_resize, 0);
        Self(())
    }
}

impl Drop for ResizeNotice {
    fn drop(&mut self) {
        unhandle(libc::SIGWINCH, on_resize);
        RESIZE_FD.store(-1, Ordering::Release);
    }
}
