//! Virtio devices under drivers of any kind, and file servers under clients of any kind.

use mimeo_bus::{
    BlockBackend, BlockRequest, IrqLine, Message, MessageHost, MessageServer, MmioDevice,
    NullStream,
};
use mimeo_devices::virtio::balloon::VirtioBalloon;
use mimeo_devices::virtio::block::VirtioBlock;
use mimeo_devices::virtio::console::VirtioConsole;
use mimeo_devices::virtio::rng::VirtioRng;
use mimeo_devices::virtio::share::VirtioShare;
use mimeo_devices::virtio::{VirtioDevice, VirtioMmio};
use mimeo_memory::GuestMemory;
use mimeo_share::{Fuse, NineP, Tree};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// RAM of the machine, in bytes.
const RAM: u64 = 1 << 20;
/// Operations of one case at the most.
const MOST: usize = 4096;
/// Entries of each ring.
const SIZE: u16 = 16;

/// Takes the input apart; zeroes when it has ended.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let n = usize::from(self.byte()).min(most).min(self.0.len());
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head.to_vec()
    }
}

/// A host that keeps requests until the case lets them end.
#[derive(Default)]
struct Held {
    blocks: Mutex<Vec<BlockRequest>>,
    messages: Mutex<Vec<Message>>,
}

fn take<T>(all: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut all.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Held {
    /// Ends what waits: disk requests with an error now and then, messages with a reply that may be
    /// longer than there is room for.
    fn finish(&self, how: u8) {
        for request in take(&self.blocks) {
            let result = if how % 3 == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            };
            request.done.finish(result);
        }
        for message in take(&self.messages) {
            let len = message.room + usize::from(how % 2);
            message.done.finish(vec![how; len]);
        }
    }
}

impl BlockBackend for Held {
    fn capacity(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn submit(&self, request: BlockRequest) {
        self.blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(request);
    }
}

impl MessageHost for Held {
    fn submit(&self, message: Message) {
        self.messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message);
    }
    fn reset(&self) {}
}

fn device(kind: u8, held: &Arc<Held>) -> Box<dyn VirtioDevice> {
    match kind % 6 {
        0 => Box::new(VirtioBlock::new(held.clone(), "fuzz", 2)),
        1 => Box::new(VirtioConsole::new(Arc::new(NullStream))),
        2 => Box::new(VirtioRng::new(Box::new(|bytes| bytes.fill(7)))),
        3 => Box::new(VirtioBalloon::new(1 << 16)),
        4 => Box::new(VirtioShare::fs("fuzz", held.clone())),
        _ => Box::new(VirtioShare::nine_p("fuzz", held.clone())),
    }
}

/// The rings of queue `queue`: descriptors, available, used.
fn rings(queue: u32) -> [u32; 3] {
    let base = 0x1000 + 0x1000 * queue;
    [base, base + 0x400, base + 0x800]
}

/// A well-behaved start, with the offered features that `mask` leaves.
fn bring_up(device: &mut VirtioMmio, mask: u32) {
    let mut set = |at, value: u32| device.mmio_write(at, 4, value.into());
    set(0x70, 0);
    set(0x70, 3);
    for half in 0..2 {
        set(0x24, half);
        // Everything that any device offers is refused where it is not offered.
        set(0x20, if half == 1 { 1 } else { mask & 0x3000_0000 });
    }
    set(0x70, 11);
    for queue in 0..4 {
        set(0x30, queue);
        set(0x38, SIZE.into());
        for (at, ring) in [0x80, 0x90, 0xa0].into_iter().zip(rings(queue)) {
            set(at, ring);
            set(at + 4, 0);
        }
        set(0x44, 1);
    }
    set(0x70, 15);
}

