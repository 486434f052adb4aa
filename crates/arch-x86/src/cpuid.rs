//! CPU models: what CPUID says and so what exists (SDM vol. 2, CPUID; APM vol. 3, appendix E).

use serde::{Deserialize, Serialize};

/// A CPU model: the complete answers of CPUID for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    /// Name as on the command line.
    pub name: String,
}
