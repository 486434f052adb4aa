//! A driver for tests: over MMIO, with rings of 16 descriptors that tests can also break by hand.

use super::{VirtioDevice, VirtioMmio, feature};
use crate::testing::Lines;
use mimeo_bus::{IrqLine, MmioDevice};
use mimeo_memory::GuestMemory;
use std::sync::Arc;

/// Descriptors in each ring.
pub(crate) const SIZE: u16 = 16;

/// A piece of memory that is offered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub gpa: u64,
    pub len: u32,
    pub flags: u16,
}

impl Buffer {
    /// For the device to read.
    pub(crate) fn read(gpa: u64, len: u32) -> Self {
        Self { gpa, len, flags: 0 }
    }

    /// For the device to write.
    pub(crate) fn write(gpa: u64, len: u32) -> Self {
        Self { gpa, len, flags: 2 }
    }
}

pub(crate) struct Bench {
    pub mmio: VirtioMmio,
    pub memory: Arc<GuestMemory>,
    pub lines: Arc<Lines>,
    free: Vec<u16>,
    available: Vec<u16>,
    seen: Vec<u16>,
}

/// Descriptor table, available ring and used ring of a queue.
pub(crate) fn rings(queue: usize) -> [u64; 3] {
    let base = 0x2_0000 + 0x1000 * queue as u64;
    [base, base + 0x400, base + 0x800]
}

impl Bench {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = Arc::new(GuestMemory::ram(0x4_0000).unwrap());
        let lines = Arc::new(Lines::default());
        let queues = device.queue_sizes().len();
        let line = IrqLine::new(lines.clone(), 5);
        Self {
            mmio: VirtioMmio::new(device, memory.clone(), line),
            memory,
            lines,
            free: vec![0; queues],
            available: vec![0; queues],
            seen: vec![0; queues],
        }
    }

    pub(crate) fn get(&mut self, offset: u64) -> u32 {
        self.mmio.mmio_read(offset, 4) as u32
    }

    pub(crate) fn set(&mut self, offset: u64, value: u32) {
        self.mmio.mmio_write(offset, 4, value.into());
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.get(0x70)
    }

    /// Brings the device up with all that it offers, except `without`.
    pub(crate) fn ready_without(&mut self, without: u64) {
        self.set(0x70, 0);
        self.set(0x70, 3);
        for half in 0..2 {
            self.set(0x14, half);
            let offered = self.get(0x10);
            self.set(0x24, half);
            self.set(0x20, offered & !((without >> (32 * half)) as u32));
        }
        self.set(0x70, 11);
        assert_eq!(self.status(), 11);
        for queue in 0..self.free.len() {
            self.set(0x30, queue as u32);
            self.set(0x38, SIZE.into());
            for (ring, at) in rings(queue).into_iter().zip([0x80, 0x90, 0xa0]) {
                self.memory.write(ring, &[0; 0x400]).unwrap();
                self.set(at, ring as u32);
                self.set(at + 4, 0);
            }
            self.set(0x44, 1);
            (self.free[queue], self.available[queue], self.seen[queue]) = (0, 0, 0);
        }
        self.set(0x70, 15);
    }

    pub(crate) fn ready(&mut self) {
        self.ready_without(feature::EVENT_IDX);
        assert_eq!(self.status(), 15);
    }

    pub(crate) fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(gpa, bytes).unwrap();
    }

    pub(crate) fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes).unwrap();
        bytes
    }

    /// Writes descriptor `index` of a table.
    pub(crate) fn descriptor(&self, table: u64, index: u16, b: Buffer, next: u16) {
        let at = table + 16 * u64::from(index);
        self.poke(at, &b.gpa.to_le_bytes());
        self.poke(at + 8, &b.len.to_le_bytes());
        self.poke(at + 12, &b.flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that begins with descriptor `head` available.
    pub(crate) fn offer_head(&mut self, queue: usize, head: u16) {
        let [_, ring, _] = rings(queue);
        let slot = self.available[queue] % SIZE;
        self.poke(ring + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.poke(ring + 2, &self.available[queue].to_le_bytes());
    }

    /// Makes a chain of `buffers` available; gives its head.
    pub(crate) fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let [table, ..] = rings(queue);
        let head = self.free[queue];
        let mut index = head;
        for (i, b) in buffers.iter().enumerate() {
            let next = (index + 1) % SIZE;
            let more = u16::from(i + 1 < buffers.len());
            let b = Buffer {
                flags: b.flags | more,
                ..*b
            };
            self.descriptor(table, index, b, next);
            index = next;
        }
        self.free[queue] = index;
        self.offer_head(queue, head);
        head
    }

    pub(crate) fn notify(&mut self, queue: u32) {
        self.set(0x50, queue);
    }

    /// What has come back since the last call: (head, length).
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let [_, _, ring] = rings(queue);
        let index = self.bytes(ring + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        let mut all = Vec::new();
        while self.seen[queue] != index {
            let slot = u64::from(self.seen[queue] % SIZE);
            let e = self.bytes(ring + 4 + 8 * slot, 8);
            let len = u32::from_le_bytes([e[4], e[5], e[6], e[7]]);
            all.push((u16::from_le_bytes([e[0], e[1]]), len));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        all
    }

    /// Whether an interrupt is pending; acknowledges it.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        let status = self.get(0x60);
        assert_eq!(self.lines.level(5), status != 0);
        self.set(0x64, status);
        assert!(!self.lines.level(5));
        status != 0
    }

    pub(crate) fn generation(&mut self) -> u32 {
        self.get(0xfc)
    }

    pub(crate) fn config(&mut self, offset: u64, size: u8) -> u64 {
        self.mmio.mmio_read(0x100 + offset, size)
    }

    pub(crate) fn config_write(&mut self, offset: u64, size: u8, value: u64) {
        self.mmio.mmio_write(0x100 + offset, size, value);
    }

    /// The device has given up until it is reset, and works again after that.
    pub(crate) fn assert_broken(&mut self, why: &str) {
        assert_eq!(self.status(), 15 | 64, "{why}");
        assert!(self.take_interrupt(), "{why}: a change of configuration");
    }
}
