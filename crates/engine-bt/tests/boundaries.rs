//! Every native form of the instruction table at the edges of what it may touch: across a page whose
//! successor is elsewhere in physical memory, absent, read-only or beyond the end of RAM; across 2^32,
//! 2^47, -2^47 and 2^64. The translator must do what the interpreter does: the same registers, the same
//! exception, the same bytes, and nothing at all to the pages that stand beside the right ones in physical
//! memory. Registers that the instruction has no business with point at such canaries.

mod common;

use common::{Layout, Machine, long_mode};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_arch_x86::{RFlags, X86State, state};
use mimeo_isa_x86::{Access, Class, Form, Modes, Unit, lookup};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::Exit;
use std::collections::BTreeMap;

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x10_0000;
/// Physical pages of the tests, each between two canaries.
const FIRST: u64 = 0x20_1000;
const SECOND: u64 = 0x20_3000;
const LAST: u64 = RAM - 4096;
/// Where registers point that the instruction has no business with.
const CANARY: u64 = 0x21_0000;
/// What is compared: all data pages.
const COMPARED: [(u64, usize); 2] = [(0x20_0000, 0x12_000), (RAM - 8192, 8192)];

/// A place where two pages meet: linear address, what is below it and above it (physical address and
/// PTE bits; none: not canonical, or not present).
struct Edge {
    name: &'static str,
    at: u64,
    below: Option<(u64, u64)>,
    above: Option<(u64, u64)>,
}

const RW: u64 = 0x67;
const RO: u64 = 0x65;

const EDGES: &[Edge] = &[
    Edge {
        name: "pages apart in physical memory",
        at: 0x4000_1000,
        below: Some((FIRST, RW)),
        above: Some((SECOND, RW)),
    },
    Edge {
        name: "the second page absent",
        at: 0x4001_1000,
        below: Some((FIRST, RW)),
        above: None,
    },
    Edge {
        name: "the second page read-only",
        at: 0x4002_1000,
        below: Some((FIRST, RW)),
        above: Some((SECOND, RO)),
    },
    Edge {
        name: "the end of RAM",
        at: 0x4003_1000,
        below: Some((LAST, RW)),
        above: Some((RAM, RW)),
    },
    Edge {
        name: "2^32",
        at: 1 << 32,
        below: Some((FIRST, RW)),
        above: Some((SECOND, RW)),
    },
    Edge {
        name: "2^47",
        at: 1 << 47,
        below: Some((FIRST, RW)),
        above: None,
    },
    Edge {
        name: "-2^47",
        at: 0xffff_8000_0000_0000,
        below: None,
        above: Some((SECOND, RW)),
    },
    Edge {
        name: "2^64",
        at: 0,
        below: Some((FIRST, RW)),
        above: Some((0, RW)),
    },
];

/// Builds page tables from the page at 4000h on.
struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    fn entry(&mut self, table: u64, index: u64) -> u64 {
        let at = table + index * 8;
        let old = self.memory.read_u64(at).unwrap();
        if old & 1 != 0 {
            return old & !0xfff;
        }
        let new = self.next;
        self.next += 4096;
        assert!(self.next <= CODE);
        self.memory.write(at, &(new | 7).to_le_bytes()).unwrap();
        new
    }

    fn map(&mut self, linear: u64, physical: u64, bits: u64) {
        let mut table = 0x4000;
        for level in [39, 30, 21] {
            table = self.entry(table, linear >> level & 511);
        }
        let at = table + (linear >> 12 & 511) * 8;
        self.memory
            .write(at, &(physical | bits).to_le_bytes())
            .unwrap();
    }
}

/// Identity for the first 4 MB, the edges, and an IDT of HLTs on a stack of its own.
fn prepare(m: &GuestMemory) {
    let put = |at: u64, v: u64| m.write(at, &v.to_le_bytes()).unwrap();
    let mut tables = Tables {
        memory: m,
        next: 0x5000,
    };
    for page in 0..RAM >> 12 {
        tables.map(page << 12, page << 12, RW);
    }
    for e in EDGES {
        if let Some((physical, bits)) = e.below {
            tables.map(e.at.wrapping_sub(4096), physical, bits);
        }
        if let Some((physical, bits)) = e.above
            && e.at != 0
        {
            tables.map(e.at, physical, bits);
        }
    }
    let idt = 0x8_0000;
    for v in 0..256u64 {
        let handler = 0x9_0000 + v;
        m.write(handler, &[0xf4]).unwrap();
        put(
            idt + v * 16,
            handler & 0xffff | 8 << 16 | 0x8e01_u64 << 32 | (handler >> 16) << 48,
        );
        put(idt + v * 16 + 8, 0);
    }
    // TSS: IST 1 at offset 36.
    m.write(0x9_4000 + 36, &0x9_6000u64.to_le_bytes()).unwrap();
    put(0x9_5008, 0x00af_9b00_0000_ffff);
    put(0x9_5010, 0x00cf_9300_0000_ffff);
}

