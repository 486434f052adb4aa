use super::*;
use crate::virtio::feature::EVENT_IDX;
use crate::virtio::testing::{Bench, Buffer};

/// A disk of 1 MB that keeps requests until it is told to go on.
#[derive(Default)]
struct Disk {
    waiting: Mutex<Vec<BlockRequest>>,
    read_only: bool,
}

impl BlockBackend for Disk {
    fn capacity(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn submit(&self, request: BlockRequest) {
        self.waiting.lock().unwrap().push(request);
    }
}

impl Disk {
    fn take(&self) -> BlockRequest {
        self.waiting.lock().unwrap().remove(0)
    }

    fn idle(&self) -> bool {
        self.waiting.lock().unwrap().is_empty()
    }
}

fn bench() -> (Bench, Arc<Disk>) {
    let disk = Arc::new(Disk::default());
    let block = VirtioBlock::new(disk.clone(), "serial-1", 1);
    (Bench::new(Box::new(block)), disk)
}

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;

/// Offers a request; the status byte begins as 0xee.
fn request(b: &mut Bench, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
    b.poke(HEADER, &kind.to_le_bytes());
    b.poke(HEADER + 4, &[0; 4]);
    b.poke(HEADER + 8, &sector.to_le_bytes());
    b.poke(STATUS, &[0xee]);
    let mut buffers = vec![Buffer::read(HEADER, 16)];
    buffers.extend(data);
    buffers.push(Buffer::write(STATUS, 1));
    let head = b.offer(0, &buffers);
    b.notify(0);
    head
}

fn status_byte(b: &Bench) -> u8 {
    b.bytes(STATUS, 1)[0]
}

#[test]
fn configuration() {
    let (mut b, _) = bench();
    assert_eq!(b.config(0, 8), 2048);
    assert_eq!(
        (b.config(20, 4), b.config(34, 2), b.config(60, 4)),
        (512, 1, 0)
    );
    b.set(0x14, 0);
    assert_eq!(
        b.get(0x10),
        1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14 | 3 << 28
    );
}

#[test]
fn reads_and_writes_go_to_the_backend_and_come_back_in_any_order() {
    let (mut b, disk) = bench();
    b.ready();
    let first = request(
        &mut b,
        0,
        2,
        &[Buffer::write(DATA, 512), Buffer::write(DATA + 0x800, 512)],
    );
    let second = request(&mut b, 1, 2047, &[Buffer::read(DATA, 512)]);
    let (read, write) = (disk.take(), disk.take());
    assert_eq!(read.operation, BlockOperation::Read { at: 1024 });
    assert_eq!(read.data, [(DATA, 512), (DATA + 0x800, 512)]);
    assert_eq!(
        write.operation,
        BlockOperation::Write {
            at: 2047 * 512,
            durable: false
        }
    );
    assert!(b.used(0).is_empty());
    write.done.finish(Ok(()));
    assert_eq!((b.used(0), status_byte(&b)), (vec![(second, 1)], 0));
    assert!(b.take_interrupt());
    b.poke(STATUS, &[0xee]);
    read.done.finish(Err(std::io::ErrorKind::Other.into()));
    assert_eq!((b.used(0), status_byte(&b)), (vec![(first, 1)], 1));
    request(&mut b, 0, 0, &[Buffer::write(DATA, 1024)]);
    disk.take().done.finish(Ok(()));
    assert_eq!(b.used(0)[0].1, 1025);
    request(&mut b, 0, 0, &[Buffer::write(DATA, 512)]);
    drop(disk.take());
    assert_eq!(status_byte(&b), 1, "a request that is dropped fails");
}

#[test]
fn without_flush_writes_are_durable() {
    let (mut b, disk) = bench();
    b.ready_without(EVENT_IDX | 1 << 9);
    request(&mut b, 1, 0, &[Buffer::read(DATA, 512)]);
    assert_eq!(
        disk.take().operation,
        BlockOperation::Write {
            at: 0,
            durable: true
        }
    );
}

#[test]
fn flush_identity_discard_and_zeroes() {
    let (mut b, disk) = bench();
    b.ready();
    request(&mut b, 4, 0, &[]);
    assert_eq!(disk.take().operation, BlockOperation::Flush);
    request(&mut b, 8, 0, &[Buffer::write(DATA, 20)]);
    assert_eq!(status_byte(&b), 0);
    assert_eq!(b.bytes(DATA, 9), *b"serial-1\0");
    let range = |sector: u64, n: u32, flags: u32| {
        [
            &sector.to_le_bytes()[..],
            &n.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    };
    b.poke(DATA, &[range(8, 8, 0), range(16, 1, 0)].concat());
    request(&mut b, 11, 0, &[Buffer::read(DATA, 32)]);
    let ranges = vec![(4096, 4096), (8192, 512)];
    assert_eq!(disk.take().operation, BlockOperation::Discard { ranges });
    b.poke(DATA, &range(1, 2, 1));
    request(&mut b, 13, 0, &[Buffer::read(DATA, 16)]);
    let ranges = vec![(512, 1024)];
    let zeroes = BlockOperation::WriteZeroes {
        ranges,
        unmap: true,
    };
    assert_eq!(disk.take().operation, zeroes);
    request(&mut b, 11, 0, &[Buffer::read(DATA, 16)]);
    assert_eq!(
        (status_byte(&b), disk.idle()),
        (2, true),
        "discard has no flags"
    );
}

#[test]
fn impossible_requests_fail_alone() {
    let (mut b, disk) = bench();
    b.ready();
    for (kind, sector, len, expected) in [
        (0, 2048, 512, 1),
        (0, u64::MAX, 512, 1),
        (0, u64::MAX / 512, 1024, 1),
        (0, 0, 100, 1),
        (77, 0, 512, 2),
    ] {
        let head = request(&mut b, kind, sector, &[Buffer::write(DATA, len)]);
        assert_eq!(b.used(0), [(head, 1)]);
        assert_eq!(status_byte(&b), expected, "{kind} {sector:#x} {len}");
    }
    b.poke(DATA, &[0xff; 16]);
    request(&mut b, 13, 0, &[Buffer::read(DATA, 16)]);
    assert_eq!(status_byte(&b), 2);
    request(&mut b, 13, 0, &[Buffer::read(DATA, 15)]);
    assert_eq!((status_byte(&b), disk.idle(), b.status()), (1, true, 15));
}

#[test]
fn a_read_only_disk_refuses_changes() {
    let disk = Arc::new(Disk {
        read_only: true,
        ..Disk::default()
    });
    let mut b = Bench::new(Box::new(VirtioBlock::new(disk.clone(), "", 2)));
    b.set(0x14, 0);
    assert_eq!(b.get(0x10) & 0x7020, 0x1020);
    b.ready();
    for kind in [1, 11, 13] {
        request(&mut b, kind, 0, &[Buffer::read(DATA, 512)]);
        assert_eq!((status_byte(&b), disk.idle()), (1, true));
    }
}

#[test]
fn requests_without_header_or_status_break_the_device() {
    for buffers in [
        &[Buffer::read(HEADER, 15), Buffer::write(STATUS, 1)][..],
        &[Buffer::read(HEADER, 16)],
        &[Buffer::write(STATUS, 20)],
    ] {
        let (mut b, disk) = bench();
        b.ready();
        b.offer(0, buffers);
        b.notify(0);
        b.assert_broken("no request");
        b.ready();
        request(&mut b, 4, 0, &[]);
        assert!(!disk.idle(), "after a reset it works");
    }
}

#[test]
fn a_reset_waits_for_work_in_flight_and_ignores_its_end() {
    let (mut b, disk) = bench();
    b.ready();
    request(&mut b, 0, 0, &[Buffer::write(DATA, 512)]);
    b.set(0x70, 0);
    assert_ne!(b.status(), 0);
    b.set(0x70, 3);
    disk.take().done.finish(Ok(()));
    assert_eq!(b.status(), 0);
    assert_eq!((status_byte(&b), b.used(0).len()), (0xee, 0));
    assert!(!b.take_interrupt());
    b.ready();
}
