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
        const LAST: u32 = 2;
        if subleaf != 0 {
            return self.bits(7, subleaf);
        }
        let [_, mut ebx, mut ecx, edx] = self.bits(7, 0);
        ebx |= u32::from(self.fdp_excptn_only) << 6 | u32::from(self.zero_fcs_fds) << 13;
        if context.cr4.contains(Cr4::PKE) {
            ecx |= OSPKE;
        }
        [LAST, ebx, ecx, edx]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::HostCpu;

    fn model(vendor: Vendor, spec: &str) -> CpuModel {
        let mut model = crate::cpuid::tests::model(vendor, spec);
        model.set_tsc_khz(2_000_123);
        model
    }

    const CONTEXT: CpuidContext = CpuidContext {
        apic_id: 3,
        cpus: 6,
        cr4: Cr4::empty(),
        xcr0: 1,
        xss: 0,
        apic_enabled: true,
    };

    #[test]
    fn every_feature_shows_where_a_reader_looks() {
        // HostCpu reads back exactly what the model says (the hypervisor's leaves apart).
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let m = model(vendor, "x86-64-v3,+pku,+la57,+monitor");
            let seen = HostCpu::from_cpuid(|l, s| m.cpuid(l, s, &CONTEXT), 7);
            let kvm = [
                Feature::NoIoDelay,
                Feature::Kvmclock,
                Feature::KvmclockStable,
            ];
            let mut told = m.features();
            kvm.iter().for_each(|f| told.remove(*f));
            assert_eq!(seen.features, told);
            assert_eq!((seen.vendor, seen.signature), (vendor, m.signature()));
            assert_eq!(seen.brand, m.brand());
            assert_eq!((seen.fdp_excptn_only, seen.zero_fcs_fds), (true, false));
            assert_eq!(
                m.cpuid(0x4000_0001, 0, &CONTEXT)[0],
                1 << 1 | 1 << 3 | 1 << 24
            );
        }
    }

    #[test]
    fn vendor_signature_and_unknown_leaves() {
        let intel = model(Vendor::Intel, "x86-64-v3");
        let [max, b, c, d] = intel.cpuid(0, 0, &CONTEXT);
        assert_eq!([b, d, c].map(u32::to_le_bytes).concat(), b"GenuineIntel");
        assert_eq!(
            intel.cpuid(0x4000, 0, &CONTEXT),
            intel.cpuid(max, 0, &CONTEXT)
        );
        let amd = model(Vendor::Amd, "x86-64-v3");
        assert_eq!(amd.cpuid(0x4000, 0, &CONTEXT), [0; 4]);
        assert_eq!(amd.cpuid(0x15, 0, &CONTEXT), [0; 4]);
        let [_, b, c, d] = amd.cpuid(0x8000_0000, 0, &CONTEXT);
        assert_eq!([b, d, c].map(u32::to_le_bytes).concat(), b"AuthenticAMD");
        let bare = model(Vendor::Intel, "x86-64-v3,-hypervisor");
        assert_eq!(
            bare.cpuid(0x4000_0000, 0, &CONTEXT),
            bare.cpuid(INTEL_MAX, 0, &CONTEXT)
        );
    }

    #[test]
    fn what_follows_the_registers() {
        let m = model(Vendor::Intel, "x86-64-v3,+pku");
        let base = m.cpuid(1, 0, &CONTEXT);
        let on = CpuidContext {
            cr4: Cr4::OSXSAVE | Cr4::PKE,
            xcr0: 0x207,
            apic_enabled: false,
            ..CONTEXT
        };
        let now = m.cpuid(1, 0, &on);
        assert_eq!((base[2] ^ now[2], base[3] ^ now[3]), (1 << 27, 1 << 9));
        assert_eq!(m.cpuid(7, 0, &on)[2] ^ m.cpuid(7, 0, &CONTEXT)[2], 1 << 4);
        assert_eq!(m.cpuid(0xd, 0, &CONTEXT), [0x207, 576, 2696, 0]);
        assert_eq!(m.cpuid(0xd, 0, &on)[1], 2696);
        assert_eq!(m.cpuid(0xd, 1, &on), [7, 840, 0, 0]);
        assert_eq!(m.cpuid(0xd, 2, &on), [256, 576, 0, 0]);
        assert_eq!(m.cpuid(0xd, 63, &on), [0; 4]);
        assert_eq!(m.cpuid(0xd, u32::MAX, &on), [0; 4]);
    }

    #[test]
    fn topology_agrees_with_itself() {
        for cpus in [1, 2, 3, 4, 6, 64, 255, 300] {
            let c = CpuidContext {
                cpus,
                apic_id: cpus - 1,
                ..CONTEXT
            };
            let m = model(Vendor::Intel, "x86-64-v3");
            let [shift, count, kind, id] = m.cpuid(0xb, 1, &c);
            assert_eq!((count, kind, id), (cpus, 0x201, cpus - 1));
            assert!(1 << shift >= cpus && (cpus == 1 || 1 << (shift - 1) < cpus));
            assert_eq!(m.cpuid(0xb, 0, &c), [0, 1, 0x100, cpus - 1]);
            assert_eq!(m.cpuid(0xb, 2, &c), [0, 0, 2, cpus - 1]);
            assert_eq!(m.cpuid(1, 0, &c)[3] >> 28 & 1 == 1, cpus > 1);
            let l3 = m.cpuid(4, 3, &c);
            assert_eq!(l3[0] & 0xff, 3 << 5 | 3);
            assert!((l3[0] >> 14 & 0xfff) >= cpus - 1);
            assert_eq!(m.cpuid(4, 4, &c), [0; 4]);
        }
    }

    #[test]
    fn frequencies() {
        let m = model(Vendor::Intel, "x86-64-v3");
        let [den, num, crystal, _] = m.cpuid(0x15, 0, &CONTEXT);
        assert_eq!(
            u64::from(crystal) * u64::from(num) / u64::from(den),
            2_000_123_000
        );
        assert_eq!(
            m.cpuid(0x4000_0010, 0, &CONTEXT),
            [2_000_123, 1_000_000, 0, 0]
        );
        assert_eq!(m.cpuid(0x16, 0, &CONTEXT)[0], 2000);
        assert_eq!(
            &m.cpuid(0x4000_0000, 0, &CONTEXT)[1..]
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<_>>(),
            b"KVMKVMKVM\0\0\0"
        );
    }
}
