//! The log file: a header, then frames of (u32 little-endian length, postcard bytes).

use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

const MAGIC: &[u8; 8] = b"MIMEOLOG";
const VERSION: u32 = 2;
/// No frame is longer: the largest is a DMA write of one page.
const MAX_FRAME: u32 = 8192;

/// One thing that happened, in order. `cpu` is the vCPU that was running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The beginning: the hash of all CPU states and of guest memory before the first instruction.
    Begin {
        /// See [`crate::state_hash`].
        hash: u64,
    },
    /// vCPU `cpu` runs from here on, until its count of retired instructions is `until` or it stops
    /// earlier (HLT, a stop).
    Run {
        /// The vCPU.
        cpu: u32,
        /// Its limit.
        until: u64,
    },
    /// How the last `Run` ended: the count of retired instructions, and whether the vCPU halted.
    Ran {
        /// Instructions retired.
        retired: u64,
        /// It is in HLT.
        halted: bool,
    },
    /// The virtual time is now this (nanoseconds).
    Time(u64),
    /// Event bits of vCPU `cpu` are now these (only the bits that devices own).
    Events {
        /// The vCPU.
        cpu: u32,
        /// All pending bits, including a SIPI's vector.
        bits: u32,
    },
    /// IN.
    PortRead {
        /// Port.
        port: u16,
        /// Bytes.
        size: u8,
        /// Answer.
        value: u32,
    },
    /// OUT.
    PortWrite {
        /// Port.
        port: u16,
        /// Bytes.
        size: u8,
        /// Value written.
        value: u32,
    },
    /// A load from MMIO.
    MmioRead {
        /// Address.
        gpa: u64,
        /// Bytes.
        size: u8,
        /// Answer.
        value: u64,
    },
    /// A store to MMIO.
    MmioWrite {
        /// Address.
        gpa: u64,
        /// Bytes.
        size: u8,
        /// Value written.
        value: u64,
    },
    /// An interrupt acknowledge.
    Ack(Option<u8>),
    /// A read of CR8.
    Cr8Read(u8),
    /// A write of CR8.
    Cr8Write(u8),
    /// RDMSR of a machine-owned MSR; `None` is #GP.
    MsrRead {
        /// The MSR.
        msr: u32,
        /// Answer.
        value: Option<u64>,
    },
    /// WRMSR of a machine-owned MSR.
    MsrWrite {
        /// The MSR.
        msr: u32,
        /// Value written.
        value: u64,
        /// Accepted (else #GP).
        ok: bool,
    },
    /// A read of the time-stamp counter.
    Tsc(u64),
    /// A hypercall.
    Hypercall {
        /// RAX, RBX, RCX, RDX, RSI.
        args: [u64; 5],
        /// Answer.
        result: u64,
    },
    /// A device wrote guest memory.
    Dma {
        /// Guest-physical address.
        gpa: u64,
        /// What it wrote; at most a page.
        bytes: Vec<u8>,
    },
    /// A random number; `None`: there was none.
    Random(Option<u64>),
    /// The end: the hash of all CPU states and of guest memory.
    End {
        /// See [`crate::state_hash`].
        hash: u64,
    },
}

/// What can be wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Reading or writing failed.
    #[error("the replay log cannot be read or written: {0}")]
    Io(#[from] std::io::Error),
    /// Not a log of ours.
    #[error("not a Mimeo replay log (bad magic)")]
    Magic,
    /// From another version.
    #[error("the replay log has format {0}; this Mimeo reads format {VERSION}: record it again")]
    Version(u32),
    /// Damaged.
    #[error("the replay log is damaged or truncated at byte {0}")]
    Damaged(u64),
    /// The machine is not the recorded one.
    #[error(
        "the recording began with another machine: give the same flags and files as for --record"
    )]
    OtherMachine,
    /// The run left the recording.
    #[error("the run differs from the recording at entry {entry}: recorded {recorded}, now {now}")]
    Diverged {
        /// Number of the entry, from 0.
        entry: u64,
        /// What the log has.
        recorded: String,
        /// What the guest did instead.
        now: String,
    },
}

/// Writes a log.
pub struct LogWriter {
    out: Box<dyn Write + Send>,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogWriter")
    }
}

impl LogWriter {
    /// Starts a log on `out` (give it a buffer).
    ///
    /// # Errors
    /// What writing the header gives.
    pub fn new(mut out: Box<dyn Write + Send>) -> Result<Self, LogError> {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Self { out })
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// What writing gives.
    pub fn push(&mut self, entry: &Entry) -> Result<(), LogError> {
        let bytes = postcard::to_stdvec(entry).map_err(std::io::Error::other)?;
        let len = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(&bytes)?;
        Ok(())
    }

    /// Flushes what is buffered.
    ///
    /// # Errors
    /// What flushing gives.
    pub fn finish(&mut self) -> Result<(), LogError> {
        Ok(self.out.flush()?)
    }
}

enum Input {
    File(Box<dyn Read + Send>),
    /// What is left.
    Entries(std::vec::IntoIter<Entry>),
}

