//! Hand-made blocks: the documented patterns pass; each broken rule is named.

use iced_x86::code_asm::*;
use mimeo_bt_verify::{Block, Contract, verify};

const SITE: i32 = -64;
const CACHE: i32 = -28 - (16 << 16);
const VIEW: i32 = -16;
const ACTIVE: i32 = -96;
const HOST_RSP: i32 = -80;
const MASK: i32 = -24;
const EXIT: u32 = 0x10;
const HOT: u32 = 0x1000;
const COLD: u32 = 0x8000;

fn contract() -> Contract {
    Contract {
        readable: vec![-56..0, 0..128],
        writable: vec![0..64, 64..128],
        site: SITE,
        view: ACTIVE,
        views: vec![VIEW],
        page_mask: MASK,
        bias: 28,
        cache_entries: 1 << 16,
    }
}

/// Assembles `body` as a block of one guest instruction that ends by leaving at site 7; `miss` is where
/// checks branch to.
fn check(body: impl FnOnce(&mut CodeAssembler, CodeLabel)) -> Result<(), String> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut miss = a.create_label();
    body(&mut a, miss);
    a.set_label(&mut miss).unwrap();
    a.mov(dword_ptr(rsp + SITE), 7).unwrap();
    a.jmp(u64::from(EXIT)).unwrap();
    run(&a.assemble(u64::from(HOT)).unwrap())
}

fn run(hot: &[u8]) -> Result<(), String> {
    let block = Block {
        hot,
        hot_at: HOT,
        cold: &[],
        cold_at: COLD,
        entries: &[0],
        exit: EXIT,
        sites: 5..9,
    };
    verify(&block, &contract()).map_err(|r| r.why)
}

/// A checked eight-byte access at RBX through the given table: r11 = addend.
fn lookup(a: &mut CodeAssembler, miss: CodeLabel, write: bool) {
    a.rorx(r11, rbx, 48).unwrap();
    a.shrx(r11, r11, r15).unwrap();
    if write {
        a.mov(r11, qword_ptr(r15 + r11 * 8 - 28).gs()).unwrap();
    } else {
        a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
    }
    a.test(r11, r11).unwrap();
    a.je(miss).unwrap();
}

fn aligned(a: &mut CodeAssembler, miss: CodeLabel, mask: i32) {
    a.test(bl, mask).unwrap();
    a.jne(miss).unwrap();
}

fn rejected(result: Result<(), String>, why: &str) {
    let got = result.expect_err(why);
    assert!(got.contains(why), "{got:?} is not {why:?}");
}

#[test]
fn checked_loads_stores_and_constants_pass() {
    check(|a, miss| {
        lookup(a, miss, false);
        aligned(a, miss, 7);
        a.mov(rax, qword_ptr(rbx + r11)).unwrap();
        a.add(rcx, qword_ptr(rbx + r11)).unwrap();
        lookup(a, miss, true);
        a.xadd(qword_ptr(rbx + r11), rax).unwrap();
        a.lea(r10, qword_ptr(rbx + r11)).unwrap();
        a.mov(dword_ptr(r10), 5).unwrap();
    })
    .unwrap();
    check(|a, miss| {
        a.mov(r11, 0xf_f810_0000u64).unwrap();
        a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
        a.test(r11, r11).unwrap();
        a.je(miss).unwrap();
        a.mov(r10, 0xffff_ff81_0000_0ff8u64).unwrap();
        a.mov(rax, qword_ptr(r10 + r11)).unwrap();
    })
    .unwrap();
}

