//! Broken emitters: emitted blocks are changed as a defect of the emitter would change them, and the
//! independent verifier must reject what makes the block unsafe.
//!
//! Each class of mutation changes every place that it applies to, one at a time, in blocks made from
//! guest code that covers the shapes of memory access and control flow. Changes of the first classes are
//! always unsafe: all of them must be rejected. Random bit flips often leave a block safe (another
//! register, another constant): their rate is only held where it is.

use crate::decode::{self, Mode};
use crate::lower::{self, Emitted, Layout, Options};
use crate::shared::{contract, verify};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use mimeo_arch_x86::cpuid::{CpuModel, HostCpu};

const LAYOUT: Layout = Layout {
    hot: 0x1000,
    cold: 0x20_0000,
    exit: 0,
    first_site: 40,
};

/// Guest code: loads, stores and read-modify-writes of every size, constants, high registers that live in
/// memory, vectors with and without alignment, stack, calls, returns, branches, strings, bit strings, IRETQ
/// and SYSRETQ.
const GUEST: &[&[u8]] = &[
    &[
        0x48, 0x8b, 0x03, 0x48, 0x89, 0x43, 0x08, 0x8a, 0x0b, 0x88, 0x4b, 0x01, 0xc3,
    ],
    &[
        0x66, 0x8b, 0x03, 0x66, 0x89, 0x04, 0x4b, 0x8b, 0x44, 0x8b, 0x10, 0x89, 0x44, 0x8b, 0x20,
        0xc3,
    ],
    &[
        0x48, 0x01, 0x03, 0xf0, 0x48, 0x0f, 0xb1, 0x0b, 0xf0, 0xff, 0x03, 0x48, 0x87, 0x03, 0xff,
        0xe0,
    ],
    &[
        0x4c, 0x8b, 0x13, 0x4d, 0x89, 0x1a, 0x4d, 0x01, 0x5f, 0x08, 0x45, 0x8b, 0x36, 0xff, 0x10,
    ],
    &[
        0x0f, 0x10, 0x03, 0x0f, 0x29, 0x03, 0x66, 0x0f, 0x6f, 0x4b, 0x10, 0xf3, 0x0f, 0x7f, 0x0b,
        0xc3,
    ],
    &[
        0xc5, 0xfe, 0x6f, 0x03, 0xc5, 0xfe, 0x7f, 0x43, 0x20, 0xc5, 0xf8, 0x29, 0x03, 0xc3,
    ],
    &[
        0x50, 0x68, 0x78, 0x56, 0x34, 0x12, 0x5b, 0x41, 0x52, 0x41, 0x5f, 0xc9, 0xe8, 0, 1, 0, 0,
    ],
    &[
        0x8b, 0x05, 0x10, 0, 0, 0, 0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0x64, 0x89, 0x03,
        0xc3,
    ],
    &[
        0x48, 0x39, 0x03, 0x75, 0x05, 0x48, 0x83, 0x03, 0x01, 0xc3, 0xe2, 0xf4, 0xc2, 0x10, 0,
    ],
    &[
        0xd9, 0x03, 0xdd, 0x5b, 0x08, 0xdb, 0x2b, 0xdb, 0x7b, 0x10, 0x67, 0x8b, 0x03, 0xc3,
    ],
    &[
        0x9c, 0xfa, 0x48, 0x8b, 0x03, 0x9d, 0x0f, 0x01, 0xf8, 0x8c, 0xd8, 0xff, 0x33, 0xc3,
    ],
    // rep movsb, rep stosq, lock bts [rbx], rax, bt [rbx], ecx, ret
    &[
        0xf3, 0xa4, 0xf3, 0x48, 0xab, 0xf0, 0x48, 0x0f, 0xab, 0x03, 0x0f, 0xa3, 0x0b, 0xc3,
    ],
    &[0x48, 0xcf],
    &[0x48, 0x0f, 0x07],
];

fn model() -> CpuModel {
    use core::arch::x86_64::__cpuid_count;
    let host = HostCpu::from_cpuid(
        |leaf, sub| {
            let r = __cpuid_count(leaf, sub);
            [r.eax, r.ebx, r.ecx, r.edx]
        },
        7,
    );
    CpuModel::build("x86-64-v3", &host).unwrap().0
}

