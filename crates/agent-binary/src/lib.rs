//! The guest agent as bytes: a static Linux program for x86-64, which runs in any guest whatever
//! libraries that has. Built by the build script with the compiler alone (see there).

/// The program (ELF); empty where it could not be built: [`WHY_NOT`] says why.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mimeo-agent"));

/// Why there is none; empty when there is one.
pub const WHY_NOT: &str = include_str!(concat!(env!("OUT_DIR"), "/why-not"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_static_program() {
        if AGENT.is_empty() {
            println!("skipped: {WHY_NOT}");
            assert!(!WHY_NOT.is_empty());
            return;
        }
        assert!(AGENT.starts_with(b"\x7fELF\x02\x01"));
        // e_machine: x86-64 (System V ABI).
        assert_eq!(AGENT[18..20], [62, 0]);
        // No program header asks for an interpreter (PT_INTERP, 3).
        let word = |at: usize| u16::from_le_bytes([AGENT[at], AGENT[at + 1]]) as usize;
        let at = u64::from_le_bytes(AGENT[32..40].try_into().unwrap()) as usize;
        let (size, count) = (word(54), word(56));
        assert!((0..count).all(|i| word(at + i * size) != 3));
        assert!(AGENT.len() < 2 << 20, "{} bytes", AGENT.len());
    }
}
