//! Signals on vCPU threads: kicks out of translated code, and host faults inside it.
//!
//! A kick (a real-time signal) sets the trap flag when it finds the thread in translated code; the
//! thread then single-steps until it stands at a guest instruction boundary, where the state is
//! exact, and is sent to the exit. No code is patched and none polls. Faults inside translated code
//! (#DE, #GP of a misaligned or non-canonical operand, unmasked FP exceptions) are sent to the exit
//! too: the interpreter then executes the instruction and raises what the guest is to see.
//!
//! The handlers touch only thread-local plain data, the context block and the lock-free index; they
//! take no lock, allocate nothing and do not panic. Signals at any other place go to the handler
//! that was there before.
#![expect(
    unsafe_code,
    reason = "signal handlers and the machine context they edit"
)]

use crate::ctx::Ctx;
use crate::index::Index;
use crate::tramp;
use std::cell::Cell;
use std::sync::OnceLock;

const TF: i64 = 1 << 8;
const ALT_STACK: usize = 256 << 10;

/// What the handlers know about the thread they run on.
#[derive(Debug, Clone, Copy)]
struct Current {
    lo: u64,
    hi: u64,
    ctx: *const Ctx,
    index: *const Index,
}

thread_local! {
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
    static STEPPING: Cell<bool> = const { Cell::new(false) };
    static STACK: AltStack = AltStack::new();
}

const FAULTS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

static OLD: OnceLock<[libc::sigaction; 5]> = OnceLock::new();

/// The number of the kick signal.
pub(crate) fn kick() -> libc::c_int {
    libc::SIGRTMIN() + 4
}

/// A signal stack for this thread, taken down with it.
struct AltStack {
    memory: Vec<u8>,
}

impl AltStack {
    fn new() -> Self {
        let mut memory = vec![0u8; ALT_STACK];
        let stack = libc::stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: memory.len(),
        };
        // SAFETY: the memory belongs to this thread and stays until `drop` disables the stack.
        unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
        Self { memory }
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        let off = libc::stack_t {
            ss_sp: std::ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: self.memory.len(),
        };
        // SAFETY: takes down what `new` set up, on the same thread.
        unsafe { libc::sigaltstack(&raw const off, std::ptr::null_mut()) };
    }
}

fn install() {
    OLD.get_or_init(|| {
        // SAFETY: plain data, filled by sigaction below.
        let mut old: [libc::sigaction; 5] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
        new.sa_sigaction = handler as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: `new` is a complete action; the handler follows the rules of the module.
        unsafe {
            libc::sigfillset(&raw mut new.sa_mask);
            for (sig, o) in FAULTS.iter().zip(&mut old) {
                libc::sigaction(*sig, &raw const new, o);
            }
            libc::sigaction(kick(), &raw const new, std::ptr::null_mut());
        }
        old
    });
}

/// Prepares this thread to run translated code until [`Guard`] is dropped.
pub(crate) fn enter(range: std::ops::Range<u64>, ctx: *const Ctx, index: &Index) -> Guard {
    install();
    STACK.with(|_| {});
    CURRENT.set(Some(Current {
        lo: range.start,
        hi: range.end,
        ctx,
        index,
    }));
    Guard(())
}

/// See [`enter`].
pub(crate) struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

extern "C" fn handler(sig: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let regs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    if let Some(current) = CURRENT.get()
        && serve(sig, &current, regs)
    {
        return;
    }
    if sig == kick() {
        return;
    }
    if sig == libc::SIGTRAP && STEPPING.replace(false) {
        regs[libc::REG_EFL as usize] &= !TF;
        return;
    }
    // Not ours: the previous action takes over; the instruction faults again.
    if let Some(old) = OLD.get()
        && let Some(n) = FAULTS.iter().position(|s| *s == sig)
    {
        // SAFETY: reinstalls an action that was installed before.
        unsafe { libc::sigaction(sig, &raw const old[n], std::ptr::null_mut()) };
    }
}

