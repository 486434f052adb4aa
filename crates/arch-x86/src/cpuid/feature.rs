//! CPU features: names, CPUID bits, who serves them.
//!
//! One row per feature. Names are those of Linux's /proc/cpuinfo where it has one.

use serde::{Deserialize, Serialize};

/// Who makes a feature work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Implemented by the monitor itself: there on every host.
    Monitor,
    /// Executed on the host's own units: there only where the host has it.
    Host,
}

/// Where CPUID tells a feature: leaf, subleaf, register (0 to 3: EAX, EBX, ECX, EDX) and bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bit {
    pub leaf: u32,
    pub subleaf: u32,
    pub reg: u8,
    pub bit: u8,
}

const EAX: u8 = 0;
const EBX: u8 = 1;
const ECX: u8 = 2;
const EDX: u8 = 3;

macro_rules! features {
    ($($variant:ident $name:literal $leaf:literal : $sub:literal $reg:ident $bit:literal
       $served:ident [$($needs:ident)*] $doc:literal;)*) => {
        /// One feature that a [`super::CpuModel`] may have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature {
            $(#[doc = $doc] $variant,)*
        }

        impl Feature {
            /// Every feature, in CPUID order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name as on the command line and, mostly, in /proc/cpuinfo.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it is, in a few words.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }

            /// Who makes it work.
            #[must_use]
            pub const fn served(self) -> Served {
                match self { $(Self::$variant => Served::$served,)* }
            }

            /// Features without which this one cannot exist.
            #[must_use]
            pub const fn needs(self) -> &'static [Self] {
                match self { $(Self::$variant => &[$(Self::$needs),*],)* }
            }

            pub(super) const fn bit(self) -> Bit {
                match self {
                    $(Self::$variant => Bit { leaf: $leaf, subleaf: $sub, reg: $reg, bit: $bit },)*
                }
            }
        }
    };
}