#[test]
fn the_straddle_test_counts() {
    let with = |size: i32| {
        check(|a, miss| {
            a.mov(r11d, ebx).unwrap();
            a.or(r11d, -4096).unwrap();
            a.add(r11d, size - 1).unwrap();
            a.jb(miss).unwrap();
            lookup(a, miss, false);
            a.vmovdqu(ymm0, ymmword_ptr(rbx + r11)).unwrap();
        })
    };
    with(32).unwrap();
    rejected(with(16), "straddle");
    rejected(
        check(|a, miss| {
            lookup(a, miss, false);
            aligned(a, miss, 3);
            a.mov(rax, qword_ptr(rbx + r11)).unwrap();
        }),
        "straddle",
    );
    // An instruction that faults by itself needs no test; its unaligned sister does.
    let moved = |unaligned: bool| {
        check(|a, miss| {
            lookup(a, miss, false);
            if unaligned {
                a.movups(xmm1, xmmword_ptr(rbx + r11))
            } else {
                a.movaps(xmm1, xmmword_ptr(rbx + r11))
            }
            .unwrap();
        })
    };
    moved(false).unwrap();
    rejected(moved(true), "straddle");
}

#[test]
fn wrong_addresses_are_rejected() {
    let byte = |f: &dyn Fn(&mut CodeAssembler, CodeLabel)| check(|a, miss| f(a, miss));
    rejected(byte(&|a, _| a.mov(al, byte_ptr(rbx)).unwrap()), "looked-up");
    rejected(
        byte(&|a, _| a.mov(al, byte_ptr(0x1000)).unwrap()),
        "displacement",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.mov(al, byte_ptr(rcx + r11)).unwrap()
        }),
        "looked up",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.mov(al, byte_ptr(rbx + r11 + 1)).unwrap()
        }),
        "displacement",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.mov(al, byte_ptr(rbx + r11 * 2)).unwrap()
        }),
        "looked-up",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.inc(rbx).unwrap();
            a.mov(al, byte_ptr(rbx + r11)).unwrap()
        }),
        "looked up",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.inc(r11).unwrap();
            a.mov(al, byte_ptr(rbx + r11)).unwrap()
        }),
        "looked up",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.mov(byte_ptr(rbx + r11), al).unwrap()
        }),
        "read table",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, false);
            a.xchg(byte_ptr(rbx + r11), al).unwrap()
        }),
        "read table",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, true);
            a.mov(byte_ptr(rbx + r11).fs(), al).unwrap()
        }),
        "segment",
    );
    rejected(
        byte(&|a, m| {
            lookup(a, m, true);
            aligned(a, m, 7);
            a.bts(qword_ptr(rbx + r11), rax).unwrap()
        }),
        "bit offset",
    );
}

#[test]
fn the_lookup_itself_is_checked() {
    // The test of the addend is missing, or is about another copy.
    let without_test = |second: bool| {
        check(|a, miss| {
            if second {
                lookup(a, miss, false);
            }
            a.rorx(r11, rbx, 48).unwrap();
            a.shrx(r11, r11, r15).unwrap();
            a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
            a.mov(al, byte_ptr(rbx + r11)).unwrap();
        })
    };
    rejected(without_test(false), "looked up");
    rejected(without_test(true), "looked up");
    // The index is not bounded.
    rejected(
        check(|a, _| {
            a.mov(r11, rbx).unwrap();
            a.sar(r11, 12).unwrap();
            a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
        }),
        "bounded",
    );
    rejected(
        check(|a, _| {
            a.rorx(r11, rbx, 47).unwrap();
            a.shrx(r11, r11, r15).unwrap();
            a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
        }),
        "bounded",
    );
    // PEXT with the mask, and with something else.
    let gathered = |from: i32, of: AsmRegister64| {
        check(|a, miss| {
            a.pext(r11, of, qword_ptr(rsp + from)).unwrap();
            a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
            a.test(r11, r11).unwrap();
            a.je(miss).unwrap();
            a.mov(al, byte_ptr(rbx + r11)).unwrap();
        })
    };
    gathered(MASK, rbx).unwrap();
    rejected(gathered(MASK, rcx), "looked up");
    rejected(gathered(MASK - 8, rbx), "bounded");
    // A store into the table, another displacement, the wrong segment.
    for n in 0..3 {
        let result = check(|a, _| {
            a.rorx(r11, rbx, 48).unwrap();
            a.shrx(r11, r11, r15).unwrap();
            match n {
                0 => a.mov(qword_ptr(r15 + r11 * 8 - 28), rax),
                1 => a.mov(r11, qword_ptr(r15 + r11 * 8 - 20)),
                _ => a.mov(r11, qword_ptr(r15 + r11 * 8 - 28).fs()),
            }
            .unwrap();
        });
        rejected(result, if n == 2 { "segment" } else { "table lookup" });
    }
    // Another view's addend.
    rejected(
        check(|a, miss| {
            lookup(a, miss, false);
            a.mov(r15, qword_ptr(rsp + VIEW)).unwrap();
            a.mov(al, byte_ptr(rbx + r11)).unwrap();
        }),
        "looked up",
    );
}

