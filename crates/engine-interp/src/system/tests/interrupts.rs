//! Delivery through the IDT in real, protected and long mode; error codes; double and triple
//! faults; IRET.

use super::*;
use mimeo_arch_x86::Activity;

const INT_40: &[u8] = &[0xcd, 0x40];
const IRETD: &[u8] = &[0xcf];

fn handler(access: u8) -> u64 {
    gate(KCODE, HANDLER as u32, access, 0)
}

#[test]
fn real_mode_vector_table() {
    let mut m = Machine::new(Mode::Real, 0, INT_40);
    m.put(0x100, &[0x20, 0, 0x00, 0x09]);
    m.put(0x9020, IRETD);
    m.with(|s| s.rflags |= RFlags::IF | RFlags::CF);
    m.ok();
    assert_eq!((m.cpu.state.rip, m.sel(Seg::Cs)), (0x20, 0x900));
    assert!(!m.cpu.state.rflags.intersects(RFlags::IF | RFlags::TF));
    let sp = m.get(Gpr::Rsp);
    assert_eq!(sp, STACK - 6);
    assert_eq!(
        (m.u16(sp), m.u16(sp + 2), m.u16(sp + 4)),
        (CODE as u16 + 2, 0, 0x203)
    );
    m.ok();
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rsp)), (CODE + 2, STACK));
    assert!(m.cpu.state.rflags.contains(RFlags::IF | RFlags::CF));
    // Beyond the table: #GP, whose own entry is missing too, and so on to shutdown.
    let mut m = Machine::new(Mode::Real, 0, INT_40);
    m.with(|s| s.idtr.limit = 0xff);
    m.put(13 * 4, &[0, 0, 0, 9]);
    assert_eq!(m.step(), Step::Exception(m.first_exception()));
    assert_eq!(m.first_exception().vector, Vector::Gp);
    m = Machine::new(Mode::Real, 0, INT_40);
    m.with(|s| s.idtr.limit = 0);
    assert_eq!(m.step(), Step::TripleFault);
    assert_eq!(m.cpu.state.activity, Activity::Shutdown);
}

#[test]
fn interrupt_gates_to_an_inner_level_and_back() {
    for (access, cleared) in [(0xee, true), (0xef, false)] {
        let mut m = Machine::new(Mode::Protected, 3, INT_40);
        m.set_idt(0x40, handler(access));
        m.put(HANDLER, IRETD);
        m.with(|s| s.rflags |= RFlags::IF | RFlags::ZF);
        m.ok();
        assert_eq!((m.cpu.state.cpl, m.cpu.state.rip), (0, HANDLER));
        assert_eq!(m.cpu.state.rflags.contains(RFlags::IF), !cleared);
        let sp = m.get(Gpr::Rsp);
        let frame: Vec<u32> = (0..5).map(|n| m.u32(sp + 4 * n)).collect();
        let flags = 0x242;
        let want = [
            CODE as u32 + 2,
            UCODE.into(),
            flags,
            STACK as u32,
            UDATA.into(),
        ];
        assert_eq!(frame, want);
        m.ok();
        assert_eq!((m.cpu.state.cpl, m.cpu.state.rip), (3, CODE + 2));
        assert_eq!((m.get(Gpr::Rsp), m.sel(Seg::Ss)), (STACK, UDATA));
        assert!(m.cpu.state.rflags.contains(RFlags::IF));
    }
}

#[test]
fn sixteen_bit_gates() {
    let mut m = Machine::new(Mode::Protected, 0, INT_40);
    m.set_idt(0x40, gate(KCODE, 0xffff_9000, 0x86, 0));
    m.put(0x9000, &[0x66, 0xcf]);
    m.ok();
    let sp = m.get(Gpr::Rsp);
    assert_eq!((m.cpu.state.rip, sp), (0x9000, STACK - 6));
    assert_eq!((m.u16(sp), m.u16(sp + 2)), (CODE as u16 + 2, KCODE));
    m.ok();
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rsp)), (CODE + 2, STACK));
}

