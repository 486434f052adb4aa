//! Hardware task switches: JMP, CALL, IRET, task gates, 16-bit TSS, faults in the right context.

use super::*;

fn jmp_far(selector: u16) -> Vec<u8> {
    let mut code = vec![0xea, 0, 0, 0, 0];
    code.extend(selector.to_le_bytes());
    code
}

fn call_far(selector: u16) -> Vec<u8> {
    let mut code = jmp_far(selector);
    code[0] = 0x9a;
    code
}

const EIP: u64 = 0x20;
const EFLAGS: u64 = 0x24;
const EAX: u64 = 0x28;
const ESP: u64 = 0x38;
const ES: u64 = 0x48;
const CS: u64 = 0x4c;
const SS: u64 = 0x50;

/// A machine whose second TSS is a kernel task at HANDLER.
fn machine(cpl: u8, code: &[u8]) -> Machine {
    let mut m = Machine::new(Mode::Protected, cpl, code);
    let dwords = [
        (EIP, HANDLER as u32),
        (EFLAGS, 0x2),
        (EAX, 0x1111_2222),
        (ESP, 0x5000),
        (ES, KDATA.into()),
        (CS, KCODE.into()),
        (SS, KDATA.into()),
        (0x54, KDATA.into()),
    ];
    for (offset, value) in dwords {
        m.put(TSS2 + offset, &value.to_le_bytes());
    }
    m
}

fn busy(m: &Machine, selector: u16) -> bool {
    m.gdt(selector) >> 41 & 1 != 0
}

#[test]
fn jump_and_jump_back() {
    let mut m = machine(0, &jmp_far(TSS2_SEL));
    m.put(HANDLER, &jmp_far(TSS_SEL));
    m.set(Gpr::Rax, 0xaaaa_bbbb);
    m.with(|s| s.dr7 = 0x455);
    m.ok();
    assert_eq!(
        (m.cpu.state.rip, m.get(Gpr::Rax), m.get(Gpr::Rsp)),
        (HANDLER, 0x1111_2222, 0x5000)
    );
    assert_eq!(
        (m.sel(Seg::Cs), m.sel(Seg::Fs), m.cpu.state.tr.selector),
        (KCODE, 0, TSS2_SEL)
    );
    assert!(m.cpu.state.segment(Seg::Fs).unusable());
    assert!(m.cpu.state.cr0.contains(Cr0::TS));
    assert_eq!(m.cpu.state.dr7, 0x400, "local breakpoints are off");
    assert_eq!((busy(&m, TSS_SEL), busy(&m, TSS2_SEL)), (false, true));
    assert_eq!(m.u32(TSS + EIP), CODE as u32 + 7);
    assert_eq!((m.u32(TSS + EAX), m.u16(TSS + CS)), (0xaaaa_bbbb, KCODE));
    m.ok();
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rax)), (CODE + 7, 0xaaaa_bbbb));
    assert_eq!((busy(&m, TSS_SEL), busy(&m, TSS2_SEL)), (true, false));
}

#[test]
fn call_nests_and_iret_returns() {
    let mut m = machine(0, &call_far(TSS2_SEL));
    m.put(HANDLER, &[0xcf]);
    m.ok();
    assert_eq!((busy(&m, TSS_SEL), busy(&m, TSS2_SEL)), (true, true));
    assert_eq!(m.u16(TSS2), TSS_SEL, "back link");
    assert!(m.cpu.state.rflags.contains(RFlags::NT));
    m.ok();
    assert_eq!(
        (m.cpu.state.rip, m.cpu.state.tr.selector),
        (CODE + 7, TSS_SEL)
    );
    assert_eq!((busy(&m, TSS_SEL), busy(&m, TSS2_SEL)), (true, false));
    assert!(!m.cpu.state.rflags.contains(RFlags::NT));
    assert_eq!(
        m.u32(TSS2 + EFLAGS) & 0x4000,
        0,
        "NT is clear in what IRET saved"
    );
    assert_eq!(m.u32(TSS2 + EIP), HANDLER as u32 + 1);
}