#[test]
fn a_value_of_an_earlier_iteration_is_not_this_one() {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut miss, mut again, mut body) = (a.create_label(), a.create_label(), a.create_label());
    a.nop().unwrap();
    a.set_label(&mut again).unwrap();
    a.lea(r10, qword_ptr(rbx + 8)).unwrap();
    a.jrcxz(body).unwrap();
    a.rorx(r11, r10, 48).unwrap();
    a.shrx(r11, r11, r15).unwrap();
    a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
    a.test(r11, r11).unwrap();
    a.je(miss).unwrap();
    a.jmp(again).unwrap();
    a.set_label(&mut body).unwrap();
    a.mov(al, byte_ptr(r10 + r11)).unwrap();
    a.set_label(&mut miss).unwrap();
    a.mov(dword_ptr(rsp + SITE), 7).unwrap();
    a.jmp(u64::from(EXIT)).unwrap();
    rejected(run(&a.assemble(u64::from(HOT)).unwrap()), "looked up");
}

#[test]
fn the_context_and_the_exit_are_guarded() {
    check(|a, _| {
        a.mov(rax, qword_ptr(rsp + 80)).unwrap();
        a.mov(qword_ptr(rsp + 80), rax).unwrap();
        a.mov(r15, qword_ptr(rsp + VIEW)).unwrap();
    })
    .unwrap();
    rejected(
        check(|a, _| a.mov(rax, qword_ptr(rsp + HOST_RSP)).unwrap()),
        "protected",
    );
    rejected(
        check(|a, _| a.mov(qword_ptr(rsp + HOST_RSP), rax).unwrap()),
        "protected",
    );
    rejected(
        check(|a, _| a.mov(qword_ptr(rsp + 60), rax).unwrap()),
        "protected",
    );
    rejected(
        check(|a, _| a.mov(rax, qword_ptr(rsp + rax)).unwrap()),
        "indexed",
    );
    rejected(
        check(|a, _| a.mov(dword_ptr(rsp + SITE), 9).unwrap()),
        "not this block's",
    );
    rejected(
        check(|a, _| a.jmp(u64::from(EXIT)).unwrap()),
        "without a site",
    );
    rejected(
        check(|a, _| a.jmp(u64::from(HOT + 1)).unwrap()),
        "no instruction",
    );
    rejected(check(|a, _| a.jmp(0x2000u64).unwrap()), "no instruction");
    rejected(run(&[0x90]), "no instruction");
}

