//! Changes of privilege, string and bit instructions on the translator and on the interpreter: same end
//! state, same memory.
//!
//! A small kernel and a user program, with a frame, flags, descriptors and MSRs that are usually plain and
//! sometimes wrong in one respect. Every program ends in HLT, if only in the handler of an exception, or in a
//! triple fault.

mod common;

use common::{Layout, Machine, Rng, flat, long_mode};
use mimeo_arch_x86::{Cr4, Efer, RFlags, Seg, Segment, X86State};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::Exit;

const RAM: u64 = 4 << 20;
const KERNEL: u64 = 0x10_0000;
const ENTRY: u64 = 0x10_1000;
const USER: u64 = 0x10_2000;
const DATA: u64 = 0x1f_8000;
const DATA_LEN: u64 = 0x7000;
/// The page after the data is not present.
const HOLE: u64 = DATA + DATA_LEN;
const STACK: u64 = 0x11_0000;
const GDT: u64 = 0xb000;
/// What is compared of memory (address, length): descriptors and exception frames, stacks, data.
const COMPARED: [(u64, u64); 3] = [(GDT, 0x5000), (STACK - 0x1000, 0x3000), (DATA, DATA_LEN)];

fn put(m: &GuestMemory, at: u64, v: u64) {
    m.write(at, &v.to_le_bytes()).unwrap();
}

/// The first 2 MB in 4 KB pages, all of them the user's too; every vector at a HLT on IST 1.
fn prepare(m: &GuestMemory) {
    put(m, 0x1000, 0x2007);
    put(m, 0x2000, 0x3007);
    put(m, 0x3000, 0x4007);
    for n in 0..512u64 {
        put(m, 0x4000 + n * 8, n << 12 | 7);
    }
    put(m, 0x4000 + (HOLE >> 12) * 8, 0);
    for v in 0..256u64 {
        let handler = 0x8000 + v;
        m.write(handler, &[0xf4]).unwrap();
        put(m, 0x9000 + v * 16, handler | 8 << 16 | 0x8e01 << 32);
        put(m, 0x9008 + v * 16, 0);
    }
    m.write(0xa000 + 36, &0xf000u64.to_le_bytes()).unwrap();
}

/// CPL 0 with the selectors that Linux has: 8 and 10h, 1bh (32-bit user code), 23h, 2bh.
fn kernel_state(r: &mut Rng) -> X86State {
    let mut s = long_mode(&Layout {
        cr3: 0x1000,
        tss: 0xa000,
        idt: 0x9000,
        gdt: GDT,
        rip: KERNEL,
    });
    s.cr4.set(Cr4::FSGSBASE, !r.one_in(4));
    s.cr2 = r.next();
    s.efer.set(Efer::SCE, !r.one_in(16));
    s.seg = [flat(0, Segment::UNUSABLE); 6];
    s.seg[Seg::Cs as usize] = flat(8, 0xa09b);
    s.seg[Seg::Ss as usize] = if r.one_in(4) {
        Segment::null_stack(0, 0)
    } else {
        flat(0x10, 0xc093)
    };
    if r.one_in(8) {
        s.seg[Seg::Ds as usize] = flat(0x10, 0xc093);
    }
    s.seg[Seg::Fs as usize].base = DATA;
    s.seg[Seg::Gs as usize].base = DATA + 0x1000;
    s.msr.kernel_gs_base = DATA + 0x2000;
    s.msr.star = 0x0018_0008_0000_0000;
    s.msr.lstar = ENTRY;
    s.msr.fmask = match r.below(6) {
        0 => 0x200,
        1 => r.next() & 0x3f_7fd5,
        _ => 0x25_7fd5,
    };
    s.gdtr.limit = if r.one_in(12) { 0x27 } else { 0x37 };
    for g in &mut s.gpr {
        *g = r.next();
    }
    let flags = r.next() & RFlags::STATUS.bits();
    s.rflags = RFlags::from_bits_retain(2 | flags);
    if r.one_in(12) {
        s.rflags |= RFlags::NT;
    }
    s.nmi_blocked = r.one_in(12);
    s
}

struct Case {
    state: X86State,
    memory: Vec<(u64, Vec<u8>)>,
    text: String,
    /// Flags that the program leaves undefined.
    undefined: RFlags,
}

fn run(machine: &mut Machine, case: &Case) -> (Exit, X86State, Vec<u8>) {
    for (at, bytes) in &case.memory {
        machine.memory.write(*at, bytes).unwrap();
    }
    let (exit, state) = machine.go(&case.state);
    let compared = COMPARED.map(|(at, len)| (at, len as usize));
    (exit, state, machine.bytes(compared))
}

