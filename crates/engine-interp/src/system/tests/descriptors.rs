//! Segment loads by type, privilege and presence; LAR, LSL, VERR, VERW, ARPL; LLDT, LTR, LGDT.

use super::*;

/// `mov ds, ax`, `mov ss, ax`, `mov fs, ax`.
const MOV_DS: &[u8] = &[0x8e, 0xd8];
const MOV_SS: &[u8] = &[0x8e, 0xd0];

/// Loads a selector whose descriptor has `access`, at `cpl`.
fn load(code: &[u8], cpl: u8, rpl: u16, access: u8) -> Result<Segment, (Vector, Option<u32>)> {
    let mut m = Machine::new(Mode::Protected, cpl, code);
    m.set_gdt(FREE, descriptor(0x1234, 0xfff, access, 4));
    m.set(Gpr::Rax, u64::from(FREE | rpl));
    let seg = if code == MOV_SS { Seg::Ss } else { Seg::Ds };
    let old = *m.cpu.state.segment(seg);
    match m.step() {
        Step::Retired => {
            assert_eq!(m.gdt(FREE) >> 40 & 1, 1, "accessed is set");
            Ok(*m.cpu.state.segment(seg))
        }
        _ => {
            let e = m.first_exception();
            assert_eq!(*m.cpu.state.segment(seg), old);
            Err((e.vector, e.error_code))
        }
    }
}

#[test]
fn data_segments_by_type_and_privilege() {
    let gp = Err((Vector::Gp, Some(u32::from(FREE))));
    let np = Err((Vector::Np, Some(u32::from(FREE))));
    for kind in 0..32u8 {
        let (system, code) = (kind & 16 == 0, kind & 8 != 0);
        let readable = !system && (!code || kind & 2 != 0);
        let conforming = code && kind & 4 != 0;
        for cpl in [0, 3] {
            for rpl in [0, 3] {
                for dpl in [0, 3] {
                    let access = kind | dpl << 5;
                    let allowed = readable && (conforming || cpl.max(rpl as u8) <= dpl);
                    let present = load(MOV_DS, cpl, rpl, access | 0x80);
                    let absent = load(MOV_DS, cpl, rpl, access);
                    if allowed {
                        let s = present.unwrap();
                        assert_eq!((s.base, s.limit, s.selector), (0x1234, 0xfff, FREE | rpl));
                        assert_eq!(absent, np, "{kind:#x}");
                    } else {
                        assert_eq!(present, gp, "{kind:#x} {cpl} {rpl} {dpl}");
                        assert_eq!(absent, gp, "{kind:#x} {cpl} {rpl} {dpl}");
                    }
                }
            }
        }
    }
}

#[test]
fn stack_segments_are_stricter() {
    let gp = Err((Vector::Gp, Some(u32::from(FREE))));
    for kind in 0..32u8 {
        let writable = kind & 0x1a == 0x12;
        for (cpl, rpl, dpl) in [
            (0, 0, 0),
            (3, 3, 3),
            (0, 3, 0),
            (0, 0, 3),
            (3, 0, 3),
            (3, 3, 0),
        ] {
            let right = writable && u16::from(cpl) == rpl && cpl == dpl;
            let got = load(MOV_SS, cpl, rpl, kind | dpl << 5 | 0x80);
            if right {
                assert!(got.is_ok());
                let absent = load(MOV_SS, cpl, rpl, kind | dpl << 5);
                assert_eq!(absent, Err((Vector::Ss, Some(u32::from(FREE)))));
            } else {
                assert_eq!(got, gp, "{kind:#x} {cpl} {rpl} {dpl}");
            }
        }
    }
}

#[test]
fn null_and_outside_selectors() {
    let mut m = Machine::new(Mode::Protected, 0, MOV_DS);
    m.set(Gpr::Rax, 3);
    m.ok();
    assert!(m.cpu.state.segment(Seg::Ds).unusable());
    // Using it is #GP(0).
    m.put(CODE + 2, &[0x8a, 0x00]);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    let mut m = Machine::new(Mode::Protected, 0, MOV_SS);
    m.set(Gpr::Rax, 0);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    for selector in [0xb0, 0xfff8, 0x0c] {
        let mut m = Machine::new(Mode::Protected, 0, MOV_DS);
        m.set(Gpr::Rax, selector);
        let code = selector as u32 & 0xfffc;
        assert_eq!(
            m.fault(),
            (Vector::Gp, Some(code)),
            "no LDT, beyond the GDT"
        );
    }
    // In 64-bit mode SS may be null above ring 3, with RPL = CPL.
    let mut m = Machine::long(0, MOV_SS);
    m.set(Gpr::Rax, 0);
    m.ok();
    assert!(m.cpu.state.mov_ss_shadow);
    let mut m = Machine::long(3, MOV_SS);
    m.set(Gpr::Rax, 3);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
}

