//! Disks as a person describes them.

use super::SpecError;
pub use mimeo_backends::DiskFormat;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Queues of a disk at the most.
const MOST_QUEUES: u16 = 16;
/// Bytes of a serial number that a guest sees (virtio 1.2, 5.2.6.1).
const SERIAL: usize = 20;

/// A disk: `FILE[,ro][,snapshot][,format=raw|qcow2][,serial=TEXT][,queues=N]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DiskSpec {
    /// The image file or block device.
    pub file: PathBuf,
    /// The guest cannot write to it.
    #[serde(alias = "read-only")]
    pub ro: bool,
    /// What the guest writes goes into an unnamed temporary file.
    pub snapshot: bool,
    /// Its format; by its name when not said.
    pub format: Option<DiskFormat>,
    /// What the guest sees as its serial number, at most 20 bytes; `diskN` when not said.
    pub serial: Option<String>,
    /// Number of queues, 1 to 16; one for each of up to four CPUs when not said.
    pub queues: Option<u16>,
}

/// Splits at single commas; two in a row are one of the text's own.
fn words(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let split = c == ',' && chars.next_if_eq(&',').is_none();
        match all.last_mut() {
            Some(last) if !split => last.push(c),
            _ => all.push(String::new()),
        }
    }
    all
}

impl DiskSpec {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// [`SpecError::Disk`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let wrong = |what: String| Err(SpecError::Disk(self.to_string(), what));
        if self.file.as_os_str().is_empty() {
            return wrong("there is no file".into());
        }
        if self.ro && self.snapshot {
            return wrong("ro and snapshot exclude each other".into());
        }
        if self.queues.is_some_and(|n| !(1..=MOST_QUEUES).contains(&n)) {
            return wrong(format!("queues is 1 to {MOST_QUEUES}"));
        }
        if self.serial.as_ref().is_some_and(|s| s.len() > SERIAL) {
            return wrong(format!("serial has at most {SERIAL} bytes"));
        }
        Ok(())
    }
}

impl FromStr for DiskSpec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        let wrong = |what: String| SpecError::Disk(s.to_owned(), what);
        let mut words = words(s).into_iter();
        let mut disk = Self {
            file: words.next().unwrap_or_default().into(),
            ..Self::default()
        };
        for word in words {
            match word.split_once('=') {
                None if word == "ro" => disk.ro = true,
                None if word == "snapshot" => disk.snapshot = true,
                Some(("format", f)) => disk.format = Some(f.parse().map_err(wrong)?),
                Some(("serial", t)) => disk.serial = Some(t.to_owned()),
                Some(("queues", n)) => {
                    let n = n
                        .parse()
                        .map_err(|_| wrong(format!("`{n}` is not a number")))?;
                    disk.queues = Some(n);
                }
                _ => return Err(wrong(format!("`{word}` is not known"))),
            }
        }
        disk.validate()?;
        Ok(disk)
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file.display().to_string().replace(',', ",,"))?;
        for (set, word) in [(self.ro, ",ro"), (self.snapshot, ",snapshot")] {
            f.write_str(if set { word } else { "" })?;
        }
        if let Some(format) = self.format {
            write!(f, ",format={format}")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={}", serial.replace(',', ",,"))?;
        }
        if let Some(queues) = self.queues {
            write!(f, ",queues={queues}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let text = "a,,b.img,snapshot,format=qcow2,serial=x,,1,queues=3";
        let disk: DiskSpec = text.parse().unwrap();
        assert_eq!(disk.file, PathBuf::from("a,b.img"));
        assert_eq!(disk.serial.as_deref(), Some("x,1"));
        assert_eq!(
            (disk.format, disk.queues),
            (Some(DiskFormat::Qcow2), Some(3))
        );
        assert!(disk.snapshot && !disk.ro);
        assert_eq!(disk.to_string(), text);
        assert!("f,ro".parse::<DiskSpec>().unwrap().ro);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            ",ro",
            "f,rw",
            "f,format=vmdk",
            "f,queues=0",
            "f,queues=17",
            "f,queues=many",
            "f,ro,snapshot",
            "f,serial=123456789012345678901",
        ] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad}");
        }
    }
}
