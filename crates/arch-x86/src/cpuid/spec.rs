//! From a specification on the command line to a model.

use super::feature::{Feature, FeatureSet, Served};
use super::host::{HostCpu, close};
use super::model::{CpuModel, Vendor};

/// What is wrong with a CPU specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuModelError {
    /// No such model.
    #[error("there is no CPU model {0:?}; there are x86-64-v2, x86-64-v3 and host")]
    UnknownModel(String),
    /// No such feature.
    #[error("there is no CPU feature {name:?}; {hint}")]
    UnknownFeature {
        /// What was asked for.
        name: String,
        /// Near misses, or where the list is.
        hint: String,
    },
    /// Neither `+feature`, `-feature` nor `mitigations=`.
    #[error(
        "{0:?} in the CPU specification is neither +feature nor -feature nor mitigations=honest"
    )]
    BadPart(String),
}

use Feature as F;

/// What every model has: a CPU that runs 64-bit code, and what stock kernels profit from.
const COMMON: FeatureSet = FeatureSet::of(&[
    F::Fpu,
    F::Vme,
    F::De,
    F::Pse,
    F::Tsc,
    F::Msr,
    F::Pae,
    F::Mce,
    F::Cx8,
    F::Apic,
    F::Sep,
    F::Mtrr,
    F::Pge,
    F::Mca,
    F::Cmov,
    F::Pat,
    F::Pse36,
    F::Clflush,
    F::Mmx,
    F::Fxsr,
    F::Sse,
    F::Sse2,
    F::Pcid,
    F::X2apic,
    F::TscDeadlineTimer,
    F::Hypervisor,
    F::Arat,
    F::Fsgsbase,
    F::TscAdjust,
    F::Smep,
    F::Erms,
    F::Invpcid,
    F::Smap,
    F::Clflushopt,
    F::Clwb,
    F::Umip,
    F::Rdpid,
    F::Fsrm,
    F::Rdrand,
    F::Rdseed,
    F::NoIoDelay,
    F::Kvmclock,
    F::KvmclockStable,
    F::Prefetchw,
    F::Syscall,
    F::Nx,
    F::Pdpe1gb,
    F::Rdtscp,
    F::Lm,
    F::NonstopTsc,
]);

/// What x86-64-v2 adds (System V ABI for x86-64, 3.1.1).
const V2: FeatureSet = COMMON.union(FeatureSet::of(&[
    F::Cx16,
    F::LahfLm,
    F::Popcnt,
    F::Pni,
    F::Ssse3,
    F::Sse41,
    F::Sse42,
]));

/// What x86-64-v3 adds, and what every CPU of that level has besides.
const V3: FeatureSet = V2.union(FeatureSet::of(&[
    F::Avx,
    F::Avx2,
    F::Bmi1,
    F::Bmi2,
    F::F16c,
    F::Fma,
    F::Abm,
    F::Movbe,
    F::Xsave,
    F::Xsaveopt,
    F::Xsavec,
    F::Xgetbv1,
    F::Adx,
    F::Aes,
    F::Pclmulqdq,
]));

/// Added to x86-64-v3 where the host has it, without a word where it has not.
const V3_IF_SERVED: FeatureSet = FeatureSet::of(&[F::ShaNi]);

/// An Intel CPU's ways to say that it needs no defence in software: kernels look past BHI_NO, and
/// use the control bit instead of their own loops.
const INTEL_IMMUNE: FeatureSet = FeatureSet::of(&[F::ArchCapabilities, F::BhiCtrl]);

const INTEL: FeatureSet = INTEL_IMMUNE.union(FeatureSet::of(&[F::SpecCtrl, F::IntelStibp]));

/// An AMD CPU's ways to say that it needs no defence.
const AMD_IMMUNE: FeatureSet = FeatureSet::of(&[
    F::AmdSsbNo,
    F::BtcNo,
    F::AutoIbrs,
    F::SrsoNo,
    F::TsaSqNo,
    F::TsaL1No,
]);

const AMD: FeatureSet = AMD_IMMUNE.union(FeatureSet::of(&[
    F::AmdIbpb,
    F::AmdIbrs,
    F::AmdStibp,
    F::LfenceRdtsc,
    F::NullSelClrBase,
    F::Topoext,
]));

/// Off unless asked for. MONITOR because a kernel that idles in MWAIT expects stores of other CPUs
/// to wake it, which costs more than the interrupt after HLT; the others because they only cost.
const ON_REQUEST: FeatureSet = FeatureSet::of(&[F::Monitor, F::Pku, F::La57]);