/// Runs `cases` on both; `inline` names a form that mostly is to run translated.
fn compare(seed: u64, cases: u64, precise: bool, inline: &str, case: impl Fn(&mut Rng) -> Case) {
    let model = common::model();
    let (mut interp, mut bt) = common::pair(prepare, precise, &model);
    let mut r = Rng(seed);
    for n in 0..cases {
        let case = case(&mut r);
        let (ended, mut a, ma) = run(&mut interp, &case);
        let (end, mut b, mb) = run(&mut bt, &case);
        assert_eq!(ended, end, "case {n} (seed {seed}): {}", case.text);
        for s in [&mut a, &mut b] {
            s.rflags.remove(case.undefined);
        }
        let diff: Vec<_> = mimeo_arch_x86::state::diff(&a, &b)
            .iter()
            .map(ToString::to_string)
            .collect();
        let memory = (0..ma.len()).find(|n| ma[*n] != mb[*n]).map(|n| n + 0x8000);
        assert!(
            diff.is_empty() && memory.is_none(),
            "case {n} (seed {seed}): {}\ninterp / bt: {diff:#?}\nmemory differs at {memory:x?}",
            case.text
        );
    }
    let name = format!("fallback {inline}");
    let left = bt
        .vcpu
        .stats()
        .iter()
        .find(|s| s.0 == name)
        .map_or(0, |s| s.1);
    assert!(
        left * 4 < cases * 3,
        "{left} of {cases} left to the interpreter: {inline}"
    );
}

