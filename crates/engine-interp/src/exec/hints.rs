//! Hints, fences, cache lines, random numbers (SDM vol. 2).
//!
//! Cache-line instructions check their operand as a load does and do nothing else: there is no
//! cache of ours that a guest could see.

use super::flags::{self, CF, STATUS};
use super::regs::set;
use crate::decode::Lower;
use crate::{Access, Cpu, Exec, Handler, Op, Width};
use iced_x86::{Instruction, Mnemonic};
use mimeo_vcpu::CpuIo;
use std::sync::atomic::{Ordering, fence as host_fence};

/// A no-operation, whatever its operands.
pub(crate) fn nop(_: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    Ok(())
}

/// MFENCE, SFENCE, LFENCE: this vCPU's earlier stores become visible first.
fn fence(_: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    host_fence(Ordering::SeqCst);
    Ok(())
}

/// PAUSE: also tells the host that this thread spins.
fn pause(_: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    std::hint::spin_loop();
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: one byte is checked as a load; execute-only code is allowed.
fn cache_line(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let offset = cpu.ea(op);
    let linear = cpu.linear(op.seg, offset, 1, Access::Fetch)?;
    cpu.probe(op.seg, linear, 1, Access::Read)
}

/// RDRAND and RDSEED: CF says whether there was a number; the other flags are cleared.
fn random<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let value = io.random();
    set(cpu, op.r0, T::trunc(value.unwrap_or(0)));
    flags::put(cpu, STATUS, if value.is_some() { CF } else { 0 });
    Ok(())
}

/// RDPID: IA32_TSC_AUX, zero-extended.
fn rdpid(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = u64::from(cpu.state.msr.tsc_aux);
    set(cpu, op.r0, v);
    Ok(())
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let run: Handler = match i.mnemonic() {
        Mnemonic::Pause => pause,
        Mnemonic::Mfence | Mnemonic::Sfence | Mnemonic::Lfence => fence,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => cache_line,
        Mnemonic::Rdrand | Mnemonic::Rdseed => match op.size {
            2 => random::<u16>,
            4 => random::<u32>,
            _ => random::<u64>,
        },
        Mnemonic::Rdpid => rdpid,
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}