#[test]
fn gate_faults_name_the_entry() {
    let run = |d: u64, cpl: u8| {
        let mut m = Machine::new(Mode::Protected, cpl, INT_40);
        m.set_idt(0x40, d);
        m.fault()
    };
    let idt = 0x40 * 8 + 2;
    assert_eq!(run(handler(0x8e), 3), (Vector::Gp, Some(idt)), "DPL");
    assert_eq!(run(handler(0x6e), 3), (Vector::Np, Some(idt)));
    assert_eq!(
        run(handler(0x8c), 0),
        (Vector::Gp, Some(idt)),
        "a call gate"
    );
    assert_eq!(
        run(handler(0x9e), 0),
        (Vector::Gp, Some(idt)),
        "a code segment"
    );
    assert_eq!(run(gate(0, 0, 0x8e, 0), 0), (Vector::Gp, Some(0)));
    assert_eq!(
        run(gate(KDATA, 0, 0x8e, 0), 0),
        (Vector::Gp, Some(KDATA.into()))
    );
    assert_eq!(run(gate(UCODE, 0, 0x8e, 0), 0), (Vector::Gp, Some(0x18)));
    assert_eq!(
        run(gate(FREE, 0, 0x8e, 0), 0),
        (Vector::Gp, Some(FREE.into()))
    );
    let mut m = Machine::new(Mode::Protected, 0, INT_40);
    m.with(|s| s.idtr.limit = 0x40 * 8 + 6);
    assert_eq!(m.fault(), (Vector::Gp, Some(idt)));
}

#[test]
fn external_events_set_ext() {
    // A #DE whose gate is bad: the #GP has EXT set, and both are contributory.
    let mut m = Machine::new(Mode::Protected, 0, &[0xf7, 0xf1]);
    m.set_idt(0, handler(0x8c));
    m.set_idt(8, handler(0x8e));
    m.step();
    let all: Vec<_> = m
        .cpu
        .recent_exceptions()
        .iter()
        .map(|(_, e)| e.vector)
        .collect();
    assert_eq!(all, [Vector::De, Vector::Df]);
    let sp = m.get(Gpr::Rsp);
    assert_eq!((m.cpu.state.rip, m.u32(sp)), (HANDLER, 0), "#DF pushes 0");
    assert_eq!(m.u32(sp + 4), CODE as u32, "the instruction that began it");
    // An NMI without a gate: #GP(2 * 8 + 2 + 1), not a double fault.
    let mut m = Machine::new(Mode::Protected, 0, &[0x90]);
    m.set_idt(13, handler(0x8e));
    m.cpu.events.raise(mimeo_vcpu::EventBits::NMI);
    m.cpu.poll_events(&mut m.io).expect("no host failure");
    assert_eq!(m.u32(m.get(Gpr::Rsp)), 2 * 8 + 3);
    assert!(m.cpu.state.nmi_blocked);
    m.put(HANDLER, &[0x83, 0xc4, 4, 0xcf]);
    m.ok();
    m.ok();
    assert!(!m.cpu.state.nmi_blocked, "IRET ends the blocking");
}

#[test]
fn which_pairs_make_a_double_fault() {
    use mimeo_arch_x86::paging::PfCode;
    // (first, gate of the first's vector is bad) -> vector delivered
    for (first, delivered) in [
        (Exception::gp(0), Vector::Df),
        (Exception::ss(0), Vector::Df),
        (Exception::with_code(Vector::Ts, 0), Vector::Df),
        (Exception::with_code(Vector::Np, 0), Vector::Df),
        (PfCode::P.at(5), Vector::Df),
        (Exception::ud(), Vector::Gp),
        (Exception::new(Vector::Nm), Vector::Gp),
        (Exception::db(1), Vector::Gp),
    ] {
        let mut m = Machine::new(Mode::Protected, 0, &[0x90]);
        for vector in [8, 13] {
            if vector != first.vector as u8 {
                m.set_idt(vector, handler(0x8e));
            }
        }
        let step = m.cpu.raise(first, &mut m.io).expect("no host failure");
        assert_eq!(step, Step::Exception(first));
        let last = m.cpu.recent_exceptions().last().map(|(_, e)| e.vector);
        assert_eq!(last, Some(delivered), "{first:?}");
    }
    let mut m = Machine::new(Mode::Protected, 0, &[0x90]);
    let step = m.cpu.raise(Exception::gp(0), &mut m.io);
    assert_eq!(step.expect("no host failure"), Step::TripleFault);
}

