//! The switch's process: one thread, one loop.

use super::fdb::Fdb;
use super::member::{LONGEST, Member, Packet, TICK};
use super::{HELLO, WELCOME};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Members at one time; more are turned away.
const MOST: usize = 256;
/// Packets, and bytes, read from one member before others have their turn.
const TURN: usize = 16;
const TURN_BYTES: usize = 64 << 10;
/// How long an empty switch waits for somebody.
const LONELY: Duration = Duration::from_secs(3);

struct Switch {
    listener: OwnedFd,
    members: Vec<Member>,
    fdb: Fdb,
    next: u64,
    buffer: Vec<u8>,
}

/// Serves those who come to `listener`; returns a moment after the last has left. (Nobody is turned
/// away by that: who finds no answer starts another switch.) With `forever`, it does not end.
pub fn serve(listener: OwnedFd, forever: bool) {
    let mut switch = Switch {
        listener,
        members: Vec::new(),
        fdb: Fdb::default(),
        next: 0,
        buffer: vec![0; LONGEST + 1],
    };
    let mut lonely_since = Instant::now();
    let mut aged = Instant::now();
    loop {
        let ready = switch.wait();
        let now = Instant::now();
        switch.accept(now);
        switch.turns(&ready, now);
        if now.saturating_duration_since(aged) >= TICK {
            switch.fdb.age(now);
            aged = now;
        }
        if !switch.members.is_empty() {
            lonely_since = now;
        } else if !forever && now.saturating_duration_since(lonely_since) >= LONELY {
            // Later ones are refused and those in the queue see the end.
            let _ = shutdown(&switch.listener, Shutdown::Both);
            return;
        }
    }
}

impl Switch {
    /// Waits for something to do; gives which members can be read.
    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        for m in &self.members {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, m.is_waiting());
            fds.push(PollFd::new(&m.socket, flags));
        }
        let wait = if self.members.is_empty() {
            LONELY
        } else {
            TICK
        };
        let wait = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: 0,
        };
        if poll(&mut fds, Some(&wait)).is_err() {
            return vec![true; self.members.len()];
        }
        let readable = PollFlags::IN | PollFlags::ERR | PollFlags::HUP;
        fds[1..]
            .iter()
            .map(|f| f.revents().intersects(readable))
            .collect()
    }

    fn accept(&mut self, now: Instant) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            if self.members.len() < MOST {
                self.members.push(Member::new(self.next, socket, now));
                self.next += 1;
            }
        }
    }

    /// Gives each member its turn: what waits for it, then what it sends.
    fn turns(&mut self, ready: &[bool], now: Instant) {
        let mut left = Vec::new();
        for i in 0..self.members.len() {
            self.members[i].drain();
            if ready.get(i).copied().unwrap_or(false) && !self.turn(i, now) {
                left.push(self.members[i].id);
            }
        }
        for id in left {
            self.members.retain(|m| m.id != id);
            self.fdb.forget(id);
        }
    }

    /// Reads a little from a member; false when it has left.
    fn turn(&mut self, i: usize, now: Instant) -> bool {
        // Lent for the turn: packets are forwarded from where they were read.
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut bytes, mut stays) = (0, true);
        for _ in 0..TURN {
            if bytes >= TURN_BYTES || !stays {
                break;
            }
            stays = match rustix::io::read(&self.members[i].socket, &mut buffer) {
                Ok(n) if n > 0 => {
                    bytes += n;
                    self.packet(i, &buffer[..n], now)
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Ok(_) | Err(_) => false,
            };
        }
        self.buffer = buffer;
        stays
    }

    /// A packet of a member; false when it is no member's.
    fn packet(&mut self, i: usize, bytes: &[u8], now: Instant) -> bool {
        let Some(vlan) = self.members[i].vlan else {
            return self.greet(i, bytes);
        };
        // Too long ones were cut and are nobody's.
        let whole = bytes.len() <= LONGEST;
        if let Some(packet) = Packet::from(vlan, bytes).filter(|_| whole) {
            self.forward(i, packet, now);
        }
        true
    }

    /// The first packet of a member.
    fn greet(&mut self, i: usize, hello: &[u8]) -> bool {
        match hello.strip_prefix(HELLO) {
            Some(&[low, high]) => {
                let vlan = u16::from_le_bytes([low, high]);
                self.members[i].vlan = Some(vlan);
                vlan < 4095 && rustix::io::write(&self.members[i].socket, &[WELCOME]).is_ok()
            }
            _ => false,
        }
    }

    fn forward(&mut self, from: usize, mut packet: Packet<'_>, now: Instant) {
        let ((to, source), vlan) = (packet.addresses(), packet.vlan());
        let id = self.members[from].id;
        self.fdb.learn((vlan, source), id, now);
        if to[0] & 1 == 0
            && let Some(known) = self.fdb.find(&(vlan, to), now)
        {
            let member = self
                .members
                .iter_mut()
                .find(|m| m.id == known && known != id);
            if let Some(m) = member {
                m.deliver(id, &mut packet);
            }
            return;
        }
        if self.members[from].may_flood(now) {
            for m in self.members.iter_mut().filter(|m| m.id != id) {
                m.deliver(id, &mut packet);
            }
        }
    }
}
