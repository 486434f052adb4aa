//! Requests and replies between a device and a server on the host (file sharing).

/// A server of one client: bytes in, bytes out. Belongs to one thread.
pub trait MessageServer: Send {
    /// Answers a request with at most `room` bytes; with none where the protocol has no reply, or none
    /// that fits. Whatever the request's bytes are.
    fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8>;

    /// The client has gone: whatever it had open is closed.
    fn reset(&mut self);
}

type Callback = Box<dyn FnOnce(Vec<u8>) + Send>;

/// How a request ends. Dropping it unused ends the request with an empty reply, so that none is lost.
pub struct MessageDone(Option<Callback>);

impl MessageDone {
    /// Calls `callback` with the reply, on whichever thread that happens.
    #[must_use]
    pub fn new(callback: Callback) -> Self {
        Self(Some(callback))
    }

    /// The request ends.
    pub fn finish(mut self, reply: Vec<u8>) {
        if let Some(callback) = self.0.take() {
            callback(reply);
        }
    }
}

impl Drop for MessageDone {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Vec::new());
        }
    }
}

/// A request to a server.
pub struct Message {
    /// Its bytes.
    pub request: Vec<u8>,
    /// Bytes that the reply may have.
    pub room: usize,
    /// How it ends.
    pub done: MessageDone,
}

/// The host's side of a device that asks: a server on a thread of its own.
pub trait MessageHost: Send + Sync {
    /// Takes a request. Never blocks, and does not end the request before it returns (the device's
    /// lock is held). Requests are answered in order.
    fn submit(&self, message: Message);

    /// The client has gone, after everything that was submitted.
    fn reset(&self);
}