/// Reads a log. The file is untrusted: lengths are capped and nothing in it is an index.
pub struct LogReader {
    input: Input,
    at: u64,
    entries: u64,
    peeked: Option<Entry>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogReader(entry {})", self.entries)
    }
}

impl LogReader {
    /// Opens a log.
    ///
    /// # Errors
    /// [`LogError::Magic`], [`LogError::Version`] or what reading gives.
    pub fn new(mut input: Box<dyn Read + Send>) -> Result<Self, LogError> {
        let (mut magic, mut version) = ([0; 8], [0; 4]);
        input.read_exact(&mut magic).map_err(|_| LogError::Magic)?;
        if &magic != MAGIC {
            return Err(LogError::Magic);
        }
        input.read_exact(&mut version)?;
        match u32::from_le_bytes(version) {
            VERSION => Ok(Self {
                input: Input::File(input),
                at: 12,
                entries: 0,
                peeked: None,
            }),
            other => Err(LogError::Version(other)),
        }
    }

    /// A log of these entries, closed by one that no vCPU asks for.
    pub(crate) fn of(mut entries: Vec<Entry>) -> Self {
        entries.push(Entry::End { hash: 0 });
        Self {
            input: Input::Entries(entries.into_iter()),
            at: 0,
            entries: 0,
            peeked: None,
        }
    }

    /// Nothing is left but the closing entry.
    pub(crate) fn exhausted(&self) -> bool {
        match &self.input {
            Input::Entries(left) => left.len() + usize::from(self.peeked.is_some()) <= 1,
            Input::File(_) => false,
        }
    }

    fn read(&mut self) -> Result<Entry, LogError> {
        let at = self.at;
        let damaged = move |_| LogError::Damaged(at);
        let input = match &mut self.input {
            Input::File(input) => input,
            Input::Entries(left) => return left.next().ok_or(LogError::Damaged(at)),
        };
        let mut len = [0; 4];
        input.read_exact(&mut len).map_err(damaged)?;
        let len = u32::from_le_bytes(len);
        if len > MAX_FRAME {
            return Err(LogError::Damaged(at));
        }
        let mut bytes = vec![0; len as usize];
        input.read_exact(&mut bytes).map_err(damaged)?;
        self.at += 4 + u64::from(len);
        postcard::from_bytes(&bytes).map_err(|_| LogError::Damaged(at))
    }

    /// The next entry, left in place.
    ///
    /// # Errors
    /// [`LogError::Damaged`] at the end or where the file is not a log.
    pub fn peek(&mut self) -> Result<&Entry, LogError> {
        let entry = match self.peeked.take() {
            Some(entry) => entry,
            None => self.read()?,
        };
        Ok(self.peeked.insert(entry))
    }

    /// The next entry.
    ///
    /// # Errors
    /// As [`Self::peek`].
    pub fn next_entry(&mut self) -> Result<Entry, LogError> {
        self.entries += 1;
        match self.peeked.take() {
            Some(entry) => Ok(entry),
            None => self.read(),
        }
    }

    /// The error for a run that did `now` where the log has `recorded`.
    #[must_use]
    pub fn diverged(&self, recorded: &Entry, now: &str) -> LogError {
        LogError::Diverged {
            entry: self.entries.saturating_sub(1),
            recorded: format!("{recorded:x?}"),
            now: now.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(b)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn sample() -> Vec<u8> {
        let out = Shared::default();
        let mut w = LogWriter::new(Box::new(out.clone())).unwrap();
        w.push(&Entry::Tsc(77)).unwrap();
        w.push(&Entry::Dma {
            gpa: 5,
            bytes: vec![1; 4096],
        })
        .unwrap();
        w.finish().unwrap();
        drop(w);
        Arc::into_inner(out.0).unwrap().into_inner().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut r = LogReader::new(Box::new(std::io::Cursor::new(sample()))).unwrap();
        assert_eq!(r.peek().unwrap(), &Entry::Tsc(77));
        assert_eq!(r.next_entry().unwrap(), Entry::Tsc(77));
        assert!(matches!(r.next_entry().unwrap(), Entry::Dma { gpa: 5, .. }));
        assert!(matches!(r.next_entry(), Err(LogError::Damaged(_))));
    }

    #[test]
    fn every_truncation_and_a_huge_length_are_errors() {
        let good = sample();
        for n in 0..good.len() - 1 {
            let mut bytes = good.clone();
            bytes.truncate(n);
            let failed = match LogReader::new(Box::new(std::io::Cursor::new(bytes))) {
                Err(_) => true,
                Ok(mut r) => r.next_entry().and_then(|_| r.next_entry()).is_err(),
            };
            assert!(failed, "truncated at {n}");
        }
        let mut bytes = good;
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut r = LogReader::new(Box::new(std::io::Cursor::new(bytes))).unwrap();
        assert!(matches!(r.next_entry(), Err(LogError::Damaged(12))));
    }
}
