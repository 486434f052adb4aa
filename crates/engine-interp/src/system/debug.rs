//! Breakpoints and single-step around an instruction (SDM vol. 3, 19.3).

use crate::cpu::StepStart;
use crate::{Cpu, Step};
use mimeo_arch_x86::{Exception, RFlags};
use mimeo_vcpu::{CpuIo, EngineError};

/// DR6.BS: single-step.
pub(crate) const DR6_BS: u64 = 1 << 14;

/// The #DB fault of an enabled instruction breakpoint at RIP, unless RF or a MOV SS shadow masks it.
pub(crate) fn instruction_breakpoint(cpu: &Cpu, mov_ss: bool) -> Option<Exception> {
    let s = &cpu.state;
    if s.dr7 & 0xff == 0 || mov_ss || s.rflags.contains(RFlags::RF) {
        return None;
    }
    let linear = crate::decode::code_linear(cpu);
    let mut hits = 0;
    for n in 0..4 {
        if s.dr7 >> (2 * n) & 3 != 0 && s.dr7 >> (16 + 4 * n) & 3 == 0 && s.dr[n] == linear {
            hits |= 1 << n;
        }
    }
    (hits != 0).then(|| Exception::db(hits))
}

/// Delivers the debug traps that an instruction caused: data breakpoints and single-step. After
/// MOV SS they wait for the next instruction.
pub(crate) fn after_instruction(
    cpu: &mut Cpu,
    start: StepStart,
    io: &mut dyn CpuIo,
) -> Result<Step, EngineError> {
    if start.tf {
        cpu.pending_debug |= DR6_BS;
    }
    if cpu.pending_debug == 0 || cpu.state.mov_ss_shadow {
        return Ok(Step::Retired);
    }
    let e = Exception::db(std::mem::take(&mut cpu.pending_debug));
    cpu.raise(e, io)
}
