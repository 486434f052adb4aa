//! Boards: a folder each; the only place that knows devices and engines.
