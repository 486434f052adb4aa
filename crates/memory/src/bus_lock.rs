//! The bus lock: one vCPU alone with the memory.
//!
//! A locked access to an operand that no single host instruction can change atomically (it crosses a
//! cache line or a page) must be atomic against every other access to its parts (SDM vol. 3,
//! 10.1.2). Processors stop the bus for it; here the other vCPUs stop between two instructions.
//!
//! Lock order: `state` and `seats` are leaves, never held together, and not while anything waits for a
//! vCPU. Requests are served in the order in which they came; a vCPU that goes on behind one executes
//! at least one instruction before it gives way to the next.
//!
//! Not stopped: devices' threads. A device's access is as wide as it is, locked or not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// Makes a vCPU look at its events soon.
pub type Kick = Box<dyn Fn() + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    /// vCPUs that execute guest code.
    inside: u32,
    /// Tickets given out, and how many have been served.
    next: u64,
    served: u64,
    /// The ticket `served` has the memory for itself.
    held: bool,
}

/// The bus lock of one VM.
#[derive(Debug, Default)]
pub struct BusLock {
    state: Mutex<State>,
    changed: Condvar,
    seats: Mutex<Vec<Weak<Place>>>,
}

struct Place {
    inside: AtomicBool,
    kick: Kick,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.inside).finish()
    }
}

/// A vCPU's part in the protocol. Its methods belong to the vCPU's thread.
#[derive(Debug, Clone)]
pub struct Seat {
    lock: Arc<BusLock>,
    place: Arc<Place>,
}

/// The vCPU executes guest code until this is dropped.
#[derive(Debug)]
pub struct Inside(Seat);

/// No other vCPU executes guest code until this is dropped.
#[derive(Debug)]
pub struct Alone(Seat);

impl BusLock {
    /// A vCPU takes part; `kick` makes it call [`Seat::give_way`] soon.
    pub fn seat(self: &Arc<Self>, kick: Kick) -> Seat {
        let place = Arc::new(Place {
            inside: AtomicBool::new(false),
            kick,
        });
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|s| s.strong_count() != 0);
        seats.push(Arc::downgrade(&place));
        Seat {
            lock: self.clone(),
            place,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Kicks every vCPU that executes guest code.
    fn kick(&self) {
        let seats: Vec<_> = {
            let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
            seats.iter().filter_map(Weak::upgrade).collect()
        };
        for place in seats.iter().filter(|p| p.inside.load(Ordering::SeqCst)) {
            (place.kick)();
        }
    }
}

impl Seat {
    /// Begins to execute guest code: waits for those who are, or already want to be, alone.
    #[must_use]
    pub fn enter(&self) -> Inside {
        self.go_inside(self.lock.state());
        Inside(self.clone())
    }

    /// Between two instructions: lets those go first who want to be alone. Cheap enough for every look
    /// at the events.
    pub fn give_way(&self) {
        if !self.place.inside.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock.state();
        if state.next != state.served {
            self.go_outside(&mut state);
            self.go_inside(state);
        }
    }

    /// Waits until every other vCPU stands between two instructions, and keeps them there.
    #[must_use]
    pub fn alone(&self) -> Alone {
        let lock = &self.lock;
        let mut state = lock.state();
        let again = self.place.inside.load(Ordering::Relaxed);
        if again {
            self.go_outside(&mut state);
        }
        let ticket = state.next;
        state.next += 1;
        drop(state);
        lock.kick();
        let mut state = lock.state();
        while state.served != ticket || state.inside != 0 {
            state = lock.wait(state);
        }
        state.held = true;
        // `Alone` remembers by this whether to go on inside.
        self.place.inside.store(again, Ordering::SeqCst);
        Alone(self.clone())
    }

    fn go_outside(&self, state: &mut State) {
        state.inside -= 1;
        self.place.inside.store(false, Ordering::SeqCst);
        self.lock.changed.notify_all();
    }

    fn go_inside(&self, mut state: MutexGuard<'_, State>) {
        let before_me = state.next;
        while state.held || state.served < before_me {
            state = self.lock.wait(state);
        }
        state.inside += 1;
        self.place.inside.store(true, Ordering::SeqCst);
        let more = state.next != state.served;
        drop(state);
        if more {
            // Whoever came meanwhile has not kicked this vCPU.
            (self.place.kick)();
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.0.lock.state();
        self.0.go_outside(&mut state);
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let lock = &self.0.lock;
        let mut state = lock.state();
        state.held = false;
        state.served += 1;
        lock.changed.notify_all();
        if self.0.place.inside.load(Ordering::Relaxed) {
            self.0.go_inside(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// Threads that "execute" by adding without atomicity while alone, and look at their events as
    /// vCPUs do.
    #[test]
    fn whoever_is_alone_is_alone() {
        const THREADS: u64 = 4;
        const ROUNDS: u64 = 500;
        let lock = Arc::new(BusLock::default());
        let counter = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let kicked = Arc::new(AtomicBool::new(false));
                let k = kicked.clone();
                let seat = lock.seat(Box::new(move || k.store(true, Ordering::SeqCst)));
                let counter = counter.clone();
                std::thread::spawn(move || {
                    let _inside = seat.enter();
                    for n in 0..2 * ROUNDS {
                        if n % 2 == 0 {
                            let _alone = seat.alone();
                            let old = counter.load(Ordering::Relaxed);
                            std::thread::yield_now();
                            counter.store(old + 1, Ordering::Relaxed);
                        } else {
                            // An "aligned" access, never in the middle of another's.
                            counter.fetch_add(1 << 32, Ordering::Relaxed);
                        }
                        if kicked.swap(false, Ordering::SeqCst) {
                            seat.give_way();
                        }
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        let each = THREADS * ROUNDS;
        assert_eq!(counter.load(Ordering::Relaxed), each << 32 | each);
    }

    /// A vCPU that does not run need not be waited for, and one may be alone without running.
    #[test]
    fn who_is_outside_does_not_count() {
        let lock = Arc::new(BusLock::default());
        let (a, b) = (lock.seat(Box::new(|| ())), lock.seat(Box::new(|| ())));
        drop(b.enter());
        let inside = a.enter();
        drop(a.alone());
        drop(inside);
        drop(b.alone());
        assert_eq!(lock.state().inside, 0);
    }
}
