//! From the name of an engine to an engine.

use crate::spec::EngineKind;
use mimeo_engine_bt::BtEngine;
use mimeo_engine_interp::InterpEngine;
use mimeo_vcpu::{Engine, EngineConfig, EngineError};

/// Makes the engine that was asked for. With [`EngineKind::Auto`] the note says why it is not the
/// fastest one, if it is not.
///
/// # Errors
/// [`EngineError::Unsupported`] when it was asked for by name and cannot run here.
pub fn create(
    kind: EngineKind,
    config: EngineConfig,
) -> Result<(Box<dyn Engine>, Option<String>), EngineError> {
    match kind {
        EngineKind::Interp | EngineKind::Auto => Ok((Box::new(InterpEngine::new(config)), None)),
        EngineKind::Bt => Ok((Box::new(BtEngine::new(config)?), None)),
    }
}
