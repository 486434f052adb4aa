//! Single-step, breakpoints on code, data and ports, general detect, RF, INT1 (SDM vol. 3, chapter
//! 19).

use super::*;

fn machine(code: &[u8]) -> Machine {
    let mut m = Machine::new(Mode::Protected, 0, code);
    m.set_idt(1, gate(KCODE, HANDLER as u32, 0x8e, 0));
    m.put(HANDLER, &[0xcf]);
    m
}

/// Executes one instruction that ends in #DB; DR6's status bits and the return address.
fn db(m: &mut Machine) -> (u64, u64) {
    let step = m.step();
    assert!(
        matches!(step, Step::Exception(e) if e.vector == Vector::Db),
        "{step:?}"
    );
    let rip = m.u32(m.get(Gpr::Rsp)).into();
    (m.cpu.state.dr6 & 0xe00f, rip)
}

#[test]
fn single_step_traps_after_each_instruction() {
    let mut m = machine(&[0x90, 0x90, 0x90]);
    m.with(|s| s.rflags |= RFlags::TF);
    assert_eq!(db(&mut m), (0x4000, CODE + 1));
    assert!(!m.cpu.state.rflags.contains(RFlags::TF));
    // IRET restores TF; the trap comes after the next instruction, not after IRET.
    m.ok();
    assert_eq!(m.cpu.state.rip, CODE + 1);
    assert_eq!(db(&mut m), (0x4000, CODE + 2));
    // After POPF sets TF, the next instruction still runs.
    let mut m = machine(&[0x9d, 0x90]);
    m.put(STACK, &0x102u32.to_le_bytes());
    m.ok();
    assert_eq!(db(&mut m), (0x4000, CODE + 2));
}

#[test]
fn single_step_and_what_hides_it() {
    // INT n is not stepped into.
    let mut m = machine(&[0xcd, 0x40]);
    m.set_idt(0x40, gate(KCODE, HANDLER as u32 + 0x10, 0x8e, 0));
    m.with(|s| s.rflags |= RFlags::TF);
    m.ok();
    assert_eq!(m.cpu.state.rip, HANDLER + 0x10);
    // MOV SS holds the trap back by one instruction.
    let mut m = machine(&[0x8e, 0xd0, 0x90]);
    m.set(Gpr::Rax, KDATA.into());
    m.with(|s| s.rflags |= RFlags::TF);
    m.ok();
    assert_eq!(db(&mut m), (0x4000, CODE + 3));
    // With BTF only branches trap.
    let mut m = machine(&[0x90, 0xeb, 0x10]);
    m.with(|s| {
        s.rflags |= RFlags::TF;
        s.msr.debugctl = 2;
    });
    m.ok();
    assert_eq!(db(&mut m), (0x4000, CODE + 0x13));
    assert_eq!(m.cpu.state.msr.debugctl, 0);
}

#[test]
fn code_breakpoints_are_faults_that_rf_masks() {
    let mut m = machine(&[0x90, 0x90]);
    m.with(|s| {
        s.dr[2] = CODE + 1;
        s.dr7 = 0x400 | 1 << 4;
    });
    m.ok();
    assert_eq!(db(&mut m), (4, CODE + 1));
    let sp = m.get(Gpr::Rsp);
    assert_eq!(m.u32(sp + 8) >> 16 & 1, 0, "RF is the handler's to set");
    m.put(sp + 8, &0x1_0002u32.to_le_bytes());
    m.ok();
    assert!(m.cpu.state.rflags.contains(RFlags::RF));
    m.ok();
    assert_eq!(m.cpu.state.rip, CODE + 2);
    assert!(!m.cpu.state.rflags.contains(RFlags::RF));
    // Other faults do push RF.
    let mut m = machine(&[0x0f, 0x0b]);
    m.set_idt(6, gate(KCODE, HANDLER as u32, 0x8e, 0));
    m.step();
    assert_eq!(m.u32(m.get(Gpr::Rsp) + 8) >> 16 & 1, 1);
}

#[test]
fn data_and_port_breakpoints_are_traps() {
    // mov [0x502], al; mov al, [0x503]; out 0x43, al
    let code = [0xa2, 2, 5, 0, 0, 0xa0, 3, 5, 0, 0, 0xe6, 0x43];
    let watch = |kind: u64, address: u64, len: u64| {
        let mut m = machine(&code);
        m.with(|s| {
            s.dr[0] = address;
            s.dr7 = 0x402 | kind << 16 | len << 18;
            s.cr4 |= Cr4::DE;
        });
        m
    };
    let mut m = watch(1, 0x500, 3);
    assert_eq!(db(&mut m), (1, CODE + 5), "write");
    m.ok();
    m.ok();
    assert_eq!(m.cpu.state.rip, CODE + 10, "a read is none");
    let mut m = watch(3, 0x503, 0);
    m.ok();
    assert_eq!(db(&mut m), (1, CODE + 10), "read");
    let mut m = watch(2, 0x43, 0);
    m.ok();
    m.ok();
    assert_eq!(db(&mut m), (1, CODE + 12), "port");
    assert_eq!(m.io.writes.len(), 1);
}

#[test]
fn general_detect_and_aliases() {
    // mov eax, dr6
    let mut m = machine(&[0x0f, 0x21, 0xf0]);
    m.with(|s| s.dr7 = 0x2400);
    assert_eq!(db(&mut m), (0x2000, CODE));
    assert_eq!(m.cpu.state.dr7, 0x400, "GD is cleared");
    // DR4 is DR6 without CR4.DE, #UD with it.
    let mut m = machine(&[0x0f, 0x21, 0xe0]);
    m.ok();
    assert_eq!(m.get(Gpr::Rax), 0xffff_0ff0);
    let mut m = machine(&[0x0f, 0x21, 0xe0]);
    m.with(|s| s.cr4 |= Cr4::DE);
    assert_eq!(m.fault(), (Vector::Ud, None));
    // Upper halves of DR6 and DR7 are #GP; reserved bits stay.
    let mut m = Machine::long(0, &[0x0f, 0x23, 0xf8]);
    m.set(Gpr::Rax, 1 << 32);
    assert_eq!(m.fault(), (Vector::Gp, Some(0)));
    let mut m = Machine::long(0, &[0x0f, 0x23, 0xf8, 0x0f, 0x23, 0xf0]);
    m.set(Gpr::Rax, 0xffff_ffff);
    m.ok();
    assert_eq!(m.cpu.state.dr7, 0xffff_27ff);
    m.with(|s| s.dr7 = 0x400);
    m.ok();
    assert_eq!(m.cpu.state.dr6, 0xffff_efff);
}

#[test]
fn int1_leaves_dr6_alone() {
    let mut m = machine(&[0xf1]);
    m.ok();
    assert_eq!((m.cpu.state.rip, m.cpu.state.dr6), (HANDLER, 0xffff_0ff0));
    assert_eq!(m.u32(m.get(Gpr::Rsp)), CODE as u32 + 1);
}

#[test]
fn a_faulting_instruction_hits_no_data_breakpoint() {
    // push [0x500] with no room on the stack
    let mut m = machine(&[0xff, 0x35, 0, 5, 0, 0]);
    m.set_gdt(FREE, descriptor(0, 0xfff, 0x93, 4));
    m.with(|s| {
        s.dr[0] = 0x500;
        s.dr7 = 0x402 | 3 << 16 | 3 << 18;
        s.seg[Seg::Ss as usize].limit = 0x100;
    });
    assert_eq!(m.fault().0, Vector::Ss);
    assert_eq!(m.cpu.pending_debug, 0);
}
