//! Virtual-8086 mode: entry, INT n with and without VME, IOPL-sensitive instructions, exit.

use super::*;

/// A machine in virtual-8086 mode at 0900:0000, with a ring-0 handler for everything.
fn machine(code: &[u8], iopl: u8, vme: bool) -> Machine {
    let mut m = Machine::new(Mode::Protected, 3, &[]);
    m.put(0x9000, code);
    for vector in 0..=0x40 {
        m.set_idt(
            vector,
            gate(KCODE, 0xb000 + u32::from(vector) * 0x10, 0xee, 0),
        );
    }
    m.with(|s| {
        s.rflags = RFlags::FIXED1 | RFlags::VM;
        s.rflags |= RFlags::from_bits_truncate(u64::from(iopl) << 12);
        s.seg = [0x500; 6].map(|selector| Segment {
            attr: 0xf3,
            ..Segment::real_mode(selector)
        });
        s.seg[Seg::Cs as usize] = Segment {
            attr: 0xf3,
            ..Segment::real_mode(0x900)
        };
        s.rip = 0;
        s.gpr[Gpr::Rsp as usize] = 0x100;
        if vme {
            s.cr4 |= Cr4::VME;
        }
    });
    m
}

#[test]
fn interrupts_leave_with_nine_values_and_come_back() {
    let mut m = machine(&[0xcd, 0x40], 3, false);
    m.put(0xb400, &[0xcf]);
    m.with(|s| s.seg[Seg::Gs as usize].selector = 0x77);
    m.ok();
    assert_eq!((m.cpu.state.cpl, m.cpu.state.rip), (0, 0xb400));
    assert!(!m.cpu.state.rflags.contains(RFlags::VM));
    assert!(m.cpu.state.segment(Seg::Ds).unusable());
    let sp = m.get(Gpr::Rsp);
    let frame: Vec<u32> = (0..9).map(|n| m.u32(sp + 4 * n)).collect();
    assert_eq!(
        frame,
        [2, 0x900, 0x2_3002, 0x100, 0x500, 0x500, 0x500, 0x500, 0x77]
    );
    m.ok();
    assert!(m.cpu.state.rflags.contains(RFlags::VM));
    assert_eq!(
        (m.cpu.state.rip, m.sel(Seg::Gs), m.get(Gpr::Rsp)),
        (2, 0x77, 0x100)
    );
    assert_eq!(m.cpu.state.segment(Seg::Gs).base, 0x770);
}

#[test]
fn iopl_sensitive_instructions() {
    // CLI, STI, PUSHF, POPF, INT n, IRET; IN is not among them.
    for code in [
        &[0xfa][..],
        &[0xfb],
        &[0x9c],
        &[0x9d],
        &[0xcd, 0x40],
        &[0xcf],
    ] {
        let mut m = machine(code, 0, false);
        assert_eq!(m.fault(), (Vector::Gp, Some(0)), "{code:x?}");
    }
    let mut m = machine(&[0xfb, 0x9c, 0xfa], 3, false);
    m.ok();
    m.ok();
    assert_eq!(m.u16(0x5000 + 0xfe) & 0x3200, 0x3200);
    m.ok();
    assert!(!m.cpu.state.rflags.contains(RFlags::IF));
    // INT3 is not sensitive, HLT and MOV from CR0 are privileged, LLDT does not exist.
    let mut m = machine(&[0xcc], 0, false);
    m.ok();
    assert_eq!(m.cpu.state.rip, 0xb030);
    assert_eq!(machine(&[0xf4], 3, false).fault(), (Vector::Gp, Some(0)));
    assert_eq!(
        machine(&[0x0f, 0x20, 0xc0], 3, false).fault(),
        (Vector::Gp, Some(0))
    );
    assert_eq!(
        machine(&[0x0f, 0x00, 0xd0], 3, false).fault(),
        (Vector::Ud, None)
    );
}

#[test]
fn vme_virtualises_if() {
    // pushf; sti; pushf; cli; popf
    let mut m = machine(&[0x9c, 0xfb, 0x9c, 0xfa, 0x9d], 0, true);
    for _ in 0..3 {
        m.ok();
    }
    assert!(m.cpu.state.rflags.contains(RFlags::VIF));
    assert!(!m.cpu.state.rflags.contains(RFlags::IF));
    assert_eq!((m.u16(0x50fe), m.u16(0x50fc)), (0x3002, 0x3202));
    m.ok();
    assert!(!m.cpu.state.rflags.contains(RFlags::VIF));
    m.ok();
    assert!(
        m.cpu.state.rflags.contains(RFlags::VIF),
        "from the image's IF"
    );
    // With an interrupt pending, STI and a POPF that sets IF fault.
    let mut m = machine(&[0xfb], 0, true);
    m.with(|s| s.rflags |= RFlags::VIP);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    // 32-bit PUSHF stays sensitive.
    assert_eq!(
        machine(&[0x66, 0x9c], 0, true).fault(),
        (Vector::Gp, Some(0))
    );
}

#[test]
fn vme_redirects_interrupts() {
    // The bitmap's 32 bytes lie before the I/O map at 0x88: INT 21h to the program's own handler,
    // INT 40h to the monitor.
    let vm = |iopl| {
        let mut m = machine(&[0xcd, 0x21, 0xcd, 0x40], iopl, true);
        m.put(TSS + 0x66, &0x88u16.to_le_bytes());
        m.put(TSS + 0x68, &[0xff; 32]);
        m.put(TSS + 0x68 + 4, &[!2]);
        m.put(0x21 * 4, &[0x10, 0, 0x00, 0x0a]);
        m.with(|s| s.rflags |= RFlags::VIF);
        m
    };
    let mut m = vm(0);
    m.ok();
    assert!(m.cpu.state.rflags.contains(RFlags::VM));
    assert_eq!(
        (m.sel(Seg::Cs), m.cpu.state.rip, m.get(Gpr::Rsp)),
        (0xa00, 0x10, 0xfa)
    );
    assert_eq!(m.u16(0x50fe) & 0x3200, 0x3200, "VIF as IF, IOPL 3");
    assert!(!m.cpu.state.rflags.contains(RFlags::VIF));
    m.put(0xa010, &[0xcf]);
    m.ok();
    assert_eq!((m.sel(Seg::Cs), m.cpu.state.rip), (0x900, 2));
    assert!(m.cpu.state.rflags.contains(RFlags::VIF));
    assert_eq!(m.fault(), (Vector::Gp, Some(0)), "set bit, IOPL 0");
    let mut m = vm(3);
    m.with(|s| s.rip = 2);
    m.ok();
    assert_eq!(m.cpu.state.rip, 0xb400, "set bit, IOPL 3");
}

#[test]
fn bad_handlers() {
    // The handler must be ring 0, non-conforming.
    for access in [0xfb, 0x9f] {
        let mut m = machine(&[0xcd, 0x40], 3, false);
        m.set_gdt(FREE, descriptor(0, 0xf_ffff, access, 0xc));
        m.set_idt(0x40, gate(FREE, 0, 0xee, 0));
        m.set_idt(13, 0);
        m.set_idt(8, 0);
        assert_eq!(m.fault(), (Vector::Gp, Some(FREE.into())), "{access:#x}");
    }
}
