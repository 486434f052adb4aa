//! Where addresses were last seen (IEEE 802.1Q, 8.7 and 8.8).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// An address not heard of for this long is forgotten (802.1Q, table 8-6).
const AGE: Duration = Duration::from_secs(300);
/// Addresses of one member; of more, none is learned, so that nobody can push out others'.
const EACH: usize = 256;

/// VLAN and address.
type Key = (u16, [u8; 6]);

/// The table.
#[derive(Debug, Default)]
pub(super) struct Fdb {
    entries: HashMap<Key, (u64, Instant)>,
    counts: HashMap<u64, usize>,
}

impl Fdb {
    /// A frame from `mac` came from `member`.
    pub(super) fn learn(&mut self, key: Key, member: u64, now: Instant) {
        // Groups send nothing.
        if key.1[0] & 1 != 0 {
            return;
        }
        let before = self.entries.get(&key).map(|&(m, _)| m);
        if before != Some(member) {
            let count = self.counts.entry(member).or_default();
            if *count >= EACH {
                return;
            }
            *count += 1;
            if let Some(c) = before.and_then(|b| self.counts.get_mut(&b)) {
                *c = c.saturating_sub(1);
            }
        }
        self.entries.insert(key, (member, now));
    }

    /// Who has an address.
    pub(super) fn find(&self, key: &Key, now: Instant) -> Option<u64> {
        let &(member, seen) = self.entries.get(key)?;
        (now.saturating_duration_since(seen) < AGE).then_some(member)
    }

    /// Forgets what is old.
    pub(super) fn age(&mut self, now: Instant) {
        let counts = &mut self.counts;
        self.entries.retain(|_, (member, seen)| {
            let young = now.saturating_duration_since(*seen) < AGE;
            if let (false, Some(c)) = (young, counts.get_mut(member)) {
                *c = c.saturating_sub(1);
            }
            young
        });
    }

    /// A member has left.
    pub(super) fn forget(&mut self, member: u64) {
        self.entries.retain(|_, (m, _)| *m != member);
        self.counts.remove(&member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_learned_moved_and_forgotten() {
        let (mut f, now) = (Fdb::default(), Instant::now());
        let key = |i: u16| (0, [2, 0, 0, 0, (i >> 8) as u8, i as u8]);
        f.learn(key(1), 7, now);
        assert_eq!(f.find(&key(1), now), Some(7));
        assert_eq!(f.find(&(5, key(1).1), now), None, "another VLAN");
        f.learn(key(1), 8, now);
        assert_eq!(f.find(&key(1), now), Some(8));
        f.learn((0, [0xff; 6]), 8, now);
        assert_eq!(f.find(&(0, [0xff; 6]), now), None);
        assert_eq!(f.find(&key(1), now + AGE), None);
        f.age(now + AGE);
        assert!(f.entries.is_empty() && f.counts[&8] == 0);
        for i in 0..1000 {
            f.learn(key(i), 9, now);
        }
        assert_eq!(f.entries.len(), EACH);
        f.learn(key(2000), 7, now);
        assert_eq!(f.find(&key(2000), now), Some(7));
        f.forget(9);
        assert_eq!(f.entries.len(), 1);
    }
}