#[test]
fn interrupt_through_a_task_gate_pushes_the_error_code() {
    // mov ds, ax with a bad selector: #GP(0x40) by a task gate.
    let mut m = machine(3, &[0x8e, 0xd8]);
    m.set(Gpr::Rax, FREE.into());
    m.set_idt(13, gate(TSS2_SEL, 0, 0x85, 0));
    m.step();
    assert_eq!((m.cpu.state.rip, m.cpu.state.cpl), (HANDLER, 0));
    assert_eq!((m.get(Gpr::Rsp), m.u32(0x4ffc)), (0x4ffc, FREE.into()));
    assert_eq!(m.u32(TSS + EIP), CODE as u32, "the faulting instruction");
    // The handler pops the code and returns.
    m.put(HANDLER, &[0x58, 0xcf]);
    m.ok();
    m.ok();
    assert_eq!((m.cpu.state.rip, m.cpu.state.cpl), (CODE, 3));
}

#[test]
fn task_gates_from_software_are_privileged() {
    let mut m = machine(3, &[0xcd, 0x40]);
    m.set_idt(0x40, gate(TSS2_SEL, 0, 0x85, 0));
    assert_eq!(m.fault(), (Vector::Gp, Some(0x40 * 8 + 2)));
    let mut m = machine(3, &[0xcd, 0x40]);
    m.set_idt(0x40, gate(TSS2_SEL, 0, 0xe5, 0));
    m.ok();
    assert_eq!(m.u32(TSS + EIP), CODE as u32 + 2);
    // By CALL: the gate's DPL counts, the TSS's does not.
    let mut m = machine(3, &call_far(FREE | 3));
    m.set_gdt(FREE, gate(TSS2_SEL, 0, 0xe5, 0));
    m.ok();
    assert_eq!(m.cpu.state.tr.selector, TSS2_SEL);
    let mut m = machine(3, &call_far(TSS2_SEL | 3));
    assert_eq!(m.fault(), (Vector::Gp, Some(TSS2_SEL.into())), "DPL 0");
}

#[test]
fn bad_targets_fault_in_the_old_task() {
    let gp = (Vector::Gp, Some(u32::from(TSS2_SEL)));
    let run = |code: Vec<u8>, access: u8, limit: u32| {
        let mut m = machine(0, &code);
        m.set_gdt(TSS2_SEL, descriptor(TSS2 as u32, limit, access, 0));
        let fault = m.fault();
        assert_eq!(m.cpu.state.tr.selector, TSS_SEL);
        fault
    };
    assert_eq!(run(jmp_far(TSS2_SEL), 0x8b, 0x67), gp, "busy");
    assert_eq!(run(call_far(TSS2_SEL), 0x09, 0x67), (Vector::Np, gp.1));
    assert_eq!(run(jmp_far(TSS2_SEL), 0x89, 0x66), (Vector::Ts, gp.1));
    // IRET to a TSS that is not busy, or is none.
    let mut m = machine(0, &[0xcf]);
    m.with(|s| s.rflags |= RFlags::NT);
    m.put(TSS, &TSS2_SEL.to_le_bytes());
    assert_eq!(m.fault(), (Vector::Ts, gp.1));
    m = machine(0, &[0xcf]);
    m.with(|s| s.rflags |= RFlags::NT);
    assert_eq!(m.fault(), (Vector::Ts, Some(0)));
}

/// A fault in the new task: its vector and code, and where its handler finds the task.
fn new_task_fault(change: fn(&mut Machine)) -> (Vector, Option<u32>) {
    let mut m = machine(0, &jmp_far(TSS2_SEL));
    for vector in [10, 11, 12, 13] {
        m.set_idt(vector, gate(KCODE, HANDLER as u32, 0x8e, 0));
    }
    change(&mut m);
    m.step();
    assert_eq!(m.cpu.state.tr.selector, TSS2_SEL, "the switch has happened");
    let (rip, e) = *m.cpu.recent_exceptions().first().expect("a fault");
    assert_eq!(rip, u64::from(m.u32(TSS2 + EIP)), "RIP is the new task's");
    assert_eq!(m.u32(TSS + EIP), CODE as u32 + 7);
    (e.vector, e.error_code)
}

