//! Packet captures in the classic pcap format (draft-ietf-opsawg-pcap), which tcpdump, tshark and
//! Wireshark open.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanosecond time stamps, in the byte order of this file (little-endian).
const MAGIC: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;
const SNAP_LEN: u32 = 262_144;

/// A capture being written.
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Begins a capture of Ethernet frames.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC.to_le_bytes());
        header.extend(2u16.to_le_bytes());
        header.extend(4u16.to_le_bytes());
        header.extend([0; 8]);
        header.extend(SNAP_LEN.to_le_bytes());
        header.extend(ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out })
    }

    /// Records a frame that passed at `time`.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn frame(&mut self, time: SystemTime, frame: &[u8]) -> io::Result<()> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = &frame[..frame.len().min(SNAP_LEN as usize)];
        // The format's seconds have 32 bits, unsigned: until 2106.
        let fields = [
            since.as_secs() as u32,
            since.subsec_nanos(),
            kept.len() as u32,
            u32::try_from(frame.len()).unwrap_or(u32::MAX),
        ];
        let mut record: Vec<u8> = fields.into_iter().flat_map(u32::to_le_bytes).collect();
        record.extend_from_slice(kept);
        self.out.write_all(&record)
    }

    /// Sees that everything recorded so far can be read.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A capture into a file that ends quietly when the file cannot be written any more: a full disk ends
/// the capture, not the network.
#[derive(Debug, Default)]
pub struct Capture(Option<PcapWriter<BufWriter<File>>>);

impl Capture {
    /// Begins a capture into `file`; none without a file.
    ///
    /// # Errors
    /// Those of the file.
    pub fn new(file: Option<File>) -> io::Result<Self> {
        let writer = |f| PcapWriter::new(BufWriter::new(f));
        file.map(writer).transpose().map(Self)
    }

    /// Records a frame that passes now.
    pub(crate) fn frame(&mut self, frame: &[u8]) {
        let failed = |w: &mut PcapWriter<_>| w.frame(SystemTime::now(), frame).is_err();
        if self.0.as_mut().is_some_and(failed) {
            self.0 = None;
        }
    }

    /// What was recorded is in the file.
    pub(crate) fn flush(&mut self) {
        if self.0.as_mut().is_some_and(|w| w.flush().is_err()) {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_capture_has_its_header_and_records() {
        let mut bytes = Vec::new();
        let mut w = PcapWriter::new(&mut bytes).unwrap();
        w.frame(UNIX_EPOCH + Duration::new(7, 8), &[0xaa; 60])
            .unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 60);
        assert_eq!(bytes[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(bytes[20..24], [1, 0, 0, 0]);
        assert_eq!(
            bytes[24..40],
            [7, 0, 0, 0, 8, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0]
        );
    }
}