/// A driver that does what the bytes say: descriptors, rings, notifications, registers, resets.
pub fn virtio(data: &[u8]) {
    let Ok(memory) = GuestMemory::ram(RAM) else {
        return;
    };
    let memory = Arc::new(memory);
    let mut input = Input(data);
    let held = Arc::new(Held::default());
    let device = device(input.byte(), &held);
    let mut device = VirtioMmio::new(device, memory.clone(), IrqLine::unconnected());
    bring_up(&mut device, u32::MAX);
    for _ in 0..MOST {
        if input.0.is_empty() {
            break;
        }
        let queue = u32::from(input.byte() % 4);
        let [descriptors, available, _] = rings(queue).map(u64::from);
        match input.byte() % 8 {
            0 => {
                // A descriptor: address in RAM or not, length, flags, next.
                let at = descriptors + 16 * u64::from(input.byte() % SIZE as u8);
                let near = input.byte() % 4 != 0;
                let gpa = u64::from(input.word()) & if near { 0x3_ffff } else { u64::MAX };
                let gpa = gpa << if input.byte() == 0xff { 32 } else { 0 };
                let len = input.word() & if near { 0xfff } else { u32::MAX };
                let mut bytes = gpa.to_le_bytes().to_vec();
                bytes.extend(len.to_le_bytes());
                bytes.extend([input.byte() & 7, 0, input.byte() % 18, 0]);
                let _ = memory.write(at, &bytes);
            }
            1 => {
                // A head, and the ring's index.
                let slot = u64::from(input.byte() % SIZE as u8);
                let head = input.byte() % 18;
                let _ = memory.write(available + 4 + 2 * slot, &[head, 0]);
                let _ = memory.write(available + 2, &[input.byte(), 0]);
                device.mmio_write(0x50, 4, queue.into());
            }
            2 => {
                let at = u64::from(input.word()) % RAM;
                let _ = memory.write(at, &input.bytes(64));
            }
            3 => {
                let at = u64::from(input.word() & 0x3ff);
                device.mmio_write(at, 1 << (input.byte() % 4), input.word().into());
            }
            4 => {
                let at = u64::from(input.word() & 0x3ff);
                device.mmio_read(at, 1 << (input.byte() % 4));
            }
            5 => held.finish(input.byte()),
            6 => bring_up(&mut device, input.word()),
            _ => device.mmio_write(0x50, 4, queue.into()),
        }
    }
    held.finish(1);
}

/// A client of a shared folder that says what the bytes say, in FUSE or 9P, in a folder of its own.
pub fn share(data: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else {
        return;
    };
    let mut input = Input(data);
    let choice = input.byte();
    let tree = |read_only| Tree::open(dir.path(), read_only);
    let (Ok(a), Ok(b)) = (tree(choice & 2 != 0), tree(choice & 2 != 0)) else {
        return;
    };
    let Ok(mut fuse) = Fuse::new(a) else {
        return;
    };
    let mut nine = NineP::new(b);
    if choice & 1 == 0 {
        // INIT, so that the rest is looked at.
        let init = [7u32, 31, 0, u32::MAX].map(u32::to_le_bytes).concat();
        fuse_request(&mut fuse, 26, 0, &init, 4096);
    } else {
        nine_request(&mut nine, 100, b"\0\0\x02\0\x08\09P2000.L", 4096);
        nine_request(&mut nine, 104, &[0; 20], 4096);
    }
    for _ in 0..MOST {
        if input.0.is_empty() {
            break;
        }
        let (kind, node) = (input.byte(), input.byte());
        let body = input.bytes(255);
        let room = usize::from(input.byte()) * 64;
        if choice & 1 == 0 {
            fuse_request(&mut fuse, kind.into(), node.into(), &body, room);
        } else {
            nine_request(&mut nine, kind, &body, room);
        }
    }
}

fn fuse_request(fuse: &mut Fuse, opcode: u32, node: u64, body: &[u8], room: usize) {
    let mut request = (40 + body.len() as u32).to_le_bytes().to_vec();
    request.extend(opcode.to_le_bytes());
    request.extend(1u64.to_le_bytes());
    request.extend(node.to_le_bytes());
    request.extend([0; 16]);
    request.extend(body);
    let reply = fuse.handle(&request, room);
    assert!(reply.len() <= room, "a reply of {} in {room}", reply.len());
    if let Some(len) = reply.first_chunk() {
        assert_eq!(u32::from_le_bytes(*len) as usize, reply.len());
    }
}

fn nine_request(server: &mut NineP, kind: u8, body: &[u8], room: usize) {
    let mut request = (7 + body.len() as u32).to_le_bytes().to_vec();
    request.extend([kind, 5, 0]);
    request.extend(body);
    let reply = MessageServer::handle(server, &request, room);
    assert!(reply.len() <= room, "a reply of {} in {room}", reply.len());
}
