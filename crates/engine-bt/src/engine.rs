//! The engine: what one VM's vCPUs are made from.

use crate::shared::Shared;
use crate::vcpu::BtVcpu;
use mimeo_vcpu::{Engine, EngineCaps, EngineConfig, EngineError, Vcpu, VcpuEvents};
use std::sync::Arc;

/// The binary translator as an engine.
#[derive(Debug)]
pub struct BtEngine {
    config: EngineConfig,
    shared: Arc<Shared>,
}

/// Switches, each to be turned for finding faults.
#[derive(Debug, Clone, Copy, Default)]
pub struct BtOptions {
    /// Keep status flags exact at every instruction, also where the program cannot see them but in
    /// an exception frame. Slower; for lockstep comparison.
    pub precise_flags: bool,
    /// Let the independent verifier check every block before it runs; a rejected block ends the
    /// run with an error.
    pub paranoid: bool,
}

impl BtEngine {
    /// An engine for one VM.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] where the host lacks what translated code needs, with the
    /// reason; the caller may use the interpreter instead.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        Self::with_options(config, BtOptions::default())
    }

    /// As [`Self::new`], with switches.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_options(config: EngineConfig, options: BtOptions) -> Result<Self, EngineError> {
        host_is_able()?;
        let shared = Shared::new(config.memory.clone(), config.cpu.clone(), options)?;
        Ok(Self { config, shared })
    }
}

fn host_is_able() -> Result<(), EngineError> {
    let missing: Vec<_> = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("BMI1", std::arch::is_x86_feature_detected!("bmi1")),
        ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
    ]
    .iter()
    .filter(|(_, has)| !has)
    .map(|(name, _)| *name)
    .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(EngineError::Unsupported {
            engine: "bt",
            reason: format!("this CPU lacks {}; use --engine interp", missing.join(", ")),
        })
    }
}

impl Engine for BtEngine {
    fn name(&self) -> &'static str {
        "bt"
    }

    fn caps(&self) -> EngineCaps {
        EngineCaps {
            smp: true,
            exact_count: true,
        }
    }

    fn create_vcpu(
        &self,
        index: u32,
        events: Arc<VcpuEvents>,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(BtVcpu::new(
            &self.config,
            self.shared.clone(),
            index,
            events,
        )?))
    }
}
