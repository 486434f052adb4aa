//! The linear addresses that the guest and the host's child process share.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// First linear address; below 2 GB, so that compatibility mode reaches it.
pub const REGION: u64 = 0x1000_0000;
/// The page with the instruction: readable and executable.
pub const CODE: u64 = REGION;
/// Two readable and writable pages.
pub const DATA: u64 = REGION + 2 * PAGE;
/// Bytes of [`DATA`].
pub const DATA_LEN: usize = 2 * PAGE as usize;
/// A readable page, right after them.
pub const READ_ONLY: u64 = DATA + DATA_LEN as u64;
/// An inaccessible page, right after that one. So is the one before [`DATA`].
pub const NOTHING: u64 = READ_ONLY + PAGE;
/// Where in the code page an instruction starts.
pub const START: u64 = CODE + 0x800;
