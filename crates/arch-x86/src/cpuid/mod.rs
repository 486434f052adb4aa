//! CPU models: what CPUID says and so what exists (SDM vol. 2, CPUID; APM vol. 3, appendix E).
//!
//! A [`CpuModel`] is part of a machine's specification: it is made once from a specification such as
//! `x86-64-v3,+pku,-avx2` and from what the host can serve, and then travels with the VM. CPUID tells
//! exactly what the engines implement; a [`Feature`] that a model lacks raises #UD or #GP as on a CPU
//! without it.
//!
//! The vendor is the host's, because user code may run on the host's own units. Named models have a
//! fixed family, model and stepping per vendor, whose known quirks and vulnerabilities in stock
//! kernels are none.

mod feature;
mod host;
mod leaves;
mod model;
mod spec;
mod topology;

pub use feature::{Feature, FeatureSet, Served};
pub use host::HostCpu;
pub use leaves::CpuidContext;
pub use model::{APIC_TIMER_HZ, CpuModel, Vendor, xcr0};
pub use spec::CpuModelError;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A model for tests, on a host that has everything.
    pub(crate) fn model(vendor: Vendor, spec: &str) -> CpuModel {
        let host = HostCpu {
            vendor,
            signature: 0x806f8,
            brand: "Test CPU".into(),
            features: FeatureSet::of(Feature::ALL),
            physical_bits: 46,
            fdp_excptn_only: true,
            zero_fcs_fds: false,
        };
        CpuModel::build(spec, &host).unwrap().0
    }

    pub(crate) fn intel(spec: &str) -> CpuModel {
        model(Vendor::Intel, spec)
    }

    pub(crate) fn amd(spec: &str) -> CpuModel {
        model(Vendor::Amd, spec)
    }
}
