//! What a guest puts into its network card: rings and frames.

use mimeo_bus::{IrqLine, IrqSink, MmioDevice, NetBackend, NetCard, NetHeader};
use mimeo_devices::virtio::VirtioMmio;
use mimeo_devices::virtio::net::VirtioNet;
use mimeo_memory::GuestMemory;
use mimeo_net::{Capture, Policy, UserNet, UserNetConfig};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// RAM of the machine whose card it is, in bytes.
const RAM: u64 = 64 << 10;
/// Where the queues' rings are, and how far apart.
const RINGS: u64 = 0x1000;
const RING_STEP: u64 = 0x1000;
/// Descriptors in a ring.
const SIZE: u32 = 16;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

struct NoLine;

impl IrqSink for NoLine {
    fn set_level(&self, _line: u32, _level: bool) {}
}

/// A network that throws everything away.
#[derive(Default)]
struct Hole(OnceLock<Arc<dyn NetCard>>);

impl NetBackend for Hole {
    fn attach(&self, card: Arc<dyn NetCard>) {
        let _ = self.0.set(card);
    }
    fn kick(&self) {}
    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }
    fn offloads(&self) -> bool {
        // The card does all the cutting and summing: more of it is run.
        false
    }
}

/// A driver that has set its card up and then writes any bytes into the rings, in any order with
/// notifications, resets and frames from the network. The first byte of each group of eight says what.
pub fn net_card(data: &[u8]) {
    let Ok(memory) = GuestMemory::ram(RAM).map(Arc::new) else {
        return;
    };
    let hole = Arc::new(Hole::default());
    let line = IrqLine::new(Arc::new(NoLine), 0);
    let device = Box::new(VirtioNet::new(MAC, hole.clone()));
    let mut mmio = VirtioMmio::new(device, memory.clone(), line);
    let Some(card) = hole.0.get().cloned() else {
        return;
    };
    let features = data
        .first_chunk::<4>()
        .map_or(0, |b| u32::from_le_bytes(*b));
    set_up(&mut mmio, features);
    let frame = [&MAC[..], &[2, 0, 0, 0, 0, 9, 8, 0], &[0x45; 1500]].concat();
    for group in data.chunks_exact(8) {
        let word = u32::from_le_bytes([group[4], group[5], group[6], group[7]]);
        let at = RINGS + u64::from(u16::from_le_bytes([group[2], group[3]])) % (3 * RING_STEP);
        match group[0] % 8 {
            // Mostly what is in the rings.
            0..=2 => {
                let _ = memory.write(at, &group[4..]);
            }
            3 => mmio.mmio_write(0x50, 4, u64::from(group[1] % 4)),
            4 => {
                card.transmit(32, &mut |_, _| group[1] & 1 == 0);
            }
            5 => {
                let header = NetHeader {
                    flags: group[1],
                    gso_type: group[2],
                    gso_size: word as u16,
                    csum_start: (word >> 16) as u16,
                    ..NetHeader::default()
                };
                card.receive(&header, &frame[..usize::from(group[3]) * 5]);
                card.flush();
            }
            6 => mmio.mmio_write(u64::from(group[1]) * 4 % 0x110, 4, word.into()),
            _ => set_up(&mut mmio, word),
        }
    }
}

/// Resets the card and brings it up with some of what it offers.
fn set_up(mmio: &mut VirtioMmio, features: u32) {
    let mut set = |offset, value: u32| mmio.mmio_write(offset, 4, value.into());
    for status in [0, 3] {
        set(0x70, status);
    }
    for (half, bits) in [(0, features), (1, 1)] {
        set(0x24, half);
        set(0x20, bits);
    }
    set(0x70, 11);
    for queue in 0..3u32 {
        set(0x30, queue);
        set(0x38, SIZE);
        let base = RINGS as u32 + queue * RING_STEP as u32;
        for (register, at) in [(0x80, base), (0x90, base + 0x400), (0xa0, base + 0x800)] {
            set(register, at);
            set(register + 4, 0);
        }
        set(0x44, 1);
    }
    set(0x70, 15);
}

/// The card of the user network that all inputs share.
#[derive(Default)]
struct Feeder {
    frames: Mutex<VecDeque<Vec<u8>>>,
}

impl Feeder {
    fn frames(&self) -> std::sync::MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetCard for Feeder {
    fn transmit(&self, most: usize, take: &mut dyn FnMut(&NetHeader, &[u8]) -> bool) -> bool {
        for _ in 0..most {
            let Some(frame) = self.frames().front().cloned() else {
                return false;
            };
            take(&NetHeader::default(), &frame);
            // Only now: who waits for the last one knows that it was looked at.
            self.frames().pop_front();
        }
        true
    }
    fn receive(&self, _header: &NetHeader, _frame: &[u8]) -> bool {
        true
    }
    fn flush(&self) {}
    fn set_link(&self, _up: bool) {}
}

/// A network that reaches nothing but its own router.
fn network() -> Option<&'static (UserNet, Arc<Feeder>)> {
    static NETWORK: OnceLock<Option<(UserNet, Arc<Feeder>)>> = OnceLock::new();
    let start = || {
        let config = UserNetConfig {
            policy: Policy {
                deny: ["0.0.0.0/0", "::/0"]
                    .iter()
                    .flat_map(|n| n.parse())
                    .collect(),
                ..Policy::default()
            },
            resolver: Some(([127, 0, 0, 1], 9).into()),
            ..UserNetConfig::default()
        };
        let net = UserNet::start(config, Capture::default(), Arc::new(|_| ())).ok()?;
        let feeder = Arc::new(Feeder::default());
        net.attach(feeder.clone());
        Some((net, feeder))
    };
    NETWORK.get_or_init(start).as_ref()
}

/// Frames of a guest, each behind its length: any bytes, or with the first byte's bits a right Ethernet
/// and IP header in front of them.
pub fn net_frames(data: &[u8]) {
    let Some((net, feeder)) = network() else {
        return;
    };
    let mut rest = data;
    while let Some((&[kind, len], more)) = rest.split_first_chunk::<2>() {
        let (body, more) = more.split_at(usize::from(len).min(more.len()));
        rest = more;
        feeder.frames().push_back(dressed(kind, body));
    }
    net.kick();
    let begun = Instant::now();
    while !feeder.frames().is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the network's thread has died"
        );
        std::thread::yield_now();
    }
}

/// `body` in the headers that `kind` asks for.
fn dressed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut f = [&[0x52, 0x55, 0x0a, 0, 2, 2][..], &MAC].concat();
    let protocol = [1, 6, 17, 58][usize::from(kind >> 2) % 4];
    match kind % 4 {
        0 => return body.to_vec(),
        1 => {
            let len = (20 + body.len()) as u16;
            f.extend([8, 0, 0x45, 0]);
            f.extend(len.to_be_bytes());
            f.extend([
                0,
                0,
                0,
                0,
                64,
                protocol,
                0,
                0,
                10,
                0,
                2,
                15,
                10,
                0,
                2,
                2 + (kind >> 4) % 2,
            ]);
            let words = f[14..34].chunks(2);
            let sum: u32 = words.map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            f[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        2 => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((body.len() as u16).to_be_bytes());
            f.extend([protocol, 255]);
            f.extend([0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            f.extend([
                0xfe,
                0xc0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                2 + (kind >> 4) % 2,
            ]);
        }
        _ => f.extend([8, 6, 0, 1, 8, 0, 6, 4]),
    }
    f.extend(body);
    f
}
