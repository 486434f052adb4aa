//! The host's CPU, as CPU models need to know it.
#![expect(
    unsafe_code,
    reason = "XGETBV has no safe form in the standard library"
)]

use core::arch::x86_64::{__cpuid_count, _xgetbv};
use mimeo_arch_x86::cpuid::HostCpu;

/// Reads the CPU that this process runs on.
#[must_use]
pub fn host_cpu() -> HostCpu {
    let cpuid = |leaf, subleaf| {
        let r = __cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    };
    let osxsave = cpuid(1, 0)[2] & (1 << 27) != 0;
    HostCpu::from_cpuid(cpuid, if osxsave { xcr0() } else { 0 })
}

/// XCR0. Only where CPUID.1:ECX.OSXSAVE is set.
fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: the caller has seen OSXSAVE, so XGETBV exists and is enabled; index 0 is XCR0.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE implies XSAVE.
    unsafe { read() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mimeo_arch_x86::cpuid::Feature;

    #[test]
    fn a_host_that_runs_this_test_has_sse2() {
        assert!(host_cpu().features.has(Feature::Sse2));
        assert_eq!(
            host_cpu().features.has(Feature::Avx2),
            std::arch::is_x86_feature_detected!("avx2")
        );
    }
}
