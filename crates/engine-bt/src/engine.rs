//! The engine: what one VM's vCPUs are made from.

use crate::lat::View;
use crate::requirements;
use crate::shared::Shared;
use crate::vcpu::BtVcpu;
use mimeo_arch_x86::cpuid::FeatureSet;
use mimeo_vcpu::{Engine, EngineCaps, EngineConfig, EngineError, Vcpu, VcpuEvents};
use std::sync::{Arc, Mutex, PoisonError};

/// The binary translator as an engine.
#[derive(Debug)]
pub struct BtEngine {
    config: EngineConfig,
    shared: Arc<Shared>,
    /// Tables of the vCPUs to come: reserved at once, so that the host's limits show before anything
    /// runs.
    views: Mutex<Vec<Vec<View>>>,
}

/// Switches, each to be turned for finding faults.
#[derive(Debug, Clone, Copy, Default)]
pub struct BtOptions {
    /// No block leads to another but through the run loop, so that [`mimeo_vcpu::StopAt::turns`] counts
    /// blocks.
    pub unchained: bool,
    /// Features of the host's CPU not to be used, for trying what happens on a lesser one.
    pub without: FeatureSet,
    /// Count how often the guest instruction at this address is entered
    /// ([`mimeo_vcpu::Vcpu::explain`] tells).
    pub trace: Option<u64>,
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
        requirements::check(config.cpus, options.without)?;
        let views = requirements::tables(config.cpus)?;
        let shared = Shared::new(config.memory.clone(), config.cpu.clone(), options)?;
        Ok(Self {
            config,
            shared,
            views: Mutex::new(views),
        })
    }

    /// The tables reserved for a vCPU: the last that are left.
    fn views(&self) -> Result<Vec<View>, EngineError> {
        let kept = self
            .views
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match kept {
            Some(views) => Ok(views),
            None => requirements::tables(1).map(|v| v.into_iter().flatten().collect()),
        }
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
            self.views()?,
            index,
            events,
        )?))
    }
}
