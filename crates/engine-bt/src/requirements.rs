//! What the translator needs of the host, asked before anything runs: CPU features, address space,
//! mappings, a GS base that nobody else uses. (Executable memory is asked for by `codemem`, whose
//! probe chain names what it tried.)

use crate::lat::View;
use crate::{host, mmu};
use mimeo_arch_x86::cpuid::{Feature, FeatureSet};
use mimeo_vcpu::EngineError;

/// Mappings that the engine makes for a VM and for each of its vCPUs, generously.
const MAPPINGS: u64 = 64;
const MAPPINGS_PER_CPU: u64 = 32;

fn unsupported(reason: String) -> EngineError {
    EngineError::Unsupported {
        engine: "bt",
        reason,
    }
}

/// Asks the host for everything but memory.
///
/// # Errors
/// [`EngineError::Unsupported`] names what is missing.
pub(crate) fn check(cpus: u32, without: FeatureSet) -> Result<(), EngineError> {
    features(without)?;
    let (limit, used) = (max_map_count(), mappings_in_use());
    if let (Some(limit), Some(used)) = (limit, used) {
        mappings(limit, used, cpus)?;
    }
    if host::gs_base_is_ours() {
        Ok(())
    } else {
        Err(unsupported(
            "something else in this process uses the GS base (a sandbox such as gVisor's systrap)"
                .into(),
        ))
    }
}

fn features(without: FeatureSet) -> Result<(), EngineError> {
    let missing: Vec<_> = [
        (
            "AVX2",
            Feature::Avx2,
            std::arch::is_x86_feature_detected!("avx2"),
        ),
        (
            "BMI1",
            Feature::Bmi1,
            std::arch::is_x86_feature_detected!("bmi1"),
        ),
        (
            "BMI2",
            Feature::Bmi2,
            std::arch::is_x86_feature_detected!("bmi2"),
        ),
    ]
    .into_iter()
    .filter(|&(_, feature, has)| !has || without.has(feature))
    .map(|(name, ..)| name)
    .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(unsupported(format!(
            "this CPU lacks {}",
            missing.join(" and ")
        )))
    }
}

/// vm.max_map_count; `None` where it cannot be read.
fn max_map_count() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn mappings_in_use() -> Option<u64> {
    let maps = std::fs::read("/proc/self/maps").ok()?;
    Some(maps.iter().filter(|b| **b == b'\n').count() as u64)
}

fn mappings(limit: u64, used: u64, cpus: u32) -> Result<(), EngineError> {
    let need = MAPPINGS + MAPPINGS_PER_CPU * u64::from(cpus);
    if used.saturating_add(need) <= limit {
        return Ok(());
    }
    Err(unsupported(format!(
        "this process may have {limit} mappings, has {used} and needs up to {need} more: raise \
         vm.max_map_count"
    )))
}

/// Reserves the linear addend tables of `cpus` vCPUs.
///
/// # Errors
/// [`EngineError::Unsupported`] where the process may not have that much address space.
pub(crate) fn tables(cpus: u32) -> Result<Vec<Vec<View>>, EngineError> {
    let each: Result<Vec<_>, _> = (0..cpus).map(|_| mmu::reserve()).collect();
    each.map_err(|e| {
        unsupported(format!(
            "it needs {} TB of address space for its tables and may not have it ({e}): raise ulimit -v, \
             allow overcommit or give fewer --cpus",
            mmu::TERABYTES * u64::from(cpus)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_feature_is_a_missing_one() {
        let without = FeatureSet::of(&[Feature::Bmi1, Feature::Bmi2]);
        let error = features(without).unwrap_err().to_string();
        assert!(error.contains("BMI1 and BMI2"), "{error}");
    }

    #[test]
    fn mappings_are_counted_before_they_are_made() {
        assert!(mappings(65_530, 200, 4).is_ok());
        let error = mappings(256, 200, 1).unwrap_err().to_string();
        assert!(error.contains("vm.max_map_count"), "{error}");
    }

    #[test]
    fn tables_beyond_the_address_space_are_refused() {
        let error = tables(100).unwrap_err().to_string();
        assert!(error.contains("600 TB"), "{error}");
    }
}
