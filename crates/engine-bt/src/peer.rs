//! What other threads may do to a vCPU: kick it, ask something of it, take write rights back.
#![expect(
    unsafe_code,
    reason = "the context block is shared with translated code; thread-directed signals"
)]

use crate::ctx::Ctx;
use crate::lazy::LazyArray;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One vCPU as the others see it. Owns the vCPU's context block.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The vCPU's index.
    pub(crate) vcpu: u32,
    ctx: Box<Ctx>,
    /// The tables of each view.
    views: Vec<Arc<LazyArray>>,
    requests: AtomicU32,
    purge: Mutex<Vec<u32>>,
    /// Times that the vCPU has left translated code.
    exits: AtomicU64,
    running: AtomicBool,
    tid: AtomicI32,
}

// SAFETY: only the vCPU's own thread touches the context block's plain fields (through
// `Peer::ctx`); the others use its two atomics only.
unsafe impl Send for Peer {}
// SAFETY: as above.
unsafe impl Sync for Peer {}

fn gettid() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

impl Peer {
    /// Blocks of some pages are gone ([`Self::take_purge`]).
    pub(crate) const PURGE: u32 = 1;
    /// All translations are gone.
    pub(crate) const DROP: u32 = 2;
    /// Every write word is to be cleared.
    pub(crate) const FLUSH_WRITES: u32 = 4;

    /// A vCPU with its tables.
    pub(crate) fn new(vcpu: u32, views: Vec<Arc<LazyArray>>) -> Self {
        Self {
            vcpu,
            ctx: Box::new(Ctx::new()),
            views,
            requests: AtomicU32::new(0),
            purge: Mutex::new(Vec::new()),
            exits: AtomicU64::new(0),
            running: AtomicBool::new(false),
            tid: AtomicI32::new(0),
        }
    }

    /// The context block. Only the vCPU's own thread may look at it (but for its atomics): the
    /// fields are cells.
    pub(crate) fn ctx(&self) -> &Ctx {
        &self.ctx
    }

    fn kick_word(&self) -> &AtomicU32 {
        &self.ctx.kick
    }

    fn in_cache(&self) -> bool {
        self.ctx.in_cache.load(Ordering::SeqCst) != 0
    }

    /// The vCPU's thread begins to run guest code.
    pub(crate) fn begin(&self) {
        self.tid.store(gettid(), Ordering::SeqCst);
        self.running.store(true, Ordering::SeqCst);
    }

    /// The vCPU's thread has ended running guest code.
    pub(crate) fn end(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    /// The vCPU has left translated code and knows where.
    pub(crate) fn left(&self) {
        // Only this thread writes `exits`. `expel` orders its own side with a process-wide barrier.
        self.ctx.in_cache.store(0, Ordering::Release);
        let exits = self.exits.load(Ordering::Relaxed);
        self.exits.store(exits.wrapping_add(1), Ordering::Release);
    }

    /// Makes the vCPU leave translated code soon, and refuse to enter until it has looked.
    pub(crate) fn kick(&self) {
        self.kick_word().store(1, Ordering::SeqCst);
        if self.running.load(Ordering::SeqCst) {
            let tid = self.tid.load(Ordering::SeqCst);
            if tid != gettid() {
                // SAFETY: a signal to a thread of our own process (or to none, if it has ended),
                // whose handler is installed.
                unsafe {
                    libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, crate::signal::kick())
                };
            }
        }
    }

    /// The vCPU is about to look at its events: kicks until now are served.
    pub(crate) fn clear_kick(&self) {
        self.kick_word().store(0, Ordering::SeqCst);
    }

    /// Asks something of the vCPU, to be done before it enters translated code again.
    pub(crate) fn request(&self, bits: u32) {
        self.requests.fetch_or(bits, Ordering::SeqCst);
        self.kick();
    }

    /// Whether something was asked.
    pub(crate) fn requested(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// Takes what was asked.
    pub(crate) fn take_requests(&self) -> u32 {
        self.requests.swap(0, Ordering::SeqCst)
    }

    /// Blocks of `page` are gone.
    pub(crate) fn purge(&self, page: u32) {
        self.purge
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(page);
        self.request(Self::PURGE);
    }

    /// Takes the pages whose blocks are gone.
    pub(crate) fn take_purge(&self) -> Vec<u32> {
        std::mem::take(&mut self.purge.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Clears one write word (view 0 stands for both supervisor views).
    pub(crate) fn revoke_write(&self, view: u8, index: usize) {
        let also = (view == 0).then_some(1);
        for v in [Some(usize::from(view)), also].into_iter().flatten() {
            if let Some(words) = self.views.get(v) {
                crate::lat::revoke(words, index);
            }
        }
    }

    /// Waits until the vCPU is, or has once been, outside translated code.
    ///
    /// Called by another vCPU's thread that is itself outside, so that two of them cannot wait for
    /// each other for ever.
    pub(crate) fn expel(&self) {
        const MEMBARRIER_CMD_PRIVATE_EXPEDITED: libc::c_int = 8;
        // SAFETY: takes no pointers. (The page tracker has registered the process.)
        unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) };
        let exits = self.exits.load(Ordering::SeqCst);
        let mut spins = 0u32;
        while self.in_cache() && self.exits.load(Ordering::SeqCst) == exits {
            if spins.is_multiple_of(4096) {
                self.kick();
            }
            spins = spins.wrapping_add(1);
            if spins > 64 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}
