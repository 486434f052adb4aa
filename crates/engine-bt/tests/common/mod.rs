//! What the engine's tests share: random numbers, CPU models, a 64-bit machine without devices.
#![allow(dead_code, reason = "each test uses a part")]

use mimeo_arch_x86::cpuid::{CpuModel, HostCpu};
use mimeo_arch_x86::{Cr0, Cr4, DescriptorTable, Efer, Seg, Segment, X86State};
use mimeo_engine_bt::{BtEngine, BtOptions};
use mimeo_engine_interp::InterpEngine;
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{Engine, EngineConfig, Exit, NoIo, StopAt, Vcpu, VcpuEvents};
use std::sync::Arc;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// The CPU that the tests run on, as far as this host has it.
pub fn model() -> Arc<CpuModel> {
    use core::arch::x86_64::__cpuid_count;
    let host = HostCpu::from_cpuid(
        |leaf, sub| {
            let r = __cpuid_count(leaf, sub);
            [r.eax, r.ebx, r.ecx, r.edx]
        },
        7,
    );
    Arc::new(CpuModel::build("x86-64-v3", &host).unwrap().0)
}

/// A segment without limit.
pub fn flat(selector: u16, attr: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr,
    }
}

/// Where a test has its tables.
pub struct Layout {
    pub cr3: u64,
    pub tss: u64,
    pub idt: u64,
    /// Null, code (8), data (10h) at the least.
    pub gdt: u64,
    pub rip: u64,
}

/// 64-bit mode at CPL 0, with all units up to AVX on.
pub fn long_mode(at: &Layout) -> X86State {
    let mut s = X86State::reset(0x806f8);
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP;
    s.cr3 = at.cr3;
    s.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
    s.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
    s.xcr0 = 7;
    s.seg = [flat(0x10, 0xc093); 6];
    s.seg[Seg::Cs as usize] = flat(8, 0xa09b);
    s.tr.base = at.tss;
    s.tr.limit = 103;
    s.idtr = DescriptorTable {
        base: at.idt,
        limit: 4095,
    };
    s.gdtr = DescriptorTable {
        base: at.gdt,
        limit: 23,
    };
    s.rip = at.rip;
    s
}

/// One vCPU with RAM and no device.
pub struct Machine {
    pub memory: Arc<GuestMemory>,
    pub events: Arc<VcpuEvents>,
    pub vcpu: Box<dyn Vcpu>,
}

impl Machine {
    /// With 4 MB, which `prepare` fills.
    pub fn new(
        make: impl Fn(EngineConfig) -> Box<dyn Engine>,
        prepare: impl Fn(&GuestMemory),
        model: &Arc<CpuModel>,
    ) -> Self {
        let memory = Arc::new(GuestMemory::ram(4 << 20).unwrap());
        prepare(&memory);
        let engine = make(EngineConfig {
            memory: memory.clone(),
            cpu: model.clone(),
            cpus: 1,
        });
        let events = Arc::new(VcpuEvents::default());
        let vcpu = engine.create_vcpu(0, events.clone()).unwrap();
        Self {
            memory,
            events,
            vcpu,
        }
    }

    /// Runs from `state` until the vCPU has something to decide.
    pub fn go(&mut self, state: &X86State) -> (Exit, X86State) {
        self.vcpu.restore(state.clone());
        let exit = self.vcpu.run(StopAt::default(), &mut NoIo).unwrap();
        (exit, self.vcpu.save())
    }

    /// The bytes of some ranges (address, length), one after the other.
    pub fn bytes(&self, ranges: impl IntoIterator<Item = (u64, usize)>) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, len) in ranges {
            let start = out.len();
            out.resize(start + len, 0);
            self.memory.read(at, &mut out[start..]).unwrap();
        }
        out
    }
}

/// The same machine on the interpreter and on the translator, which verifies every block.
pub fn pair(
    prepare: impl Fn(&GuestMemory),
    precise_flags: bool,
    model: &Arc<CpuModel>,
) -> (Machine, Machine) {
    let options = BtOptions {
        precise_flags,
        paranoid: true,
        ..BtOptions::default()
    };
    let interp = Machine::new(|c| Box::new(InterpEngine::new(c)), &prepare, model);
    let bt = |c| Box::new(BtEngine::with_options(c, options).unwrap()) as Box<dyn Engine>;
    (interp, Machine::new(bt, &prepare, model))
}
