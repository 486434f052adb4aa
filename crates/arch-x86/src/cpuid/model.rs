//! The CPU model.

use super::feature::{Feature, FeatureSet};
use serde::{Deserialize, Serialize};

/// Frequency of the local APIC's timer before its divider, in Hz. CPUID leaves 15h and 40000010h
/// tell it, so the APIC model must count at it (KVM's choice, one nanosecond a tick).
pub const APIC_TIMER_HZ: u32 = 1_000_000_000;

/// Whose leaves, MSRs and corner cases a model follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Vendor {
    /// Intel (SDM).
    Intel,
    /// AMD (APM).
    Amd,
}

impl Vendor {
    /// The vendor string of CPUID leaf 0.
    #[must_use]
    pub const fn id(self) -> &'static [u8; 12] {
        match self {
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
        }
    }
}

/// A CPU model: the complete answers of CPUID for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    pub(super) name: String,
    pub(super) vendor: Vendor,
    pub(super) signature: u32,
    pub(super) brand: String,
    pub(super) features: FeatureSet,
    pub(super) physical_bits: u32,
    pub(super) tsc_khz: u32,
    pub(super) honest: bool,
    pub(super) fdp_excptn_only: bool,
    pub(super) zero_fcs_fds: bool,
}

/// XCR0 and XSTATE_BV bits.
pub mod xcr0 {
    /// x87.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// PKRU.
    pub const PKRU: u64 = 1 << 9;
}

impl CpuModel {
    /// The model's name as on the command line, with its additions and removals.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose leaves, MSRs and corner cases the model follows.
    #[inline]
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// CPUID.1:EAX, and EDX after RESET.
    #[must_use]
    pub const fn signature(&self) -> u32 {
        self.signature
    }

    /// The brand string.
    #[must_use]
    pub fn brand(&self) -> &str {
        &self.brand
    }

    /// Whether the CPU has `f`.
    #[inline]
    #[must_use]
    pub const fn has(&self, f: Feature) -> bool {
        self.features.has(f)
    }

    /// All features.
    #[must_use]
    pub const fn features(&self) -> FeatureSet {
        self.features
    }

    /// MAXPHYADDR, 32 to 52.
    #[inline]
    #[must_use]
    pub const fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    /// Frequency of the time-stamp counter in kHz, 0 while unknown.
    #[must_use]
    pub const fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Says at what frequency (in kHz) the time-stamp counter runs.
    pub const fn set_tsc_khz(&mut self, khz: u32) {
        self.tsc_khz = khz;
    }

    /// The guest is told of no immunity that the host's hardware does not give
    /// (`mitigations=honest`).
    #[must_use]
    pub const fn honest(&self) -> bool {
        self.honest
    }

    /// The bits that XSETBV may set in XCR0; zero without XSAVE.
    #[must_use]
    pub const fn xcr0_supported(&self) -> u64 {
        if !self.has(Feature::Xsave) {
            return 0;
        }
        let mut bits = xcr0::X87 | xcr0::SSE;
        if self.has(Feature::Avx) {
            bits |= xcr0::AVX;
        }
        if self.has(Feature::Pku) {
            bits |= xcr0::PKRU;
        }
        bits
    }

    /// Size and standard-format offset, in bytes, of an XSAVE component (its bit in XCR0), 2 and up.
    #[must_use]
    pub const fn xsave_component(&self, component: u32) -> Option<(u32, u32)> {
        if component < 2 || component > 62 || self.xcr0_supported() & (1 << component) == 0 {
            return None;
        }
        match component {
            2 => Some((256, 576)),
            // Where it lies on CPUs that have AVX-512 and MPX before it.
            9 => Some((8, 2688)),
            _ => None,
        }
    }

    /// Bytes of an XSAVE area in standard format for the components in `mask`.
    #[must_use]
    pub fn xsave_size(&self, mask: u64) -> u32 {
        (2..63)
            .filter(|c| mask & (1 << c) != 0)
            .filter_map(|c| self.xsave_component(c))
            .map(|(size, offset)| size + offset)
            .fold(576, u32::max)
    }

    /// Bytes of an XSAVE area in compacted format for the components in `mask` (none of them is
    /// aligned to 64 bytes; SDM vol. 1, 13.4.3).
    #[must_use]
    pub fn xsave_compact_size(&self, mask: u64) -> u32 {
        (2..63)
            .filter(|c| mask & (1 << c) != 0)
            .filter_map(|c| self.xsave_component(c))
            .fold(576, |end, (size, _)| end + size)
    }

    /// IA32_ARCH_CAPABILITIES (MSR 10Ah; SDM vol. 4, table 2-2): why a kernel need not defend itself.
    #[must_use]
    pub const fn arch_capabilities(&self) -> u64 {
        const IMMUNE: u64 = 1 << 0 // RDCL_NO: no Meltdown, no L1TF
            | 1 << 1 // IBRS_ALL: enhanced IBRS
            | 1 << 3 // SKIP_L1DFL_VMENTRY
            | 1 << 4 // SSB_NO
            | 1 << 5 // MDS_NO
            | 1 << 6 // IF_PSCHANGE_MC_NO
            | 1 << 8 // TAA_NO
            | 1 << 13 // SBDR_SSDP_NO
            | 1 << 14 // FBSDP_NO
            | 1 << 15 // PSDP_NO
            | 1 << 20 // BHI_NO
            | 1 << 24 // PBRSB_NO
            | 1 << 26 // GDS_NO
            | 1 << 27 // RFDS_NO
            | 1 << 62; // ITS_NO
        if self.honest || !self.has(Feature::ArchCapabilities) {
            0
        } else {
            IMMUNE
        }
    }
}
