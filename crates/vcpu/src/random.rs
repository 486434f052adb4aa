//! The host kernel's random numbers.
#![expect(unsafe_code, reason = "a system call that fills a buffer")]

/// Eight bytes of getrandom(2), without waiting.
pub(crate) fn host() -> Option<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the pointer and the length are those of a buffer that lives through the call.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    (n == 8).then_some(u64::from_le_bytes(bytes))
}
