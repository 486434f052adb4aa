//! Random programs on the translator and on the interpreter: same end state, same memory.
//!
//! Every program is a few random instructions from the table, in 64-bit mode, on registers that mostly
//! point into a data area; it ends in HLT, or with the exception of one of its instructions, whose
//! handler is a HLT. Flags that the last writers leave undefined are not compared.

mod common;

use common::{Layout, Machine, Rng};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_arch_x86::{RFlags, Seg, X86State};
use mimeo_isa_x86::{Access, Class, Form, ImplicitMemory, Unit, lookup};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::Exit;

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const DATA_LEN: u64 = 0x4000;
const HIGH: u64 = 0xffff_8000_0000_0000;

/// Page tables: the first 2 MB in 4 KB pages (page 0x1ff000 not present), the next 2 MB as a large
/// page, and the same at the bottom of the upper half. IDT: every vector at a HLT, on IST 1.
fn prepare(m: &GuestMemory) {
    let put = |at: u64, v: u64| m.write(at, &v.to_le_bytes()).unwrap();
    put(0x1000, 0x2007);
    put(0x1800, 0x2007);
    put(0x2000, 0x3007);
    put(0x3000, 0x4007);
    put(0x3008, 0x20_0087);
    for n in 0..512u64 {
        put(0x4000 + n * 8, n << 12 | 7);
    }
    put(0x4000 + 0x1ff * 8, 0);
    for v in 0..256u64 {
        let handler = 0x8000 + v;
        m.write(handler, &[0xf4]).unwrap();
        let low = handler & 0xffff | 8 << 16 | 0x8e01_u64 << 32;
        put(0x9000 + v * 16, low);
        put(0x9008 + v * 16, 0);
    }
    // TSS: IST 1 at offset 36.
    m.write(0xa000 + 36, &0xf000u64.to_le_bytes()).unwrap();
    // GDT: null, code, data.
    put(0xb000, 0);
    put(0xb008, 0x00af_9b00_0000_ffff);
    put(0xb010, 0x00cf_9300_0000_ffff);
}

fn random_state(r: &mut Rng) -> X86State {
    let mut s = common::long_mode(&Layout {
        cr3: 0x1000,
        tss: 0xa000,
        idt: 0x9000,
        gdt: 0xb000,
        rip: CODE,
    });
    s.seg[Seg::Fs as usize].base = DATA + 0x100;
    s.seg[Seg::Gs as usize].base = HIGH + DATA + 0x200;
    s.fp.fcw = 0x37f;
    s.fp.ftw = 0;
    for g in &mut s.gpr {
        *g = match r.below(8) {
            0 => r.next(),
            1 => r.below(256),
            2 => HIGH + DATA + r.below(DATA_LEN),
            3 => DATA + 0xff0 + r.below(32),
            _ => DATA + r.below(DATA_LEN),
        };
    }
    s.gpr[4] = DATA + 0x2000 + (r.below(512) & !7);
    if r.below(8) == 0 {
        s.gpr[4] += r.below(8);
    }
    let status = r.next() & RFlags::STATUS.bits();
    s.rflags = RFlags::from_bits_retain(2 | status);
    for y in s.fp.ymm.iter_mut().flatten() {
        *y = if r.below(2) == 0 {
            r.next()
        } else {
            f64::from(r.next() as i32).to_bits()
        };
    }
    s
}

/// Instructions whose results are not a function of the state compared.
fn excluded(i: &Instruction, form: &Form) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(
        i.mnemonic(),
        Rdrand
            | Rdseed
            | Rdtsc
            | Rdtscp
            | Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Vrcpps
            | Vrcpss
            | Vrsqrtps
            | Vrsqrtss
            | Fnop
            | Ffreep
            | Prefetchit0
            | Prefetchit1
    ) || form.unit == Unit::X87
}

fn random_instruction(r: &mut Rng, vector: bool, model: &CpuModel) -> (Instruction, Vec<u8>) {
    loop {
        let mut b = [0u8; 15];
        for x in &mut b {
            *x = r.next() as u8;
        }
        let mut at = 0;
        let mut put = |v: u8| {
            b[at] = v;
            at += 1;
        };
        match r.below(12) {
            0 => put(0xf0),
            1 => put(0x65),
            2 => put(0x64),
            3 => put(0x67),
            4 | 5 => put(0x66),
            6 if vector => put(0xf2),
            7 if vector => put(0xf3),
            _ => {}
        }
        if vector && r.below(3) == 0 {
            put(0xc4);
            let map = (r.next() & 0xe0) as u8 | (1 + r.below(3)) as u8;
            put(map);
            put((r.next() & 0xff) as u8 | if r.below(2) == 0 { 0x78 } else { 0 });
        } else {
            if r.below(2) == 0 {
                put(0x40 | r.below(16) as u8);
            }
            if vector || r.below(3) == 0 {
                put(0x0f);
                match r.below(4) {
                    0 => put(0x38),
                    1 => put(0x3a),
                    _ => {}
                }
            }
        }
        let i = Decoder::with_ip(64, &b, CODE, DecoderOptions::NONE).decode();
        let Some(form) = lookup(i.code()) else {
            continue;
        };
        if !matches!(form.class, Class::Native | Class::Nop)
            && !matches!(
                form.implicit_memory,
                ImplicitMemory::Push(_) | ImplicitMemory::Pop(_)
            )
            || form.class == Class::Control
            || form.class == Class::Monitor
            || !form.available(|f| model.has(f))
            || excluded(&i, form)
            || (form.unit != Unit::None) != vector
            || form.mem.access == Access::None && vector && r.below(2) == 0
        {
            continue;
        }
        return (i, b[..i.len()].to_vec());
    }
}

