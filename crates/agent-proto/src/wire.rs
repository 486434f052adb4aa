//! Numbers and byte strings in a frame.

/// A frame that says nothing that we understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the other side speaks another language: mimeo and its agent must be of the same version")
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for std::io::Error {
    fn from(m: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, m)
    }
}

/// Bytes to be read from the front.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(front)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn word(&mut self) -> Result<u32, Malformed> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(crate) fn long(&mut self) -> Result<i64, Malformed> {
        let (low, high) = (self.word()?, self.word()?);
        Ok((u64::from(low) | u64::from(high) << 32) as i64)
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        let n = self.word()? as usize;
        Ok(self.take(n)?.to_vec())
    }

    /// A list: each element has at least one byte, so that a lie about its length ends soon.
    pub(crate) fn list(&mut self) -> Result<Vec<Vec<u8>>, Malformed> {
        let n = self.word()?;
        let mut list = Vec::new();
        for _ in 0..n {
            list.push(self.bytes()?);
        }
        Ok(list)
    }

    pub(crate) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }
}

/// Bytes to be sent.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn byte(&mut self, b: u8) -> &mut Self {
        self.0.push(b);
        self
    }

    pub(crate) fn flag(&mut self, b: bool) -> &mut Self {
        self.byte(u8::from(b))
    }

    pub(crate) fn word(&mut self, w: u32) -> &mut Self {
        self.0.extend(w.to_le_bytes());
        self
    }

    pub(crate) fn long(&mut self, w: i64) -> &mut Self {
        self.0.extend(w.to_le_bytes());
        self
    }

    pub(crate) fn raw(&mut self, b: &[u8]) -> &mut Self {
        self.0.extend(b);
        self
    }

    pub(crate) fn bytes(&mut self, b: &[u8]) -> &mut Self {
        // Longer ones are refused when the frame is written.
        self.word(b.len() as u32).raw(b)
    }

    pub(crate) fn list(&mut self, list: &[Vec<u8>]) -> &mut Self {
        self.word(list.len() as u32);
        for b in list {
            self.bytes(b);
        }
        self
    }
}
