//! TCP: the guest's connections end here and go on as the host's.
//!
//! A connection of the guest is held without an answer until the host's is made (smoltcp's
//! `pause_synack`), and then reset or accepted as that was. Half-closed connections stay so.

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};

/// Connections at one time; more are refused.
const MAX_FLOWS: usize = 256;
/// Bytes of either direction's buffer.
const BUFFER: usize = 256 << 10;
/// A segment of the guest's with at least this many bytes is part of a stream, whose next part waits
/// for the acknowledgement.
const STREAM: usize = 512;
/// How long the acknowledgement of a smaller one waits for an answer to go with (RFC 9293, 3.8.6.3).
const ACK_DELAY: Duration = Duration::from_millis(2);
/// A guest that does not answer for this long is gone.
const TIMEOUT: Duration = Duration::from_secs(75);
/// Ports of the router for connections that come from outside.
const EPHEMERAL: std::ops::Range<u16> = 49_152..65_535;

/// The guest's end and the far end as the guest sees it.
type Key = (SocketAddr, SocketAddr);

/// A connection: its two ends and what each has said.
#[derive(Debug)]
struct Flow {
    handle: SocketHandle,
    /// The guest's end and the far end as the guest sees it.
    key: Key,
    stream: TcpStream,
    connecting: bool,
    readable: bool,
    write_blocked: bool,
    host_closed: bool,
    guest_closed: bool,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Tcp {
    sockets: SocketSet<'static>,
    flows: Vec<Flow>,
    /// smoltcp's sockets by their ends.
    handles: HashMap<Key, SocketHandle>,
    listeners: Vec<(TcpListener, u16)>,
    next_port: u16,
}

/// What a connection waits for on the host's side.
pub(super) struct Interest<'a> {
    /// Which connection, until the next one is added or removed.
    pub(super) index: usize,
    pub(super) stream: &'a TcpStream,
    pub(super) read: bool,
    pub(super) write: bool,
}

fn new_socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut s = Socket::new(buffer(), buffer());
    s.set_timeout(Some(TIMEOUT));
    s.set_nagle_enabled(false);
    s
}

impl Tcp {
    pub(super) fn new() -> Self {
        Self {
            sockets: SocketSet::new(Vec::new()),
            flows: Vec::new(),
            handles: HashMap::new(),
            listeners: Vec::new(),
            next_port: EPHEMERAL.start,
        }
    }

    pub(super) fn publish(&mut self, listener: TcpListener, guest_port: u16) {
        self.listeners.push((listener, guest_port));
    }

    pub(super) fn sockets_mut(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    pub(super) fn sockets(&self) -> &SocketSet<'static> {
        &self.sockets
    }

