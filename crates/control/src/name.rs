//! Names of VMs.

use crate::ControlError;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

const MOODS: &[&str] = &[
    "amber", "bold", "brisk", "calm", "clear", "cosy", "deft", "eager", "fair", "fleet", "fresh",
    "glad", "keen", "kind", "lively", "lucid", "mellow", "merry", "neat", "nimble", "proud",
    "quick", "quiet", "ready", "shy", "sleek", "snug", "spry", "still", "sunny", "swift", "tidy",
    "warm", "wise", "witty", "zesty",
];
const BEINGS: &[&str] = &[
    "auk", "badger", "bee", "crane", "curlew", "dipper", "dove", "eider", "falcon", "finch",
    "grebe", "hare", "heron", "ibis", "jay", "kite", "lark", "linnet", "lynx", "martin", "newt",
    "otter", "owl", "plover", "quail", "raven", "robin", "seal", "shrew", "siskin", "stoat",
    "swan", "tern", "thrush", "vole", "wren",
];

/// A name that nobody chose, such as `brisk_heron`.
#[must_use]
pub fn generate_name() -> String {
    // A new state is keyed by the system's random numbers.
    let n = RandomState::new().build_hasher().finish();
    let pick = |list: &[&'static str], n: u64| list[(n % list.len() as u64) as usize];
    format!("{}_{}", pick(MOODS, n & 0xffff_ffff), pick(BEINGS, n >> 32))
}

/// Whether `name` can be a VM's: a file name that needs no quoting.
///
/// # Errors
/// [`ControlError::Name`].
pub fn check_name(name: &str) -> Result<(), ControlError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let good = name.len() <= 63
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good {
        Ok(())
    } else {
        Err(ControlError::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_names_and_differ() {
        let names: std::collections::HashSet<_> = (0..50).map(|_| generate_name()).collect();
        assert!(names.len() > 25);
        names.iter().for_each(|n| check_name(n).unwrap());
    }

    #[test]
    fn what_is_no_name() {
        for bad in [
            "",
            "-x",
            ".",
            "..",
            "a/b",
            "a b",
            "ä",
            "_x",
            &"x".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["web", "0", "a.b-c_d", &"x".repeat(63)] {
            check_name(good).unwrap();
        }
    }
}