#[test]
fn real_mode_loads_keep_the_limit() {
    let mut m = Machine::new(Mode::Real, 0, MOV_DS);
    m.with(|s| s.seg[Seg::Ds as usize].limit = 0xffff_ffff);
    m.set(Gpr::Rax, 0x1234);
    m.ok();
    let ds = *m.cpu.state.segment(Seg::Ds);
    assert_eq!((ds.base, ds.limit), (0x1_2340, 0xffff_ffff));
}

/// Runs `code` (three bytes, r32 in EAX from the selector in CX) on a descriptor; EAX and ZF.
fn look(code: [u8; 3], mode: Mode, cpl: u8, access: u8) -> Option<u32> {
    let mut m = match mode {
        Mode::Long => Machine::long(cpl, &code),
        _ => Machine::new(mode, cpl, &code),
    };
    m.set_gdt(FREE, descriptor(0, 0x12345, access, 0xc));
    m.set(Gpr::Rcx, u64::from(FREE | u16::from(cpl)));
    m.set(Gpr::Rax, 0x7777);
    m.ok();
    let zf = m.cpu.state.rflags.contains(RFlags::ZF);
    if !zf {
        assert_eq!(m.get(Gpr::Rax), 0x7777, "unchanged");
    }
    zf.then_some(m.get(Gpr::Rax) as u32)
}

#[test]
fn lar_and_lsl_by_type() {
    const LAR: [u8; 3] = [0x0f, 0x02, 0xc1];
    const LSL: [u8; 3] = [0x0f, 0x03, 0xc1];
    for (mode, lar, lsl) in [
        (
            Mode::Protected,
            &[1, 2, 3, 4, 5, 9, 11, 12][..],
            &[1, 2, 3, 9, 11][..],
        ),
        (Mode::Long, &[2, 9, 11, 12], &[2, 9, 11]),
    ] {
        for kind in 0..16 {
            let rights = look(LAR, mode, 0, kind | 0x80);
            assert_eq!(rights.is_some(), lar.contains(&kind), "{mode:?} {kind}");
            let limit = look(LSL, mode, 0, kind | 0x80);
            assert_eq!(
                limit,
                lsl.contains(&kind).then_some(0x1234_5fff),
                "{mode:?} {kind}"
            );
        }
        assert_eq!(look(LAR, mode, 0, 0x93), Some(0x00c1_9300));
        assert_eq!(look(LAR, mode, 3, 0x93), None, "DPL 0 from ring 3");
        assert_eq!(look(LAR, mode, 3, 0x9f), Some(0x00c1_9f00), "conforming");
    }
}

#[test]
fn verr_and_verw() {
    for (access, cpl, read, write) in [
        (0x90, 0, true, false),
        (0x92, 0, true, true),
        (0x92, 3, false, false),
        (0x98, 0, false, false),
        (0x9a, 0, true, false),
        (0x9e, 3, true, false),
        (0x82, 0, false, false),
    ] {
        let zf = |code: [u8; 3]| {
            let mut m = Machine::new(Mode::Protected, cpl, &code);
            m.set_gdt(FREE, descriptor(0, 0, access, 0));
            m.set(Gpr::Rcx, u64::from(FREE));
            m.ok();
            m.cpu.state.rflags.contains(RFlags::ZF)
        };
        assert_eq!(zf([0x0f, 0x00, 0xe1]), read, "VERR {access:#x}");
        assert_eq!(zf([0x0f, 0x00, 0xe9]), write, "VERW {access:#x}");
    }
    let mut real = Machine::new(Mode::Real, 0, &[0x0f, 0x00, 0xe1]);
    assert_eq!(real.fault(), (Vector::Ud, None));
}

