//! Contracts of devices: buses, IRQ lines, timers, life cycle, save and restore.
//!
//! A device's register model knows no bus address, no IRQ number and no thread: it is handed
//! offsets, [`IrqLine`]s and a [`Clock`]. `machines` binds it.

mod clock;
mod irq;
mod map;

pub use clock::{Clock, HostClock, Nanos, Timer, TimerHandle, TimerService};
pub use irq::{IrqLine, IrqSink};
pub use map::{AddressMap, BusError, MmioDevice, PortDevice};
