//! Shared folders as a person describes them.

use super::SpecError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a tag (virtio 1.2, 5.11.4).
const TAG: usize = 36;

/// How a folder gets into a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareProtocol {
    /// The virtio file system device (`mount -t virtiofs`), which kernels for virtual machines have.
    #[default]
    Fs,
    /// 9P2000.L (`mount -t 9p -o trans=virtio,version=9p2000.L`).
    #[serde(rename = "9p")]
    NineP,
}

/// A folder of the host's: `HOSTDIR:TAG[:ro][,fs|,9p]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShareSpec {
    /// The folder.
    pub dir: PathBuf,
    /// The name by which the guest mounts it: 1 to 36 bytes.
    pub tag: String,
    /// The guest cannot change anything in it.
    #[serde(default, alias = "read-only")]
    pub ro: bool,
    /// How the guest reaches it.
    #[serde(default)]
    pub protocol: ShareProtocol,
}

impl ShareSpec {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// [`SpecError::Share`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let tag = &self.tag;
        let good = (1..=TAG).contains(&tag.len()) && !tag.contains(['/', '\0', ':', ',']);
        if good && !self.dir.as_os_str().is_empty() {
            Ok(())
        } else {
            Err(SpecError::Share(self.to_string()))
        }
    }
}

impl FromStr for ShareSpec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Share(s.to_owned());
        let (rest, protocol) = match s.rsplit_once(',') {
            Some((rest, "fs")) => (rest, ShareProtocol::Fs),
            Some((rest, "9p")) => (rest, ShareProtocol::NineP),
            _ => (s, ShareProtocol::default()),
        };
        // A folder's name may have colons of its own.
        let (rest, ro) = match rest.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let (dir, tag) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let share = Self {
            dir: dir.into(),
            tag: tag.to_owned(),
            ro,
            protocol,
        };
        share.validate().map_err(|_| wrong())?;
        Ok(share)
    }
}

impl fmt::Display for ShareSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dir, tag) = (self.dir.display(), &self.tag);
        write!(f, "{dir}:{tag}{}", if self.ro { ":ro" } else { "" })?;
        f.write_str(match self.protocol {
            ShareProtocol::Fs => "",
            ShareProtocol::NineP => ",9p",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["/srv/a:b:data", "/srv:data:ro", ".:x,9p", "/a,b:data:ro,9p"] {
            let share: ShareSpec = text.parse().unwrap();
            assert_eq!(share.to_string(), text);
        }
        let share: ShareSpec = "/srv/a:b:data:ro,9p".parse().unwrap();
        assert_eq!((share.dir, share.tag), ("/srv/a:b".into(), "data".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "/srv",
            ":tag",
            "/srv:",
            "/srv:a/b",
            "/srv:x,nfs",
            "/srv:ro",
        ] {
            assert!(bad.parse::<ShareSpec>().is_err(), "{bad}");
        }
        assert!(
            format!("/srv:{}", "x".repeat(37))
                .parse::<ShareSpec>()
                .is_err()
        );
    }
}
