//! Threads that work off the requests of a disk.

use mimeo_bus::BlockRequest;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Does one request; the result is what the guest gets. Called on the pool's threads.
pub(super) trait Work: Send + Sync + 'static {
    fn run(&self, request: &BlockRequest) -> io::Result<()>;
}

#[derive(Default)]
struct State {
    /// Bounded by the rings of the guest: a request is taken back only when it has ended.
    waiting: VecDeque<BlockRequest>,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request; `None` when there will be none.
    fn next(&self) -> Option<BlockRequest> {
        let mut state = self
            .changed
            .wait_while(self.lock(), |s| s.waiting.is_empty() && !s.closing)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting.pop_front()
    }
}

/// The threads. Dropping the pool finishes what was submitted.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Each thread does `first` before anything else.
    pub(super) fn new(
        threads: usize,
        work: &Arc<dyn Work>,
        first: &Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut pool = Self {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        for i in 0..threads.max(1) {
            let (shared, work, first) = (shared.clone(), work.clone(), first.clone());
            let thread = std::thread::Builder::new()
                .name(format!("disk-{i}"))
                .spawn(move || {
                    first();
                    while let Some(request) = shared.next() {
                        let result = work.run(&request);
                        request.done.finish(result);
                    }
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(super) fn submit(&self, request: BlockRequest) {
        self.shared.lock().waiting.push_back(request);
        self.shared.changed.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // The last owner may be a request that ends on one of these threads.
            if thread.thread().id() != std::thread::current().id() {
                // A panic of the thread has been reported by itself.
                let _ = thread.join();
            }
        }
    }
}