#[test]
fn bad_contents_fault_in_the_new_task() {
    let ts = |sel: u16| (Vector::Ts, Some(u32::from(sel & !3)));
    assert_eq!(new_task_fault(|m| m.put(TSS2 + CS, &[0, 0])), ts(0));
    assert_eq!(
        new_task_fault(|m| m.put(TSS2 + CS, &KDATA.to_le_bytes())),
        ts(KDATA)
    );
    assert_eq!(
        new_task_fault(|m| m.put(TSS2 + SS, &UDATA.to_le_bytes())),
        ts(UDATA)
    );
    assert_eq!(new_task_fault(|m| m.put(TSS2 + SS, &[0, 0])), ts(0));
    assert_eq!(
        new_task_fault(|m| m.put(TSS2 + ES, &TSS_SEL.to_le_bytes())),
        ts(TSS_SEL)
    );
    assert_eq!(
        new_task_fault(|m| m.put(TSS2 + 0x60, &KDATA.to_le_bytes())),
        ts(KDATA)
    );
    let absent = |m: &mut Machine| {
        m.set_gdt(FREE, descriptor(0, 0xf_ffff, 0x13, 0xc));
        m.put(TSS2 + ES, &FREE.to_le_bytes());
    };
    assert_eq!(new_task_fault(absent), (Vector::Np, Some(FREE.into())));
    let trap = |m: &mut Machine| m.put(TSS2 + 0x64, &[1]);
    let mut m = machine(0, &jmp_far(TSS2_SEL));
    m.set_idt(1, gate(KCODE, HANDLER as u32 + 0x100, 0x8e, 0));
    trap(&mut m);
    m.step();
    assert_eq!(m.cpu.state.dr6 & 0x8000, 0x8000, "BT");
    assert_eq!(m.u32(m.get(Gpr::Rsp)), HANDLER as u32);
}

#[test]
fn sixteen_bit_tss() {
    let mut m = machine(0, &call_far(TSS2_SEL));
    m.set_gdt(TSS2_SEL, descriptor(TSS2 as u32, 0x2b, 0x81, 0));
    let words = [
        (0x0e, HANDLER as u16),
        (0x10, 2),
        (0x12, 0x1234),
        (0x1a, 0x5000),
        (0x22, KDATA),
        (0x24, KCODE),
        (0x26, KDATA),
        (0x28, KDATA),
        (0x2a, 0),
    ];
    for (offset, value) in words {
        m.put(TSS2 + offset, &value.to_le_bytes());
    }
    m.put(HANDLER, &[0xcf]);
    m.set(Gpr::Rbx, 0xdead_beef);
    m.ok();
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rax)), (HANDLER, 0xffff_1234));
    assert_eq!(m.u16(TSS2), TSS_SEL);
    assert!(m.cpu.state.segment(Seg::Gs).unusable());
    m.ok();
    assert_eq!((m.cpu.state.rip, m.get(Gpr::Rbx)), (CODE + 7, 0xdead_beef));
    assert_eq!(m.u16(TSS2 + 0x0e), HANDLER as u16 + 1);
}

#[test]
fn a_task_in_virtual_8086_mode() {
    let mut m = machine(0, &jmp_far(TSS2_SEL));
    m.put(TSS2 + EFLAGS, &0x2_0002u32.to_le_bytes());
    m.put(TSS2 + EIP, &0x10u32.to_le_bytes());
    m.put(TSS2 + CS, &0x900u16.to_le_bytes());
    m.put(TSS2 + SS, &0x500u16.to_le_bytes());
    m.put(0x9010, &[0x90]);
    m.ok();
    assert!(m.cpu.state.rflags.contains(RFlags::VM));
    assert_eq!(
        (m.cpu.state.cpl, m.cpu.state.segment(Seg::Cs).base),
        (3, 0x9000)
    );
    m.ok();
    assert_eq!(m.cpu.state.rip, 0x11);
}
