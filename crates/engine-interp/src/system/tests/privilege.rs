//! Privileged instructions by CPL, IOPL and mode; the I/O bitmap; control registers and MSRs; fast
//! system calls.

use super::*;

#[test]
fn ring_0_only() {
    for (code, name) in [
        (&[0xf4][..], "hlt"),
        (&[0x0f, 0x06], "clts"),
        (&[0x0f, 0x20, 0xc0], "mov eax, cr0"),
        (&[0x0f, 0x22, 0xc0], "mov cr0, eax"),
        (&[0x0f, 0x21, 0xf8], "mov eax, dr7"),
        (&[0x0f, 0x30], "wrmsr"),
        (&[0x0f, 0x32], "rdmsr"),
        (&[0x0f, 0x09], "wbinvd"),
        (&[0x0f, 0x01, 0x38], "invlpg"),
        (&[0x0f, 0x01, 0xf0], "lmsw"),
        (&[0x0f, 0x01, 0x10], "lgdt"),
        (&[0xfa], "cli"),
        (&[0xfb], "sti"),
    ] {
        assert_eq!(
            Machine::new(Mode::Protected, 3, code).fault(),
            (Vector::Gp, Some(0)),
            "{name}"
        );
    }
    // UMIP: SGDT, SIDT, SLDT, STR, SMSW.
    for code in [
        &[0x0f, 0x01, 0x00][..],
        &[0x0f, 0x01, 0x08],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x01, 0xe0],
    ] {
        let mut m = Machine::new(Mode::Protected, 3, code);
        m.set(Gpr::Rax, 0x500);
        m.ok();
        let mut m = Machine::new(Mode::Protected, 3, code);
        m.with(|s| s.cr4 |= Cr4::UMIP);
        assert_eq!(m.fault(), (Vector::Gp, Some(0)), "{code:x?}");
    }
}

#[test]
fn io_permission_bitmap() {
    // out 0x43, al; in eax, dx
    let run = |port: u16, map: &[(u64, u8)], limit: u32, iopl: u64| {
        let mut m = Machine::new(Mode::Protected, 3, &[0xed]);
        m.put(TSS + 0x66, &0x68u16.to_le_bytes());
        map.iter().for_each(|(at, v)| m.put(TSS + 0x68 + at, &[*v]));
        m.set(Gpr::Rdx, port.into());
        m.with(|s| {
            s.tr.limit = limit;
            s.rflags |= RFlags::from_bits_truncate(iopl << 12);
        });
        (m.step() == Step::Retired).then(|| m.get(Gpr::Rax))
    };
    let allowed = |port: u16| Some(0xabcd_0000 | u64::from(port));
    assert_eq!(run(0x40, &[], 0x1ff, 0), allowed(0x40));
    assert_eq!(run(0x40, &[(8, 1)], 0x1ff, 0), None);
    assert_eq!(run(0x40, &[(8, 8)], 0x1ff, 0), None, "four ports");
    assert_eq!(run(0x40, &[(8, 0x10)], 0x1ff, 0), allowed(0x40));
    assert_eq!(run(0x47, &[(9, 4)], 0x1ff, 0), None, "across a byte");
    assert_eq!(
        run(0x40, &[], 0x70, 0),
        None,
        "the second byte is beyond the limit"
    );
    assert_eq!(run(0x40, &[], 0x71, 0), allowed(0x40));
    assert_eq!(run(0x40, &[(8, 1)], 0x1ff, 3), allowed(0x40), "IOPL 3");
    let mut m = Machine::new(Mode::Protected, 3, &[0xe6, 0x43]);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)), "no bitmap");
    let mut m = Machine::new(Mode::Protected, 0, &[0xe6, 0x43]);
    m.set(Gpr::Rax, 0x1234);
    m.ok();
    assert_eq!(m.io.writes, [(0x43, 1, 0x34)]);
}

