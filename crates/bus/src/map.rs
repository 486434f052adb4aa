//! Address maps: which device answers at which port or guest-physical address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device seen through I/O ports. `offset` is relative to where it was bound.
pub trait PortDevice: Send {
    /// IN of 1, 2 or 4 bytes.
    fn port_read(&mut self, offset: u16, size: u8) -> u32;
    /// OUT of 1, 2 or 4 bytes.
    fn port_write(&mut self, offset: u16, size: u8, value: u32);
}

/// A device seen through memory-mapped registers. `offset` is relative to where it was bound.
pub trait MmioDevice: Send {
    /// A load of 1, 2, 4 or 8 bytes.
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64;
    /// A store of 1, 2, 4 or 8 bytes.
    fn mmio_write(&mut self, offset: u64, size: u8, value: u64);
}

/// Two devices were bound to the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} at {base:#x}+{len:#x} overlaps {other}")]
pub struct BusError {
    /// The device that was to be bound.
    pub name: String,
    /// Its first address.
    pub base: u64,
    /// Its length.
    pub len: u64,
    /// The device that is there.
    pub other: String,
}

struct Entry<D: ?Sized> {
    len: u64,
    name: String,
    device: Arc<Mutex<D>>,
}

/// Non-overlapping ranges of addresses, each with its device.
pub struct AddressMap<D: ?Sized> {
    entries: BTreeMap<u64, Entry<D>>,
}

impl<D: ?Sized> Default for AddressMap<D> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }
}

impl<D: ?Sized> AddressMap<D> {
    /// Binds `device` to `base..base + len`.
    ///
    /// # Errors
    /// [`BusError`] when the range is taken.
    pub fn insert(
        &mut self,
        name: &str,
        base: u64,
        len: u64,
        device: Arc<Mutex<D>>,
    ) -> Result<(), BusError> {
        let before = self.entries.range(..base.saturating_add(len)).next_back();
        if let Some((&b, e)) = before
            && b.saturating_add(e.len) > base
        {
            return Err(BusError {
                name: name.into(),
                base,
                len,
                other: e.name.clone(),
            });
        }
        self.entries.insert(
            base,
            Entry {
                len,
                name: name.into(),
                device,
            },
        );
        Ok(())
    }

    /// The device at `addr` and the offset within it.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<(&Arc<Mutex<D>>, u64)> {
        let (&base, e) = self.entries.range(..=addr).next_back()?;
        (addr - base < e.len).then_some((&e.device, addr - base))
    }

    /// (base, length, name) of every binding, in address order: the board's manifest.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &str)> {
        self.entries
            .iter()
            .map(|(&b, e)| (b, e.len, e.name.as_str()))
    }
}

/// A device behind several ranges of ports: the view adds `base` to the offsets of one range.
pub struct PortView {
    device: Arc<Mutex<dyn PortDevice>>,
    base: u16,
}

impl PortView {
    /// The registers of `device` from `base` on.
    #[must_use]
    pub fn new(device: Arc<Mutex<dyn PortDevice>>, base: u16) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { device, base }))
    }

    fn device(&self) -> MutexGuard<'_, dyn PortDevice + 'static> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortDevice for PortView {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let at = self.base.wrapping_add(offset);
        self.device().port_read(at, size)
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let at = self.base.wrapping_add(offset);
        self.device().port_write(at, size, value);
    }
}