#[test]
fn the_branch_cache_needs_its_tag() {
    const RIP: u64 = 0x7f12_1234_5678;
    let through = |compare: bool, tag: i32, host: i32| {
        check(|a, miss| {
            a.mov(r11, RIP).unwrap();
            if compare {
                a.cmp(r11, qword_ptr(r15 + CACHE + tag)).unwrap();
                a.jne(miss).unwrap();
            }
            a.mov(rcx, qword_ptr(rsp + 8)).unwrap();
            a.jmp(qword_ptr(r15 + CACHE + host)).unwrap();
        })
    };
    through(true, 0x5_6780, 0x5_6788).unwrap();
    // The second entry: bits 6 to 21.
    let second = 16 * i32::from((RIP >> 6) as u16);
    through(true, second, second + 8).unwrap();
    rejected(through(false, 0x5_6780, 0x5_6788), "tag");
    rejected(through(true, 0x5_6770, 0x5_6778), "tag");
    rejected(through(true, 0x5_6780, 0x5_6798), "tag");
    rejected(through(true, 0x5_6780, 0x5_6780), "not a branch-cache");
    rejected(through(true, 0x5_6788, 0x5_6788), "not a branch-cache");
    rejected(through(true, 0x5_6780, 0x10_0008), "not a branch-cache");
    rejected(through(true, 0x5_6780, -8), "not a branch-cache");
    // The branch that is taken when they differ.
    rejected(
        check(|a, miss| {
            a.mov(r11, RIP).unwrap();
            a.cmp(r11, qword_ptr(r15 + CACHE + 0x5_6780)).unwrap();
            a.je(miss).unwrap();
            a.jmp(qword_ptr(r15 + CACHE + 0x5_6788)).unwrap();
        }),
        "tag",
    );
    // An immediate stands for itself, sign-extended.
    let immediate = |imm: i32, at: i32| {
        check(|a, miss| {
            a.cmp(qword_ptr(r15 + CACHE + at), imm).unwrap();
            a.jne(miss).unwrap();
            a.jmp(qword_ptr(r15 + CACHE + at + 8)).unwrap();
        })
    };
    immediate(0x12_3456, 0x3_4560).unwrap();
    immediate(-0x7e00_0000, 0).unwrap();
    rejected(immediate(0x12_3456, 0x3_4570), "tag");
    // Nothing else may be done with the cache.
    rejected(
        check(|a, _| a.mov(rax, qword_ptr(r15 + CACHE)).unwrap()),
        "comparison",
    );
    rejected(
        check(|a, _| a.mov(qword_ptr(r15 + CACHE), rax).unwrap()),
        "comparison",
    );
}

#[test]
fn an_indirect_branch_takes_the_entry_that_it_compared() {
    let indirect = |broken: u32| {
        check(|a, miss| {
            if broken == 1 {
                a.rorx(r10, r11, 7).unwrap();
            } else {
                a.rorx(r10, r11, 6).unwrap();
            }
            a.movzx(r10d, r10w).unwrap();
            if broken != 2 {
                a.lea(r10, qword_ptr(r10 + r10)).unwrap();
            }
            if broken == 3 {
                a.cmp(rdx, qword_ptr(r15 + r10 * 8 + CACHE)).unwrap();
            } else {
                a.cmp(r11, qword_ptr(r15 + r10 * 8 + CACHE)).unwrap();
            }
            a.jne(miss).unwrap();
            match broken {
                4 => a.mov(r15, qword_ptr(rsp + VIEW)),
                5 => a.add(r10, 8),
                6 => a.mov(r11, rdx),
                _ => a.nop(),
            }
            .unwrap();
            a.jmp(qword_ptr(r15 + r10 * 8 + CACHE + 8)).unwrap();
        })
    };
    indirect(0).unwrap();
    // What was compared stays compared when the register changes afterwards.
    indirect(6).unwrap();
    for broken in 1..6 {
        assert!(indirect(broken).is_err(), "{broken}");
    }
    // The view changes between the comparison and the branch on its result.
    let switched = check(|a, miss| {
        a.movzx(r10d, r11w).unwrap();
        a.lea(r10, qword_ptr(r10 + r10)).unwrap();
        a.cmp(r11, qword_ptr(r15 + r10 * 8 + CACHE)).unwrap();
        a.mov(r15, qword_ptr(rsp + VIEW)).unwrap();
        a.jne(miss).unwrap();
        a.jmp(qword_ptr(r15 + r10 * 8 + CACHE + 8)).unwrap();
    });
    rejected(switched, "tag");
}

