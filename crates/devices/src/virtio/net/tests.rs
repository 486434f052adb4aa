//! The card against a driver made of register writes and a network made of vectors.

use super::VirtioNet;
use crate::virtio::feature::EVENT_IDX;
use crate::virtio::testing::{Bench, Buffer, SIZE, rings};
use mimeo_bus::{NetBackend, NetCard, NetHeader};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const MRG_RXBUF: u64 = 1 << 15;
/// Everything that asks the device for software's work in its place.
const GUEST_OFFLOADS: u64 = 0x382;

#[derive(Default)]
struct Net {
    card: OnceLock<Arc<dyn NetCard>>,
    kicks: AtomicU32,
    able: bool,
}

impl NetBackend for Net {
    fn attach(&self, card: Arc<dyn NetCard>) {
        assert!(self.card.set(card).is_ok());
    }
    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
    }
    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }
    fn offloads(&self) -> bool {
        self.able
    }
}

impl Net {
    fn card(&self) -> &dyn NetCard {
        &**self.card.get().unwrap()
    }
    fn kicks(&self) -> u32 {
        self.kicks.swap(0, Ordering::SeqCst)
    }
    fn sent(&self) -> Vec<(NetHeader, Vec<u8>)> {
        let mut all = Vec::new();
        self.card().transmit(usize::MAX, &mut |h, f| {
            all.push((*h, f.to_vec()));
            true
        });
        all
    }
}

