//! A function's configuration space: the type 0 header and a list of capabilities.

use super::bar::{Bar, BarKind};
use mimeo_bus::RestoreError;
use serde::{Deserialize, Serialize};

/// Bits of the command register.
mod command {
    pub const IO: u16 = 1;
    pub const MEMORY: u16 = 2;
    pub const MASTER: u16 = 4;
    pub const INTX_OFF: u16 = 1 << 10;
    pub const WRITABLE: u16 = IO | MEMORY | MASTER | INTX_OFF;
}
/// Status register: a list of capabilities is there.
const STATUS_CAPABILITIES: u8 = 0x10;
/// Status register: INTx is asserted.
const STATUS_INTX: u8 = 8;

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Saved state: what software has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceV1 {
    /// All 256 bytes.
    pub bytes: Vec<u8>,
}

/// The first 256 bytes of configuration space.
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    bars: [Option<Bar>; 6],
    /// Where the next capability goes, and the pointer to it.
    free: u8,
    link: u8,
    /// Changes with everything that moves, opens or closes a BAR.
    generation: u32,
}

impl ConfigSpace {
    /// The header of a function without BARs. `intx`: it has the interrupt pin INTA.
    #[must_use]
    pub fn new(id: &Identity, intx: bool) -> Self {
        let mut this = Self {
            bytes: [0; 256],
            writable: [0; 256],
            bars: [None; 6],
            free: 0x40,
            link: 0x34,
            generation: 0,
        };
        this.set(0x00, &id.vendor.to_le_bytes());
        this.set(0x02, &id.device.to_le_bytes());
        let [base, sub, interface] = id.class;
        this.set(0x08, &[id.revision, interface, sub, base]);
        this.set(0x2c, &id.subsystem_vendor.to_le_bytes());
        this.set(0x2e, &id.subsystem.to_le_bytes());
        this.allow(0x04, &command::WRITABLE.to_le_bytes());
        // Cache line size, and the interrupt line that firmware notes for the system.
        this.allow(0x0c, &[0xff]);
        this.allow(0x3c, &[0xff]);
        this.set(0x3d, &[u8::from(intx)]);
        this
    }

    fn set(&mut self, at: u8, bytes: &[u8]) {
        let at = usize::from(at);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: u8, mask: &[u8]) {
        let at = usize::from(at);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Gives the function a BAR.
    ///
    /// # Panics
    /// When the index or size is impossible or the register is taken: a mistake of the device's
    /// author, never of a guest.
    pub fn add_bar(&mut self, index: usize, bar: Bar) {
        let wide = bar.kind == BarKind::Memory64;
        assert!(bar.valid() && index + usize::from(wide) < 6, "BAR {index}");
        assert!(self.bars[index].is_none(), "BAR {index} is taken");
        self.bars[index] = Some(bar);
        let at = 0x10 + 4 * index as u8;
        self.set(at, &bar.flags().to_le_bytes());
        let mask = bar.address_mask().to_le_bytes();
        self.allow(at, &mask[..if wide { 8 } else { 4 }]);
    }

    /// Adds a capability: its ID, what follows the two link bytes, and which of those bits software
    /// may write. Gives its offset.
    ///
    /// # Panics
    /// When the space is full: a mistake of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.free;
        let end = usize::from(at) + 2 + body.len();
        assert!(end <= 256 && writable.len() <= body.len(), "capabilities");
        self.set(self.link, &[at]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.bytes[6] |= STATUS_CAPABILITIES;
        self.link = at + 1;
        self.free = end.next_multiple_of(4).min(252) as u8;
        at
    }

    /// Reads 1, 2 or 4 bytes within a doubleword. Beyond the first 256 bytes there is nothing.
    #[must_use]
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        (0..u16::from(size.min(4))).fold(0, |value, i| {
            let at = usize::from(offset.saturating_add(i));
            value | u32::from(self.bytes.get(at).copied().unwrap_or(0)) << (8 * i)
        })
    }

