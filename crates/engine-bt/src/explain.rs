//! Translated blocks for people: guest instructions with the host code that stands for them.

use crate::decode::Mode;
use crate::shared::{Key, Shared};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::fmt::Write;

/// A block as [`Shared::explain`] finds it.
pub(crate) struct Shown {
    pub(crate) key: Key,
    pub(crate) hot: std::ops::Range<u32>,
    pub(crate) cold: std::ops::Range<u32>,
    /// Guest address and first host offset of each instruction.
    pub(crate) insns: Vec<(u64, u32)>,
    pub(crate) hot_bytes: Vec<u8>,
    pub(crate) cold_bytes: Vec<u8>,
}

fn mode(m: Mode) -> String {
    let ring = if m.has(Mode::USER) {
        "user"
    } else {
        "supervisor"
    };
    let units = [
        (Mode::X87, "x87"),
        (Mode::SSE, "sse"),
        (Mode::AVX, "avx"),
        (Mode::LARGE, "large page"),
    ];
    let mut text = ring.to_owned();
    for (bit, name) in units {
        if m.has(bit) {
            let _ = write!(text, ", {name}");
        }
    }
    text
}

/// Host instructions of `bytes`, which stand at cache offset `at`, as far as `end`.
fn host(out: &mut String, bytes: &[u8], at: u32, from: u32, end: u32) {
    let Some(part) = bytes.get((from - at) as usize..(end - at) as usize) else {
        return;
    };
    let mut formatter = IntelFormatter::new();
    let mut decoder = Decoder::with_ip(64, part, u64::from(from), DecoderOptions::NONE);
    while decoder.can_decode() {
        let i = decoder.decode();
        let mut text = String::new();
        formatter.format(&i, &mut text);
        let _ = writeln!(out, "        {:08x}  {text}", i.ip());
    }
}

impl Shared {
    /// The blocks that hold the instruction at `rip`, with its `entries` as counted. `None`: no block
    /// holds it now.
    pub(crate) fn explain(&self, rip: u64, entries: u64) -> Option<String> {
        let blocks = self.blocks_with(rip);
        if blocks.is_empty() {
            return None;
        }
        let mut out = String::new();
        if self.options.trace == Some(rip) {
            let _ = writeln!(out, "{rip:#x} was entered {entries} times");
        }
        for b in &blocks {
            self.show(&mut out, b);
        }
        Some(out)
    }

    fn show(&self, out: &mut String, b: &Shown) {
        let gpa = self.memory.page_address(b.key.page as usize).unwrap_or(0);
        let gpa = gpa | (b.key.rip & 4095);
        let _ = writeln!(
            out,
            "block {:#x} (physical {gpa:#x}; {}): {} instructions, {} + {} bytes of host code",
            b.key.rip,
            mode(b.key.mode),
            b.insns.len(),
            b.hot_bytes.len(),
            b.cold_bytes.len()
        );
        let ends = b.insns.iter().skip(1).map(|i| i.1).chain([b.hot.end]);
        for (&(rip, from), end) in b.insns.iter().zip(ends) {
            let _ = writeln!(out, "    {rip:016x}  {}", self.guest_text(b.key, rip));
            host(out, &b.hot_bytes, b.hot.start, from, end);
        }
        let _ = writeln!(out, "    cold:");
        host(out, &b.cold_bytes, b.cold.start, b.cold.start, b.cold.end);
    }

    /// The guest instruction at `rip` of a block, from memory as it is now.
    fn guest_text(&self, key: Key, rip: u64) -> String {
        let mut bytes = Vec::with_capacity(16);
        for n in 0..15u64 {
            let at = rip.wrapping_add(n);
            let page = if at >> 12 == key.rip >> 12 {
                key.page
            } else {
                key.second
            };
            let mut byte = [0];
            let gpa = self.memory.page_address(page as usize);
            match gpa.map(|gpa| self.memory.read(gpa | (at & 4095), &mut byte)) {
                Some(Ok(())) => bytes.push(byte[0]),
                _ => break,
            }
        }
        let i = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
        let mut text = String::new();
        IntelFormatter::new().format(&i, &mut text);
        text
    }
}
