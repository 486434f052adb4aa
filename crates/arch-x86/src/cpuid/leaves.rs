//! The answers of CPUID.

use super::feature::Feature;
use super::model::{APIC_TIMER_HZ, CpuModel, Vendor};
use super::topology;
use crate::Cr4;

/// What the answers depend on besides the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidContext {
    /// The CPU's x2APIC ID; its low byte is the initial APIC ID.
    pub apic_id: u32,
    /// CPUs of the VM, at least 1.
    pub cpus: u32,
    /// CR4 (OSXSAVE, PKE).
    pub cr4: Cr4,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_APIC_BASE bit 11: the local APIC is enabled.
    pub apic_enabled: bool,
}

/// Highest basic leaf of an Intel model.
const INTEL_MAX: u32 = 0x1f;
/// Highest basic leaf of an AMD model.
const AMD_MAX: u32 = 0xd;
/// Highest leaf of the hypervisor range: KVM's signature, features and timing.
const KVM_MAX: u32 = 0x4000_0010;

impl CpuModel {
    /// What CPUID answers for `leaf` (EAX) and `subleaf` (ECX): EAX, EBX, ECX, EDX.
    ///
    /// A leaf above the highest basic or extended one gives what Intel CPUs give, the data of the
    /// highest basic leaf, or zeroes with AMD.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        let (max, ext_max) = match self.vendor {
            Vendor::Intel => (INTEL_MAX, 0x8000_0008),
            Vendor::Amd => (AMD_MAX, 0x8000_0021),
        };
        match leaf {
            0 => self.signature_leaf(max),
            1..=0x3fff_ffff if leaf <= max => self.basic(leaf, subleaf, context),
            0x4000_0000..=KVM_MAX if self.has(Feature::Hypervisor) => self.kvm(leaf),
            0x8000_0000 => match self.vendor {
                Vendor::Intel => [ext_max, 0, 0, 0],
                Vendor::Amd => self.signature_leaf(ext_max),
            },
            0x8000_0001.. if leaf <= ext_max => self.extended(leaf, subleaf, context),
            _ if self.vendor == Vendor::Intel => self.basic(max, subleaf, context),
            _ => [0; 4],
        }
    }

    fn signature_leaf(&self, max: u32) -> [u32; 4] {
        let word = |i: usize| {
            let id = self.vendor.id();
            u32::from_le_bytes([id[i], id[i + 1], id[i + 2], id[i + 3]])
        };
        [max, word(0), word(8), word(4)]
    }

    /// The feature bits of all four registers.
    fn bits(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        [0, 1, 2, 3].map(|reg| self.features.register(leaf, subleaf, reg))
    }

    fn basic(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        let intel = self.vendor == Vendor::Intel;
        match leaf {
            1 => self.leaf_1(context),
            // One iteration; 64-byte prefetch, caches by leaf 4.
            2 if intel => [0x00ff_f001, 0, 0, 0],
            4 if intel => topology::cache(subleaf, context, false),
            // Lines of 64 bytes; MWAIT takes no extension.
            5 if self.has(Feature::Monitor) => [64, 64, 0, 0],
            6 => self.bits(6, 0),
            7 => self.leaf_7(subleaf, context),
            0xb => topology::extended(subleaf, context),
            0xd if self.has(Feature::Xsave) => self.leaf_d(subleaf, context),
            0x15 if self.tsc_khz != 0 => {
                // TSC Hz = crystal Hz * EBX / EAX: with the APIC timer's clock as the crystal,
                // a ratio of kHz.
                [APIC_TIMER_HZ / 1000, self.tsc_khz, APIC_TIMER_HZ, 0]
            }
            0x16 if self.tsc_khz != 0 => {
                let mhz = (self.tsc_khz / 1000).min(0xffff);
                [mhz, mhz, 100, 0]
            }
            0x1f => topology::extended(subleaf, context),
            _ => [0; 4],
        }
    }

    fn leaf_1(&self, context: &CpuidContext) -> [u32; 4] {
        const OSXSAVE: u32 = 1 << 27;
        const APIC: u32 = 1 << 9;
        const HTT: u32 = 1 << 28;
        let [_, _, mut ecx, mut edx] = self.bits(1, 0);
        if context.cr4.contains(Cr4::OSXSAVE) {
            ecx |= OSXSAVE;
        }
        if !context.apic_enabled {
            edx &= !APIC;
        }
        if context.cpus > 1 {
            edx |= HTT;
        }
        let logical = (1 << topology::core_bits(context.cpus)).min(255u32);
        let clflush = if self.has(Feature::Clflush) { 8 } else { 0 };
        let ebx = (context.apic_id & 0xff) << 24 | logical << 16 | clflush << 8;
        [self.signature, ebx, ecx, edx]
    }

    fn leaf_7(&self, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        const OSPKE: u32 = 1 << 4;
        if subleaf != 0 {
            return [0; 4];
        }
        let [_, mut ebx, mut ecx, edx] = self.bits(7, 0);
        ebx |= u32::from(self.fdp_excptn_only) << 6 | u32::from(self.zero_fcs_fds) << 13;
        if context.cr4.contains(Cr4::PKE) {
            ecx |= OSPKE;
        }
        [0, ebx, ecx, edx]
    }

    fn leaf_d(&self, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        let all = self.xcr0_supported();
        match subleaf {
            0 => {
                let now = self.xsave_size(context.xcr0);
                [all as u32, now, self.xsave_size(all), (all >> 32) as u32]
            }
            1 => {
                let eax = self.bits(0xd, 1)[0];
                let compact = if self.has(Feature::Xsavec) {
                    self.xsave_compact_size(context.xcr0 | context.xss)
                } else {
                    0
                };
                [eax, compact, 0, 0]
            }
            _ => match self.xsave_component(subleaf) {
                Some((size, offset)) => [size, offset, 0, 0],
                None => [0; 4],
            },
        }
    }

    /// The paravirtual leaves, as KVM's interface defines them.
    fn kvm(&self, leaf: u32) -> [u32; 4] {
        match leaf {
            0x4000_0000 => [
                KVM_MAX,
                u32::from_le_bytes(*b"KVMK"),
                u32::from_le_bytes(*b"VMKV"),
                u32::from_le_bytes(*b"M\0\0\0"),
            ],
            0x4000_0001 => self.bits(leaf, 0),
            KVM_MAX => [self.tsc_khz, APIC_TIMER_HZ / 1000, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        let amd = self.vendor == Vendor::Amd;
        match leaf {
            0x8000_0001 => self.leaf_8000_0001(context),
            0x8000_0002..=0x8000_0004 => self.brand_leaf(leaf - 0x8000_0002),
            0x8000_0005 | 0x8000_0006 if amd => topology::amd_legacy(leaf),
            // L2 alone: 1 MB, 16 ways, 64-byte lines.
            0x8000_0006 => [0, 0, 1024 << 16 | 0x8040, 0],
            0x8000_0007 => self.bits(leaf, 0),
            0x8000_0008 => {
                let linear = if self.has(Feature::La57) { 57 } else { 48 };
                let [_, ebx, _, _] = self.bits(leaf, 0);
                let cores = (context.cpus.saturating_sub(1)).min(255);
                let ecx = cores | topology::core_bits(context.cpus).min(15) << 12;
                [
                    self.physical_bits | linear << 8,
                    ebx,
                    if amd { ecx } else { 0 },
                    0,
                ]
            }
            0x8000_001d if self.has(Feature::Topoext) => topology::cache(subleaf, context, true),
            // Extended APIC ID; core ID, one thread a core; one node.
            0x8000_001e if self.has(Feature::Topoext) => {
                [context.apic_id, context.apic_id & 0xff, 0, 0]
            }
            0x8000_0021 => self.bits(leaf, 0),
            _ => [0; 4],
        }
    }

    fn leaf_8000_0001(&self, context: &CpuidContext) -> [u32; 4] {
        /// Bits of leaf 1's EDX that AMD repeats here.
        const REPEATED: u32 = 0x0183_f3ff;
        const CMP_LEGACY: u32 = 1 << 1;
        let [_, _, mut ecx, mut edx] = self.bits(0x8000_0001, 0);
        if self.vendor == Vendor::Intel {
            return [0, 0, ecx, edx];
        }
        edx |= self.leaf_1(context)[3] & REPEATED;
        if context.cpus > 1 {
            ecx |= CMP_LEGACY;
        }
        [self.signature, 0, ecx, edx]
    }

    /// 16 of the brand string's 48 bytes, the last of which is zero.
    fn brand_leaf(&self, part: u32) -> [u32; 4] {
        let brand = self.brand.as_bytes();
        let byte = |i: usize| {
            if i < 47 {
                brand.get(i).copied().unwrap_or(0)
            } else {
                0
            }
        };
        [0, 1, 2, 3].map(|reg| {
            let at = part as usize * 16 + reg * 4;
            u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
        })
    }
}