/// Status flags that are undefined after `program`, or where it may have been cut short.
fn undefined(program: &[Instruction], faulted: bool) -> u64 {
    let mut u = 0;
    for f in program.iter().filter_map(|i| lookup(i.code())) {
        let f = f.flags;
        if !f.conditional && !faulted {
            u &= !(f.written | f.cleared | f.set);
        }
        u |= f.undefined;
    }
    u64::from(u)
}

/// Some instruction of `program` depends on a flag that an earlier one left undefined: the result is
/// the processor's own, and the interpreter need not have the same.
fn depends_on_undefined(program: &[Instruction]) -> bool {
    (1..program.len()).any(|n| {
        let read = lookup(program[n].code()).map_or(0, |f| u64::from(f.flags.read));
        undefined(&program[..n], false) & read != 0
    })
}

fn run(machine: &mut Machine, state: &X86State, code: &[u8], data: &[u8]) -> (X86State, Vec<u8>) {
    machine.memory.write(CODE, code).unwrap();
    machine.memory.write(DATA, data).unwrap();
    let (exit, end) = machine.go(state);
    assert_eq!(exit, Exit::Halted);
    (end, machine.bytes([(DATA, data.len())]))
}

fn compare(seed: u64, cases: u64, vector: bool) {
    let model = common::model();
    let (mut interp, mut bt) = common::pair(prepare, true, &model);
    let mut r = Rng(seed);
    for case in 0..cases {
        let state = random_state(&mut r);
        let mut code = Vec::new();
        let mut program = Vec::new();
        for _ in 0..1 + r.below(6) {
            let (mut i, b) = random_instruction(&mut r, vector, &model);
            i.set_ip(CODE + code.len() as u64);
            program.push(i);
            code.extend(b);
        }
        if depends_on_undefined(&program) {
            continue;
        }
        code.push(0xf4);
        let data: Vec<u8> = (0..DATA_LEN + 64).map(|_| r.next() as u8).collect();
        let (mut a, ma) = run(&mut interp, &state, &code, &data);
        let (mut b, mb) = run(&mut bt, &state, &code, &data);
        let mask = RFlags::from_bits_retain(undefined(&program, a.rip < CODE));
        a.rflags.remove(mask);
        b.rflags.remove(mask);
        let diff = mimeo_arch_x86::state::diff(&a, &b);
        let memory = (0..ma.len()).find(|n| ma[*n] != mb[*n]);
        if !diff.is_empty() || memory.is_some() {
            let text: Vec<_> = program.iter().map(|i| format!("{i}")).collect();
            let diff: Vec<_> = diff.iter().map(|d| format!("{d}")).collect();
            panic!(
                "case {case} (seed {seed}): {text:#?}\ninterp / bt: {diff:#?}\nmemory differs at {memory:x?}\n\
                 flags before {:?}\nregisters before {:x?}",
                state.rflags, state.gpr
            );
        }
    }
}

fn cases(default: u64) -> u64 {
    std::env::var("MIMEO_LOCKSTEP_CASES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

#[test]
fn integer_programs() {
    compare(1, cases(6_000), false);
}

#[test]
fn vector_programs() {
    compare(2, cases(4_000), true);
}

/// #GP at a branch whose target is not canonical belongs to the branch: RIP, RSP and memory are as
/// before it.
#[test]
fn branches_to_non_canonical_targets() {
    let model = common::model();
    let (mut interp, mut bt) = common::pair(prepare, true, &model);
    // The target is in RAX and at [RSP]: ret; ret 16; jmp rax; call rax; jmp [rsp]; call [rsp]
    let programs: [&[u8]; 6] = [
        &[0xc3],
        &[0xc2, 0x10, 0],
        &[0xff, 0xe0],
        &[0xff, 0xd0],
        &[0xff, 0x24, 0x24],
        &[0xff, 0x14, 0x24],
    ];
    let mut r = Rng(9);
    for target in [
        1 << 47,
        (1 << 47) - 1,
        0xffff_7fff_ffff_ffff,
        0x8000_0000_0010_0000,
        0x1_0000_0010_0008,
    ] {
        for code in programs {
            let mut state = random_state(&mut r);
            state.gpr[0] = target;
            state.gpr[4] = DATA + 0x800;
            let mut data = vec![0x55; DATA_LEN as usize];
            data[0x800..0x808].copy_from_slice(&u64::to_le_bytes(target));
            let (a, ma) = run(&mut interp, &state, code, &data);
            let (b, mb) = run(&mut bt, &state, code, &data);
            let diff = mimeo_arch_x86::state::diff(&a, &b);
            assert!(diff.is_empty(), "{code:x?} to {target:#x}: {diff:?}");
            assert_eq!(ma, mb, "{code:x?} to {target:#x}");
        }
    }
}