#[test]
fn popf_and_sti_by_privilege() {
    let popf = |cpl: u8, iopl: u64, image: u32| {
        let mut m = Machine::new(Mode::Protected, cpl, &[0x9d]);
        m.put(STACK, &image.to_le_bytes());
        m.with(|s| s.rflags |= RFlags::from_bits_truncate(iopl << 12));
        m.ok();
        m.cpu.state.rflags.bits()
    };
    let all = 0xffff_ffff;
    assert_eq!(popf(0, 0, all), 0x24_7fd7);
    assert_eq!(popf(3, 0, all), 0x24_4dd7, "neither IF nor IOPL");
    assert_eq!(popf(3, 3, 0x200), 0x3202, "IF by IOPL, IOPL stays");
    // PVI: CLI and STI of ring 3 work on VIF.
    let mut m = Machine::new(Mode::Protected, 3, &[0xfb, 0xfa]);
    m.with(|s| s.cr4 |= Cr4::PVI);
    m.ok();
    assert!(m.cpu.state.rflags.contains(RFlags::VIF));
    assert!(!m.cpu.state.sti_shadow);
    m.ok();
    assert!(!m.cpu.state.rflags.contains(RFlags::VIF));
    // The shadow of STI only where IF was clear.
    let mut m = Machine::new(Mode::Protected, 0, &[0xfb, 0xfb]);
    m.ok();
    assert!(m.cpu.state.sti_shadow);
    m.ok();
    assert!(!m.cpu.state.sti_shadow);
}

#[test]
fn mode_switches_by_control_registers() {
    // mov cr0, eax from real mode sets PE; LMSW cannot clear it.
    let mut m = Machine::new(Mode::Real, 0, &[0x0f, 0x22, 0xc0, 0x0f, 0x01, 0xf1]);
    m.set(Gpr::Rax, 0x11);
    m.ok();
    assert!(m.cpu.state.cr0.contains(Cr0::PE));
    m.set(Gpr::Rcx, 8);
    m.ok();
    assert!(m.cpu.state.cr0.contains(Cr0::PE | Cr0::TS));
    // The whole way to long mode: CR4.PAE, CR3, EFER.LME, CR0.PG.
    let code = [
        0x0f, 0x22, 0xe0, 0x0f, 0x22, 0xd9, 0x0f, 0x30, 0x0f, 0x22, 0xc3,
    ];
    let mut m = Machine::new(Mode::Protected, 0, &code);
    m.put(PAGING, &(PAGING + 0x1000 + 7).to_le_bytes());
    m.put(PAGING + 0x1000, &0x87u64.to_le_bytes());
    m.set(Gpr::Rax, 0x20);
    m.set(Gpr::Rcx, PAGING);
    m.ok();
    m.ok();
    m.set(Gpr::Rcx, 0xc000_0080);
    m.set(Gpr::Rax, 0x100);
    m.set(Gpr::Rdx, 0);
    m.ok();
    m.set(Gpr::Rbx, 0x8000_0011);
    m.ok();
    assert!(m.cpu.state.long_mode() && !m.cpu.state.code64());
    // Paging off again leaves long mode.
    m.put(CODE + 11, &[0x0f, 0x22, 0xc3]);
    m.set(Gpr::Rbx, 0x11);
    m.ok();
    assert!(!m.cpu.state.long_mode() && m.cpu.state.efer.contains(Efer::LME));
}

#[test]
fn pae_paging_loads_and_checks_pdptes() {
    let run = |entry: u64| {
        let mut m = Machine::new(Mode::Protected, 0, &[0x0f, 0x22, 0xc0]);
        m.put(0x5020, &0x87u64.to_le_bytes());
        m.put(0x5000, &entry.to_le_bytes());
        m.put(0xb_0000, &0x83u64.to_le_bytes());
        m.with(|s| {
            s.cr4 |= Cr4::PAE;
            s.cr3 = 0x5000;
        });
        m.set(Gpr::Rax, 0x8000_0011);
        m
    };
    let mut m = run(0xb_0001);
    m.ok();
    assert_eq!(m.cpu.state.pdptr, [0xb_0001, 0, 0, 0]);
    let mut m = run(0xb_0003);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)), "reserved bit");
}

