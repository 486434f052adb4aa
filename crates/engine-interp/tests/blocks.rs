//! The block loop: self-modifying code, code written from outside, page straddles, repeated strings
//! and the exact instruction limit, in real mode.

use mimeo_arch_x86::cpuid::{CpuModel, HostCpu};
use mimeo_arch_x86::{Gpr, Seg, Segment, X86State};
use mimeo_engine_interp::InterpEngine;
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{Engine, EngineConfig, Exit, NoIo, StopAt, Vcpu, VcpuEvents};
use std::sync::Arc;

struct Guest {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
}

/// A processor in real mode with flat segments of base 0, `code` at `at`.
fn guest(at: u64, code: &[u8], change: impl FnOnce(&mut X86State)) -> Guest {
    let host = HostCpu::from_cpuid(|_, _| [0; 4], 0);
    let (model, _) = CpuModel::build("x86-64-v2", &host).expect("the model exists");
    let memory = Arc::new(GuestMemory::ram(1 << 20).expect("1 MB"));
    memory.write(at, code).expect("in RAM");
    let engine = InterpEngine::new(EngineConfig {
        memory: memory.clone(),
        cpu: Arc::new(model),
        cpus: 1,
    });
    let events = Arc::new(VcpuEvents::default());
    let mut vcpu = engine.create_vcpu(0, events).expect("a vCPU");
    let mut state = X86State::reset(0);
    state.seg[Seg::Cs as usize] = Segment {
        attr: 0x9b,
        ..Segment::real_mode(0)
    };
    state.rip = at;
    change(&mut state);
    vcpu.restore(state);
    Guest { memory, vcpu }
}

impl Guest {
    fn run(&mut self, limit: Option<u64>) -> (Exit, X86State) {
        let exit = self
            .vcpu
            .run(
                StopAt {
                    retired: limit,
                    ..StopAt::default()
                },
                &mut NoIo,
            )
            .expect("no host failure");
        (exit, self.vcpu.save())
    }
}

#[test]
fn a_block_that_changes_its_own_next_instruction() {
    // mov byte [1006h], 42h; mov al, 11h; hlt
    let code = [0xc6, 0x06, 0x06, 0x10, 0x42, 0xb0, 0x11, 0xf4];
    let (exit, state) = guest(0x1000, &code, |_| {}).run(None);
    assert_eq!(exit, Exit::Halted);
    assert_eq!(state.reg(Gpr::Rax) & 0xff, 0x42);
}

#[test]
fn code_written_from_outside() {
    // mov al, 1; hlt
    let mut g = guest(0x1000, &[0xb0, 1, 0xf4], |_| {});
    assert_eq!(g.run(None).1.reg(Gpr::Rax), 1);
    g.memory.write(0x1001, &[2]).expect("in RAM");
    let mut state = g.vcpu.save();
    state.rip = 0x1000;
    state.activity = mimeo_arch_x86::Activity::Running;
    g.vcpu.restore(state);
    assert_eq!(g.run(None).1.reg(Gpr::Rax), 2);
}

#[test]
fn an_instruction_across_a_page() {
    // mov ax, 1234h at the last byte of a page; hlt
    let (exit, state) = guest(0x1fff, &[0xb8, 0x34, 0x12, 0xf4], |_| {}).run(None);
    assert_eq!(exit, Exit::Halted);
    assert_eq!((state.reg(Gpr::Rax), state.rip), (0x1234, 0x2003));
}

#[test]
fn an_overlapping_copy_repeats_its_first_byte() {
    // rep movsb; hlt
    let mut g = guest(0x1000, &[0xf3, 0xa4, 0xf4], |s| {
        s.gpr[Gpr::Rcx as usize] = 5000;
        s.gpr[Gpr::Rsi as usize] = 0x2000;
        s.gpr[Gpr::Rdi as usize] = 0x2001;
    });
    g.memory.write(0x2000, &[7]).expect("in RAM");
    let (_, state) = g.run(None);
    let mut bytes = vec![0; 5002];
    g.memory.read(0x2000, &mut bytes).expect("in RAM");
    assert!(bytes[..5001].iter().all(|b| *b == 7) && bytes[5001] == 0);
    assert_eq!(
        [Gpr::Rcx, Gpr::Rsi, Gpr::Rdi].map(|r| state.reg(r)),
        [0, 0x2000 + 5000, 0x2001 + 5000]
    );
    assert_eq!(g.vcpu.retired(), 2);
}

#[test]
fn the_limit_stops_inside_a_block() {
    // five times nop; hlt
    let mut g = guest(0x1000, &[0x90, 0x90, 0x90, 0x90, 0x90, 0xf4], |_| {});
    let (exit, state) = g.run(Some(3));
    assert_eq!((exit, state.rip), (Exit::InstructionLimit, 0x1003));
    assert_eq!(g.vcpu.retired(), 3);
    assert_eq!(g.run(None).0, Exit::Halted);
    assert_eq!(g.vcpu.retired(), 6);
}

#[test]
fn flags_are_there_wherever_the_limit_stops() {
    const STATUS: u64 = 0x8d5;
    // mov ax, ffffh; add ax, 1; mov bx, 5; xor cx, cx; sub bx, 7; cmp ax, 1; adc bx, 0; hlt
    let code = [
        0xb8, 0xff, 0xff, 0x05, 0x01, 0x00, 0xbb, 0x05, 0x00, 0x31, 0xc9, 0x83, 0xeb, 0x07, 0x3d,
        0x01, 0x00, 0x83, 0xd3, 0x00, 0xf4,
    ];
    // SDM vol. 1, appendix A, by hand; after each instruction from the second on.
    let wanted = [0x55, 0x55, 0x44, 0x91, 0x95];
    for (limit, flags) in (2..).zip(wanted) {
        let (_, state) = guest(0x1000, &code, |_| {}).run(Some(limit));
        assert_eq!(state.rflags.bits() & STATUS, flags, "after {limit}");
        // From stop to stop.
        let mut g = guest(0x1000, &code, |_| {});
        let mut state = g.vcpu.save();
        for n in 1..=limit {
            state = g.run(Some(n)).1;
        }
        assert_eq!(state.rflags.bits() & STATUS, flags, "stepping to {limit}");
    }
    let (exit, state) = guest(0x1000, &code, |_| {}).run(None);
    assert_eq!(exit, Exit::Halted);
    // 5 - 7 and the borrow of 0 - 1.
    assert_eq!(state.reg(Gpr::Rbx) & 0xffff, 0xffff);
}