/// Every guest sequence, with flags kept exact and not.
fn blocks() -> Vec<Emitted> {
    let model = model();
    let mode = Mode(Mode::KERNEL | Mode::X87 | Mode::SSE | Mode::AVX);
    let mut out = Vec::new();
    for code in GUEST {
        for precise in [false, true] {
            let mut page = vec![0x90; 4096];
            page[0x100..0x100 + code.len()].copy_from_slice(code);
            let decoded = decode::block(&page, 0xffff_8000_0000_0100, mode, &model, precise, &[]);
            assert!(!decoded.insns.is_empty());
            let options = Options {
                chain_mask: !0xfff,
                split: false,
                trace: None,
                pext: false,
                misaligned: &[],
                precise,
                amd: false,
            };
            for pext in [false, true] {
                out.push(lower::lower(&decoded, Options { pext, ..options }, LAYOUT));
            }
        }
    }
    out
}

fn accepted(e: &Emitted) -> bool {
    verify(&contract(), LAYOUT, e).is_ok()
}

/// Both halves of a block, by a common way of reading and changing them.
fn halves() -> [(bool, u32); 2] {
    [(true, LAYOUT.hot), (false, LAYOUT.cold)]
}

fn bytes(e: &Emitted, hot: bool) -> &[u8] {
    if hot { &e.hot } else { &e.cold }
}

fn bytes_mut(e: &mut Emitted, hot: bool) -> &mut Vec<u8> {
    if hot { &mut e.hot } else { &mut e.cold }
}

fn copy(e: &Emitted) -> Emitted {
    Emitted {
        hot: e.hot.clone(),
        cold: e.cold.clone(),
        sites: e.sites.clone(),
        insns: e.insns.clone(),
        interp: e.interp,
    }
}

/// A host instruction, and where its constants are.
type Host = (Instruction, iced_x86::ConstantOffsets);

fn disassemble(code: &[u8], at: u32) -> Vec<Host> {
    let mut d = Decoder::with_ip(64, code, u64::from(at), DecoderOptions::NONE);
    let mut out = Vec::new();
    while d.can_decode() {
        let i = d.decode();
        out.push((i, d.get_constant_offsets(&i)));
    }
    out
}

fn is_memory(i: &Instruction) -> bool {
    i.op_kinds().any(|k| k == OpKind::Memory) && i.mnemonic() != Mnemonic::Lea
}

/// A read of the linear addend table.
fn is_lookup(i: &Instruction) -> bool {
    is_memory(i)
        && i.memory_base() == Register::R15
        && i.memory_displacement64() as i64 == -(crate::ctx::RL_BIAS as i64)
}

/// A use of the branch cache: the comparison of a tag, or the jump.
fn is_branch_cache(i: &Instruction) -> bool {
    is_memory(i) && i.memory_base() == Register::R15 && !is_lookup(i)
}

/// An access to guest memory: base and addend.
fn is_access(i: &Instruction) -> bool {
    is_memory(i) && i.memory_index() == Register::R11 && i.memory_index_scale() == 1
}

/// A change of some bytes of an instruction: offset in it, new byte.
type Edit = Vec<(usize, u8)>;

struct Class {
    name: &'static str,
    /// The edits of instruction `n`, each to be made alone.
    edits: fn(&[Host], usize, &[u8]) -> Vec<Edit>,
}

fn nops(len: usize) -> Edit {
    (0..len).map(|n| (n, 0x90)).collect()
}

