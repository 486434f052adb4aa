//! Everything emitted decodes back to what was asked for.

use super::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

fn text(asm: &Asm) -> Vec<String> {
    let mut f = IntelFormatter::new();
    let mut d = Decoder::new(64, &asm.buf, DecoderOptions::NONE);
    let mut out = Vec::new();
    while d.can_decode() {
        let mut s = String::new();
        let i = d.decode();
        assert!(!i.is_invalid());
        f.format(&i, &mut s);
        out.push(s);
    }
    out
}

#[test]
fn every_base_and_index_decodes_back() {
    for base in 0..16u8 {
        for index in (0..16u8).filter(|&i| i != reg::RSP) {
            for disp in [0, 5, -128, 128, -70000] {
                for shift in 0..4 {
                    let mut a = Asm::default();
                    a.load(9, Mem::indexed(base, index, shift, disp));
                    let i = Decoder::new(64, &a.buf, DecoderOptions::NONE).decode();
                    assert_eq!(i.len(), a.buf.len());
                    assert_eq!(i.memory_base().number(), base as usize);
                    assert_eq!(i.memory_index().number(), index as usize);
                    assert_eq!(i.memory_index_scale(), 1 << shift);
                    assert_eq!(i.memory_displacement64() as i64, i64::from(disp));
                    assert_eq!(i.op0_register().number(), 9);
                }
            }
        }
    }
}

#[test]
fn each_helper_is_what_its_name_says() {
    let mut a = Asm::default();
    a.mov_rr(3, 12);
    a.lea(10, Mem::indexed(NO_BASE, 9, 3, 0x1000));
    a.store16(Mem::base(4, 8), 1);
    a.store_imm64(Mem::base(13, 0), -2);
    a.mov_imm(11, 7);
    a.mov_imm(0, u64::MAX);
    a.mov_imm(10, 0x1234_5678_9abc);
    a.rorx(11, 6, 48);
    a.shrx(11, 11, 15);
    a.load(
        11,
        Mem {
            gs: true,
            ..Mem::indexed(15, 11, 3, -28)
        },
    );
    a.test_rr(11, 11);
    a.test_r8_imm(6, 7);
    a.alu32_imm(1, 11, -4096);
    a.lahf();
    a.seto_al();
    a.add_al(0x7f);
    a.sahf();
    a.jmp_mem(Mem::base(10, 8));
    a.cmp_rm(11, Mem::base(10, 0));
    a.shl32(10, 4);
    a.movzx16(1, 11);
    assert_eq!(
        text(&a),
        [
            "mov rbx,r12",
            "lea r10,[r9*8+1000h]",
            "mov [rsp+8],cx",
            "mov qword ptr [r13],0FFFFFFFFFFFFFFFEh",
            "mov r11d,7",
            "mov rax,0FFFFFFFFFFFFFFFFh",
            "mov r10,123456789ABCh",
            "rorx r11,rsi,30h",
            "shrx r11,r11,r15",
            "mov r11,gs:[r15+r11*8-1Ch]",
            "test r11,r11",
            "test sil,7",
            "or r11d,0FFFFF000h",
            "lahf",
            "seto al",
            "add al,7Fh",
            "sahf",
            "jmp qword ptr [r10+8]",
            "cmp r11,[r10]",
            "shl r10d,4",
            "movzx ecx,r11w"
        ]
    );
}

#[test]
fn nops_fill_exactly() {
    for n in 0..40 {
        let mut a = Asm::default();
        a.nops(n);
        assert_eq!(a.pos(), n);
        assert!(
            text(&a)
                .iter()
                .all(|s| s.starts_with("nop") || s.starts_with("xchg"))
        );
    }
}
