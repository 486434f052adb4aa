//! Binding chips to ports.

use super::lock;
use mimeo_bus::{AddressMap, BusError, PortDevice};
use std::sync::{Arc, Mutex};

/// A chip seen from a port range that begins at one of its later registers.
struct Part<D> {
    chip: Arc<Mutex<D>>,
    /// The chip's offset of the range's first port.
    first: u16,
}

impl<D: PortDevice> PortDevice for Part<D> {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        lock(&self.chip).port_read(self.first + offset, size)
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        lock(&self.chip).port_write(self.first + offset, size, value);
    }
}

/// One chip in several places: each place is (port, number of ports, the chip's offset there).
pub(super) fn bind<D: PortDevice + 'static>(
    ports: &mut AddressMap<dyn PortDevice>,
    name: &str,
    chip: &Arc<Mutex<D>>,
    places: &[(u16, u16, u16)],
) -> Result<(), BusError> {
    for &(port, len, first) in places {
        let chip = chip.clone();
        let part = Arc::new(Mutex::new(Part { chip, first }));
        ports.insert(name, u64::from(port), u64::from(len), part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl PortDevice for Echo {
        fn port_read(&mut self, offset: u16, _size: u8) -> u32 {
            u32::from(offset)
        }
        fn port_write(&mut self, _offset: u16, _size: u8, _value: u32) {}
    }

    #[test]
    fn offsets_are_the_chips_own() {
        let mut map: AddressMap<dyn PortDevice> = AddressMap::default();
        let chip = Arc::new(Mutex::new(Echo));
        bind(&mut map, "echo", &chip, &[(0x20, 2, 0), (0xa0, 2, 2)]).unwrap();
        let (device, offset) = map.find(0xa1).unwrap();
        assert_eq!(device.lock().unwrap().port_read(offset as u16, 1), 3);
        assert!(bind(&mut map, "echo", &chip, &[(0x21, 1, 0)]).is_err());
    }
}