features! {
    Pni "pni" 1:0 ECX 0 Host [Sse2] "SSE3";
    Pclmulqdq "pclmulqdq" 1:0 ECX 1 Host [Sse2] "carry-less multiplication";
    Monitor "monitor" 1:0 ECX 3 Monitor [] "MONITOR and MWAIT";
    Ssse3 "ssse3" 1:0 ECX 9 Host [Pni] "SSSE3";
    Fma "fma" 1:0 ECX 12 Host [Avx] "fused multiply-add";
    Cx16 "cx16" 1:0 ECX 13 Monitor [] "CMPXCHG16B";
    Pcid "pcid" 1:0 ECX 17 Monitor [] "process-context identifiers";
    Sse41 "sse4_1" 1:0 ECX 19 Host [Ssse3] "SSE4.1";
    Sse42 "sse4_2" 1:0 ECX 20 Host [Sse41] "SSE4.2";
    X2apic "x2apic" 1:0 ECX 21 Monitor [Apic] "local APIC through MSRs";
    Movbe "movbe" 1:0 ECX 22 Monitor [] "MOVBE";
    Popcnt "popcnt" 1:0 ECX 23 Monitor [] "POPCNT";
    TscDeadlineTimer "tsc_deadline_timer" 1:0 ECX 24 Monitor [Apic Tsc] "APIC timer in TSC-deadline mode";
    Aes "aes" 1:0 ECX 25 Host [Sse2] "AES instructions";
    Xsave "xsave" 1:0 ECX 26 Host [Fxsr] "XSAVE, XRSTOR, XGETBV, XSETBV";
    Avx "avx" 1:0 ECX 28 Host [Xsave Sse42] "AVX";
    F16c "f16c" 1:0 ECX 29 Host [Avx] "half-precision conversion";
    Rdrand "rdrand" 1:0 ECX 30 Monitor [] "RDRAND";
    Hypervisor "hypervisor" 1:0 ECX 31 Monitor [] "tells the guest that it is one (with the KVM leaves)";
    Fpu "fpu" 1:0 EDX 0 Host [] "x87";
    Vme "vme" 1:0 EDX 1 Monitor [] "virtual-8086 extensions";
    De "de" 1:0 EDX 2 Monitor [] "debugging extensions";
    Pse "pse" 1:0 EDX 3 Monitor [] "4 MB pages";
    Tsc "tsc" 1:0 EDX 4 Monitor [] "time-stamp counter";
    Msr "msr" 1:0 EDX 5 Monitor [] "RDMSR and WRMSR";
    Pae "pae" 1:0 EDX 6 Monitor [] "physical address extension";
    Mce "mce" 1:0 EDX 7 Monitor [] "machine-check exception";
    Cx8 "cx8" 1:0 EDX 8 Monitor [] "CMPXCHG8B";
    Apic "apic" 1:0 EDX 9 Monitor [] "local APIC";
    Sep "sep" 1:0 EDX 11 Monitor [Msr] "SYSENTER and SYSEXIT";
    Mtrr "mtrr" 1:0 EDX 12 Monitor [Msr] "memory type range registers";
    Pge "pge" 1:0 EDX 13 Monitor [] "global pages";
    Mca "mca" 1:0 EDX 14 Monitor [Mce] "machine-check architecture (with no bank)";
    Cmov "cmov" 1:0 EDX 15 Monitor [] "conditional moves";
    Pat "pat" 1:0 EDX 16 Monitor [Msr] "page attribute table";
    Pse36 "pse36" 1:0 EDX 17 Monitor [Pse] "36-bit addresses of 4 MB pages";
    Clflush "clflush" 1:0 EDX 19 Monitor [] "CLFLUSH";
    Mmx "mmx" 1:0 EDX 23 Host [Fpu] "MMX";
    Fxsr "fxsr" 1:0 EDX 24 Host [Fpu] "FXSAVE and FXRSTOR";
    Sse "sse" 1:0 EDX 25 Host [Fxsr] "SSE";
    Sse2 "sse2" 1:0 EDX 26 Host [Sse] "SSE2";
    Arat "arat" 6:0 EAX 2 Monitor [Apic] "APIC timer that never stops";
    Fsgsbase "fsgsbase" 7:0 EBX 0 Monitor [] "RDFSBASE and its family";
    TscAdjust "tsc_adjust" 7:0 EBX 1 Monitor [Tsc Msr] "IA32_TSC_ADJUST";
    Bmi1 "bmi1" 7:0 EBX 3 Monitor [] "bit manipulation 1";
    Avx2 "avx2" 7:0 EBX 5 Host [Avx] "AVX2";
    Smep "smep" 7:0 EBX 7 Monitor [] "supervisor-mode execution prevention";
    Bmi2 "bmi2" 7:0 EBX 8 Monitor [] "bit manipulation 2";
    Erms "erms" 7:0 EBX 9 Monitor [] "fast REP MOVSB and STOSB";
    Invpcid "invpcid" 7:0 EBX 10 Monitor [] "INVPCID";
    Rdseed "rdseed" 7:0 EBX 18 Monitor [] "RDSEED";
    Adx "adx" 7:0 EBX 19 Monitor [] "ADCX and ADOX";
    Smap "smap" 7:0 EBX 20 Monitor [] "supervisor-mode access prevention";
    Clflushopt "clflushopt" 7:0 EBX 23 Monitor [Clflush] "CLFLUSHOPT";
    Clwb "clwb" 7:0 EBX 24 Monitor [Clflush] "CLWB";
    ShaNi "sha_ni" 7:0 EBX 29 Host [Ssse3] "SHA instructions";
    Umip "umip" 7:0 ECX 2 Monitor [] "user-mode instruction prevention";
    Pku "pku" 7:0 ECX 3 Monitor [Xsave Lm] "protection keys for user pages";
    La57 "la57" 7:0 ECX 16 Monitor [Lm] "5-level paging";
    Rdpid "rdpid" 7:0 ECX 22 Monitor [Rdtscp] "RDPID";
    Fsrm "fsrm" 7:0 EDX 4 Monitor [Erms] "fast short REP MOVSB";
    SpecCtrl "spec_ctrl" 7:0 EDX 26 Monitor [Msr] "IBRS and IBPB (Intel)";
    IntelStibp "intel_stibp" 7:0 EDX 27 Monitor [Msr] "STIBP (Intel)";
    ArchCapabilities "arch_capabilities" 7:0 EDX 29 Monitor [Msr] "IA32_ARCH_CAPABILITIES (Intel)";
    BhiCtrl "bhi_ctrl" 7:2 EDX 4 Monitor [SpecCtrl] "BHI_DIS_S in IA32_SPEC_CTRL (Intel)";
    Xsaveopt "xsaveopt" 0xd:1 EAX 0 Monitor [Xsave] "XSAVEOPT";
    Xsavec "xsavec" 0xd:1 EAX 1 Monitor [Xsave] "XSAVEC";
    Xgetbv1 "xgetbv1" 0xd:1 EAX 2 Monitor [Xsave] "XGETBV with ECX = 1";
    NoIoDelay "kvm_nopiodelay" 0x40000001:0 EAX 1 Monitor [Hypervisor] "port I/O needs no delays";
    Kvmclock "kvmclock" 0x40000001:0 EAX 3 Monitor [Hypervisor Tsc Msr] "KVM's paravirtual clock";
    KvmclockStable "kvmclock_stable" 0x40000001:0 EAX 24 Monitor [Kvmclock] "the paravirtual clock agrees between CPUs";
    LahfLm "lahf_lm" 0x80000001:0 ECX 0 Monitor [Lm] "LAHF and SAHF in 64-bit mode";
    Abm "abm" 0x80000001:0 ECX 5 Monitor [] "LZCNT";
    Prefetchw "3dnowprefetch" 0x80000001:0 ECX 8 Monitor [] "PREFETCHW";
    Topoext "topoext" 0x80000001:0 ECX 22 Monitor [] "topology leaves (AMD)";
    Syscall "syscall" 0x80000001:0 EDX 11 Monitor [Msr] "SYSCALL and SYSRET";
    Nx "nx" 0x80000001:0 EDX 20 Monitor [Pae Msr] "no-execute pages";
    Pdpe1gb "pdpe1gb" 0x80000001:0 EDX 26 Monitor [Lm] "1 GB pages";
    Rdtscp "rdtscp" 0x80000001:0 EDX 27 Monitor [Tsc Msr] "RDTSCP and IA32_TSC_AUX";
    Lm "lm" 0x80000001:0 EDX 29 Monitor [Pae Msr] "long mode";
    NonstopTsc "nonstop_tsc" 0x80000007:0 EDX 8 Monitor [Tsc] "invariant time-stamp counter";
    AmdIbpb "amd_ibpb" 0x80000008:0 EBX 12 Monitor [Msr] "IBPB (AMD)";
    AmdIbrs "amd_ibrs" 0x80000008:0 EBX 14 Monitor [Msr] "IBRS (AMD)";
    AmdStibp "amd_stibp" 0x80000008:0 EBX 15 Monitor [Msr] "STIBP (AMD)";
    AmdSsbNo "amd_ssb_no" 0x80000008:0 EBX 26 Monitor [] "no speculative store bypass (AMD)";
    BtcNo "btc_no" 0x80000008:0 EBX 29 Monitor [] "no branch type confusion (AMD)";
    LfenceRdtsc "lfence_rdtsc" 0x80000021:0 EAX 2 Monitor [] "LFENCE always serializes (AMD)";
    NullSelClrBase "null_sel_clr_base" 0x80000021:0 EAX 6 Monitor [] "a null selector clears the base (AMD)";
    AutoIbrs "autoibrs" 0x80000021:0 EAX 8 Monitor [Msr] "automatic IBRS (AMD)";
    SrsoNo "srso_no" 0x80000021:0 EAX 29 Monitor [] "no speculative return stack overflow (AMD)";
    TsaSqNo "tsa_sq_no" 0x80000021:0 ECX 1 Monitor [] "no transient scheduler attack on the store queue (AMD)";
    TsaL1No "tsa_l1_no" 0x80000021:0 ECX 2 Monitor [] "no transient scheduler attack on the L1 cache (AMD)";
}

