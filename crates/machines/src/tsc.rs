//! The guest's time-stamp counter: the host's plus an offset.
//!
//! Source: SDM vol. 3, 19.17 (time-stamp counter), vol. 2 CPUID leaves 15h, 40000010h.
#![expect(unsafe_code, reason = "RDTSC has no safe form in the standard library")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The host's time-stamp counter now.
#[inline]
#[must_use]
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC and Linux leaves CR4.TSD clear unless a process asks
    // otherwise for itself with prctl, which we do not.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The host TSC's frequency in kHz: measured once against the host's monotonic clock, over 20 ms.
///
/// CPUID leaf 15h gives the nominal value where it exists, but a hypervisor below us may scale the
/// counter without telling, so the measurement decides and the nominal value only rounds it.
pub fn host_tsc_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let measured = measure(Duration::from_millis(20));
        match nominal_khz() {
            // Within 500 ppm: the crystal's own tolerance plus the measurement's.
            Some(n) if n.abs_diff(measured) <= n / 2000 => n,
            _ => measured,
        }
    })
}

/// Counts the TSC between two readings of the monotonic clock, each bracketed by TSC reads so that
/// a preemption in the middle is noticed and that sample dropped.
fn measure(span: Duration) -> u64 {
    let sample = || {
        (0..16)
            .map(|_| {
                let before = host_tsc();
                let at = Instant::now();
                let after = host_tsc();
                (after.wrapping_sub(before), before, at)
            })
            .min_by_key(|s| s.0)
            .map_or_else(|| (host_tsc(), Instant::now()), |s| (s.1, s.2))
    };
    let (tsc0, t0) = sample();
    std::thread::sleep(span);
    let (tsc1, t1) = sample();
    let ticks = u128::from(tsc1.wrapping_sub(tsc0));
    let nanos = t1.duration_since(t0).as_nanos().max(1);
    u64::try_from(ticks * 1_000_000 / nanos)
        .unwrap_or(u64::MAX)
        .max(1)
}

/// The frequency as CPUID tells it: a hypervisor's timing leaf, else crystal * ratio.
fn nominal_khz() -> Option<u64> {
    use core::arch::x86_64::__cpuid as cpuid;
    let hypervisor = cpuid(1).ecx & (1 << 31) != 0;
    if hypervisor && cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = cpuid(0x4000_0010).eax;
        if khz != 0 {
            return Some(u64::from(khz));
        }
    }
    if cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = cpuid(0x15);
    (leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0)
        .then(|| u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_is_plausible_and_stable() {
        let khz = host_tsc_khz();
        assert!((100_000..=10_000_000).contains(&khz), "{khz} kHz");
        assert_eq!(khz, host_tsc_khz());
    }

    #[test]
    fn the_counter_advances() {
        let a = host_tsc();
        assert!(host_tsc().wrapping_sub(a) < 1 << 40);
    }
}