fn cases(default: u64) -> u64 {
    std::env::var("MIMEO_LOCKSTEP_CASES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// SYSCALL, SYSRETQ, IRETQ, HLT.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
const IRETQ: [u8; 2] = [0x48, 0xcf];
const HLT: u8 = 0xf4;

fn flags_image(r: &mut Rng) -> u64 {
    let plain = 2 | r.next() & 0x8d5 | r.pick(&[0, 0x200]);
    match r.below(20) {
        0 => plain | r.next() & 0x3f_7fd7 & !0x100,
        1 => plain | r.pick(&[1 << 10, 1 << 18, 1 << 21, 1 << 14, 3 << 12]),
        2 | 3 => plain | 1 << 16,
        _ => plain,
    }
}

fn descriptors(r: &mut Rng) -> Vec<u8> {
    let mut gdt = PLAIN;
    if r.one_in(6) {
        let n = 1 + r.below(6) as usize;
        // Not accessed, not present, a base or limit; but for the handlers' own CS also another DPL or
        // type (handlers at CPL 1 would never halt).
        let all = [40, 47, 16, 0, 43, 45, 53, 55];
        let bits = if n == 1 { &all[..4] } else { &all[..] };
        gdt[n] ^= 1 << r.pick(bits);
    }
    table(&gdt)
}

const PLAIN: [u64; 7] = [
    0u64,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
];

fn table(gdt: &[u64]) -> Vec<u8> {
    gdt.iter().flat_map(|d| d.to_le_bytes()).collect()
}

/// A frame for IRETQ to CPL 3, or to CPL 0, sometimes wrong.
fn frame(r: &mut Rng, user: bool, own: (u16, u16)) -> [u64; 5] {
    let (cs, ss) = if user {
        (0x2b, 0x23)
    } else {
        (u64::from(own.0), u64::from(own.1))
    };
    let mut f = [USER, cs, flags_image(r), STACK + 0x800, ss];
    if r.one_in(8) {
        let n = r.below(5) as usize;
        f[n] = match n {
            0 => r.pick(&[0x8000_0000_0000, HOLE, u64::MAX, 0xffff_8000_0000_0000]),
            1 | 4 => r.pick(&[0, 3, 8, 0x10, 0x1b, 0x23, 0x2b, 0x33, 0x30, 0x3b, 0x1_002b]),
            _ => r.next(),
        };
    }
    f
}

/// What user code may do before it calls the kernel again; it never writes RCX or R11.
fn user_work(r: &mut Rng) -> Vec<u8> {
    match r.below(5) {
        0 => vec![0x48, 0x01, 0xd8],             // add rax, rbx
        1 => vec![0x48, 0x89, 0x04, 0x24],       // mov [rsp], rax
        2 => vec![0x48, 0x39, 0xf7],             // cmp rdi, rsi
        3 => vec![0xf3, 0x48, 0x0f, 0xae, 0xc0], // rdfsbase rax
        _ => Vec::new(),
    }
}

/// IRETQ somewhere; there SYSCALL; the kernel returns by SYSRETQ or IRETQ; SYSCALL; HLT.
fn round_trip(r: &mut Rng) -> Case {
    let mut s = kernel_state(r);
    let user = !r.one_in(3);
    let own = (s.segment(Seg::Cs).selector, s.segment(Seg::Ss).selector);
    let f = frame(r, user, own);
    let sp = if r.one_in(10) {
        r.pick(&[STACK - 40, STACK + 0xff8, STACK + 3, HOLE - 16, HOLE])
    } else {
        STACK + 0x100
    };
    s.gpr[4] = sp;
    let back = r.below(3);
    let mut program = user_work(r);
    program.extend(SYSCALL);
    program.extend(user_work(r));
    program.extend(SYSCALL);
    program.push(HLT);
    // The entry: at the second call HLT, by a counter in memory.
    //   inc dword [DATA]; cmp dword [DATA], 2; jae halt; ...
    let counter = DATA as u32;
    let mut entry = vec![0xff, 0x04, 0x25];
    entry.extend(counter.to_le_bytes());
    entry.extend([0x83, 0x3c, 0x25]);
    entry.extend(counter.to_le_bytes());
    entry.push(2);
    let mut rest: Vec<u8> = Vec::new();
    match back {
        0 => rest.extend(SYSRETQ),
        1 => {
            // mov r11d, image; sysretq
            rest.extend([0x41, 0xbb]);
            rest.extend((flags_image(r) as u32).to_le_bytes());
            if r.one_in(8) {
                // mov rcx, 8000_0000_0000h
                rest.extend([0x48, 0xb9]);
                rest.extend(0x8000_0000_0000u64.to_le_bytes());
            }
            rest.extend(SYSRETQ);
        }
        _ => {
            // A frame from what SYSCALL left: push 23h; push rsp; push r11; push 2bh; push rcx; iretq
            rest.extend([0x6a, 0x23, 0x54, 0x41, 0x53, 0x6a, 0x2b, 0x51]);
            rest.extend(IRETQ);
        }
    }
    entry.extend([0x73, rest.len() as u8]); // jae
    entry.extend(rest);
    entry.push(HLT);
    let frame_at = sp.min(RAM / 2 - 64);
    let text = format!(
        "frame {f:x?} at {sp:x}, fmask {:x}, efer {:?}, return {back}",
        s.msr.fmask, s.efer
    );
    let memory = vec![
        (GDT, descriptors(r)),
        (DATA, vec![0; 8]),
        (KERNEL, IRETQ.to_vec()),
        (ENTRY, entry),
        (USER, program),
        (STACK - 0x100, vec![0; 0x1200]),
        (frame_at, f.iter().flat_map(|w| w.to_le_bytes()).collect()),
    ];
    Case {
        state: s,
        memory,
        text,
        undefined: RFlags::empty(),
    }
}

#[test]
fn privilege_changes() {
    compare(1, cases(3_000), true, "Iretq", round_trip);
    compare(6, cases(1_000), false, "Syscall", round_trip);
}

/// REP MOVS and STOS of every size about page ends, over each other, up to a hole, downwards.
fn string_case(r: &mut Rng) -> Case {
    let mut s = kernel_state(r);
    let mut address = |near: u64| match r.below(4) {
        0 => DATA + r.below(DATA_LEN),
        1 => DATA + 0x1000 * (1 + r.below(6)) - r.below(24),
        2 => near.wrapping_add(r.below(32)).wrapping_sub(16),
        _ => DATA + 0x1000 * r.below(7),
    };
    let rdi = address(DATA + 0x3000);
    let rsi = address(rdi);
    s.gpr[7] = rdi;
    s.gpr[6] = rsi;
    s.gpr[1] = match r.below(5) {
        0 => 0,
        1 => r.below(8),
        2 => r.below(600),
        3 => r.below(9000),
        _ => 0x1000 / r.pick(&[1u64, 2, 4, 8]),
    };
    s.gpr[4] = STACK;
    let down = r.one_in(8);
    let mut code = if down { vec![0xfd] } else { Vec::new() };
    if r.one_in(3) {
        code.extend([0x48, 0x39, 0xd8]); // cmp rax, rbx: flags that live across
    }
    if r.one_in(4) {
        code.push(0x66);
    }
    if !r.one_in(8) {
        code.push(0xf3);
    }
    if r.one_in(3) {
        code.push(0x48);
    }
    code.push(r.pick(&[0xa4, 0xa5, 0xaa, 0xab]));
    if r.one_in(2) {
        code.extend([0x0f, 0x92, 0xc3]); // setc bl
    }
    code.push(HLT);
    let text = format!(
        "{code:02x?} rcx {:x} rsi {rsi:x} rdi {rdi:x} flags {:?}",
        s.gpr[1], s.rflags
    );
    let data = (0..DATA_LEN).map(|_| r.next() as u8).collect();
    Case {
        state: s,
        memory: vec![
            (GDT, table(&PLAIN)),
            (KERNEL, code),
            (DATA, data),
            // Faults are compared by what their frames say.
            (0xe000, vec![0; 0x1000]),
        ],
        text,
        undefined: RFlags::empty(),
    }
}

#[test]
fn strings() {
    compare(2, cases(1_500), false, "Movsb_m8_m8", string_case);
    compare(3, cases(1_500), true, "Stosd_m32_EAX", string_case);
}

/// BT and its like with a register bit number, as 16, 32 and 64 bits, locked and not, beside page ends.
fn bit_case(r: &mut Rng) -> Case {
    let mut s = kernel_state(r);
    let base = r.pick(&[3u8, 5, 6, 7, 1, 2, 0]);
    let number = r.below(16) as u8;
    s.gpr[usize::from(number)] = match r.below(4) {
        0 => r.below(64),
        1 => r.below(0x4000).wrapping_sub(0x2000),
        2 => r.next(),
        _ => r.below(256).wrapping_sub(128),
    };
    if base != number {
        s.gpr[usize::from(base)] =
            DATA + 0x2000 + (r.below(0x2000) & if r.one_in(4) { !0 } else { !7 });
    }
    if number != 4 {
        s.gpr[4] = STACK;
    }
    let op = r.pick(&[0xa3u8, 0xab, 0xb3, 0xbb]);
    let mut code = Vec::new();
    if op != 0xa3 && r.one_in(3) {
        code.push(0xf0);
    }
    let wide = r.one_in(2);
    if !wide && r.one_in(4) {
        code.push(0x66);
    }
    code.push(0x40 | u8::from(wide) << 3 | (number >> 3) << 2);
    code.extend([0x0f, op]);
    code.extend([0x40 | (number & 7) << 3 | base, r.pick(&[0u8, 8, 0xf8])]);
    if r.one_in(2) {
        code.extend([0x0f, 0x94, 0xc3]); // setz bl: ZF is kept
    }
    code.push(HLT);
    let text = format!("{code:02x?} {:x?} {:?}", s.gpr, s.rflags);
    let data = (0..DATA_LEN).map(|_| r.next() as u8).collect();
    Case {
        state: s,
        memory: vec![
            (GDT, table(&PLAIN)),
            (KERNEL, code),
            (DATA, data),
            (STACK - 0x1000, vec![0; 0x2000]),
            (0xe000, vec![0; 0x1000]),
        ],
        text,
        undefined: RFlags::OF | RFlags::SF | RFlags::AF | RFlags::PF,
    }
}

#[test]
fn bit_strings() {
    compare(4, cases(3_000), true, "Bts_rm64_r64", bit_case);
}

/// System registers read and written in the middle of a block.
fn register_case(r: &mut Rng) -> Case {
    let mut s = kernel_state(r);
    s.gpr[4] = STACK;
    let mut code = Vec::new();
    for _ in 0..4 {
        let reg = r.below(8) as u8;
        match r.below(6) {
            0 => code.extend([0x0f, 0x20, 0xc0 | r.pick(&[0u8, 2, 3, 4]) << 3 | reg]),
            1 => code.extend([
                0xf3,
                0x48,
                0x0f,
                0xae,
                0xc0 | ((r.below(4) as u8) << 3) | reg,
            ]),
            // mov [rsp + 8], sreg
            2 => code.extend([0x8c, 0x44 | ((r.below(6) as u8) << 3), 0x24, 8]),
            3 => code.extend([0x48, 0xc7, 0xc0 | reg, 0, 0, 0, 1]), // mov reg, 1000000h
            // mov reg16, sreg: of the first eight registers and of the others
            4 => {
                let high = r.below(2) as u8;
                code.extend([0x66, 0x40 | high, 0x8c]);
                code.push(0xc0 | (r.below(6) as u8) << 3 | reg);
            }
            _ => code.extend([0x48, 0x39, 0xd8]),
        }
        if reg == 4 {
            code.extend([0x48, 0xbc]);
            code.extend(STACK.to_le_bytes());
        }
    }
    code.push(HLT);
    let text = format!("{code:02x?} {:x?} {:?} {:?}", s.gpr, s.rflags, s.cr4);
    Case {
        state: s,
        memory: vec![
            (GDT, table(&PLAIN)),
            (KERNEL, code),
            (STACK, vec![0; 64]),
            (0xe000, vec![0; 0x1000]),
        ],
        text,
        undefined: RFlags::STATUS,
    }
}

#[test]
fn system_registers() {
    compare(5, cases(1_500), true, "Mov_r64_cr", register_case);
}
