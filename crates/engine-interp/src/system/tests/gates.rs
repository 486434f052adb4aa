//! Far JMP, CALL and RET: code segments, call gates of three sizes, return to outer levels.

use super::*;

/// call far FREE:0 (32-bit code).
fn call_far(selector: u16) -> Vec<u8> {
    let mut code = vec![0x9a, 0, 0, 0, 0];
    code.extend(selector.to_le_bytes());
    code
}

fn jmp_far(selector: u16, ip: u32) -> Vec<u8> {
    let mut code = vec![0xea];
    code.extend(ip.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

#[test]
fn jumps_to_code_by_privilege() {
    // (access, cpl, rpl) -> allowed
    for (access, cpl, rpl, ok) in [
        (0x9b, 0, 0, true),
        (0x9b, 0, 3, false),
        (0x9b, 3, 3, false),
        (0xfb, 3, 3, true),
        (0xfb, 0, 0, false),
        (0x9f, 3, 3, true),
        (0xff, 0, 0, false),
        (0x93, 0, 0, false),
    ] {
        let mut m = Machine::new(Mode::Protected, cpl, &jmp_far(FREE | rpl, HANDLER as u32));
        m.set_gdt(FREE, descriptor(0, 0xf_ffff, access, 0xc));
        if ok {
            m.ok();
            assert_eq!(m.cpu.state.rip, HANDLER);
            assert_eq!(m.sel(Seg::Cs), FREE | u16::from(cpl), "RPL is CPL");
            assert_eq!(m.cpu.state.cpl, cpl);
        } else {
            assert_eq!(
                m.fault(),
                (Vector::Gp, Some(FREE.into())),
                "{access:#x} {cpl} {rpl}"
            );
        }
    }
    let mut m = Machine::new(Mode::Protected, 0, &jmp_far(FREE, 0x1001));
    m.set_gdt(FREE, descriptor(0, 0x1000, 0x9b, 4));
    assert_eq!(m.fault(), (Vector::Gp, Some(0)), "beyond the limit");
    let mut m = Machine::new(Mode::Protected, 0, &jmp_far(FREE, 0));
    m.set_gdt(FREE, descriptor(0, 0x1000, 0x1b, 4));
    assert_eq!(m.fault(), (Vector::Np, Some(FREE.into())));
    let mut m = Machine::new(Mode::Protected, 0, &jmp_far(0, 0));
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
}

#[test]
fn call_gate_switches_stacks_and_copies_parameters() {
    let mut m = Machine::new(Mode::Protected, 3, &call_far(FREE | 3));
    m.set_gdt(FREE, gate(KCODE, HANDLER as u32, 0xec, 2));
    m.put(STACK, &[1, 0, 0, 0, 2, 0, 0, 0]);
    m.ok();
    assert_eq!((m.cpu.state.rip, m.cpu.state.cpl), (HANDLER, 0));
    assert_eq!((m.sel(Seg::Cs), m.sel(Seg::Ss)), (KCODE, KDATA));
    let sp = m.get(Gpr::Rsp);
    assert_eq!(sp, KERNEL_STACK - 24);
    let frame: Vec<u32> = (0..6).map(|n| m.u32(sp + 4 * n)).collect();
    let want = [
        CODE as u32 + 7,
        UCODE.into(),
        1,
        2,
        STACK as u32,
        UDATA.into(),
    ];
    assert_eq!(frame, want);
    // retf 8 releases the parameters on both stacks and drops inner data segments.
    m.put(HANDLER, &[0xca, 8, 0]);
    m.with(|s| s.seg[Seg::Ds as usize] = flat(KDATA, 0xc093));
    m.ok();
    assert_eq!((m.cpu.state.rip, m.cpu.state.cpl), (CODE + 7, 3));
    assert_eq!((m.sel(Seg::Cs), m.sel(Seg::Ss)), (UCODE, UDATA));
    assert_eq!(m.get(Gpr::Rsp), STACK + 8);
    assert!(m.cpu.state.segment(Seg::Ds).unusable());
    assert!(!m.cpu.state.segment(Seg::Es).unusable(), "DPL 3 stays");
}

#[test]
fn sixteen_bit_gate_and_same_level() {
    let mut m = Machine::new(Mode::Protected, 3, &call_far(FREE | 3));
    m.set_gdt(FREE, gate(KCODE, 0xdead_9000, 0xe4, 1));
    m.put(STACK, &[0x34, 0x12]);
    m.ok();
    assert_eq!(m.cpu.state.rip, 0x9000);
    let sp = m.get(Gpr::Rsp);
    let frame: Vec<u16> = (0..5).map(|n| m.u16(sp + 2 * n)).collect();
    assert_eq!(frame, [CODE as u16 + 7, UCODE, 0x1234, STACK as u16, UDATA]);
    let mut m = Machine::new(Mode::Protected, 0, &call_far(FREE));
    m.set_gdt(FREE, gate(KCODE, HANDLER as u32, 0x8c, 7));
    m.ok();
    assert_eq!(m.get(Gpr::Rsp), STACK - 8, "no stack switch, no parameters");
    assert_eq!(m.u32(STACK - 8), CODE as u32 + 7);
}

#[test]
fn call_gate_faults() {
    let run = |gate_d: u64, cpl: u8, change: fn(&mut Machine)| {
        let mut m = Machine::new(Mode::Protected, cpl, &call_far(FREE | u16::from(cpl)));
        m.set_gdt(FREE, gate_d);
        change(&mut m);
        m.fault()
    };
    let to = |sel: u16| gate(sel, HANDLER as u32, 0xec, 0);
    let none = |_: &mut Machine| ();
    let gp = |sel: u16| (Vector::Gp, Some(u32::from(sel)));
    assert_eq!(
        run(gate(KCODE, 0, 0x8c, 0), 3, none),
        gp(FREE),
        "gate's DPL"
    );
    assert_eq!(
        run(gate(KCODE, 0, 0x6c, 0), 3, none),
        (Vector::Np, Some(FREE.into()))
    );
    assert_eq!(run(to(0), 3, none), gp(0));
    assert_eq!(run(to(KDATA), 3, none), gp(KDATA));
    assert_eq!(run(to(UCODE), 0, none), gp(UCODE & !3), "outward");
    assert_eq!(run(to(0x1f8), 3, none), gp(0x1f8));
    let ts = |code: u16| (Vector::Ts, Some(u32::from(code)));
    let stack = |m: &mut Machine| m.put(TSS + 8, &UDATA.to_le_bytes());
    assert_eq!(
        run(to(KCODE), 3, stack),
        ts(UDATA & !3),
        "stack of the wrong level"
    );
    let null = |m: &mut Machine| m.put(TSS + 8, &[0, 0]);
    assert_eq!(run(to(KCODE), 3, null), ts(0));
    let short = |m: &mut Machine| m.with(|s| s.tr.limit = 8);
    assert_eq!(run(to(KCODE), 3, short), ts(TSS_SEL));
    let absent = |m: &mut Machine| m.set_gdt(KDATA, descriptor(0, 0xf_ffff, 0x13, 0xc));
    assert_eq!(run(to(KCODE), 3, absent), (Vector::Ss, Some(KDATA.into())));
    let small = |m: &mut Machine| m.set_gdt(KDATA, descriptor(0, 0x1000, 0x93, 4));
    assert_eq!(
        run(to(KCODE), 3, small),
        (Vector::Ss, Some(KDATA.into())),
        "no room"
    );
    // JMP may not change the level.
    let mut m = Machine::new(Mode::Protected, 3, &jmp_far(FREE | 3, 0));
    m.set_gdt(FREE, to(KCODE));
    assert_eq!(m.fault(), gp(KCODE));
}

#[test]
fn long_mode_call_gate() {
    // call far [0x500], then retfq in the handler.
    let code = [0xff, 0x1c, 0x25, 0, 5, 0, 0];
    let mut m = Machine::long(3, &code);
    m.put(0x500, &[0, 0, 0, 0, (FREE | 3) as u8, 0]);
    m.set_gdt(FREE, gate(KCODE64, HANDLER as u32, 0xec, 3));
    m.set_gdt(FREE + 8, 0);
    m.ok();
    assert_eq!((m.cpu.state.rip, m.cpu.state.cpl), (HANDLER, 0));
    let sp = m.get(Gpr::Rsp);
    assert_eq!(sp, KERNEL_STACK - 32);
    let frame: Vec<u64> = (0..4).map(|n| m.u64(sp + 8 * n)).collect();
    assert_eq!(frame, [CODE + 7, UCODE64.into(), STACK, UDATA.into()]);
    assert!(m.cpu.state.segment(Seg::Ss).unusable());
    m.put(HANDLER, &[0x48, 0xcb]);
    m.ok();
    assert_eq!((m.cpu.state.cpl, m.get(Gpr::Rsp)), (3, STACK));
    // To 32-bit code, or with type bits in the upper half, #GP.
    let mut m = Machine::long(3, &code);
    m.put(0x500, &[0, 0, 0, 0, (FREE | 3) as u8, 0]);
    m.set_gdt(FREE, gate(KCODE, HANDLER as u32, 0xec, 0));
    assert_eq!(m.fault(), (Vector::Gp, Some(KCODE.into())));
    let mut m = Machine::long(3, &code);
    m.put(0x500, &[0, 0, 0, 0, (FREE | 3) as u8, 0]);
    m.set_gdt(FREE, gate(KCODE64, HANDLER as u32, 0xec, 0));
    m.set_gdt(FREE + 8, 1 << 41);
    assert_eq!(m.fault(), (Vector::Gp, Some(FREE.into())));
}

#[test]
fn long_mode_to_compatibility_code_and_back() {
    // push 0x1b; push 0x9000; retfq
    let code = [0x6a, UCODE as u8, 0x68, 0, 0x90, 0, 0, 0x48, 0xcb];
    let mut m = Machine::long(3, &code);
    m.put(HANDLER, &jmp_far(UCODE64, CODE as u32));
    for _ in 0..3 {
        m.ok();
    }
    assert!(!m.cpu.state.code64() && m.cpu.state.long_mode());
    assert_eq!(m.cpu.state.rip, HANDLER);
    m.ok();
    assert!(m.cpu.state.code64());
}

#[test]
fn returns_are_checked() {
    // retf with the frame on the stack.
    let run = |cpl: u8, cs: u16, ss: u16, change: fn(&mut Machine)| {
        let mut m = Machine::new(Mode::Protected, cpl, &[0xcb]);
        let frame = [HANDLER as u32, cs.into(), 0x5000, ss.into()];
        m.put(STACK, &frame.map(u32::to_le_bytes).concat());
        change(&mut m);
        m.fault()
    };
    let none = |_: &mut Machine| ();
    let gp = |sel: u16| (Vector::Gp, Some(u32::from(sel & !3)));
    assert_eq!(run(3, KCODE, 0, none), gp(KCODE), "inward");
    assert_eq!(run(0, 0, 0, none), gp(0));
    assert_eq!(run(0, KDATA, 0, none), gp(KDATA));
    assert_eq!(run(0, UCODE, KDATA, none), gp(KDATA), "SS of another level");
    assert_eq!(run(0, UCODE, 0, none), gp(0), "null SS");
    assert_eq!(run(0, KCODE | 3, UDATA, none), gp(KCODE), "DPL is not RPL");
    let absent = |m: &mut Machine| m.set_gdt(UDATA, descriptor(0, 0xf_ffff, 0x73, 0xc));
    assert_eq!(
        run(0, UCODE, UDATA, absent),
        (Vector::Ss, Some(u32::from(UDATA & !3)))
    );
    let gone = |m: &mut Machine| m.set_gdt(UCODE, descriptor(0, 0xf_ffff, 0x7b, 0xc));
    assert_eq!(
        run(0, UCODE, UDATA, gone),
        (Vector::Np, Some(u32::from(UCODE & !3)))
    );
}

#[test]
fn real_mode_calls_wrap_in_the_stack_segment() {
    // call far 0x1000:0x0010 with SP = 2: the pushes go to 0 and 0xfffe.
    let mut m = Machine::new(Mode::Real, 0, &[0x9a, 0x10, 0, 0, 0x10]);
    m.set(Gpr::Rsp, 0xabcd_0002);
    m.with(|s| s.seg[Seg::Ss as usize] = Segment::real_mode(0x4000));
    m.ok();
    assert_eq!(m.get(Gpr::Rsp), 0xabcd_fffe);
    assert_eq!((m.u16(0x4_0000), m.u16(0x4_fffe)), (0, CODE as u16 + 5));
    assert_eq!((m.sel(Seg::Cs), m.cpu.state.rip), (0x1000, 0x10));
    m.put(0x1_0010, &[0xca, 4, 0]);
    m.ok();
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rsp)), (CODE + 5, 0xabcd_0006));
}
