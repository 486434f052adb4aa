//! INIT, SIPI, NMI and external interrupts at instruction boundaries (SDM vol. 3, 7.9, 9.4).

use super::interrupt::{self, Source};
use crate::cpu::Poll;
use crate::{Cpu, Step};
use mimeo_arch_x86::{Activity, RFlags, Seg, Segment};
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
    if (pending.any(EventBits::NMI) || cpu.state.nmi_pending) && !cpu.state.mov_ss_shadow {
        // One NMI is latched while another is handled; the shadow of MOV SS leaves it waiting.
        cpu.events.take(EventBits::NMI);
        cpu.state.nmi_pending = cpu.state.nmi_blocked;
        if !cpu.state.nmi_blocked {
            cpu.state.activity = Activity::Running;
            cpu.state.nmi_blocked = true;
            return interrupt::external(cpu, 2, Source::Nmi, io).map(outcome);
        }
    }
    // STI's and MOV SS's shadows hold back interrupts.
    let open =
        cpu.state.rflags.contains(RFlags::IF) && !cpu.state.sti_shadow && !cpu.state.mov_ss_shadow;
    if open
        && pending.any(EventBits::INTR)
        && let Some(vector) = io.ack_interrupt()
    {
        cpu.state.activity = Activity::Running;
        return interrupt::external(cpu, vector, Source::External, io).map(outcome);
    }
    Ok(if cpu.state.activity == Activity::Halted {
        Poll::Idle
    } else {
        Poll::Run
    })
}

impl Cpu {
    /// IRET ends the blocking of NMIs; a latched one is due at the next boundary.
    pub(super) fn unblock_nmi(&mut self) {
        self.state.nmi_blocked = false;
        if self.state.nmi_pending {
            self.events.raise(EventBits::NMI);
        }
    }
}

fn outcome(step: Step) -> Poll {
    if step == Step::TripleFault {
        Poll::TripleFault
    } else {
        Poll::Run
    }
}

/// INIT. Every processor then waits for a SIPI, but the bootstrap processor (SDM vol. 3, 9.4.1).
fn init(cpu: &mut Cpu) {
    let mut new = cpu.state.init(cpu.model.signature());
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
