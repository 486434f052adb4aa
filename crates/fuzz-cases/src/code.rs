//! Arbitrary bytes as guest code: the path from bytes to decoded blocks, and what they then do.

use mimeo_arch_x86::cpuid::{CpuModel, HostCpu};
use mimeo_arch_x86::{Cr0, Cr4, DescriptorTable, Efer, Segment, X86State};
use mimeo_engine_interp::InterpEngine;
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{Engine, EngineConfig, NoIo, StopAt, VcpuEvents};
use std::sync::Arc;

const RAM: u64 = 2 << 20;
const CODE: u64 = 0x1_0000;
/// Instructions that one input may execute.
const LIMIT: u64 = 2000;

/// A state in one of three modes; registers come from the input.
fn state(mode: u8, registers: &[u8]) -> X86State {
    let mut s = X86State::reset(0);
    for (value, bytes) in s.gpr.iter_mut().zip(registers.chunks(8)) {
        *value = bytes.iter().fold(0, |v, b| v << 8 | u64::from(*b));
    }
    s.rip = CODE;
    s.gpr[4] = CODE - 0x100;
    let flat = |attr| Segment {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        attr,
    };
    let (code, data) = match mode % 3 {
        0 => {
            s.rip = 0;
            s.gpr[4] = 0x8000;
            (
                Segment::real_mode((CODE >> 4) as u16),
                Segment::real_mode(0),
            )
        }
        1 => {
            s.cr0 |= Cr0::PE;
            (flat(0xc09b), flat(0xc093))
        }
        _ => {
            s.cr0 |= Cr0::PE | Cr0::PG;
            s.cr4 |= Cr4::PAE | Cr4::OSFXSR;
            s.efer |= Efer::LME | Efer::LMA;
            s.cr3 = 0x1000;
            (flat(0xa09b), flat(0xc093))
        }
    };
    s.seg = [data, code, data, data, data, data];
    s.idtr = DescriptorTable {
        base: 0x4000,
        limit: 0xfff,
    };
    s
}

/// Executes `data` as guest code: a byte for the mode, 128 for the registers, the rest is code.
pub fn guest_code(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    let (registers, code) = rest.split_at(rest.len().min(128));
    let host = HostCpu::from_cpuid(|_, _| [0; 4], 0);
    let Ok((model, _)) = CpuModel::build("x86-64-v2", &host) else {
        return;
    };
    let Ok(memory) = GuestMemory::ram(RAM) else {
        return;
    };
    let memory = Arc::new(memory);
    // Identity-mapped large pages for the 64-bit mode: PML4, PDPT, PD.
    let tables = [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x3000, 0x87)];
    let code = &code[..code.len().min(0x8000)];
    let mut written = memory.write(CODE, code).is_ok();
    for (at, entry) in tables {
        written &= memory.write(at, &entry.to_le_bytes()).is_ok();
    }
    assert!(written, "the tables and the code lie in RAM");
    let engine = InterpEngine::new(EngineConfig {
        memory,
        cpu: Arc::new(model),
        cpus: 1,
    });
    let Ok(mut vcpu) = engine.create_vcpu(0, Arc::new(VcpuEvents::default())) else {
        return;
    };
    vcpu.restore(state(*mode, registers));
    let limit = StopAt {
        retired: Some(LIMIT),
        ..StopAt::default()
    };
    // Halted, shut down, out of instructions: all are answers.
    drop(vcpu.run(limit, &mut NoIo));
}