/// Other names under which people know a feature.
const ALIASES: &[(&str, Feature)] = &[
    ("sse3", Feature::Pni),
    ("sse4.1", Feature::Sse41),
    ("sse4.2", Feature::Sse42),
    ("sse41", Feature::Sse41),
    ("sse42", Feature::Sse42),
    ("pclmul", Feature::Pclmulqdq),
    ("cmpxchg16b", Feature::Cx16),
    ("cmpxchg8b", Feature::Cx8),
    ("tsc-deadline", Feature::TscDeadlineTimer),
    ("sha", Feature::ShaNi),
    ("sha-ni", Feature::ShaNi),
    ("lzcnt", Feature::Abm),
    ("invtsc", Feature::NonstopTsc),
    ("constant_tsc", Feature::NonstopTsc),
    ("mwait", Feature::Monitor),
    ("lahf-lm", Feature::LahfLm),
];

impl Feature {
    /// The feature of that name (or alias), in lower case.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let named = Self::ALL.iter().find(|f| f.name() == name).copied();
        named.or_else(|| ALIASES.iter().find(|(a, _)| *a == name).map(|(_, f)| *f))
    }

    /// Up to three names that `name` may have been meant to be, best first.
    #[must_use]
    pub fn near_misses(name: &str) -> Vec<&'static str> {
        let names = Self::ALL.iter().map(|f| (false, f.name()));
        let names = names.chain(ALIASES.iter().map(|(a, _)| (true, *a)));
        let mut near: Vec<_> = names
            .map(|(alias, n)| (!n.starts_with(name), alias, distance(name, n), n))
            .filter(|(other, _, d, n)| !other || *d <= 2.min(n.len() / 2))
            .collect();
        near.sort_unstable();
        near.truncate(3);
        near.into_iter().map(|(.., n)| n).collect()
    }
}