fn registers(address: u64) -> X86State {
    let mut s = long_mode(&Layout {
        cr3: 0x4000,
        tss: 0x9_4000,
        idt: 0x8_0000,
        gdt: 0x9_5000,
        rip: CODE,
    });
    s.rflags = RFlags::from_bits_retain(2);
    s.fp.fcw = 0x37f;
    s.fp.ftw = 0xff;
    for (n, g) in s.gpr.iter_mut().enumerate() {
        *g = CANARY + n as u64 * 64;
    }
    s.gpr[3] = address;
    s.gpr[4] = 0x21_1000;
    for (n, y) in s.fp.ymm.iter_mut().flatten().enumerate() {
        *y = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    for (n, st) in s.fp.st.iter_mut().enumerate() {
        *st = 0x3fff_8000_0000_0000_0000 + n as u128;
    }
    s
}

/// Results that are not a function of the state compared.
fn excluded(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        i.mnemonic(),
        Fnstenv | Fstenv | Fnsave | Fsave | Fxsave | Fxsave64 | Fldenv | Frstor
    )
}

/// One encoding of every native form with memory at [RBX]; those that may be locked, locked as well.
fn instances(model: &CpuModel) -> Vec<(Instruction, Vec<u8>, &'static Form)> {
    let mut found = BTreeMap::new();
    let mut look = |prefix: &[u8], opcode: u8, reg: u8| {
        let mut bytes = prefix.to_vec();
        bytes.extend([opcode, reg << 3 | 3, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.truncate(15);
        let i = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        let Some(form) = lookup(i.code()) else {
            return;
        };
        let touches = matches!(
            form.mem.access,
            Access::Read | Access::Write | Access::ReadWrite
        );
        if form.class == Class::Native
            && form.modes != Modes::Legacy
            && touches
            && i.memory_base() != iced_x86::Register::None
            && form.available(|f| model.has(f))
            && !excluded(&i)
        {
            bytes.truncate(i.len());
            let key = (i.code() as usize, i.has_lock_prefix());
            found.entry(key).or_insert((i, bytes, form));
        }
    };
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for opcode in 0..=255u8 {
        for reg in 0..8 {
            for map in maps {
                for first in [&[][..], &[0x66], &[0xf2], &[0xf3], &[0xf0], &[0x66, 0xf0]] {
                    for rex in [&[][..], &[0x48]] {
                        look(&[first, rex, map].concat(), opcode, reg);
                    }
                }
            }
            for map in 1..=3u8 {
                for last in 0..32u8 {
                    // W, no or one more operand, L, pp.
                    let vvvv = if last & 8 == 0 { 0x78 } else { 0x70 };
                    let third = (last & 16) << 3 | vvvv | last & 7;
                    look(&[0xc4, 0xe0 | map, third], opcode, reg);
                }
            }
        }
    }
    found.into_values().collect()
}

fn run(machine: &mut Machine, state: &X86State, pattern: &[u8]) -> (X86State, Vec<u8>) {
    for (at, len) in COMPARED {
        machine.memory.write(at, &pattern[..len]).unwrap();
    }
    machine.memory.write(0, &pattern[..4096]).unwrap();
    let (exit, end) = machine.go(state);
    assert_eq!(exit, Exit::Halted);
    (end, machine.bytes(COMPARED.into_iter().chain([(0, 4096)])))
}

/// Takes away what may differ: undefined flags, the x87's pointers.
fn normal(mut s: X86State, form: &Form) -> X86State {
    let mut undefined = u64::from(form.flags.undefined);
    if form.flags.conditional {
        undefined |= u64::from(form.flags.changed());
    }
    s.rflags.remove(RFlags::from_bits_retain(undefined));
    if form.unit == Unit::X87 {
        (s.fp.fip, s.fp.fdp, s.fp.fop, s.fp.fcs, s.fp.fds) = (0, 0, 0, 0, 0);
    }
    s
}

#[test]
fn every_native_form_at_every_edge() {
    let model = common::model();
    let instances = instances(&model);
    assert!(instances.len() > 400, "{} forms", instances.len());
    let (mut interp, mut bt) = common::pair(prepare, true, &model);
    let pattern: Vec<u8> = (0..0x12_000u32)
        .map(|n| (n * 7 + (n >> 8)) as u8 | 1)
        .collect();
    let mut failures = Vec::new();
    let (mut cases, mut faults) = (0, 0);
    for (i, bytes, form) in &instances {
        let mut code = bytes.clone();
        code.push(0xf4);
        interp.memory.write(CODE, &code).unwrap();
        bt.memory.write(CODE, &code).unwrap();
        let size = u64::from(form.mem.size).max(1);
        // Ends at the edge, crosses it at different places, begins at it.
        let mut offsets = vec![size, size - 1, size / 2, 1, 0];
        offsets.dedup();
        for edge in EDGES {
            for offset in &offsets {
                cases += 1;
                let state = registers(edge.at.wrapping_sub(*offset));
                let (a, ma) = run(&mut interp, &state, &pattern);
                let (b, mb) = run(&mut bt, &state, &pattern);
                faults += usize::from(a.rip < CODE);
                let diff = state::diff(&normal(a, form), &normal(b, form));
                let memory = (0..ma.len()).find(|n| ma[*n] != mb[*n]);
                if !diff.is_empty() || memory.is_some() {
                    failures.push(format!(
                        "{i} ({size} bytes) at {} - {offset}: memory {memory:x?} {diff:?}",
                        edge.name
                    ));
                }
            }
        }
    }
    println!("{} forms, {cases} cases, {faults} faults", instances.len());
    // Both ways of ending are there in numbers: the edges are what they are meant to be.
    assert!(
        faults > cases / 10 && faults < cases * 9 / 10,
        "{faults} of {cases}"
    );
    assert!(
        failures.is_empty(),
        "{} of {cases} cases differ (interp / bt): {:#?}",
        failures.len(),
        &failures[..failures.len().min(12)]
    );
}
