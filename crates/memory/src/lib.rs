//! Guest RAM and ROM: one shareable memfd, guarded mappings, bounds-checked access, and the one
//! place where writes are tracked (dirty log, code pages).
//!
//! - [`GuestMemory`] is built once from a list of regions and never changes its layout; the host
//!   mapping of a region is never unmapped or reused while a `GuestMemory` lives.
//! - Every region has inaccessible guard ranges of at least 64 KB on both sides.
//! - All writers use it: vCPUs, device DMA (through `vm-memory`'s traits), loaders, restore.
//! - Writers store first and then look at [`PageTracker`]; whoever marks a page as code issues a
//!   process-wide barrier between marking and reading (see [`PageTracker::mark_code`]).

mod bus_lock;
mod discard;
mod guest;
mod host;
mod tracker;
mod transfer;

pub use bus_lock::{Alone, BusLock, Inside, Seat};
pub use guest::{GuestMemory, MemoryError, PageInfo, RegionKind, RegionSpec};
pub use host::PagePtr;
pub use tracker::{CodeWriteHook, DeviceWriteObserver, PageTracker, RegionTracker};

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
