//! Entropy device (5.4).

use super::{Broken, Driver, VirtQueue, VirtioDevice};

/// Bytes for one request at the most: a driver asks again.
const MOST: u64 = 4096;

/// Where randomness comes from: the host, or a seed in deterministic runs.
pub type Entropy = Box<dyn FnMut(&mut [u8]) + Send>;

/// An entropy device.
pub struct VirtioRng {
    entropy: Entropy,
    driver: Option<Driver>,
}

impl VirtioRng {
    /// A device that hands on what `entropy` fills in; that must not block.
    #[must_use]
    pub fn new(entropy: Entropy) -> Self {
        Self {
            entropy,
            driver: None,
        }
    }

    fn run(&mut self) -> Result<(), Broken> {
        let Some(driver) = &mut self.driver else {
            return Ok(());
        };
        let Some(Some(queue)) = driver.queues.first_mut() else {
            return Ok(());
        };
        loop {
            while let Some(mut chain) = queue.pop()? {
                let n = chain.writable.len().min(MOST);
                // At most 4096 bytes.
                let mut bytes = vec![0; n as usize];
                (self.entropy)(&mut bytes);
                let span = chain.writable.take_front(n).ok_or(Broken)?;
                let written = span.write(&driver.memory, &bytes);
                queue.push(chain.head, written as u32)?;
            }
            if queue.wants_interrupt()? {
                driver.interrupts.used(0);
            }
            if !queue.want_notification()? {
                return Ok(());
            }
        }
    }
}

impl VirtioDevice for VirtioRng {
    fn id(&self) -> u16 {
        4
    }

    fn class(&self) -> [u8; 3] {
        [0xff, 0, 0]
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, driver: Driver) {
        self.driver = Some(driver);
    }

    fn notify(&mut self, _queue: u16) {
        if self.run().is_err()
            && let Some(driver) = &self.driver
        {
            driver.interrupts.needs_reset();
        }
    }

    fn reset(&mut self) {
        self.driver = None;
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        let queues = self.driver.iter().flat_map(|d| &d.queues);
        queues
            .map(|q| q.as_ref().map_or((0, 0), VirtQueue::position))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, Buffer};

    fn bench() -> Bench {
        let mut next = 0u8;
        Bench::new(Box::new(VirtioRng::new(Box::new(move |bytes| {
            for b in bytes {
                next = next.wrapping_add(1);
                *b = next;
            }
        }))))
    }

    #[test]
    fn buffers_are_filled() {
        let mut b = bench();
        b.ready();
        let head = b.offer(0, &[Buffer::write(0x8000, 3), Buffer::write(0x9000, 2)]);
        b.notify(0);
        assert_eq!(b.used(0), [(head, 5)]);
        assert_eq!(b.bytes(0x8000, 4), [1, 2, 3, 0]);
        assert_eq!(b.bytes(0x9000, 2), [4, 5]);
        assert!(b.take_interrupt());
    }

    #[test]
    fn a_huge_buffer_is_filled_in_part() {
        let mut b = bench();
        b.ready();
        b.offer(0, &[Buffer::write(0x8000, 0x7000)]);
        b.notify(0);
        assert_eq!(b.used(0), [(0, 4096)]);
    }
}
