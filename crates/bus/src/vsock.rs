//! Sockets between a guest and its host (vsock): packets between a device and its host side.
//!
//! Models: VIRTIO 1.2, 5.10.6 (device operation). The device moves packets between its rings and the
//! host side; the host side knows connections and credit.
//!
//! Lock order: device, then host side. A host side calls [`VsockDevice`] without holding a lock of
//! its own; a device may call [`VsockHost`] with its own lock held.

use std::sync::Arc;

/// The host's address.
pub const HOST_CID: u64 = 2;
/// Bytes of a packet's header.
pub const VSOCK_HEADER: usize = 44;
/// The most payload bytes that one packet carries here; longer ones from a guest are not taken.
pub const VSOCK_PAYLOAD: usize = 64 * 1024;

/// Operations (5.10.6, `VIRTIO_VSOCK_OP_*`).
pub mod vsock_op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants it.
    pub const RESPONSE: u16 = 2;
    /// Refuses it, or ends it at once.
    pub const RST: u16 = 3;
    /// One or both directions end ([`super::SHUTDOWN_RECEIVE`], [`super::SHUTDOWN_SEND`]).
    pub const SHUTDOWN: u16 = 4;
    /// Bytes.
    pub const RW: u16 = 5;
    /// Tells how much was taken.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}
/// The type of stream sockets.
pub const VSOCK_STREAM: u16 = 1;
/// Flag of a shutdown: the sender will receive nothing more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a shutdown: the sender will send nothing more.
pub const SHUTDOWN_SEND: u32 = 2;

/// A packet's header (`struct virtio_vsock_hdr`, 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VsockHeader {
    /// The sender's address.
    pub src_cid: u64,
    /// The receiver's address.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// [`VSOCK_STREAM`], or a type that is not known here.
    pub kind: u16,
    /// One of [`vsock_op`], or anything else from a guest.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes that the sender's receive buffer holds.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl VsockHeader {
    /// The header in a packet's first bytes.
    #[must_use]
    pub fn from_bytes(b: &[u8; VSOCK_HEADER]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// The bytes of it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; VSOCK_HEADER] {
        let mut b = [0; VSOCK_HEADER];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        b
    }
}

/// The host's side of a vsock device. Nothing here blocks.
pub trait VsockHost: Send + Sync {
    /// Whether [`Self::guest_sent`] may be called now. When not, [`VsockDevice::progress`] is called
    /// once it may.
    fn has_room(&self) -> bool;

    /// A packet of the guest's; the payload is as long as the header says.
    fn guest_sent(&self, header: &VsockHeader, payload: Vec<u8>);

    /// Whether [`Self::next_packet`] would give a packet.
    fn has_packet(&self) -> bool;

    /// The next packet for the guest, with at most `most` bytes of payload.
    fn next_packet(&self, most: usize) -> Option<(VsockHeader, Vec<u8>)>;

    /// The guest's driver has come (true) or gone: all connections end.
    fn driver(&self, present: bool);

    /// Registers the device. Once, before the VM runs.
    fn connect(&self, device: Arc<dyn VsockDevice>);
}

/// A vsock device as its host side sees it.
pub trait VsockDevice: Send + Sync {
    /// There is a packet for the guest, or room for the guest's packets again.
    fn progress(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_little_endian_in_the_specifications_order() {
        let mut bytes = [0; VSOCK_HEADER];
        for (i, b) in (1..).zip(&mut bytes) {
            *b = i;
        }
        let h = VsockHeader::from_bytes(&bytes);
        assert_eq!(h.src_cid, 0x0807_0605_0403_0201);
        assert_eq!((h.dst_port, h.kind, h.op), (0x1817_1615, 0x1e1d, 0x201f));
        assert_eq!((h.flags, h.fwd_cnt), (0x2423_2221, 0x2c2b_2a29));
        assert_eq!(h.to_bytes(), bytes);
    }
}