    /// The published ports to be waited at: none while there are too many connections.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &TcpListener> {
        let room = self.flows.len() < MAX_FLOWS;
        let all = self.listeners.iter().map(|(l, _)| l);
        all.filter(move |_| room)
    }

    /// The guest asks for a connection: begins the host's, and prepares to answer. Nothing happens
    /// for one that is known (the request was repeated) or cannot be begun (smoltcp refuses it).
    pub(super) fn open(&mut self, guest: SocketAddr, shown: SocketAddr, to: SocketAddr) {
        if self.handles.contains_key(&(guest, shown)) || self.flows.len() >= MAX_FLOWS {
            return;
        }
        let Some(stream) = begin_connect(to) else {
            return;
        };
        let mut socket = new_socket();
        let local = IpListenEndpoint {
            addr: Some(shown.ip().into()),
            port: shown.port(),
        };
        if socket.listen(local).is_ok() {
            socket.pause_synack(true);
            self.add(socket, (guest, shown), stream, true);
        }
    }

    fn add(&mut self, socket: Socket<'static>, key: Key, stream: TcpStream, connecting: bool) {
        let handle = self.sockets.add(socket);
        self.handles.insert(key, handle);
        self.flows.push(Flow {
            handle,
            key,
            stream,
            connecting,
            readable: false,
            write_blocked: false,
            host_closed: false,
            guest_closed: false,
        });
    }

    /// A segment of the guest's with `len` bytes is about to be looked at.
    pub(super) fn before_segment(&mut self, key: &Key, len: usize) {
        if let Some(&handle) = self.handles.get(key) {
            let delay = (len < STREAM).then_some(ACK_DELAY);
            self.sockets
                .get_mut::<Socket<'_>>(handle)
                .set_ack_delay(delay);
        }
    }

    /// Takes connections from outside and begins theirs to the guest. `ends` gives the guest's and the
    /// router's address for the far end's.
    pub(super) fn accept(
        &mut self,
        iface: &mut Interface,
        ends: impl Fn(SocketAddr) -> (IpAddr, IpAddr),
    ) {
        for i in 0..self.listeners.len() {
            while self.flows.len() < MAX_FLOWS {
                let (listener, guest_port) = &self.listeners[i];
                let (Ok((stream, peer)), guest_port) = (listener.accept(), *guest_port) else {
                    break;
                };
                if stream.set_nonblocking(true).is_err() {
                    continue;
                }
                let _ = stream.set_nodelay(true);
                let (guest, router) = ends(peer);
                let to = SocketAddr::new(guest, guest_port);
                let from = SocketAddr::new(router, self.ephemeral(to));
                let mut socket = new_socket();
                let (remote, local) = (IpEndpoint::from(to), IpEndpoint::from(from));
                if socket.connect(iface.context(), remote, local).is_ok() {
                    self.add(socket, (to, from), stream, false);
                }
            }
        }
    }

    /// A port of the router that no connection with this end of the guest's uses.
    fn ephemeral(&mut self, guest: SocketAddr) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = if port + 1 == EPHEMERAL.end {
                EPHEMERAL.start
            } else {
                port + 1
            };
            let used = |f: &Flow| f.key.0 == guest && f.key.1.port() == port;
            if !self.flows.iter().any(used) {
                return port;
            }
        }
    }

    /// What to wait for. Connections that wait for the guest only are left out: the host's side of
    /// them may be in a state that poll reports without end.
    pub(super) fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        let all = self.flows.iter().enumerate().map(|(index, f)| {
            let s = self.sockets.get::<Socket<'_>>(f.handle);
            Interest {
                index,
                stream: &f.stream,
                read: !f.connecting && !f.host_closed && s.can_send(),
                write: f.connecting || f.write_blocked,
            }
        });
        all.filter(|i| i.read || i.write)
    }

    /// Notes what was waited for: (index, readable, writable).
    pub(super) fn ready(&mut self, events: &[(usize, bool, bool)]) {
        for &(index, readable, writable) in events {
            let Some(flow) = self.flows.get_mut(index) else {
                continue;
            };
            flow.readable |= readable;
            if !writable {
                continue;
            }
            flow.write_blocked = false;
            if flow.connecting {
                flow.connecting = false;
                let socket = self.sockets.get_mut::<Socket<'_>>(flow.handle);
                match flow.stream.take_error() {
                    Ok(None) => socket.pause_synack(false),
                    _ => socket.abort(),
                }
            }
        }
    }

    /// Moves bytes both ways.
    pub(super) fn pump(&mut self) {
        for flow in self.flows.iter_mut().filter(|f| !f.connecting) {
            let socket = self.sockets.get_mut::<Socket<'_>>(flow.handle);
            flow.move_to_guest(socket);
            flow.move_to_host(socket);
        }
    }

    /// Forgets connections that are closed on both sides. Call it after smoltcp had its say, so that
    /// a reset has been sent.
    pub(super) fn reap(&mut self) {
        let (sockets, handles) = (&mut self.sockets, &mut self.handles);
        self.flows.retain(|f| {
            let state = sockets.get::<Socket<'_>>(f.handle).state();
            // Closed by a reset, a timeout or both ends; in TIME-WAIT nothing is left to be done. A
            // reset before the handshake's end makes a socket listen again, for nobody.
            let over = matches!(state, State::Closed | State::TimeWait)
                || state == State::Listen && !f.connecting;
            if over {
                handles.remove(&f.key);
                sockets.remove(f.handle);
            }
            !over
        });
    }
}

impl Flow {
    fn move_to_guest(&mut self, socket: &mut Socket<'_>) {
        while self.readable && !self.host_closed && socket.can_send() {
            let stream = &mut self.stream;
            let mut room = 0;
            let result = socket.send(|buffer| {
                room = buffer.len();
                match stream.read(buffer) {
                    Ok(n) => (n, Ok(n)),
                    Err(e) => (0, Err(e)),
                }
            });
            match result {
                Ok(Ok(0)) => {
                    self.host_closed = true;
                    socket.close();
                }
                // Less than there was room for: that was all.
                Ok(Ok(n)) => self.readable = n == room,
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(Err(e)) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                _ => return self.reset(socket),
            }
        }
    }

    fn move_to_host(&mut self, socket: &mut Socket<'_>) {
        while !self.write_blocked && !self.guest_closed && socket.can_recv() {
            let stream = &mut self.stream;
            let result = socket.recv(|data| match stream.write(data) {
                Ok(n) => (n, Ok(n)),
                Err(e) => (0, Err(e)),
            });
            match result {
                Ok(Ok(n)) if n > 0 => {}
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(Err(e)) if e.kind() == ErrorKind::WouldBlock => self.write_blocked = true,
                _ => return self.reset(socket),
            }
        }
        let ended = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if ended && !self.guest_closed && socket.recv_queue() == 0 {
            self.guest_closed = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn reset(&mut self, socket: &mut Socket<'_>) {
        self.host_closed = true;
        self.guest_closed = true;
        socket.abort();
    }
}

/// Begins a connection without waiting for it.
fn begin_connect(to: SocketAddr) -> Option<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).ok()?;
    match connect(&fd, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(_) => return None,
    }
    let stream = TcpStream::from(fd);
    let _ = stream.set_nodelay(true);
    Some(stream)
}
