//! The host bridge: finds functions by configuration address, and by the addresses in their BARs.

use super::PciFunction;
use super::bar::BarKind;
use super::config::{ConfigSpace, Identity};
use mimeo_bus::{MmioDevice, PortDevice};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of slots on the bus.
const SLOTS: usize = 32;

/// Where functions may be mapped; addresses as the CPUs see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciWindows {
    /// Memory below 4 GB.
    pub memory32: Range<u64>,
    /// Memory above 4 GB; may be empty.
    pub memory64: Range<u64>,
    /// I/O ports; may be empty.
    pub io: Range<u64>,
}

/// A function cannot be put on the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// All slots are taken.
    #[error("the PCI bus has no free slot; remove a device")]
    Full,
    /// Its BARs do not fit into the windows.
    #[error("the PCI windows have no room for a BAR of {0:#x} bytes; remove a device")]
    NoRoom(u64),
}

type Shared = Arc<Mutex<dyn PciFunction>>;

/// A BAR that answers: its length, the function's slot, the BAR's index.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    len: u64,
    slot: usize,
    bar: usize,
}

/// The host bridge and its bus.
pub struct PciHost {
    slots: Vec<Option<Shared>>,
    windows: PciWindows,
    /// The next free address of each window: memory32, memory64, io.
    next: [u64; 3],
    memory: BTreeMap<u64, Mapping>,
    io: BTreeMap<u64, Mapping>,
    /// CF8h.
    address: u32,
}

/// The bridge's own function at 00:00.0, which has no registers.
struct Bridge(ConfigSpace);

impl PciFunction for Bridge {
    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _bar: usize, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    fn bar_write(&mut self, _bar: usize, _offset: u64, _size: u8, _value: u64) {}
    fn reset(&mut self) {
        self.0.reset();
    }
}

fn lock(function: &Shared) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of a larger window from `map` that holds `address`.
fn find(map: &BTreeMap<u64, Mapping>, address: u64) -> Option<(Mapping, u64)> {
    let (&base, &mapping) = map.range(..=address).next_back()?;
    (address - base < mapping.len).then_some((mapping, address - base))
}

impl PciHost {
    /// A bus with the host bridge in slot 0.
    pub fn new(windows: PciWindows) -> Arc<Mutex<Self>> {
        let id = Identity {
            // Red Hat's, QEMU's generic PCI Express host bridge.
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut slots: Vec<Option<Shared>> = (0..SLOTS).map(|_| None).collect();
        slots[0] = Some(Arc::new(Mutex::new(Bridge(ConfigSpace::new(&id, false)))));
        let next = [
            windows.memory32.start,
            windows.memory64.start,
            windows.io.start,
        ];
        Arc::new(Mutex::new(Self {
            slots,
            windows,
            next,
            memory: BTreeMap::new(),
            io: BTreeMap::new(),
            address: 0,
        }))
    }

    /// The slot that [`Self::add`] will use next.
    #[must_use]
    pub fn free_slot(&self) -> Option<u8> {
        // At most 31.
        self.slots.iter().position(Option::is_none).map(|s| s as u8)
    }

    /// Puts a function into the first free slot and places its BARs, as firmware does; gives the
    /// slot.
    ///
    /// # Errors
    /// [`SlotError`] when there is no slot or no room.
    pub fn add(&mut self, function: Shared) -> Result<u8, SlotError> {
        let slot = self.free_slot().ok_or(SlotError::Full)?;
        self.place(&function)?;
        self.slots[usize::from(slot)] = Some(function);
        self.remap();
        Ok(slot)
    }

    fn place(&mut self, function: &Shared) -> Result<(), SlotError> {
        let mut function = lock(function);
        let config = function.config();
        let bars: Vec<_> = config.bars().collect();
        for (index, bar) in bars {
            let wide = bar.kind == BarKind::Memory64 && !self.windows.memory64.is_empty();
            let (window, which) = match bar.kind {
                BarKind::Io => (&self.windows.io, 2),
                _ if wide => (&self.windows.memory64, 1),
                _ => (&self.windows.memory32, 0),
            };
            let at = self.next[which]
                .checked_next_multiple_of(bar.size)
                .filter(|at| at.checked_add(bar.size).is_some_and(|e| e <= window.end))
                .ok_or(SlotError::NoRoom(bar.size))?;
            self.next[which] = at + bar.size;
            config.place(index, at);
        }
        config.open();
        Ok(())
    }

    /// Resets every function and places the BARs again.
    pub fn reset(&mut self) {
        self.next = [
            self.windows.memory32.start,
            self.windows.memory64.start,
            self.windows.io.start,
        ];
        self.address = 0;
        let functions: Vec<Shared> = self.slots.iter().flatten().cloned().collect();
        for function in &functions {
            lock(function).reset();
            // It fitted before in the same order.
            let _ = self.place(function);
        }
        self.remap();
    }

    /// Finds out anew where BARs answer (after restoring functions, too). Of two that overlap, the
    /// one in the lower slot answers.
    pub fn remap(&mut self) {
        self.memory.clear();
        self.io.clear();
        for slot in 0..SLOTS {
            let Some(function) = self.slots[slot].clone() else {
                continue;
            };
            let mut function = lock(&function);
            let config = function.config();
            for bar in 0..6 {
                let Some((kind, base)) = config.mapped(bar) else {
                    continue;
                };
                let map = match kind.kind {
                    BarKind::Io => &mut self.io,
                    _ => &mut self.memory,
                };
                let end = base + kind.size;
                let taken = map
                    .range(..end)
                    .next_back()
                    .is_some_and(|(&b, m)| b + m.len > base);
                if !taken {
                    let len = kind.size;
                    map.insert(base, Mapping { len, slot, bar });
                }
            }
        }
    }

    fn function(&self, slot: usize) -> Option<Shared> {
        self.slots.get(slot)?.clone()
    }

    /// Reads configuration space: `bdf` is bus, device and function as in ECAM addresses.
    fn config_read(&mut self, bdf: u32, offset: u16, size: u8) -> u32 {
        match self.function(single(bdf)) {
            Some(function) => lock(&function).config_read(offset, size),
            None => u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))),
        }
    }

    fn config_write(&mut self, bdf: u32, offset: u16, size: u8, value: u32) {
        let Some(function) = self.function(single(bdf)) else {
            return;
        };
        let mut guard = lock(&function);
        let before = guard.config().generation();
        guard.config_write(offset, size, value);
        let changed = guard.config().generation() != before;
        drop(guard);
        if changed {
            self.remap();
        }
    }
}