/// Family, model and stepping of the named models. Chosen because stock kernels know no quirk of
/// theirs that a hypervisor's guest has to work around: 6/8Fh/8 and 19h/11h/1.
const fn signature(vendor: Vendor) -> u32 {
    match vendor {
        Vendor::Intel => 0x0008_06f8,
        Vendor::Amd => 0x00a1_0f11,
    }
}

impl CpuModel {
    /// Name of the default model.
    pub const DEFAULT: &str = "x86-64-v3";

    /// The names of all models.
    pub const NAMES: &[&str] = &["x86-64-v2", "x86-64-v3", "host"];

    /// Makes a model from `NAME[,+feature][,-feature][,mitigations=honest]` for this host. The notes
    /// say in whole sentences what was asked for and cannot be given.
    ///
    /// # Errors
    /// [`CpuModelError`] for a name that does not exist.
    pub fn build(spec: &str, host: &HostCpu) -> Result<(Self, Vec<String>), CpuModelError> {
        let mut parts = spec.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let name = if name.is_empty() { Self::DEFAULT } else { name };
        let mut notes = Vec::new();
        let mut features = base(name, host, &mut notes)?;
        features = features.union(match host.vendor {
            Vendor::Intel => INTEL,
            Vendor::Amd => AMD,
        });
        let mut honest = false;
        let mut asked = FeatureSet::default();
        for part in parts.filter(|p| !p.is_empty()) {
            if part == "mitigations=honest" {
                honest = true;
            } else if let Some(name) = part.strip_prefix('+') {
                let f = feature(name)?;
                features.insert(f);
                asked.insert(f);
            } else if let Some(name) = part.strip_prefix('-') {
                let f = feature(name)?;
                features.remove(f);
                asked.remove(f);
            } else {
                return Err(CpuModelError::BadPart(part.to_owned()));
            }
        }
        if honest {
            let immune = AMD_IMMUNE.union(INTEL_IMMUNE);
            immune.iter().for_each(|f| features.remove(f));
        }
        serve(&mut features, host, asked, &mut notes);
        let own = name == "host";
        let model = Self {
            name: spec.trim().to_owned(),
            vendor: host.vendor,
            signature: if own {
                host.signature
            } else {
                signature(host.vendor)
            },
            brand: if own {
                host.brand.clone()
            } else {
                format!("Mimeo {name} virtual CPU")
            },
            features,
            physical_bits: if own { host.physical_bits } else { 46 },
            tsc_khz: 0,
            honest,
            fdp_excptn_only: host.fdp_excptn_only,
            zero_fcs_fds: host.zero_fcs_fds,
        };
        Ok((model, notes))
    }
}

/// The features of a named model on this host.
fn base(name: &str, host: &HostCpu, notes: &mut Vec<String>) -> Result<FeatureSet, CpuModelError> {
    let lacking = |set: FeatureSet| -> Vec<&str> {
        set.iter()
            .filter(|f| f.served() == Served::Host && !host.features.has(*f))
            .map(Feature::name)
            .collect()
    };
    Ok(match name {
        "x86-64-v2" => V2,
        "x86-64-v3" => {
            let lacking = lacking(V3);
            if lacking.is_empty() {
                let mut set = V3;
                let more = V3_IF_SERVED.iter().filter(|f| host.features.has(*f));
                more.for_each(|f| set.insert(f));
                set
            } else {
                notes.push(format!(
                    "This host's CPU lacks {}, so the guest's CPU is x86-64-v2 instead of x86-64-v3.",
                    lacking.join(", ")
                ));
                V2
            }
        }
        "host" => {
            let mut set = COMMON;
            let other = INTEL.union(AMD).union(ON_REQUEST);
            for f in host.features.iter().filter(|f| !other.has(*f)) {
                set.insert(f);
            }
            set
        }
        _ => return Err(CpuModelError::UnknownModel(name.to_owned())),
    })
}

/// Takes out what this host cannot serve and what has lost its footing.
fn serve(set: &mut FeatureSet, host: &HostCpu, asked: FeatureSet, notes: &mut Vec<String>) {
    let foreign = match host.vendor {
        Vendor::Intel => AMD,
        Vendor::Amd => INTEL,
    };
    let mut unserved = Vec::new();
    for f in set.iter() {
        if foreign.has(f) {
            set.remove(f);
            notes.push(format!(
                "The guest's CPU goes without {}, because its vendor is the host's and that one does not have it.",
                f.name()
            ));
        } else if f.served() == Served::Host && !host.features.has(f) {
            set.remove(f);
            unserved.push(f.name());
        }
    }
    if !unserved.is_empty() {
        notes.push(format!(
            "This host's CPU lacks {}, so the guest's CPU goes without.",
            unserved.join(", ")
        ));
    }
    for (f, need) in close(set) {
        if asked.has(f) {
            notes.push(format!(
                "The guest's CPU goes without {}, because that needs {}.",
                f.name(),
                need.name()
            ));
        }
    }
}

