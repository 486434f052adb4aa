//! Lockstep finds what differs: toy engines that execute the same simple program, one of them with a
//! defect.

use mimeo_arch_x86::X86State;
use mimeo_arch_x86::cpuid::{CpuModel, Feature, FeatureSet, HostCpu, Vendor};
use mimeo_memory::GuestMemory;
use mimeo_replay::lockstep::{Lockstep, Stride, twin};
use mimeo_vcpu::{CpuIo, Engine, EngineCaps, EngineError, Exit, NoIo, StopAt, Vcpu, VcpuEvents};
use std::sync::Arc;

/// What is wrong with the first engine from its 1000th instruction on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    Register,
    LostStore,
    StrayStore,
    Port,
    Flag,
}

#[derive(Clone)]
struct Toy {
    memory: Arc<GuestMemory>,
    defect: Defect,
    /// Instructions a turn.
    stride: u64,
}

struct ToyCpu {
    toy: Toy,
    state: X86State,
    retired: u64,
}

impl Engine for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn caps(&self) -> EngineCaps {
        EngineCaps {
            smp: false,
            exact_count: true,
        }
    }
    fn create_vcpu(&self, _: u32, _: Arc<VcpuEvents>) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(ToyCpu {
            toy: self.clone(),
            state: X86State::reset(0),
            retired: 0,
        }))
    }
}

/// A store as a vCPU makes it: `GuestMemory::write` is how devices write.
fn store(m: &GuestMemory, gpa: u64, value: u64) {
    let old = m.read_u64(gpa).unwrap();
    assert_eq!(m.cas_u64(gpa, old, value), Some(true));
}

impl ToyCpu {
    fn instruction(&mut self, io: &mut dyn CpuIo) {
        let broken = |d| self.retired >= 1000 && self.toy.defect == d;
        let n = self.retired % 3000;
        let (m, s) = (&self.toy.memory, &mut self.state);
        s.rip = 0x100 + n;
        s.gpr[1] = s.gpr[1].wrapping_mul(5).wrapping_add(n);
        match n % 4 {
            0 if !broken(Defect::LostStore) => {
                store(m, n * 8, s.gpr[1]);
            }
            1 => s.gpr[2] ^= u64::from(io.port_read(0x60 + u16::from(broken(Defect::Port)), 1)),
            2 if broken(Defect::StrayStore) => store(m, 0x7000, 1),
            3 if broken(Defect::Register) => s.gpr[7] ^= 1,
            3 if broken(Defect::Flag) => s.rflags |= mimeo_arch_x86::RFlags::CF,
            _ => {}
        }
        self.retired += 1;
    }
}

impl Vcpu for ToyCpu {
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        for _ in 0..u64::from(stop.turns.unwrap()) * self.toy.stride {
            self.instruction(io);
        }
        Ok(Exit::InstructionLimit)
    }
    fn state(&self) -> &X86State {
        &self.state
    }
    fn restore(&mut self, state: X86State) {
        self.state = state;
    }
    fn retired(&self) -> u64 {
        self.retired
    }
}

/// Runs 5000 instructions with a first engine that has the defect.
fn run(defect: Defect) -> Result<Exit, EngineError> {
    let memory = Arc::new(GuestMemory::ram(1 << 20).unwrap());
    memory.write(0x9000, &[1, 2, 3]).unwrap();
    let copy = twin(&memory).unwrap();
    let host = HostCpu {
        vendor: Vendor::Intel,
        signature: 0x806f8,
        brand: "test".into(),
        features: FeatureSet::of(Feature::ALL),
        physical_bits: 46,
        fdp_excptn_only: true,
        zero_fcs_fds: false,
    };
    let toy = |memory: &Arc<GuestMemory>, defect, stride| {
        Box::new(Toy {
            memory: memory.clone(),
            defect,
            stride,
        })
    };
    let lockstep = Lockstep::new(
        (toy(&memory, defect, 7), memory.clone()),
        (toy(&copy, Defect::None, 1), copy.clone()),
        Arc::new(CpuModel::build("x86-64-v2", &host).unwrap().0),
        1,
        Stride::Turns(2),
    )?;
    let mut vcpu = lockstep.create_vcpu(0, Arc::default())?;
    let stop = StopAt {
        retired: Some(5000),
        ..StopAt::default()
    };
    let exit = vcpu.run(stop, &mut NoIo);
    let mut byte = [0; 3];
    copy.read(0x9000, &mut byte).unwrap();
    assert_eq!(byte, [1, 2, 3], "the memory was not copied");
    exit
}

#[test]
fn equal_engines_agree() {
    assert_eq!(run(Defect::None).unwrap(), Exit::InstructionLimit);
}

#[test]
fn every_kind_of_difference_ends_the_run() {
    for (defect, said) in [
        (Defect::Register, "rdi"),
        (Defect::LostStore, "physical"),
        (Defect::StrayStore, "physical 0x7000"),
        (Defect::Port, "ask the machine for different things"),
        (Defect::Flag, "rflags"),
    ] {
        let error = run(defect).unwrap_err().to_string();
        assert!(error.contains(said), "{defect:?}: {error}");
        assert!(error.contains("state of the second"), "{error}");
    }
}