/// Handles a signal that concerns translated code; whether it did.
fn serve(sig: libc::c_int, c: &Current, regs: &mut [libc::greg_t; 23]) -> bool {
    let pc = regs[libc::REG_RIP as usize] as u64;
    let inside = (c.lo..c.hi).contains(&pc);
    let window = tramp::window().contains(&pc);
    if sig == kick() {
        if inside || window {
            if inside {
                finish_string(c, regs);
            }
            STEPPING.set(true);
            regs[libc::REG_EFL as usize] |= TF;
        }
        return true;
    }
    if sig == libc::SIGTRAP {
        if !STEPPING.get() {
            return false;
        }
        if inside {
            // SAFETY: the index outlives the run of the vCPU that `Current` describes.
            let found = unsafe { &*c.index }.find((pc - c.lo) as u32);
            if let Some(f) = found.filter(|f| f.boundary && !f.shadow) {
                // SAFETY: the context block of this thread's vCPU; this thread is in translated
                // code and holds no reference to it.
                unsafe { (*c.ctx).rip.set(f.rip) };
                leave(c, regs, tramp::SITE_KICK);
            } else {
                finish_string(c, regs);
            }
            return true;
        }
        if window {
            return true;
        }
        STEPPING.set(false);
        regs[libc::REG_EFL as usize] &= !TF;
        return true;
    }
    if inside {
        // SAFETY: as above.
        unsafe { (*c.ctx).fault_pc.set((pc - c.lo) as u32) };
        leave(c, regs, tramp::SITE_FAULT);
        return true;
    }
    false
}

/// Carries out the rest of a REP MOVS or REP STOS that the thread stands at: a step would end after each
/// element. Emitted code runs them on at most a page of guest memory.
fn finish_string(c: &Current, regs: &mut [libc::greg_t; 23]) {
    let pc = regs[libc::REG_RIP as usize] as u64;
    if pc + 8 > c.hi {
        return;
    }
    // SAFETY: inside the code cache, which is mapped readable.
    let code: [u8; 4] = unsafe { (pc as *const [u8; 4]).read_unaligned() };
    let (len, size, op) = match code {
        [0x66, 0xf3, op, _] => (3, 2, op),
        [0xf3, 0x48, op, _] => (3, 8, op),
        [0xf3, op, ..] => (2, 4, op),
        _ => return,
    };
    let size = match op {
        0xa4 | 0xaa => 1,
        0xa5 | 0xab => size,
        _ => return,
    };
    let stos = op >= 0xaa;
    let (mut di, mut si, mut count) = (
        regs[libc::REG_RDI as usize],
        regs[libc::REG_RSI as usize],
        regs[libc::REG_RCX as usize],
    );
    macro_rules! run {
        ($text:literal) => {
            // SAFETY: what the interrupted instruction was about to do, with its registers: the
            // verifier's rule for it is that both ranges lie in guest memory.
            unsafe {
                std::arch::asm!($text, inout("rdi") di, inout("rsi") si, inout("rcx") count,
                    in("rax") regs[libc::REG_RAX as usize], options(nostack, preserves_flags))
            }
        };
    }
    match (stos, size) {
        (false, 1) => run!("rep movsb"),
        (false, 2) => run!("rep movsw"),
        (false, 4) => run!("rep movsd"),
        (false, _) => run!("rep movsq"),
        (true, 1) => run!("rep stosb"),
        (true, 2) => run!("rep stosw"),
        (true, 4) => run!("rep stosd"),
        (true, _) => run!("rep stosq"),
    }
    regs[libc::REG_RDI as usize] = di;
    regs[libc::REG_RSI as usize] = si;
    regs[libc::REG_RCX as usize] = count;
    regs[libc::REG_RIP as usize] += len;
}

fn leave(c: &Current, regs: &mut [libc::greg_t; 23], site: u32) {
    // SAFETY: as in `serve`.
    unsafe { (*c.ctx).site.set(site) };
    STEPPING.set(false);
    regs[libc::REG_EFL as usize] &= !TF;
    regs[libc::REG_RIP as usize] = tramp::exit_address() as i64;
}