/// Levenshtein distance, for strings of a command line (the longer one is cut at 32 bytes).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (a, b) = (&a[..a.len().min(32)], &b[..b.len().min(32)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y))
                .min(row[j] + 1)
                .min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// A set of features. Serialised as a list of names, so that it outlives this enumeration's order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct FeatureSet(u128);

const _: () = assert!(Feature::ALL.len() <= 128);

impl FeatureSet {
    /// The set of these features.
    #[must_use]
    pub const fn of(features: &[Feature]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < features.len() {
            bits |= 1 << features[i] as u32;
            i += 1;
        }
        Self(bits)
    }

    /// Whether `f` is in the set.
    #[inline]
    #[must_use]
    pub const fn has(self, f: Feature) -> bool {
        self.0 >> (f as u32) & 1 != 0
    }

    /// Adds `f`.
    pub const fn insert(&mut self, f: Feature) {
        self.0 |= 1 << f as u32;
    }

    /// Takes `f` out.
    pub const fn remove(&mut self, f: Feature) {
        self.0 &= !(1 << f as u32);
    }

    /// The features of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The features of this set in CPUID order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |f| self.has(*f))
    }

    /// The CPUID bits of this set in one register.
    pub(super) fn register(self, leaf: u32, subleaf: u32, reg: u8) -> u32 {
        self.iter()
            .map(Feature::bit)
            .filter(|b| (b.leaf, b.subleaf, b.reg) == (leaf, subleaf, reg))
            .fold(0, |word, b| word | 1 << b.bit)
    }
}

impl std::fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Feature::name))
            .finish()
    }
}

impl Serialize for FeatureSet {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.iter().map(Feature::name))
    }
}

impl<'de> Deserialize<'de> for FeatureSet {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        let mut set = Self::default();
        for name in names {
            let feature = Feature::by_name(&name).ok_or_else(|| {
                serde::de::Error::custom(format_args!("unknown CPU feature {name:?}"))
            })?;
            set.insert(feature);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_bits_are_unique() {
        let names: HashSet<_> = Feature::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), Feature::ALL.len());
        let bits: HashSet<_> = Feature::ALL
            .iter()
            .map(|f| f.bit())
            .map(|b| (b.leaf, b.subleaf, b.reg, b.bit))
            .collect();
        assert_eq!(bits.len(), Feature::ALL.len());
        for (alias, f) in ALIASES {
            assert!(!names.contains(alias));
            assert_eq!(Feature::by_name(alias), Some(*f));
        }
    }

    #[test]
    fn near_misses_help() {
        assert_eq!(Feature::near_misses("avx3")[0], "avx");
        assert!(Feature::near_misses("sse4").contains(&"sse4_1"));
        assert_eq!(Feature::near_misses("xsavex")[0], "xsave");
        assert!(Feature::near_misses("nonsense").is_empty());
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn registers_gather_bits() {
        let set = FeatureSet::of(&[Feature::Pni, Feature::Avx, Feature::Fpu]);
        assert_eq!(set.register(1, 0, ECX), 1 | 1 << 28);
        assert_eq!(set.register(1, 0, EDX), 1);
        assert_eq!(set.register(7, 0, EBX), 0);
        assert_eq!(set.iter().count(), 3);
    }
}
