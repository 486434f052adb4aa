//! The interpreter: the reference engine.