#[test]
fn missing_control_registers() {
    for code in [[0x0f, 0x20, 0xc8], [0x0f, 0x22, 0xc8], [0x0f, 0x20, 0xe8]] {
        assert_eq!(
            Machine::new(Mode::Protected, 0, &code).fault(),
            (Vector::Ud, None),
            "{code:x?}"
        );
    }
    // CR8, in 64-bit code only.
    let mut m = Machine::long(0, &[0x44, 0x0f, 0x20, 0xc0, 0x44, 0x0f, 0x22, 0xc1]);
    m.ok();
    assert_eq!(m.get(Gpr::Rax), 5);
    m.set(Gpr::Rcx, 16);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
}

/// The registers of SYSCALL for the standard GDT.
fn star(m: &mut Machine) {
    m.with(|s| {
        // Ring 0: 0x28/0x30 by number; ring 3: 0x23 + 8, + 16.
        s.msr.star = 0x0023_0028_0000_0000;
        s.msr.lstar = HANDLER;
        s.msr.fmask = 0x700;
        s.rflags |= RFlags::IF | RFlags::CF;
    });
}

#[test]
fn syscall_and_sysret() {
    let mut m = Machine::long(3, &[0x0f, 0x05]);
    star(&mut m);
    m.put(HANDLER, &[0x48, 0x0f, 0x07]);
    m.ok();
    assert_eq!((m.cpu.state.cpl, m.cpu.state.rip), (0, HANDLER));
    assert_eq!((m.get(Gpr::Rcx), m.get(Gpr::R11)), (CODE + 2, 0x203));
    assert_eq!(m.cpu.state.rflags.bits(), 3);
    assert_eq!(
        (m.sel(Seg::Cs), m.sel(Seg::Ss), m.get(Gpr::Rsp)),
        (0x28, 0x30, STACK)
    );
    m.ok();
    assert_eq!((m.cpu.state.cpl, m.cpu.state.rip), (3, CODE + 2));
    assert_eq!((m.sel(Seg::Cs), m.sel(Seg::Ss)), (0x33, 0x2b));
    assert_eq!(m.cpu.state.rflags.bits(), 0x203);
    assert_eq!(m.cpu.state.segment(Seg::Ss).attr, 0xc0f3);
    // To 32-bit code.
    let mut m = Machine::long(0, &[0x0f, 0x07]);
    star(&mut m);
    m.set(Gpr::Rcx, 0xffff_ffff_0000_9000);
    m.set(Gpr::R11, 0x1_0202);
    m.ok();
    assert_eq!((m.sel(Seg::Cs), m.cpu.state.rip), (0x23, 0x9000));
    assert_eq!(m.cpu.state.rflags.bits(), 0x202, "RF is cleared");
    assert!(!m.cpu.state.code64());
}

#[test]
fn where_syscall_does_not_exist() {
    let mut m = Machine::long(3, &[0x0f, 0x05]);
    m.with(|s| s.efer -= Efer::SCE);
    assert_eq!(m.fault(), (Vector::Ud, None));
    assert_eq!(
        Machine::new(Mode::Protected, 3, &[0x0f, 0x05]).fault(),
        (Vector::Ud, None)
    );
    let mut m = Machine::long(3, &[0x48, 0x0f, 0x07]);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    // A return address that is not canonical: at once on Intel, after the return on AMD.
    let mut m = Machine::long(0, &[0x48, 0x0f, 0x07]);
    m.set(Gpr::Rcx, 1 << 62);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    assert_eq!(m.cpu.state.cpl, 0);
    let mut m = Machine::long_of(Vendor::Amd, 0, &[0x48, 0x0f, 0x07]);
    m.set(Gpr::Rcx, 1 << 62);
    m.ok();
    assert_eq!(m.cpu.state.cpl, 3);
    // AMD: SYSCALL in legacy mode, no SYSENTER in long mode.
    let mut m = Machine::of(Vendor::Amd, Mode::Protected, 3, &[0x0f, 0x05]);
    m.with(|s| {
        s.efer |= Efer::SCE;
        s.msr.star = 0x0023_0008_0000_9000;
    });
    m.ok();
    assert_eq!(
        (m.cpu.state.cpl, m.cpu.state.rip, m.get(Gpr::Rcx)),
        (0, 0x9000, CODE + 2)
    );
    let mut m = Machine::long_of(Vendor::Amd, 3, &[0x0f, 0x34]);
    m.with(|s| s.msr.sysenter_cs = 8);
    assert_eq!(m.fault(), (Vector::Ud, None));
}

