//! A thread that answers the requests of a device ([`MessageHost`]).

use mimeo_bus::{Message, MessageHost, MessageServer};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

enum Work {
    /// Bounded by the rings of the guest: a request is taken back only when it has ended.
    Answer(Message),
    Reset,
}

/// A server on a thread of its own. Dropping it answers what was submitted.
pub struct ServerThread {
    work: Option<Mutex<Sender<Work>>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Starts the thread, which does `first` (cages itself) before anything else; `name` is for
    /// debuggers, at most 15 bytes count.
    ///
    /// # Errors
    /// The host's, when it gives no thread.
    pub fn start(
        name: &str,
        mut server: Box<dyn MessageServer>,
        first: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (work, todo) = channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                first();
                for work in todo {
                    match work {
                        Work::Answer(m) => {
                            // A mistake of the server's costs the request, not the share. The
                            // panic has been reported.
                            let answer = AssertUnwindSafe(|| server.handle(&m.request, m.room));
                            m.done.finish(catch_unwind(answer).unwrap_or_default());
                        }
                        Work::Reset => server.reset(),
                    }
                }
            })?;
        Ok(Self {
            work: Some(Mutex::new(work)),
            thread: Some(thread),
        })
    }

    fn send(&self, work: Work) {
        if let Some(sender) = &self.work {
            // The thread ends after this sender only.
            let _ = sender
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .send(work);
        }
    }
}

impl MessageHost for ServerThread {
    fn submit(&self, message: Message) {
        self.send(Work::Answer(message));
    }

    fn reset(&self) {
        self.send(Work::Reset);
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // The last owner may be a request that ends on the thread.
            if thread.thread().id() != std::thread::current().id() {
                // A panic of the thread has been reported by itself.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mimeo_bus::MessageDone;
    use std::sync::mpsc::{Receiver, channel};

    /// Counts; starts again after a reset.
    struct Counter(u8);

    impl MessageServer for Counter {
        fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
            assert!(request != b"panic", "as the test wants it");
            self.0 += 1;
            vec![self.0; room]
        }
        fn reset(&mut self) {
            self.0 = 0;
        }
    }

    fn ask(server: &ServerThread, request: &[u8]) -> Receiver<Vec<u8>> {
        let (send, reply) = channel();
        server.submit(Message {
            request: request.to_vec(),
            room: 2,
            done: MessageDone::new(Box::new(move |r| send.send(r).unwrap())),
        });
        reply
    }

    #[test]
    fn requests_are_answered_in_order() {
        let server = ServerThread::start("counter", Box::new(Counter(0)), || ()).unwrap();
        let replies = [ask(&server, b""), ask(&server, b"")];
        server.reset();
        let third = ask(&server, b"");
        drop(server);
        assert_eq!(replies.map(|r| r.recv().unwrap()), [[1, 1], [2, 2]]);
        assert_eq!(third.recv().unwrap(), [1, 1]);
    }

    #[test]
    fn a_mistake_of_the_server_costs_one_request() {
        let server = ServerThread::start("counter", Box::new(Counter(0)), || ()).unwrap();
        assert_eq!(ask(&server, b"panic").recv().unwrap(), []);
        assert_eq!(ask(&server, b"").recv().unwrap(), [1, 1]);
    }
}
