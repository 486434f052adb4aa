//! One number for the state of a VM's CPUs and memory.

use mimeo_arch_x86::X86State;
use mimeo_memory::{GuestMemory, PAGE_SIZE};
use xxhash_rust::xxh3::Xxh3;

/// A hash of CPU states and guest memory. Equal states give equal hashes, on every host; pages that
/// are all zero cost nothing but the reading. Not meant to resist an adversary.
#[must_use]
pub fn state_hash<'a>(cpus: impl Iterator<Item = &'a X86State>, memory: &GuestMemory) -> u64 {
    let mut hash = Xxh3::new();
    for cpu in cpus {
        // Plain data: serialisation cannot fail; if it did, the hash would miss it on both sides.
        hash.update(&postcard::to_stdvec(cpu).unwrap_or_default());
    }
    let mut page = [0; PAGE_SIZE as usize];
    for (gpa, len, _) in memory.regions() {
        for at in (gpa..gpa + len).step_by(PAGE_SIZE as usize) {
            if memory.read(at, &mut page).is_ok() && page.iter().any(|&b| b != 0) {
                hash.update(&at.to_le_bytes());
                hash.update(&page);
            }
        }
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_memory_count() {
        let memory = GuestMemory::ram(3 * PAGE_SIZE).unwrap();
        let mut cpu = X86State::reset(0);
        let a = state_hash([&cpu].into_iter(), &memory);
        assert_eq!(a, state_hash([&cpu].into_iter(), &memory));
        memory.write(5000, &[1]).unwrap();
        let b = state_hash([&cpu].into_iter(), &memory);
        cpu.gpr[3] = 1;
        let c = state_hash([&cpu].into_iter(), &memory);
        assert!(a != b && b != c && a != c);
    }
}
