//! The life of a VM: threads, run, pause, stop.
