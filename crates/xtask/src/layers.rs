//! The layers check: dependencies point down only.
//!
//! [`LAYERS`] is the one table that says where each crate stands; `docs/architecture.md` explains
//! it. A crate that is missing here fails the check, so that nobody forgets to place a new one.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Layers from the lowest to the highest. A crate may depend on crates of lower layers; inside one
/// layer only to the left of itself.
pub const LAYERS: &[(&str, &[&str])] = &[
    (
        "facts",
        &["mimeo-arch-x86", "mimeo-isa-x86", "mimeo-agent-proto"],
    ),
    ("contracts", &["mimeo-memory", "mimeo-bus", "mimeo-vcpu"]),
    (
        "implement",
        &[
            "mimeo-codemem",
            "mimeo-bt-verify",
            "mimeo-engine-interp",
            "mimeo-engine-bt",
            "mimeo-devices",
            "mimeo-backends",
            "mimeo-net",
            "mimeo-jail",
            "mimeo-replay",
            "mimeo-share",
            "mimeo-agent-binary",
        ],
    ),
    ("compose", &["mimeo-boot", "mimeo-image", "mimeo-machines"]),
    ("service", &["mimeo-vm", "mimeo-control"]),
    ("apps", &["mimeo-cli", "mimeo-agent"]),
    (
        "aside",
        &[
            "mimeo-conformance",
            "mimeo-fuzz-cases",
            "mimeo-guest-tests",
            "mimeo-xtask",
        ],
    ),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for an ordinary dependency, `dev` or `build` otherwise.
    kind: Option<String>,
    path: Option<String>,
}

/// One edge that points up, or a crate without a place.
fn violations(packages: &[Package]) -> Vec<String> {
    let rank: BTreeMap<&str, (usize, usize)> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(l, (_, names))| names.iter().enumerate().map(move |(i, n)| (*n, (l, i))))
        .collect();
    let mut found = BTreeSet::new();
    for package in packages {
        let Some(&own) = rank.get(package.name.as_str()) else {
            found.insert(format!(
                "{} has no layer: give it a place in crates/xtask/src/layers.rs",
                package.name
            ));
            continue;
        };
        for dep in &package.dependencies {
            // Tests may reach up: they are leaves that nothing links.
            if dep.path.is_none() || dep.kind.as_deref() == Some("dev") {
                continue;
            }
            if rank.get(dep.name.as_str()).is_some_and(|&to| to >= own) {
                found.insert(format!(
                    "{} ({}) must not depend on {}: it stands above it",
                    package.name, LAYERS[own.0].0, dep.name
                ));
            }
        }
    }
    found.into_iter().collect()
}

/// Checks the workspace that the command runs in.
pub fn run() -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .map_err(|e| format!("cannot run cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("cargo metadata printed something unexpected: {e}"))?;
    let bad = violations(&metadata.packages);
    if bad.is_empty() {
        Ok(format!(
            "layers: {} crates in order",
            metadata.packages.len()
        ))
    } else {
        Err(bad.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, deps: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.into(),
            dependencies: deps
                .iter()
                .map(|(n, kind)| Dependency {
                    name: (*n).into(),
                    kind: kind.map(Into::into),
                    path: Some("x".into()),
                })
                .collect(),
        }
    }

    #[test]
    fn downward_edges_pass_and_upward_ones_fail() {
        assert!(violations(&[package("mimeo-vm", &[("mimeo-machines", None)])]).is_empty());
        let bad = violations(&[package("mimeo-devices", &[("mimeo-machines", None)])]);
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].contains("mimeo-devices"));
    }

    #[test]
    fn sideways_edges_go_left_only() {
        let right = package("mimeo-engine-interp", &[("mimeo-engine-bt", None)]);
        let left = package("mimeo-engine-bt", &[("mimeo-engine-interp", None)]);
        assert_eq!(violations(&[right]).len(), 1);
        assert!(violations(&[left]).is_empty());
    }

    #[test]
    fn unplaced_crates_fail_and_tests_may_reach_up() {
        assert_eq!(violations(&[package("mimeo-new", &[])]).len(), 1);
        assert!(violations(&[package("mimeo-boot", &[("mimeo-vm", Some("dev"))])]).is_empty());
    }

    #[test]
    fn the_workspace_is_in_order() {
        run().unwrap();
    }
}
