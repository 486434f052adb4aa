//! INIT, SIPI, NMI and external interrupts at instruction boundaries (SDM vol. 3, 7.9, 9.4).

use super::interrupt::{self, Source};
use crate::cpu::Poll;
use crate::{Cpu, Step};
use mimeo_arch_x86::{Activity, RFlags, Seg, Segment, X86State};
use mimeo_vcpu::{CpuIo, EngineError, EventBits};

/// See [`Cpu::poll_events`].
pub(crate) fn poll(cpu: &mut Cpu, io: &mut dyn CpuIo) -> Result<Poll, EngineError> {
    let pending = cpu.events.pending();
    if pending.any(EventBits::INIT) {
        cpu.events.take(EventBits::INIT);
        init(cpu);
    }
    if cpu.state.activity == Activity::Shutdown {
        return Ok(Poll::TripleFault);
    }
    if pending.any(EventBits::SIPI) {
        let vector = (cpu.events.take(EventBits::SIPI).0 >> 8) as u8;
        if cpu.state.activity == Activity::WaitForSipi {
            start_up(cpu, vector);
        }
    }
    if cpu.state.activity == Activity::WaitForSipi {
        return Ok(Poll::Idle);
    }
    if pending.any(EventBits::NMI) {
        cpu.events.take(EventBits::NMI);
        cpu.state.nmi_pending = true;
    }
    // STI's and MOV SS's shadows hold back interrupts; MOV SS's also NMIs.
    if cpu.state.nmi_pending && !cpu.state.nmi_blocked && !cpu.state.mov_ss_shadow {
        cpu.state.nmi_pending = false;
        cpu.state.activity = Activity::Running;
        cpu.state.nmi_blocked = true;
        return interrupt::external(cpu, 2, Source::Nmi, io).map(outcome);
    }
    let open =
        cpu.state.rflags.contains(RFlags::IF) && !cpu.state.sti_shadow && !cpu.state.mov_ss_shadow;
    if open && pending.any(EventBits::INTR) {
        if let Some(vector) = io.ack_interrupt() {
            cpu.state.activity = Activity::Running;
            return interrupt::external(cpu, vector, Source::External, io).map(outcome);
        }
    }
    Ok(if cpu.state.activity == Activity::Halted {
        Poll::Idle
    } else {
        Poll::Run
    })
}

fn outcome(step: Step) -> Poll {
    if step == Step::TripleFault {
        Poll::TripleFault
    } else {
        Poll::Run
    }
}

/// INIT: as RESET, but caches, FPU and SIMD state, most MSRs, CR0.CD and CR0.NW survive (SDM vol.
/// 3, table 11-1). Every processor then waits for a SIPI, the bootstrap processor too once it was
/// sent an INIT by another.
fn init(cpu: &mut Cpu) {
    let old = cpu.state.clone();
    let mut new = X86State::reset(cpu.model.signature());
    let kept = mimeo_arch_x86::Cr0::CD | mimeo_arch_x86::Cr0::NW;
    new.cr0 = (new.cr0 - kept) | (old.cr0 & kept);
    new.fp = old.fp;
    new.msr = old.msr;
    new.xcr0 = old.xcr0;
    new.activity = if cpu.index == 0 {
        Activity::Running
    } else {
        Activity::WaitForSipi
    };
    cpu.set_state(new);
}

/// A SIPI: real mode at vector * 4096 (SDM vol. 3, 9.4.4).
fn start_up(cpu: &mut Cpu, vector: u8) {
    let s = &mut cpu.state;
    s.seg[Seg::Cs as usize] = Segment {
        attr: 0x9b,
        ..Segment::real_mode(u16::from(vector) << 8)
    };
    s.rip = 0;
    s.activity = Activity::Running;
    cpu.refresh();
}
