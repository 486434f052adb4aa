//! Stand-ins for the host side until `mimeo-backends` lands: timers and a plain stdio stream.

use mimeo_bus::{
    Clock, HostClock, Nanos, StreamDevice, StreamHost, Timer, TimerHandle, TimerService,
};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

type Armed = BTreeMap<(Nanos, u64), Arc<dyn Timer>>;

#[derive(Default)]
struct Queue {
    armed: Mutex<(Armed, u64)>,
    changed: Condvar,
}

pub struct Timers {
    clock: Arc<HostClock>,
    queue: Arc<Queue>,
}

impl Timers {
    pub fn start(clock: Arc<HostClock>) -> Self {
        let queue = Arc::new(Queue::default());
        let (c, q) = (clock.clone(), queue.clone());
        std::thread::spawn(move || {
            let mut armed = q.armed.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let now = c.now();
                let wait = match armed.0.first_entry() {
                    Some(e) if e.key().0 <= now => {
                        let target = e.remove();
                        drop(armed);
                        target.expired(now);
                        armed = q.armed.lock().unwrap_or_else(PoisonError::into_inner);
                        continue;
                    }
                    Some(e) => Duration::from_nanos(e.key().0 - now),
                    None => Duration::from_secs(3600),
                };
                armed = q
                    .changed
                    .wait_timeout(armed, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        });
        Self { clock, queue }
    }
}

struct Handle {
    queue: Arc<Queue>,
    id: u64,
    target: Arc<dyn Timer>,
    at: Mutex<Option<Nanos>>,
}

impl TimerHandle for Handle {
    fn arm(&self, deadline: Nanos) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut q = self
            .queue
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = at.replace(deadline) {
            q.0.remove(&(old, self.id));
        }
        q.0.insert((deadline, self.id), self.target.clone());
        self.queue.changed.notify_one();
    }
    fn cancel(&self) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = at.take() {
            let mut q = self
                .queue
                .armed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            q.0.remove(&(old, self.id));
        }
    }
}

impl TimerService for Timers {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
    fn timer(&self, target: Arc<dyn Timer>) -> Box<dyn TimerHandle> {
        let mut q = self
            .queue
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        q.1 += 1;
        Box::new(Handle {
            queue: self.queue.clone(),
            id: q.1,
            target,
            at: Mutex::new(None),
        })
    }
}

#[derive(Default)]
pub struct Output(
    pub Option<Mutex<std::fs::File>>,
    OnceLock<Arc<dyn StreamDevice>>,
    Condvar,
    Mutex<u64>,
);

impl Output {
    pub fn new(file: Option<std::fs::File>) -> Self {
        Self(
            file.map(Mutex::new),
            OnceLock::new(),
            Condvar::new(),
            Mutex::new(0),
        )
    }
    pub fn read_stdin(self: &Arc<Self>) {
        let this = self.clone();
        std::thread::spawn(move || {
            let mut buf = [0; 256];
            while let Ok(n @ 1..) = std::io::stdin().read(&mut buf) {
                let mut done = 0;
                while done < n {
                    let seen = *this.3.lock().unwrap_or_else(PoisonError::into_inner);
                    done += this.1.get().map_or(n, |d| d.input(&buf[done..n]));
                    if done < n {
                        let guard = this.3.lock().unwrap_or_else(PoisonError::into_inner);
                        drop(this.2.wait_while(guard, |c| *c == seen));
                    }
                }
            }
        });
    }
}

impl StreamHost for Output {
    fn write(&self, bytes: &[u8]) -> usize {
        match &self.0 {
            Some(f) => {
                let _ = f
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .write_all(bytes);
            }
            None => {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(bytes).and_then(|()| out.flush());
            }
        }
        bytes.len()
    }
    fn input_wanted(&self) {
        *self.3.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.2.notify_all();
    }
    fn connect(&self, device: Arc<dyn StreamDevice>) {
        let _ = self.1.set(device);
    }
}