#[test]
fn system_instructions_and_reserved_registers_are_refused() {
    let one = |f: &dyn Fn(&mut CodeAssembler)| check(|a, _| f(a));
    rejected(one(&|a| a.syscall().unwrap()), "not on the list");
    rejected(one(&|a| a.push(rax).unwrap()), "stack");
    rejected(one(&|a| a.ret().unwrap()), "stack");
    rejected(one(&|a| a.call(rax).unwrap()), "stack");
    rejected(one(&|a| a.jmp(rax).unwrap()), "control flow");
    rejected(one(&|a| a.movsq().unwrap()), "plain operand");
    rejected(one(&|a| a.maskmovdqu(xmm0, xmm1).unwrap()), "plain operand");
    rejected(one(&|a| a.cpuid().unwrap()), "not on the list");
    rejected(one(&|a| a.lar(rax, rcx).unwrap()), "system");
    rejected(one(&|a| a.int3().unwrap()), "system");
    rejected(one(&|a| a.wrfsbase(rax).unwrap()), "not on the list");
    rejected(one(&|a| a.xgetbv().unwrap()), "not on the list");
    rejected(one(&|a| a.clzero().unwrap()), "not on the list");
    rejected(
        one(&|a| a.movdir64b(rax, zmmword_ptr(rsp)).unwrap()),
        "not on the list",
    );
    rejected(
        one(&|a| a.vpaddq(zmm0, zmm1, zmm2).unwrap()),
        "not on the list",
    );
    rejected(one(&|a| a.mov(r15, rax).unwrap()), "R15");
    rejected(one(&|a| a.xchg(rax, r15).unwrap()), "R15");
    rejected(one(&|a| a.lea(rsp, qword_ptr(rsp + 8)).unwrap()), "RSP");
    rejected(one(&|a| a.mov(fs, eax).unwrap()), "FS");
    rejected(one(&|a| a.fxsave(m512(rsp)).unwrap()), "");
}

fn m512(r: AsmRegister64) -> AsmMemoryOperand {
    zmmword_ptr(r)
}

#[test]
fn views_are_switched_among_the_known_ones() {
    check(|a, _| {
        a.mov(r15, qword_ptr(rsp + VIEW)).unwrap();
        a.mov(qword_ptr(rsp + ACTIVE), r15).unwrap();
    })
    .unwrap();
    rejected(
        check(|a, _| a.mov(qword_ptr(rsp + ACTIVE), rax).unwrap()),
        "unknown view",
    );
    rejected(
        check(|a, _| a.mov(dword_ptr(rsp + ACTIVE), 1).unwrap()),
        "unknown view",
    );
}

/// R11 = elements of `1 << shift` bytes from `[x]` to the end of its page; clobbers it alone.
fn left(a: &mut CodeAssembler, to: AsmRegister64, x: AsmRegister64, shift: u32) {
    a.mov(to, x).unwrap();
    a.or(to, -4096).unwrap();
    a.neg(to).unwrap();
    if shift > 0 {
        a.shr(to, shift).unwrap();
    }
}

/// REP STOSQ of at most RCX elements at the guest address in RDI.
fn stos(shift: u32, write: bool, count: impl Fn(&mut CodeAssembler)) -> Result<(), String> {
    check(|a, miss| {
        left(a, r10, rdi, shift);
        a.cmp(rcx, r10).unwrap();
        count(a);
        a.rorx(r11, rdi, 48).unwrap();
        a.shrx(r11, r11, r15).unwrap();
        if write {
            a.mov(r11, qword_ptr(r15 + r11 * 8 - 28).gs()).unwrap();
        } else {
            a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
        }
        a.test(r11, r11).unwrap();
        a.je(miss).unwrap();
        a.lea(rdi, qword_ptr(rdi + r11)).unwrap();
        a.mov(rcx, r10).unwrap();
        a.rep().stosq().unwrap();
    })
}