/// Classes whose mutants are all unsafe.
const CLASSES: &[Class] = &[
    Class {
        name: "the test of a table entry dropped",
        edits: |code, n, _| {
            let i = &code[n].0;
            let after_test = n > 0
                && code[n - 1].0.code() == Code::Test_rm64_r64
                && i.mnemonic() == Mnemonic::Je;
            if after_test {
                vec![nops(i.len())]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "the test of a table entry inverted",
        edits: |code, n, bytes| {
            let i = &code[n].0;
            let after_test = n > 0
                && code[n - 1].0.code() == Code::Test_rm64_r64
                && i.mnemonic() == Mnemonic::Je
                && bytes[0] == 0x0f;
            if after_test {
                vec![vec![(1, 0x85)]]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "the straddle test dropped",
        edits: |code, n, _| {
            let i = &code[n].0;
            let before = n.checked_sub(1).map(|n| code[n].0);
            let test = before.is_some_and(|b| {
                let low = matches!(b.code(), Code::Test_rm8_imm8 | Code::Test_AL_imm8)
                    && b.op0_kind() == OpKind::Register;
                let carry = matches!(b.code(), Code::Add_rm32_imm8 | Code::Add_rm32_imm32)
                    && b.op0_register() == Register::R11D;
                low && i.mnemonic() == Mnemonic::Jne || carry && i.mnemonic() == Mnemonic::Jb
            });
            if test {
                vec![nops(i.len())]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "stores through the read table",
        edits: |code, n, bytes| {
            // Only where the access that follows writes.
            let next = code[n..].iter().map(|c| &c.0).find(|i| is_access(i));
            let writes = next
                .is_some_and(|i| i.mnemonic() == Mnemonic::Mov && i.op0_kind() == OpKind::Memory);
            if is_lookup(&code[n].0) && bytes[0] == 0x65 && writes {
                vec![vec![(0, 0x3e)]]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "another place in the table",
        edits: |code, n, bytes| {
            let (i, offsets) = &code[n];
            if is_lookup(i) && offsets.has_displacement() {
                let at = offsets.displacement_offset();
                vec![vec![(at, bytes[at] ^ 8)], vec![(at, bytes[at] ^ 1)]]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "the context block beyond its fields",
        edits: |code, n, bytes| {
            let (i, offsets) = &code[n];
            if is_memory(i) && i.memory_base() == Register::RSP && offsets.displacement_size() == 4
            {
                let at = offsets.displacement_offset();
                vec![vec![(at + 1, bytes[at + 1] ^ 0x40)]]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "guest memory at another register's address",
        edits: |code, n, bytes| {
            let i = &code[n].0;
            // SIB: the last byte of an access without displacement and immediate.
            let plain = i.memory_displ_size() == 0
                && i.op_kinds().all(|k| {
                    !matches!(
                        k,
                        OpKind::Immediate8
                            | OpKind::Immediate32
                            | OpKind::Immediate8to32
                            | OpKind::Immediate8to64
                            | OpKind::Immediate8to16
                            | OpKind::Immediate16
                            | OpKind::Immediate32to64
                    )
                });
            if !is_access(i) || !plain {
                return Vec::new();
            }
            let at = i.len() - 1;
            // RBP and R13 as a base would need a displacement: not an edit of one byte.
            (1..8u8)
                .map(|x| bytes[at] ^ x)
                .filter(|sib| sib & 7 != 5)
                .map(|sib| vec![(at, sib)])
                .collect()
        },
    },
    Class {
        name: "the addend scaled",
        edits: |code, n, bytes| {
            let i = &code[n].0;
            if is_access(i)
                && i.memory_displ_size() == 0
                && i.op_kinds()
                    .all(|k| matches!(k, OpKind::Register | OpKind::Memory))
            {
                let at = i.len() - 1;
                (1..4u8).map(|s| vec![(at, bytes[at] | s << 6)]).collect()
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "the index rotated wrongly",
        edits: |code, n, bytes| {
            let i = &code[n].0;
            let indexes = n + 2 < code.len() && is_lookup(&code[n + 2].0);
            if i.code() == Code::VEX_Rorx_r64_rm64_imm8 && indexes {
                let at = i.len() - 1;
                vec![
                    vec![(at, bytes[at] - 1)],
                    vec![(at, bytes[at] + 1)],
                    vec![(at, 0)],
                ]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "a branch into the middle of an instruction",
        edits: |code, n, bytes| {
            let (i, offsets) = &code[n];
            if i.is_jmp_short_or_near() || i.is_jcc_short_or_near() {
                let at = offsets.immediate_offset();
                vec![vec![(at, bytes[at].wrapping_add(1))]]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "a branch far away",
        edits: |code, n, bytes| {
            let (i, offsets) = &code[n];
            let near = i.is_jmp_near() || i.is_jcc_near();
            if near && offsets.immediate_size() == 4 {
                let at = offsets.immediate_offset();
                vec![
                    vec![(at + 3, bytes[at + 3] ^ 0x10)],
                    vec![(at + 2, bytes[at + 2] ^ 0x40)],
                ]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "another block's exit site",
        edits: |code, n, bytes| {
            let (i, offsets) = &code[n];
            let store = i.code() == Code::Mov_rm32_imm32 && i.memory_base() == Register::RSP;
            let leaves = code.get(n + 1).is_some_and(|c| {
                c.0.is_jmp_near() && c.0.near_branch_target() == u64::from(LAYOUT.exit)
            });
            if store && leaves {
                let at = offsets.immediate_offset();
                vec![vec![(at + 1, bytes[at + 1] ^ 4)]]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "an exit without its site",
        edits: |code, n, _| {
            let i = &code[n].0;
            let store = i.code() == Code::Mov_rm32_imm32 && i.memory_base() == Register::RSP;
            let leaves = code.get(n + 1).is_some_and(|c| {
                c.0.is_jmp_near() && c.0.near_branch_target() == u64::from(LAYOUT.exit)
            });
            if store && leaves {
                vec![nops(i.len())]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "an instruction that must not run on the host",
        edits: |code, n, _| {
            let mut all: Vec<Edit> = vec![vec![(0, 0xf4)], vec![(0, 0xcc)], vec![(0, 0xcf)]];
            if code[n].0.len() >= 2 {
                // syscall, cpuid, rdtscp's first bytes, ud2, sysenter
                for second in [0x05, 0xa2, 0x0b, 0x34] {
                    let mut edit = nops(code[n].0.len());
                    edit[0].1 = 0x0f;
                    edit[1].1 = second;
                    all.push(edit);
                }
            }
            all
        },
    },
    Class {
        name: "another entry of the branch cache",
        edits: |code, n, bytes| {
            let (i, offsets) = &code[n];
            if is_branch_cache(i) {
                let at = offsets.displacement_offset();
                vec![
                    vec![(at, bytes[at] ^ 8)],
                    vec![(at, bytes[at] ^ 1)],
                    vec![(at + 1, bytes[at + 1] ^ 1)],
                    vec![(at + 3, bytes[at + 3] ^ 0x80)],
                ]
            } else {
                Vec::new()
            }
        },
    },
    Class {
        name: "the branch cache's tag not compared",
        edits: |code, n, _| {
            let i = &code[n].0;
            let compares = i.mnemonic() == Mnemonic::Jne
                && n > 0
                && code[n - 1].0.mnemonic() == Mnemonic::Cmp
                && is_branch_cache(&code[n - 1].0);
            if compares {
                vec![nops(i.len())]
            } else {
                Vec::new()
            }
        },
    },
];

/// (mutants, rejected) of a class over all blocks; survivors are described.
fn run(class: &Class, blocks: &[Emitted]) -> (usize, usize, Vec<String>) {
    let (mut made, mut killed, mut survivors) = (0, 0, Vec::new());
    for e in blocks {
        for (hot, at) in halves() {
            let code = disassemble(bytes(e, hot), at);
            for (n, (i, _)) in code.iter().enumerate() {
                let start = (i.ip() as u32 - at) as usize;
                let own = &bytes(e, hot)[start..start + i.len()];
                for edit in (class.edits)(&code, n, own) {
                    let mut mutant = copy(e);
                    for (k, byte) in &edit {
                        bytes_mut(&mut mutant, hot)[start + k] = *byte;
                    }
                    made += 1;
                    if accepted(&mutant) {
                        survivors.push(format!("{i} at {:#x} with {edit:x?}", i.ip()));
                    } else {
                        killed += 1;
                    }
                }
            }
        }
    }
    (made, killed, survivors)
}

#[test]
fn what_the_emitter_makes_is_accepted() {
    for e in blocks() {
        verify(&contract(), LAYOUT, &e).unwrap();
    }
}

#[test]
fn broken_emitters_are_rejected() {
    let blocks = blocks();
    let mut all = (0, 0);
    for class in CLASSES {
        let (made, killed, survivors) = run(class, &blocks);
        println!("{killed:6} of {made:6} rejected: {}", class.name);
        assert!(made > 0, "`{}` applies nowhere", class.name);
        assert!(
            survivors.is_empty(),
            "{}: {} of {made} accepted, such as {:#?}",
            class.name,
            survivors.len(),
            &survivors[..survivors.len().min(8)]
        );
        all = (all.0 + made, all.1 + killed);
    }
    assert_eq!(all.0, all.1);
}

/// Every bit of every byte of the hot code flipped, one at a time. Many such blocks are safe (they only
/// compute something else), so the rate is a gauge of the verifier: it must not fall.
#[test]
fn most_bit_flips_are_rejected() {
    /// In percent.
    const HELD: usize = 78;
    let (mut made, mut killed) = (0usize, 0);
    for e in blocks().iter().step_by(2) {
        for n in 0..e.hot.len() * 8 {
            let mut mutant = copy(e);
            mutant.hot[n / 8] ^= 1 << (n % 8);
            made += 1;
            killed += usize::from(!accepted(&mutant));
        }
    }
    println!("{killed} of {made} bit flips rejected");
    assert!(killed * 100 >= made * HELD, "{killed} of {made}");
}