#[test]
fn long_mode_frames_and_stacks() {
    let mut m = Machine::long(3, INT_40);
    m.set_idt64(0x40, gate(KCODE64, HANDLER as u32, 0xee, 0));
    m.put(HANDLER, &[0x48, 0xcf]);
    m.put(TSS + 4, &(KERNEL_STACK + 5).to_le_bytes());
    m.ok();
    let sp = m.get(Gpr::Rsp);
    assert_eq!(sp, KERNEL_STACK - 40, "aligned to 16 bytes");
    let frame: Vec<u64> = (0..5).map(|n| m.u64(sp + 8 * n)).collect();
    assert_eq!(frame, [CODE + 2, UCODE64.into(), 2, STACK, UDATA.into()]);
    assert!(m.cpu.state.segment(Seg::Ss).unusable());
    m.ok();
    assert_eq!(
        (m.cpu.state.cpl, m.cpu.state.rip, m.get(Gpr::Rsp)),
        (3, CODE + 2, STACK)
    );
    // IST 2, without a change of level: SS stays, the frame has SS:RSP all the same.
    let mut m = Machine::long(0, INT_40);
    m.set_idt64(0x40, gate(KCODE64, HANDLER as u32, 0x8e, 2));
    m.put(TSS + 0x2c, &0x5008u64.to_le_bytes());
    m.put(HANDLER, &[0x48, 0xcf]);
    m.ok();
    assert_eq!(m.get(Gpr::Rsp), 0x5000 - 40);
    assert_eq!(m.sel(Seg::Ss), KDATA);
    m.ok();
    assert_eq!((m.get(Gpr::Rsp), m.sel(Seg::Ss)), (STACK, KDATA));
    // A 32-bit target is #GP; a stack pointer that is not canonical #SS(0).
    let mut m = Machine::long(0, INT_40);
    m.set_idt64(0x40, gate(KCODE, HANDLER as u32, 0x8e, 0));
    assert_eq!(m.fault(), (Vector::Gp, Some(KCODE.into())));
    let mut m = Machine::long(3, INT_40);
    m.set_idt64(0x40, gate(KCODE64, HANDLER as u32, 0xee, 0));
    m.put(TSS + 4, &(1u64 << 62).to_le_bytes());
    assert_eq!(m.fault(), (Vector::Ss, Some(0)));
    let mut m = Machine::long(3, INT_40);
    m.set_idt64(0x40, gate(KCODE64, HANDLER as u32, 0xee, 0));
    m.with(|s| s.tr.limit = 10);
    assert_eq!(m.fault(), (Vector::Ts, Some(TSS_SEL.into())));
}

#[test]
fn iret_in_long_mode() {
    let frame = |m: &mut Machine, values: [u64; 5]| {
        m.put(STACK, &values.map(u64::to_le_bytes).concat());
    };
    // To ring 3, flags of CPL 0.
    let mut m = Machine::long(0, &[0x48, 0xcf]);
    let flags = 0x20_3202 | 0x1_0000;
    frame(
        &mut m,
        [HANDLER, UCODE64.into(), flags, 0x5000, UDATA.into()],
    );
    m.ok();
    assert_eq!((m.cpu.state.cpl, m.get(Gpr::Rsp)), (3, 0x5000));
    assert_eq!(m.cpu.state.rflags.bits(), flags);
    // Ring 3 cannot raise IOPL or, with IOPL 0, change IF.
    let mut m = Machine::long(3, &[0x48, 0xcf]);
    frame(
        &mut m,
        [HANDLER, UCODE64.into(), 0x3203, 0x5000, UDATA.into()],
    );
    m.ok();
    assert_eq!(m.cpu.state.rflags.bits(), 3);
    // NT is #GP(0), so is a target that is not canonical; nothing has moved.
    let mut m = Machine::long(0, &[0x48, 0xcf]);
    m.with(|s| s.rflags |= RFlags::NT);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    let mut m = Machine::long(0, &[0x48, 0xcf]);
    frame(&mut m, [1 << 62, UCODE64.into(), 2, 0x5000, UDATA.into()]);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    // SS may be null within ring 0.
    let mut m = Machine::long(0, &[0x48, 0xcf]);
    frame(&mut m, [HANDLER, KCODE64.into(), 2, 0x5000, 0]);
    m.ok();
    assert_eq!((m.get(Gpr::Rsp), m.cpu.state.rip), (0x5000, HANDLER));
}