fn bench(able: bool) -> (Bench, Arc<Net>) {
    let net = Arc::new(Net {
        able,
        ..Net::default()
    });
    (Bench::new(Box::new(VirtioNet::new(MAC, net.clone()))), net)
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut f = [&to[..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
    f.extend((f.len()..len).map(|i| i as u8));
    f
}

/// A TCP segment over IPv4 with `payload` bytes, its checksum left to be made.
fn segment(payload: usize) -> (NetHeader, Vec<u8>) {
    let mut f = frame(MAC, 14);
    f[12..14].copy_from_slice(&[8, 0]);
    f.extend([0x45, 0]);
    f.extend(((40 + payload) as u16).to_be_bytes());
    f.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    f.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    f.extend((0..payload).map(|i| i as u8));
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_TCPV4,
        header_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
    };
    (header, f)
}

fn encoded(header: &NetHeader) -> Vec<u8> {
    [&header.to_bytes()[..], &[0, 0]].concat()
}

/// Runs a command over the control queue; gives the answer.
fn command(b: &mut Bench, bytes: &[u8]) -> u8 {
    b.poke(0xc000, bytes);
    b.poke(0xcfff, &[0xee]);
    b.offer(
        2,
        &[
            Buffer::read(0xc000, bytes.len() as u32),
            Buffer::write(0xcfff, 1),
        ],
    );
    b.notify(2);
    assert_eq!(b.used(2).len(), 1);
    b.bytes(0xcfff, 1)[0]
}

#[test]
fn frames_go_out_in_pieces_of_any_kind() {
    let (mut b, net) = bench(true);
    b.ready();
    net.kicks();
    let f = frame([9; 6], 300);
    b.poke(0x8000, &encoded(&NetHeader::default()));
    b.poke(0x9000, &f);
    // The header by itself, the frame in two; then both in one.
    let buffers = [
        Buffer::read(0x8000, 12),
        Buffer::read(0x9000, 100),
        Buffer::read(0x9064, 200),
    ];
    let first = b.offer(1, &buffers);
    b.poke(
        0xa000,
        &[encoded(&NetHeader::default()), f.clone()].concat(),
    );
    let second = b.offer(1, &[Buffer::read(0xa000, 312)]);
    b.notify(1);
    assert_eq!(net.kicks(), 1);
    assert!(b.used(1).is_empty(), "the vCPU does none of the work");
    let sent = net.sent();
    assert_eq!(sent.len(), 2);
    assert!(
        sent.iter()
            .all(|(h, s)| *h == NetHeader::default() && *s == f)
    );
    assert_eq!(b.used(1), [(first, 0), (second, 0)]);
    assert!(b.take_interrupt());
}

#[test]
fn a_refused_frame_is_offered_again() {
    let (mut b, net) = bench(true);
    b.ready();
    b.poke(
        0x8000,
        &[encoded(&NetHeader::default()), frame([9; 6], 60)].concat(),
    );
    let head = b.offer(1, &[Buffer::read(0x8000, 72)]);
    assert!(net.card().transmit(9, &mut |_, _| false));
    assert!(b.used(1).is_empty());
    assert_eq!(net.sent().len(), 1);
    assert_eq!(b.used(1), [(head, 0)]);
}

#[test]
fn segments_pass_or_are_cut() {
    for able in [true, false] {
        let (mut b, net) = bench(able);
        b.ready();
        let (h, f) = segment(2500);
        b.poke(0x8000, &[encoded(&h), f.clone()].concat());
        b.offer(1, &[Buffer::read(0x8000, 12 + f.len() as u32)]);
        let sent = net.sent();
        if able {
            assert_eq!(sent, [(h, f)]);
        } else {
            let lens: Vec<usize> = sent.iter().map(|(_, f)| f.len()).collect();
            assert_eq!(lens, [1054, 1054, 554]);
            assert!(sent.iter().all(|(h, _)| *h == NetHeader::default()));
        }
    }
}

#[test]
fn frames_come_in_to_merged_buffers() {
    let (mut b, net) = bench(true);
    b.ready();
    net.kicks();
    let f = frame(MAC, 1000);
    assert!(!net.card().receive(&NetHeader::default(), &f));
    b.offer(0, &[Buffer::write(0x8000, 512)]);
    b.notify(0);
    assert_eq!(net.kicks(), 1, "a network that waits is woken");
    b.notify(0);
    assert_eq!(net.kicks(), 0, "one that does not is not");
    assert!(
        !net.card().receive(&NetHeader::default(), &f),
        "too little room"
    );
    assert!(b.used(0).is_empty());
    b.offer(0, &[Buffer::write(0x9000, 100), Buffer::write(0xa000, 412)]);
    assert!(net.card().receive(&NetHeader::default(), &f));
    net.card().flush();
    assert_eq!(b.used(0), [(0, 512), (1, 500)]);
    assert!(b.take_interrupt());
    assert_eq!(b.bytes(0x800a, 2), [2, 0], "two buffers");
    let got = [
        b.bytes(0x800c, 500),
        b.bytes(0x9000, 100),
        b.bytes(0xa000, 400),
    ]
    .concat();
    assert_eq!(got, f);
}

#[test]
fn without_merging_a_frame_needs_one_buffer() {
    let (mut b, net) = bench(true);
    b.ready_without(EVENT_IDX | MRG_RXBUF);
    b.offer(0, &[Buffer::write(0x8000, 100)]);
    b.offer(0, &[Buffer::write(0x9000, 2000)]);
    let card = net.card();
    assert!(
        card.receive(&NetHeader::default(), &frame(MAC, 500)),
        "lost"
    );
    assert!(b.used(0).is_empty());
    assert!(card.receive(&NetHeader::default(), &frame(MAC, 60)));
    assert!(card.receive(&NetHeader::default(), &frame(MAC, 500)));
    assert_eq!(b.used(0), [(0, 72), (1, 512)]);
    assert_eq!(b.bytes(0x800a, 2), [1, 0]);
}

#[test]
fn what_the_driver_cannot_do_is_done_for_it() {
    let (mut b, net) = bench(true);
    b.ready_without(EVENT_IDX | GUEST_OFFLOADS);
    let (h, f) = segment(2500);
    b.offer(0, &[Buffer::write(0x8000, 0x800)]);
    assert!(net.card().receive(&h, &f), "cut, and partly waiting");
    net.card().flush();
    assert_eq!(b.used(0), [(0, 1066)]);
    assert_eq!(b.bytes(0x8000, 10), [0; 10]);
    b.offer(0, &[Buffer::write(0x9000, 0x800)]);
    b.offer(0, &[Buffer::write(0xa000, 0x800)]);
    net.card().flush();
    assert_eq!(b.used(0), [(1, 1066), (2, 566)]);
    // One that can gets it whole.
    b.ready();
    b.offer(0, &[Buffer::write(0x8000, 0x1000)]);
    assert!(net.card().receive(&h, &f));
    assert_eq!(b.used(0), [(0, 12 + 2554)]);
    assert_eq!(b.bytes(0x8000, 10), h.to_bytes());
    // Until it says over the control queue that it no longer can.
    assert_eq!(command(&mut b, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    for _ in 0..3 {
        b.offer(0, &[Buffer::write(0x8000, 0x800)]);
    }
    assert!(net.card().receive(&h, &f));
    assert_eq!(b.used(0).len(), 3);
    assert_eq!(
        command(&mut b, &[5, 0, 0, 4, 0, 0, 0, 0, 0, 0]),
        1,
        "UFO was not offered"
    );
}

#[test]
fn the_filter_is_the_drivers() {
    let (mut b, net) = bench(true);
    b.ready();
    let passes = |b: &mut Bench, to| {
        b.offer(0, &[Buffer::write(0x8000, 0x800)]);
        assert!(net.card().receive(&NetHeader::default(), &frame(to, 60)));
        !b.used(0).is_empty()
    };
    assert!(passes(&mut b, [2; 6]));
    assert_eq!(command(&mut b, &[0, 0, 0]), 0);
    assert!(!passes(&mut b, [2; 6]) && passes(&mut b, MAC));
    assert_eq!(command(&mut b, &[1, 1, 2, 2, 2, 2, 2, 2]), 0);
    assert!(passes(&mut b, [2; 6]) && !passes(&mut b, MAC));
    assert_eq!(
        command(&mut b, &[4, 0, 1, 0]),
        1,
        "there is one pair of queues"
    );
    b.ready();
    assert!(passes(&mut b, [3; 6]), "a reset forgets it");
}

#[test]
fn configuration_and_link() {
    let (mut b, net) = bench(true);
    b.ready();
    let mac = b.config(0, 4) | b.config(4, 2) << 32;
    assert_eq!(mac.to_le_bytes()[..6], MAC);
    assert_eq!((b.config(6, 2), b.config(10, 2)), (1, 1500));
    let generation = b.generation();
    net.card().set_link(false);
    assert_eq!(b.config(6, 2), 0);
    assert!(b.take_interrupt());
    assert_ne!(b.generation(), generation);
    b.poke(0x8000, &[0; 80]);
    b.offer(1, &[Buffer::read(0x8000, 80)]);
    assert!(net.sent().is_empty());
    assert_eq!(b.used(1).len(), 1, "frames go nowhere");
    b.take_interrupt();
    net.card().set_link(false);
    assert!(!b.take_interrupt(), "nothing has changed");
}

#[test]
fn features_that_need_others_are_refused() {
    let (mut b, _) = bench(true);
    for (low, ok) in [
        (0, true),
        (1 << 11, false),
        (1 << 11 | 1, true),
        (1 << 7, false),
        (1 << 18, false),
    ] {
        b.set(0x70, 0);
        b.set(0x70, 3);
        for (half, bits) in [(0, low), (1, 1)] {
            b.set(0x24, half);
            b.set(0x20, bits);
        }
        b.set(0x70, 11);
        assert_eq!(b.status() & 8 != 0, ok, "{low:#x}");
    }
}

#[test]
fn a_paused_card_touches_nothing() {
    let (mut b, net) = bench(true);
    b.ready();
    b.offer(0, &[Buffer::write(0x8000, 0x800)]);
    b.poke(0x9000, &[0; 80]);
    b.offer(1, &[Buffer::read(0x9000, 80)]);
    b.mmio.core().device().set_paused(true);
    assert!(!net.card().receive(&NetHeader::default(), &frame(MAC, 60)));
    assert!(net.sent().is_empty() && b.used(0).is_empty() && b.used(1).is_empty());
    net.kicks();
    b.mmio.core().device().set_paused(false);
    assert_eq!(net.kicks(), 1);
    assert!(net.card().receive(&NetHeader::default(), &frame(MAC, 60)));
    assert_eq!((net.sent().len(), b.used(0).len()), (1, 1));
}

#[test]
fn a_saved_card_goes_on_where_it_was() {
    use mimeo_bus::SaveRestore;
    let (mut b, net) = bench(true);
    b.ready();
    command(&mut b, &[0, 0, 0]);
    b.offer(0, &[Buffer::write(0x8000, 100)]);
    // Taken from the queue, not used.
    assert!(!net.card().receive(&NetHeader::default(), &frame(MAC, 500)));
    let saved = b.mmio.save();
    let (mut other, other_net) = bench(true);
    for gpa in (0..0x4_0000).step_by(0x1000) {
        other.poke(gpa, &b.bytes(gpa, 0x1000));
    }
    other.mmio.restore(&saved).unwrap();
    assert_eq!(other.mmio.save(), saved);
    let card = other_net.card();
    assert!(
        card.receive(&NetHeader::default(), &frame([2; 6], 60)),
        "filtered"
    );
    assert!(card.receive(&NetHeader::default(), &frame(MAC, 60)));
    assert_eq!(other.used(0), [(0, 72)]);
    let mut wrong = saved.clone();
    wrong.device = crate::virtio::DeviceV1::None;
    assert!(other.mmio.restore(&wrong).is_err());
}

/// Rings and headers that no driver makes: the frame is lost or the device asks for a reset; after
/// that it works again.
#[test]
fn hostile_drivers() {
    let (mut b, net) = bench(true);
    let good = |b: &mut Bench| {
        b.ready();
        b.poke(
            0x8000,
            &[encoded(&NetHeader::default()), frame([9; 6], 60)].concat(),
        );
        b.offer(1, &[Buffer::read(0x8000, 72)]);
        assert_eq!(net.sent().len(), 1);
        b.offer(0, &[Buffer::write(0x9000, 0x800)]);
        assert!(net.card().receive(&NetHeader::default(), &frame(MAC, 60)));
        assert_eq!((b.used(0).len(), b.used(1).len()), (1, 1));
    };
    // Lengths that no frame has.
    good(&mut b);
    for len in [0u32, 11, 12, 25, 0x1_2000] {
        b.offer(1, &[Buffer::read(0x1_0000, len.max(1))]);
        assert!(net.sent().is_empty(), "{len}");
        assert_eq!(b.used(1).len(), 1, "{len}");
    }
    // Headers that do not fit.
    let (h, f) = segment(100);
    for bad in [
        NetHeader {
            csum_start: 0xffff,
            ..h
        },
        NetHeader {
            csum_offset: 0xffff,
            ..h
        },
        NetHeader { gso_size: 0, ..h },
        NetHeader { flags: 0, ..h },
        NetHeader { gso_type: 3, ..h },
        NetHeader {
            gso_type: 0x7f,
            ..h
        },
    ] {
        b.poke(0x8000, &[encoded(&bad), f.clone()].concat());
        b.offer(1, &[Buffer::read(0x8000, 12 + f.len() as u32)]);
        assert!(net.sent().is_empty(), "{bad:?}");
        assert!(net.card().receive(&bad, &f), "from a network, too");
        assert!(b.used(0).is_empty());
    }
    // Buffers outside of memory, heads that do not exist, a first buffer without room.
    for (queue, buffer) in [
        (0, Buffer::write(0xffff_ffff_f000, 0x800)),
        (1, Buffer::read(0x3_fff0, 0x800)),
        (0, Buffer::write(0x8000, 11)),
    ] {
        good(&mut b);
        b.offer(queue, &[buffer]);
        net.sent();
        net.card().receive(&NetHeader::default(), &frame(MAC, 60));
        b.assert_broken("a buffer outside");
    }
    for queue in [0, 1] {
        good(&mut b);
        b.offer_head(queue, SIZE + 1);
        net.sent();
        net.card().receive(&NetHeader::default(), &frame(MAC, 60));
        b.assert_broken("a head that does not exist");
    }
    // A command without a place for its answer.
    good(&mut b);
    b.offer(2, &[Buffer::read(0x8000, 3)]);
    b.notify(2);
    b.assert_broken("no place for an answer");
    // The rings move away under a network that has kept a buffer.
    good(&mut b);
    b.offer(0, &[Buffer::write(0x9000, 20)]);
    assert!(!net.card().receive(&NetHeader::default(), &frame(MAC, 600)));
    b.poke(rings(0)[1] + 2, &[0xff, 0x7f]);
    net.card().receive(&NetHeader::default(), &frame(MAC, 600));
    b.assert_broken("an index that runs ahead");
    good(&mut b);
}
