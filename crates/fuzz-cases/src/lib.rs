//! What fuzzers call: one function for each input that a guest or a file controls. A function returns
//! whatever the bytes are; a panic, a hang or unbounded memory is the finding.
//!
//! `fuzz/` holds libFuzzer front ends (`cargo fuzz run payload`); `tests/bounded.rs` feeds the same
//! functions a fixed number of pseudo-random inputs in every test run.

mod code;
mod net;
mod virtio;

pub use code::guest_code;
pub use net::{net_card, net_frames};
pub use virtio::{share, virtio};

use mimeo_boot::{BootOptions, MemoryMap, Module, Payload};
use mimeo_memory::GuestMemory;
use mimeo_replay::LogReader;

/// RAM of the machine that payloads are loaded into, in bytes.
const RAM: u64 = 8 << 20;

/// A kernel file: recognised and, if it is one, loaded with an initial RAM disk.
pub fn payload(data: &[u8]) {
    let Ok(payload) = Payload::from_bytes("fuzz", data.to_vec()) else {
        return;
    };
    let Ok(memory) = GuestMemory::ram(RAM) else {
        return;
    };
    let options = BootOptions {
        cmdline: "console=ttyS0".into(),
        initrds: vec![Module::from_bytes("initrd", vec![7; 5000])],
        memory_map: MemoryMap::pc(&memory),
        ..BootOptions::default()
    };
    // An error is an answer.
    drop(mimeo_boot::load(&memory, &payload, &options));
}

/// A replay log: read to its end.
pub fn replay_log(data: &[u8]) {
    let Ok(mut log) = LogReader::new(Box::new(std::io::Cursor::new(data.to_vec()))) else {
        return;
    };
    while log.next_entry().is_ok() {}
}
