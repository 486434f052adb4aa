//! Hardware addresses.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Not a hardware address that a card can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a card's address: write six bytes such as 52:54:00:12:34:56, the first one even"
)]
pub struct MacError(String);

/// A card's hardware address: unicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// An address that is locally administered and otherwise made of `seed`'s low 40 bits.
    #[must_use]
    pub const fn local(seed: u64) -> Self {
        let [a, b, c, d, e, ..] = seed.to_le_bytes();
        Self([0x52, a, b, c, d, e])
    }

    /// Its bytes, in the order of transmission.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Self, MacError> {
        let bad = || MacError(s.to_owned());
        let mut bytes = [0; 6];
        let mut parts = s.split([':', '-']);
        for b in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *b = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let whole = parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6];
        whole.then_some(Self(bytes)).ok_or_else(bad)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;
    fn try_from(s: String) -> Result<Self, MacError> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> Self {
        m.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let m: Mac = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(m.to_string(), "52:54:00:ab:cd:0f");
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5254:00:12:34:56",
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
            "+2:54:00:12:34:5g",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert_eq!(
            Mac::local(u64::MAX).bytes(),
            [0x52, 255, 255, 255, 255, 255]
        );
    }
}