#[test]
fn arpl_raises_rpl() {
    for (dst, src, result, zf) in [(0x40, 3, 0x43, true), (0x43, 1, 0x43, false)] {
        let mut m = Machine::new(Mode::Protected, 3, &[0x63, 0xc8]);
        m.set(Gpr::Rax, dst);
        m.set(Gpr::Rcx, src);
        m.ok();
        assert_eq!(m.get(Gpr::Rax), result);
        assert_eq!(m.cpu.state.rflags.contains(RFlags::ZF), zf);
    }
}

#[test]
fn ldt_and_task_register() {
    // lldt cx; mov ds, ax from the LDT; ltr dx; str bx; sldt si
    let code = [
        0x0f, 0x00, 0xd1, 0x8e, 0xd8, 0x0f, 0x00, 0xda, 0x0f, 0x00, 0xcb, 0x0f, 0x00, 0xc6,
    ];
    let mut m = Machine::new(Mode::Protected, 0, &code);
    m.put(LDT + 8, &descriptor(0x5000, 0xff, 0x93, 4).to_le_bytes());
    m.set(Gpr::Rcx, LDT_SEL.into());
    m.set(Gpr::Rax, 0xc);
    m.set(Gpr::Rdx, TSS2_SEL.into());
    for _ in 0..5 {
        m.ok();
    }
    assert_eq!(m.cpu.state.segment(Seg::Ds).base, 0x5000);
    assert_eq!((m.cpu.state.tr.base, m.cpu.state.tr.attr), (TSS2, 0x8b));
    assert_eq!(m.gdt(TSS2_SEL) >> 40 & 15, 11, "busy");
    assert_eq!(
        (m.get(Gpr::Rbx), m.get(Gpr::Rsi)),
        (TSS2_SEL.into(), LDT_SEL.into())
    );
    for (code, selector, fault) in [
        (0xd1u8, TSS2_SEL, (Vector::Gp, TSS2_SEL)),
        (0xd1, 0xc, (Vector::Gp, 0xc)),
        (0xd9, 0, (Vector::Gp, 0)),
        (0xd9, TSS_SEL, (Vector::Gp, TSS_SEL)),
        (0xd9, LDT_SEL, (Vector::Gp, LDT_SEL)),
        (0xd9, FREE, (Vector::Np, FREE)),
        (0xd1, FREE + 8, (Vector::Np, FREE + 8)),
    ] {
        let mut m = Machine::new(Mode::Protected, 0, &[0x0f, 0x00, code]);
        m.set_gdt(FREE, descriptor(0, 0x67, 0x09, 0));
        m.set_gdt(FREE + 8, descriptor(0, 0x67, 0x02, 0));
        m.set(Gpr::Rcx, selector.into());
        assert_eq!(
            m.fault(),
            (fault.0, Some(fault.1.into())),
            "{code:#x} {selector:#x}"
        );
    }
    for code in [0xd1, 0xd9] {
        let mut m = Machine::new(Mode::Protected, 3, &[0x0f, 0x00, code]);
        assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    }
}

#[test]
fn long_mode_tables_are_canonical_and_16_bytes() {
    // lgdt [0x500]
    let mut m = Machine::long(0, &[0x0f, 0x01, 0x14, 0x25, 0, 5, 0, 0]);
    m.put(0x500, &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x40]);
    m.with(|_| ());
    // With LA57 in the model, 2^62 is the first bit pattern that is never canonical.
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    // ltr: the second quadword's type bits must be zero, its base counts.
    let mut m = Machine::long(0, &[0x0f, 0x00, 0xd9]);
    m.set(Gpr::Rcx, TSS2_SEL.into());
    m.put(
        GDT + u64::from(TSS2_SEL) + 8,
        &0x1_0000_1234u64.to_le_bytes(),
    );
    let mut bad = Machine::long(0, &[0x0f, 0x00, 0xd9]);
    bad.set(Gpr::Rcx, TSS2_SEL.into());
    bad.put(GDT + u64::from(TSS2_SEL) + 8, &(1u64 << 40).to_le_bytes());
    assert_eq!(bad.fault(), (Vector::Gp, Some(TSS2_SEL.into())));
    m.put(GDT + u64::from(TSS2_SEL) + 8, &0x1234u64.to_le_bytes());
    m.ok();
    assert_eq!(m.cpu.state.tr.base, 0x1234_0000_3400);
}