#[test]
fn repeated_stores_stay_in_their_page() {
    let lesser = |a: &mut CodeAssembler| a.cmovb(r10, rcx).unwrap();
    stos(3, true, lesser).unwrap();
    rejected(stos(2, true, lesser), "another size");
    rejected(stos(3, false, lesser), "not looked up");
    // The greater of both, the lesser after another comparison, and the count itself.
    rejected(
        stos(3, true, |a| a.cmovae(r10, rcx).unwrap()),
        "without a bound",
    );
    rejected(
        stos(3, true, |a| {
            a.cmp(rax, rdx).unwrap();
            a.cmovb(r10, rcx).unwrap();
        }),
        "without a bound",
    );
    rejected(
        stos(3, true, |a| {
            a.mov(rcx, rax).unwrap();
            a.cmovb(r10, rcx).unwrap();
        }),
        "without a bound",
    );
    rejected(
        stos(3, true, |a| a.mov(r10, rcx).unwrap()),
        "without a bound",
    );
    rejected(
        stos(3, true, |a| a.add(rdi, 8).unwrap()),
        "not looked up and counted",
    );
    // Without REP, or on an address that was never looked up.
    rejected(check(|a, _| a.stosq().unwrap()), "not a plain operand");
    rejected(check(|a, _| a.rep().stosq().unwrap()), "without a bound");
    rejected(
        check(|a, _| a.rep().scasb().unwrap()),
        "not a plain operand",
    );
}

#[test]
fn repeated_moves_are_bounded_by_both_pages() {
    let moves = |both: bool, checked: bool| {
        check(|a, miss| {
            left(a, r10, rdi, 0);
            if both {
                left(a, r11, rsi, 0);
                a.cmp(r11, r10).unwrap();
                a.cmovb(r10, r11).unwrap();
            }
            a.cmp(rcx, r10).unwrap();
            a.cmovb(r10, rcx).unwrap();
            for (r, write) in [(rdi, true), (rsi, false)] {
                a.rorx(r11, r, 48).unwrap();
                a.shrx(r11, r11, r15).unwrap();
                if write {
                    a.mov(r11, qword_ptr(r15 + r11 * 8 - 28).gs()).unwrap();
                } else {
                    a.mov(r11, qword_ptr(r15 + r11 * 8 - 28)).unwrap();
                }
                a.test(r11, r11).unwrap();
                if checked {
                    a.je(miss).unwrap();
                }
                a.lea(r, qword_ptr(r + r11)).unwrap();
            }
            a.mov(rcx, r10).unwrap();
            a.rep().movsb().unwrap();
        })
    };
    moves(true, true).unwrap();
    rejected(moves(false, true), "not looked up and counted");
    rejected(moves(true, false), "not looked up and counted");
}

#[test]
fn bit_numbers_are_bounded() {
    let bits = |mask: i32, wide: bool| {
        check(|a, miss| {
            lookup(a, miss, true);
            aligned(a, miss, 7);
            a.lea(r10, qword_ptr(rbx + r11)).unwrap();
            a.mov(r11, rax).unwrap();
            a.and(r11d, mask).unwrap();
            if wide {
                a.lock().bts(qword_ptr(r10), r11).unwrap();
            } else {
                a.bts(dword_ptr(r10), r11d).unwrap();
            }
        })
    };
    bits(63, true).unwrap();
    bits(31, false).unwrap();
    rejected(bits(63, false), "bit offset");
    rejected(bits(127, true), "bit offset");
    rejected(bits(-1, true), "bit offset");
}

#[test]
fn displacements_stay_in_what_fits() {
    let frame = |size: i32, disp: i32| {
        check(|a, miss| {
            a.mov(r11d, ebx).unwrap();
            a.or(r11d, -4096).unwrap();
            a.add(r11d, size - 1).unwrap();
            a.jb(miss).unwrap();
            lookup(a, miss, false);
            a.lea(r10, qword_ptr(rbx + r11)).unwrap();
            a.mov(rax, qword_ptr(r10 + disp)).unwrap();
        })
    };
    frame(40, 32).unwrap();
    rejected(frame(40, 33), "straddle");
    rejected(frame(40, -8), "displacement");
    rejected(frame(40, 4096), "displacement");
}
