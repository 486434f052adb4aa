//! 9P's encoding: little-endian integers, strings with a 16-bit length (9P2000 manual, section 5,
//! `intro`).

use rustix::io::Errno;

/// Reads a message's fields; everything is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Errno> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Errno::PROTO)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::PROTO)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Errno> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Errno> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let n = self.u16()?;
        self.bytes(n.into())
    }
}

/// A reply being built: size, type and tag come first.
#[derive(Debug, Default)]
pub(crate) struct Reply(pub Vec<u8>);

impl Reply {
    pub(crate) fn start(kind: u8, tag: u16) -> Self {
        let mut reply = Self(vec![0, 0, 0, 0, kind]);
        reply.u16(tag);
        reply
    }

    /// Fills in the size.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_le_bytes());
        self.0
    }

    pub(crate) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }

    pub(crate) fn u16(&mut self, v: u16) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    /// A string; one beyond 65,535 bytes cannot come from a file system and is cut.
    pub(crate) fn string(&mut self, v: &[u8]) {
        let n = v.len().min(65535);
        self.u16(n as u16);
        self.0.extend_from_slice(&v[..n]);
    }
}