    /// Writes what may be written of 1, 2 or 4 bytes.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        for i in 0..u16::from(size.min(4)) {
            let at = usize::from(offset.saturating_add(i));
            let Some(byte) = self.bytes.get_mut(at) else {
                return;
            };
            let mask = self.writable[at];
            let new = *byte & !mask | (value >> (8 * i)) as u8 & mask;
            if *byte != new && (at == 4 || (0x10..0x28).contains(&at)) {
                self.generation = self.generation.wrapping_add(1);
            }
            *byte = new;
        }
    }

    /// Changes with everything that moves, opens or closes a BAR.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[4], self.bytes[5]])
    }

    /// The function may read and write memory.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.command() & command::MASTER != 0
    }

    /// INTx is not disabled.
    #[must_use]
    pub fn intx_allowed(&self) -> bool {
        self.command() & command::INTX_OFF == 0
    }

    /// Notes in the status register whether INTx is asserted.
    pub fn set_intx_status(&mut self, asserted: bool) {
        self.bytes[6] = self.bytes[6] & !STATUS_INTX | if asserted { STATUS_INTX } else { 0 };
    }

    /// The BARs: (index, BAR).
    pub(super) fn bars(&self) -> impl Iterator<Item = (usize, Bar)> {
        let bars = self.bars.iter().enumerate();
        bars.filter_map(|(i, bar)| Some((i, (*bar)?)))
    }

    /// The address in BAR `index`, whether or not it is open.
    fn address(&self, index: usize) -> Option<(Bar, u64)> {
        let bar = (*self.bars.get(index)?)?;
        let at = 0x10 + 4 * index as u16;
        let high = if bar.kind == BarKind::Memory64 {
            u64::from(self.read(at + 4, 4)) << 32
        } else {
            0
        };
        let address = (high | u64::from(self.read(at, 4))) & bar.address_mask();
        Some((bar, address))
    }

    /// Where BAR `index` answers now: `None` while its space is closed or its address is zero or at
    /// the very top (as while it is being sized).
    pub(super) fn mapped(&self, index: usize) -> Option<(Bar, u64)> {
        let (bar, address) = self.address(index)?;
        let open = match bar.kind {
            BarKind::Io => self.command() & command::IO != 0,
            _ => self.command() & command::MEMORY != 0,
        };
        let top = match bar.kind {
            BarKind::Io => 0xffff,
            BarKind::Memory32 => 0xffff_ffff,
            BarKind::Memory64 => (1 << 52) - 1,
        };
        let fits = address.checked_add(bar.size).is_some_and(|end| end <= top);
        (open && address != 0 && fits).then_some((bar, address))
    }

    /// Writes the address of BAR `index` as firmware does.
    pub(super) fn place(&mut self, index: usize, address: u64) {
        let at = 0x10 + 4 * index as u16;
        self.write(at, 4, address as u32);
        if self.bars[index].is_some_and(|b| b.kind == BarKind::Memory64) {
            self.write(at + 4, 4, (address >> 32) as u32);
        }
    }

    /// Opens the spaces that the BARs need, as firmware does.
    pub(super) fn open(&mut self) {
        self.write(4, 2, u32::from(command::IO | command::MEMORY));
    }

    /// RESET: everything writable is zero again.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
        self.set_intx_status(false);
        self.generation = self.generation.wrapping_add(1);
    }

    /// The state now.
    #[must_use]
    pub fn save(&self) -> ConfigSpaceV1 {
        ConfigSpaceV1 {
            bytes: self.bytes.to_vec(),
        }
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// [`RestoreError`] when it is of another function.
    pub fn restore(&mut self, saved: &ConfigSpaceV1) -> Result<(), RestoreError> {
        let same = saved.bytes.len() == 256
            && (0..256).all(|i| {
                let fixed = if i == 6 {
                    !STATUS_INTX
                } else {
                    !self.writable[i]
                };
                (saved.bytes[i] ^ self.bytes[i]) & fixed == 0
            });
        RestoreError::unless(same, "a PCI function", "it is of another kind of function")?;
        self.bytes.copy_from_slice(&saved.bytes);
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }
}