#[test]
fn sysenter_and_sysexit() {
    let mut m = Machine::new(Mode::Protected, 3, &[0x0f, 0x34]);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)), "null CS");
    let mut m = Machine::new(Mode::Protected, 3, &[0x0f, 0x34]);
    m.with(|s| {
        s.msr.sysenter_cs = 0x0b;
        s.msr.sysenter_eip = HANDLER;
        s.msr.sysenter_esp = KERNEL_STACK;
        s.rflags |= RFlags::IF;
    });
    m.put(HANDLER, &[0x0f, 0x35]);
    m.ok();
    assert_eq!(
        (m.sel(Seg::Cs), m.sel(Seg::Ss), m.cpu.state.cpl),
        (8, 0x10, 0)
    );
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rsp)), (HANDLER, KERNEL_STACK));
    assert!(!m.cpu.state.rflags.contains(RFlags::IF));
    m.set(Gpr::Rdx, 0x1234);
    m.set(Gpr::Rcx, 0x5678);
    m.ok();
    assert_eq!(
        (m.sel(Seg::Cs), m.sel(Seg::Ss), m.cpu.state.cpl),
        (0x1b, 0x23, 3)
    );
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rsp)), (0x1234, 0x5678));
}

#[test]
fn segment_bases() {
    // wrgsbase rax; swapgs; rdgsbase rbx
    let code = [
        0xf3, 0x48, 0x0f, 0xae, 0xd8, 0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xcb,
    ];
    let mut m = Machine::long(0, &code);
    assert_eq!(m.fault(), (Vector::Ud, None), "CR4.FSGSBASE");
    let mut m = Machine::long(0, &code);
    m.with(|s| {
        s.cr4 |= Cr4::FSGSBASE;
        s.msr.kernel_gs_base = 0x777;
    });
    m.set(Gpr::Rax, 0x1234_5678_9abc);
    for _ in 0..3 {
        m.ok();
    }
    assert_eq!(m.get(Gpr::Rbx), 0x777);
    assert_eq!(m.cpu.state.msr.kernel_gs_base, 0x1234_5678_9abc);
    let mut m = Machine::long(0, &code);
    m.with(|s| s.cr4 |= Cr4::FSGSBASE);
    m.set(Gpr::Rax, 1 << 62);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    let mut m = Machine::long(3, &[0x0f, 0x01, 0xf8]);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
}

#[test]
fn xcr0_and_protection_keys() {
    // xsetbv
    let run = |value: u64, ecx: u64, osxsave: bool, cpl: u8| {
        let mut m = Machine::long(cpl, &[0x0f, 0x01, 0xd1]);
        m.with(|s| s.cr4.set(Cr4::OSXSAVE, osxsave));
        m.set(Gpr::Rax, value & 0xffff_ffff);
        m.set(Gpr::Rdx, value >> 32);
        m.set(Gpr::Rcx, ecx);
        match m.step() {
            Step::Retired => Ok(m.cpu.state.xcr0),
            _ => Err(m.first_exception().vector),
        }
    };
    assert_eq!(run(7, 0, true, 0), Ok(7));
    assert_eq!(run(7, 0, false, 0), Err(Vector::Ud));
    assert_eq!(run(5, 0, true, 0), Err(Vector::Gp));
    assert_eq!(run(1 << 32 | 7, 0, true, 0), Err(Vector::Gp));
    assert_eq!(run(7, 1, true, 0), Err(Vector::Gp));
    assert_eq!(run(7, 0, true, 3), Err(Vector::Gp));
    // wrpkru; rdpkru
    let mut m = Machine::long(3, &[0x0f, 0x01, 0xef, 0x0f, 0x01, 0xee]);
    assert_eq!(m.fault(), (Vector::Ud, None));
    let mut m = Machine::long(3, &[0x0f, 0x01, 0xef, 0x0f, 0x01, 0xee]);
    m.with(|s| s.cr4 |= Cr4::PKE);
    m.set(Gpr::Rax, 0xc);
    m.ok();
    m.ok();
    assert_eq!((m.cpu.state.pkru, m.get(Gpr::Rax)), (0xc, 0xc));
}
