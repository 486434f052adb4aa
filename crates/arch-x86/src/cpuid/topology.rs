//! Cache and topology leaves: one socket of `cpus` cores, one thread each, one shared L3.
//!
//! The cache sizes are a plain server core's; they are part of the model (not the host's), because
//! C libraries take copy thresholds from them and a snapshot may move.

use super::leaves::CpuidContext;

/// (type: 1 data, 2 code, 3 unified; level, ways, sets); lines are of 64 bytes.
const CACHES: [(u32, u32, u32, u32); 4] = [
    (1, 1, 8, 64),
    (2, 1, 8, 64),
    (3, 2, 16, 1024),
    (3, 3, 16, 16384),
];

/// Bits of an x2APIC ID that number the cores.
pub(super) fn core_bits(cpus: u32) -> u32 {
    cpus.max(1).next_power_of_two().trailing_zeros()
}

/// Leaf 4 (Intel) and 8000001Dh (AMD): deterministic cache parameters.
pub(super) fn cache(subleaf: u32, context: &CpuidContext, amd: bool) -> [u32; 4] {
    let Some(&(kind, level, ways, sets)) = CACHES.get(subleaf as usize) else {
        return [0; 4];
    };
    let ids = (1 << core_bits(context.cpus)) - 1u32;
    let sharing = if level == 3 { ids.min(0xfff) } else { 0 };
    let cores = if amd { 0 } else { ids.min(0x3f) };
    let eax = kind | level << 5 | 1 << 8 | sharing << 14 | cores << 26;
    // L3 holds what the levels above it hold: inclusive (bit 1).
    let edx = if level == 3 { 2 } else { 0 };
    [eax, 63 | (ways - 1) << 22, sets - 1, edx]
}

/// Leaves 0Bh and 1Fh: extended topology.
pub(super) fn extended(subleaf: u32, context: &CpuidContext) -> [u32; 4] {
    let (shift, count, kind) = match subleaf {
        0 => (0, 1, 1),
        1 => (core_bits(context.cpus), context.cpus, 2),
        _ => (0, 0, 0),
    };
    let level = subleaf & 0xff;
    [shift, count & 0xffff, level | kind << 8, context.apic_id]
}

/// Leaves 80000005h and 80000006h (AMD): the same caches in the older form.
pub(super) fn amd_legacy(leaf: u32) -> [u32; 4] {
    match leaf {
        // Fully associative TLBs of 64 entries; L1: 32 KB, 8 ways, one line a tag, 64-byte lines.
        0x8000_0005 => [
            0xff40_ff40,
            0xff40_ff40,
            32 << 24 | 8 << 16 | 0x0140,
            32 << 24 | 8 << 16 | 0x0140,
        ],
        // L2: 1 MB, 16 ways (code 8); L3: 16 MB in units of 512 KB, 16 ways.
        _ => [0, 0, 1024 << 16 | 0x8140, 32 << 18 | 0x8140],
    }
}