fn feature(name: &str) -> Result<Feature, CpuModelError> {
    let lower = name.to_ascii_lowercase();
    Feature::by_name(&lower).ok_or_else(|| {
        let near = Feature::near_misses(&lower);
        let hint = if near.is_empty() {
            "`mimeo run --cpu help` lists them".to_owned()
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        CpuModelError::UnknownFeature {
            name: name.to_owned(),
            hint,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::xcr0;

    fn host(without: &[Feature]) -> HostCpu {
        let mut features = FeatureSet::of(Feature::ALL);
        without.iter().for_each(|f| features.remove(*f));
        HostCpu {
            vendor: Vendor::Intel,
            signature: 0x806f8,
            brand: "Test CPU".into(),
            features,
            physical_bits: 46,
            fdp_excptn_only: true,
            zero_fcs_fds: true,
        }
    }

    fn build(spec: &str, without: &[Feature]) -> (CpuModel, Vec<String>) {
        CpuModel::build(spec, &host(without)).unwrap()
    }

    #[test]
    fn default_is_v3_and_silent() {
        let (m, notes) = build("", &[]);
        assert!(notes.is_empty(), "{notes:?}");
        assert!(m.has(F::Avx2) && m.has(F::ShaNi) && m.has(F::Pcid));
        assert!(!m.has(F::Pku) && !m.has(F::La57) && !m.has(F::Monitor));
        assert_eq!(m.xcr0_supported(), 7);
        assert!(build("x86-64-v3", &[F::ShaNi]).1.is_empty());
    }

    #[test]
    fn plus_minus_and_dependents() {
        let (m, notes) = build("x86-64-v3,+pku,-avx,+LA57", &[]);
        assert!(notes.is_empty(), "{notes:?}");
        assert!(m.has(F::Pku) && m.has(F::La57));
        assert!(!m.has(F::Avx) && !m.has(F::Avx2) && !m.has(F::Fma) && !m.has(F::F16c));
        assert_eq!(m.xcr0_supported(), 3 | xcr0::PKRU);
        let (m, notes) = build("x86-64-v3,-avx,+avx2", &[]);
        assert!(!m.has(F::Avx2));
        assert_eq!(notes.len(), 1);
    }

    #[test]
    fn lesser_hosts() {
        let (m, notes) = build("x86-64-v3", &[F::Avx2]);
        assert!(!m.has(F::Avx) && m.has(F::Sse42));
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("avx2") && notes[0].contains("x86-64-v2"));
        let (m, notes) = build("x86-64-v2,+aes", &[F::Aes]);
        assert!(!m.has(F::Aes));
        assert_eq!(notes.len(), 1);
        // Integer features are the monitor's own.
        let (m, notes) = build("x86-64-v3", &[F::Bmi2, F::Adx, F::Cx16, F::Pcid, F::Rdpid]);
        assert!(notes.is_empty() && m.has(F::Bmi2) && m.has(F::Rdpid));
    }

    #[test]
    fn vendors() {
        let amd = HostCpu {
            vendor: Vendor::Amd,
            ..host(&[])
        };
        let (m, notes) = CpuModel::build("x86-64-v3,+arch_capabilities", &amd).unwrap();
        assert!(m.has(F::AutoIbrs) && !m.has(F::ArchCapabilities) && !m.has(F::SpecCtrl));
        assert_eq!(notes.len(), 1);
        let (m, _) = CpuModel::build("host,mitigations=honest", &amd).unwrap();
        assert!(!m.has(F::AutoIbrs) && !m.has(F::SrsoNo) && m.honest());
        assert_eq!(
            build("host,mitigations=honest", &[]).0.arch_capabilities(),
            0
        );
        assert_ne!(build("host", &[]).0.arch_capabilities() & 1, 0);
    }

    #[test]
    fn errors_name_the_thing_and_the_remedy() {
        let e = |s: &str| CpuModel::build(s, &host(&[])).unwrap_err().to_string();
        assert!(e("pentium").contains("x86-64-v2"));
        assert!(e("host,+avx3").contains("did you mean avx"));
        assert!(e("host,+frobnicate").contains("--cpu help"));
        assert!(e("host,avx").contains("+feature"));
    }

    #[test]
    fn xsave_sizes() {
        let (m, _) = build("x86-64-v3,+pku", &[]);
        assert_eq!(m.xsave_size(3), 576);
        assert_eq!(m.xsave_size(7), 832);
        assert_eq!(m.xsave_size(0x207), 2696);
        assert_eq!(m.xsave_compact_size(0x207), 840);
        assert_eq!(m.xsave_component(5), None);
    }
}