/// The slot of function 0 on bus 0; a number beyond the slots for everything else.
fn single(bdf: u32) -> usize {
    if bdf & 7 == 0 {
        (bdf >> 3) as usize
    } else {
        SLOTS
    }
}

fn guard(host: &Mutex<PciHost>) -> MutexGuard<'_, PciHost> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory-mapped configuration space (ECAM): 1 MB a bus.
pub struct Ecam(pub Arc<Mutex<PciHost>>);

impl MmioDevice for Ecam {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let (bdf, at) = ((offset >> 12) as u32, offset as u16 & 0xfff);
        let mut host = guard(&self.0);
        if size == 8 {
            let low = host.config_read(bdf, at, 4);
            return u64::from(low) | u64::from(host.config_read(bdf, at | 4, 4)) << 32;
        }
        u64::from(host.config_read(bdf, at, size))
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        let (bdf, at) = ((offset >> 12) as u32, offset as u16 & 0xfff);
        let mut host = guard(&self.0);
        host.config_write(bdf, at, size.min(4), value as u32);
        if size == 8 {
            host.config_write(bdf, at | 4, 4, (value >> 32) as u32);
        }
    }
}

/// The configuration ports. Offset 0 is CF8h (a doubleword; CF9h is another device's), 4 is CFCh.
pub struct ConfigPorts(pub Arc<Mutex<PciHost>>);

impl PortDevice for ConfigPorts {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let mut host = guard(&self.0);
        match offset {
            0 if size == 4 => host.address,
            4..=7 if host.address >> 31 != 0 => {
                let at = host.address as u16 & 0xfc | offset & 3;
                let bdf = host.address >> 8 & 0xffff;
                host.config_read(bdf, at, size)
            }
            _ => u32::MAX,
        }
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let mut host = guard(&self.0);
        match offset {
            0 if size == 4 => host.address = value & 0x80ff_fffc,
            4..=7 if host.address >> 31 != 0 => {
                let at = host.address as u16 & 0xfc | offset & 3;
                let bdf = host.address >> 8 & 0xffff;
                host.config_write(bdf, at, size, value);
            }
            _ => {}
        }
    }
}

/// A memory window, bound at `base`: accesses go to the function whose BAR is there.
pub struct PciMmio {
    /// The host bridge.
    pub host: Arc<Mutex<PciHost>>,
    /// Where the board has bound the window.
    pub base: u64,
}

impl PciMmio {
    fn target(&self, offset: u64) -> Option<(Shared, usize, u64)> {
        let host = guard(&self.host);
        let (mapping, at) = find(&host.memory, self.base.checked_add(offset)?)?;
        // The host's lock is not held during the access.
        Some((host.function(mapping.slot)?, mapping.bar, at))
    }
}

impl MmioDevice for PciMmio {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        match self.target(offset) {
            Some((function, bar, at)) => lock(&function).bar_read(bar, at, size),
            None => u64::MAX,
        }
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        if let Some((function, bar, at)) = self.target(offset) {
            lock(&function).bar_write(bar, at, size, value);
        }
    }
}

/// A window of ports, bound at `base`.
pub struct PciIo {
    /// The host bridge.
    pub host: Arc<Mutex<PciHost>>,
    /// Where the board has bound the window.
    pub base: u16,
}

impl PciIo {
    fn target(&self, offset: u16) -> Option<(Shared, usize, u64)> {
        let host = guard(&self.host);
        let (mapping, at) = find(&host.io, u64::from(self.base) + u64::from(offset))?;
        Some((host.function(mapping.slot)?, mapping.bar, at))
    }
}

impl PortDevice for PciIo {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        match self.target(offset) {
            Some((function, bar, at)) => lock(&function).bar_read(bar, at, size) as u32,
            None => u32::MAX,
        }
    }

    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        if let Some((function, bar, at)) = self.target(offset) {
            lock(&function).bar_write(bar, at, size, u64::from(value));
        }
    }
}
