//! Timer services: on a host thread, and by hand for deterministic runs.

use mimeo_bus::{Clock, HostClock, Nanos, Timer, TimerHandle, TimerService};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The timers of one service: which exist, and when each is due.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

struct Slot {
    deadline: Option<Nanos>,
    target: Option<Arc<dyn Timer>>,
}

impl Slots {
    fn add(&mut self, target: Arc<dyn Timer>) -> usize {
        let slot = Slot {
            deadline: None,
            target: Some(target),
        };
        if let Some(index) = self.free.pop() {
            self.slots[index] = slot;
            index
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        }
    }

    fn remove(&mut self, index: usize) -> Option<Arc<dyn Timer>> {
        self.slots[index].deadline = None;
        self.free.push(index);
        self.slots[index].target.take()
    }

    fn next(&self) -> Option<Nanos> {
        self.slots.iter().filter_map(|s| s.deadline).min()
    }

    /// Takes the timer that is due first at `now`; among equals the one that was made first.
    fn take_due(&mut self, now: Nanos) -> Option<Arc<dyn Timer>> {
        let due = |s: &Slot| s.deadline.filter(|&d| d <= now);
        let (_, index) = (0..self.slots.len())
            .filter_map(|i| Some((due(&self.slots[i])?, i)))
            .min()?;
        self.slots[index].deadline = None;
        self.slots[index].target.clone()
    }
}

struct State {
    timers: Slots,
    /// Until when the thread sleeps; 0 while it works and will look again by itself.
    wake_at: Nanos,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Arc<HostClock>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread look at the clock and the timers again.
    fn look_again(&self) {
        drop(self.lock());
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stop {
            let now = self.clock.now();
            state.wake_at = 0;
            if let Some(target) = state.timers.take_due(now) {
                drop(state);
                target.expired(now);
                state = self.lock();
                continue;
            }
            // A paused clock does not come nearer to any deadline.
            let next = state.timers.next().filter(|_| !self.clock.paused());
            state.wake_at = next.unwrap_or(Nanos::MAX);
            state = match next {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let wait = Duration::from_nanos(at - now);
                    self.changed
                        .wait_timeout(state, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

/// Timers on a [`HostClock`], run by one host thread. Arming takes one short lock; the thread is
/// woken only when the new deadline is earlier than all others.
///
/// Lock order: the service's lock is a leaf. [`Timer::expired`] is called without it.
pub struct HostTimers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for HostTimers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostTimers")
    }
}

impl HostTimers {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn new(clock: Arc<HostClock>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                timers: Slots::default(),
                wake_at: 0,
                stop: false,
            }),
            changed: Condvar::new(),
            clock,
        });
        let runner = shared.clone();
        let thread = std::thread::Builder::new()
            .name("timers".into())
            .spawn(move || {
                // The default slack of 50 microseconds would be added to every timer. Where the
                // host refuses, timers are that much late.
                let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
                runner.run();
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Stops VM time and with it the timers.
    pub fn pause(&self) {
        self.shared.clock.pause();
        self.shared.look_again();
    }

    /// Lets VM time go on.
    pub fn resume(&self) {
        self.shared.clock.resume();
        self.shared.look_again();
    }
}

impl Drop for HostTimers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

struct HostTimer {
    shared: Arc<Shared>,
    index: usize,
}

impl TimerHandle for HostTimer {
    fn arm(&self, deadline: Nanos) {
        let mut state = self.shared.lock();
        state.timers.slots[self.index].deadline = Some(deadline);
        if deadline < state.wake_at {
            state.wake_at = deadline;
            drop(state);
            self.shared.changed.notify_one();
        }
    }

    fn cancel(&self) {
        // The thread may wake for nothing; waking it to say so would cost more.
        self.shared.lock().timers.slots[self.index].deadline = None;
    }
}

impl Drop for HostTimer {
    fn drop(&mut self) {
        let target = self.shared.lock().timers.remove(self.index);
        // The target may own timers of its own: not under the lock.
        drop(target);
    }
}

impl TimerService for HostTimers {
    fn clock(&self) -> Arc<dyn Clock> {
        self.shared.clock.clone()
    }

    fn timer(&self, target: Arc<dyn Timer>) -> Box<dyn TimerHandle> {
        let index = self.shared.lock().timers.add(target);
        Box::new(HostTimer {
            shared: self.shared.clone(),
            index,
        })
    }
}

/// A clock that stands where it was set.
#[derive(Debug, Default)]
struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn now(&self) -> Nanos {
        self.0.load(Ordering::Acquire)
    }
}

/// Timers whose time is told and whose expiries are run by the caller, on the caller's thread, in
/// order of deadline and then of creation: the same calls give the same run.
#[derive(Default)]
pub struct ManualTimers {
    clock: Arc<ManualClock>,
    slots: Arc<Mutex<Slots>>,
}

impl std::fmt::Debug for ManualTimers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ManualTimers({})", self.clock.now())
    }
}

