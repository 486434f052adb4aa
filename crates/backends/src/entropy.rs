//! Random bytes of the host's (getrandom(2)).

use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes` from the kernel's generator, which never blocks once the host has booted. Bytes
/// that the kernel refuses (it does not, for valid buffers) stay as they are.
pub fn host_entropy(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(n) if n > 0 => bytes = &mut bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_filled_and_differ() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        host_entropy(&mut a);
        host_entropy(&mut b);
        assert_ne!(a, b);
        assert_ne!(a, [0; 64]);
    }
}
