//! `mimeo run --cpu help`: the features, and which model has them on this host.

use crate::status::{Failure, Status};
use anyhow::anyhow;
use mimeo_arch_x86::cpuid::{CpuModel, Feature};
use mimeo_machines::host_cpu;
use std::io::Write as _;

/// The models in the order of the columns.
const MODELS: [&str; 3] = ["x86-64-v2", "x86-64-v3", "host"];

/// Prints the table.
pub fn print() -> Result<Status, Failure> {
    let host = host_cpu();
    let mut models = Vec::new();
    for name in MODELS {
        let model = CpuModel::build(name, &host).map_err(|e| Failure::usage(anyhow!("{e}")))?;
        models.push(model.0);
    }
    let mut text = String::from(
        "--cpu MODEL[,+FEATURE][,-FEATURE]: what each model has on this host\n\n\
         feature           v2  v3  host  what\n",
    );
    for &feature in Feature::ALL {
        let [v2, v3, host] = [0, 1, 2].map(|n: usize| match models.get(n) {
            Some(model) if model.has(feature) => "x",
            _ => "-",
        });
        text.push_str(&format!(
            "{:<16}  {v2:<2}  {v3:<2}  {host:<4}  {}\n",
            feature.name(),
            feature.description()
        ));
    }
    // A closed pipe (`| head`) is nobody's mistake.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(Status::Done)
}