impl ManualTimers {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the time. Runs nothing. Going back is for restoring a snapshot only.
    pub fn set_now(&self, now: Nanos) {
        self.clock.0.store(now, Ordering::Release);
    }

    /// The earliest deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.lock().next()
    }

    /// Runs what is due, and what becomes due by that; gives the number of expiries. A timer that
    /// arms itself for the past again is run at most `1000` times.
    pub fn run_due(&self) -> usize {
        let now = self.clock.now();
        for ran in 0..1000 {
            let target = self.lock().take_due(now);
            let Some(target) = target else {
                return ran;
            };
            target.expired(now);
        }
        1000
    }
}

struct ManualTimer {
    slots: Arc<Mutex<Slots>>,
    index: usize,
}

impl ManualTimer {
    fn set(&self, deadline: Option<Nanos>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.slots[self.index].deadline = deadline;
    }
}

impl TimerHandle for ManualTimer {
    fn arm(&self, deadline: Nanos) {
        self.set(Some(deadline));
    }

    fn cancel(&self) {
        self.set(None);
    }
}

impl Drop for ManualTimer {
    fn drop(&mut self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let target = slots.remove(self.index);
        drop(slots);
        drop(target);
    }
}

impl TimerService for ManualTimers {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn timer(&self, target: Arc<dyn Timer>) -> Box<dyn TimerHandle> {
        let index = self.lock().add(target);
        Box::new(ManualTimer {
            slots: self.slots.clone(),
            index,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    struct Tell(Mutex<Sender<(u32, Nanos)>>, u32);

    impl Timer for Tell {
        fn expired(&self, now: Nanos) {
            let _ = self.0.lock().unwrap().send((self.1, now));
        }
    }

    type Told = Receiver<(u32, Nanos)>;

    fn tellers(service: &dyn TimerService) -> (Vec<Box<dyn TimerHandle>>, Told) {
        let (send, got) = channel();
        let make = |n| service.timer(Arc::new(Tell(Mutex::new(send.clone()), n)));
        ((0..3).map(make).collect(), got)
    }

    #[test]
    fn manual_timers_run_in_order_when_told() {
        let service = ManualTimers::default();
        let (t, got) = tellers(&service);
        t[0].arm(20);
        t[1].arm(10);
        t[2].arm(20);
        assert_eq!(service.next_deadline(), Some(10));
        service.set_now(9);
        assert_eq!(service.run_due(), 0);
        service.set_now(25);
        assert_eq!(service.run_due(), 3);
        assert_eq!(
            got.try_iter().collect::<Vec<_>>(),
            [(1, 25), (0, 25), (2, 25)]
        );
        t[0].arm(30);
        t[0].cancel();
        t[1].arm(30);
        drop(t);
        service.set_now(100);
        assert_eq!((service.run_due(), service.next_deadline()), (0, None));
    }

    #[test]
    fn host_timers_fire_in_order_never_early_and_not_when_cancelled() {
        let clock = Arc::new(HostClock::default());
        let service = HostTimers::new(clock.clone()).unwrap();
        let (t, got) = tellers(&service);
        let now = clock.now();
        t[2].arm(now + 5_000_000);
        t[0].arm(now + 3_000_000);
        t[1].arm(now + 1_000_000);
        t[0].cancel();
        let wait = Duration::from_secs(60);
        let (first, at) = got.recv_timeout(wait).unwrap();
        assert!(first == 1 && at >= now + 1_000_000);
        let (second, at) = got.recv_timeout(wait).unwrap();
        assert!(second == 2 && at >= now + 5_000_000);
        assert!(got.try_recv().is_err());
    }

    #[test]
    fn a_paused_service_fires_nothing_until_it_goes_on() {
        let clock = Arc::new(HostClock::default());
        let service = HostTimers::new(clock.clone()).unwrap();
        let (t, got) = tellers(&service);
        service.pause();
        let at = clock.now() + 1000;
        t[0].arm(at);
        assert!(got.recv_timeout(Duration::from_millis(20)).is_err());
        service.resume();
        let (_, now) = got.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(now >= at);
    }
}
