//! From the name of an engine to an engine.

use crate::spec::EngineKind;
use mimeo_arch_x86::cpuid::FeatureSet;
use mimeo_engine_bt::{BtEngine, BtOptions};
use mimeo_engine_interp::InterpEngine;
use mimeo_replay::lockstep::{Lockstep, Stride, twin};
use mimeo_vcpu::{Engine, EngineConfig, EngineError};

/// What one may want of an engine beside speed. Not part of the machine: the guest sees nothing of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineTuning {
    /// Check every translated block with the independent verifier before it runs.
    pub paranoid: bool,
    /// Run the translator and the interpreter in lockstep, compared this often.
    pub verify: Option<Stride>,
    /// Count how often the guest instruction at this address is entered, for
    /// [`mimeo_vcpu::Vcpu::explain`].
    pub trace: Option<u64>,
    /// Features of the host's CPU not to be used.
    pub without: FeatureSet,
}

/// Makes the engine that was asked for. With [`EngineKind::Auto`] the note says why it is not the
/// fastest one, if it is not.
///
/// # Errors
/// [`EngineError::Unsupported`] when it was asked for by name and cannot run here.
pub fn create(
    kind: EngineKind,
    config: EngineConfig,
    tuning: &EngineTuning,
) -> Result<(Box<dyn Engine>, Option<String>), EngineError> {
    if let Some(stride) = tuning.verify {
        return Ok((Box::new(lockstep(&config, tuning, stride)?), None));
    }
    let interp = |config| Box::new(InterpEngine::new(config)) as Box<dyn Engine>;
    let options = BtOptions {
        paranoid: tuning.paranoid,
        trace: tuning.trace,
        without: tuning.without,
        ..BtOptions::default()
    };
    match kind {
        EngineKind::Interp => Ok((interp(config), None)),
        EngineKind::Bt => Ok((Box::new(BtEngine::with_options(config, options)?), None)),
        EngineKind::Auto => match BtEngine::with_options(config.clone(), options) {
            Ok(bt) => Ok((Box::new(bt), None)),
            Err(why) => Ok((
                interp(config),
                Some(format!("{why}; the interpreter runs the guest, slower")),
            )),
        },
    }
}

/// The translator in front, the interpreter behind it.
fn lockstep(
    config: &EngineConfig,
    tuning: &EngineTuning,
    stride: Stride,
) -> Result<Lockstep, EngineError> {
    let copy = twin(&config.memory).map_err(|e| EngineError::Internal(e.to_string()))?;
    let options = BtOptions {
        precise_flags: true,
        paranoid: tuning.paranoid,
        trace: tuning.trace,
        without: tuning.without,
        unchained: matches!(stride, Stride::Turns(_)),
    };
    let lead = BtEngine::with_options(config.clone(), options)?;
    let check = InterpEngine::new(EngineConfig {
        memory: copy.clone(),
        ..config.clone()
    });
    Lockstep::new(
        (Box::new(lead), config.memory.clone()),
        (Box::new(check), copy),
        config.cpu.clone(),
        config.cpus,
        stride,
    )
}
