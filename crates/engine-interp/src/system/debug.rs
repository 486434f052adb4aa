//! Breakpoints and single-step around an instruction (SDM vol. 3, 19.3).

use crate::cpu::StepStart;
use crate::{Cpu, Step};
use mimeo_arch_x86::{Cr4, Exception, RFlags};
use mimeo_vcpu::{CpuIo, EngineError};

/// DR6.BD: an access to a debug register while DR7.GD was set.
pub(crate) const DR6_BD: u64 = 1 << 13;
/// DR6.BS: single-step.
pub(crate) const DR6_BS: u64 = 1 << 14;
/// DR6.BT: a task switch to a task whose T flag is set.
pub(crate) const DR6_BT: u64 = 1 << 15;
/// DR7.GD: general detect.
pub(crate) const DR7_GD: u64 = 1 << 13;
/// DR7's local enables, which a task switch clears: L0 to L3 and LE.
pub(crate) const DR7_LOCAL: u64 = 0x155;

/// IA32_DEBUGCTL.BTF: single-step on branches only.
pub(crate) const DEBUGCTL_BTF: u64 = 1 << 1;

/// DR6 as a write of `value` leaves it: reserved bits read as ones, bit 12 as zero.
pub(crate) fn dr6(value: u64) -> u64 {
    (value & (0xf | DR6_BD | DR6_BS | DR6_BT)) | 0xffff_0ff0
}

/// DR7 as a write of `value` leaves it: bit 10 reads as one, bits 11, 12, 14 and 15 as zeroes.
pub(crate) fn dr7(value: u64) -> u64 {
    (value & 0xffff_23ff) | 0x400
}

/// Notes the I/O breakpoints (CR4.DE, R/W = 2) that an access to a port hits.
pub(crate) fn note_port(cpu: &mut Cpu, port: u16, size: u8) {
    if !cpu.watch_data || !cpu.state.cr4.contains(Cr4::DE) {
        return;
    }
    let s = &cpu.state;
    let (first, last) = (u64::from(port), u64::from(port) + u64::from(size) - 1);
    let mut hits = 0;
    for n in 0..4 {
        let enabled = s.dr7 >> (2 * n) & 3 != 0 && s.dr7 >> (16 + 4 * n) & 3 == 2;
        let length = match s.dr7 >> (18 + 4 * n) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        let start = s.dr[n] & !(length - 1);
        if enabled && start <= last && first < start + length {
            hits |= 1 << n;
        }
    }
    cpu.pending_debug |= hits;
}

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
    branched: bool,
    io: &mut dyn CpuIo,
) -> Result<Step, EngineError> {
    let every = cpu.state.msr.debugctl & DEBUGCTL_BTF == 0;
    if start.tf && !cpu.no_step && (every || branched) {
        cpu.pending_debug |= DR6_BS;
    }
    if cpu.pending_debug == 0 || cpu.state.mov_ss_shadow {
        return Ok(Step::Retired);
    }
    let e = Exception::db(std::mem::take(&mut cpu.pending_debug));
    cpu.raise(e, io)
}
