//! RDMSR, WRMSR, RDTSC, RDTSCP, RDPMC (SDM vol. 2 and 4).

use super::operand::{cpl0, ecx, edx_eax, set_edx_eax};
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, MmuEvent, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::msr::{self, Owner, index};
use mimeo_arch_x86::{Cr4, Efer, Exception, Gpr};
use mimeo_vcpu::{CpuIo, MsrError};

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, end): (Handler, bool) = match i.code() {
        Code::Rdmsr => (rdmsr, false),
        Code::Wrmsr => (wrmsr, true),
        Code::Rdtsc => (rdtsc, false),
        Code::Rdtscp => (rdtscp, false),
        Code::Rdpmc => (rdpmc, false),
        _ => return None,
    };
    op.run = run;
    Some(if end { Lower::End } else { Lower::Plain })
}

fn gp() -> Trap {
    Exception::gp(0).into()
}

fn refused(_: MsrError) -> Trap {
    gp()
}

impl Cpu {
    /// The time-stamp counter now; `ahead` is the number of instructions retired in the running
    /// block.
    pub(crate) fn tsc(&self, ahead: u8, io: &mut dyn CpuIo) -> u64 {
        io.tsc(self.retired + u64::from(ahead))
            .wrapping_add(self.state.msr.tsc_adjust)
    }

    /// RDMSR without its privilege check.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn read_msr(
        &mut self,
        number: u32,
        ahead: u8,
        io: &mut dyn CpuIo,
    ) -> Result<u64, Trap> {
        match msr::owner(&self.model, number) {
            Owner::Engine => msr::read(&self.state, &self.model, number).ok_or_else(gp),
            Owner::Tsc => Ok(self.tsc(ahead, io)),
            Owner::Machine => {
                let value = io.msr_read(number).map_err(refused)?;
                // The machine counts time without IA32_TSC_ADJUST; 0 means disarmed.
                let deadline = number == index::IA32_TSC_DEADLINE && value != 0;
                let adjust = if deadline {
                    self.state.msr.tsc_adjust
                } else {
                    0
                };
                Ok(value.wrapping_add(adjust))
            }
        }
    }

    /// WRMSR without its privilege check.
    ///
    /// # Errors
    /// #GP(0); nothing has changed then.
    pub(crate) fn write_msr(
        &mut self,
        number: u32,
        value: u64,
        ahead: u8,
        io: &mut dyn CpuIo,
    ) -> Exec {
        let before = (self.state.efer, self.state.msr.tsc_adjust);
        match msr::owner(&self.model, number) {
            Owner::Engine => {
                msr::write(&mut self.state, &self.model, number, value).ok_or_else(gp)?;
            }
            Owner::Tsc => {
                let now = self.tsc(ahead, io);
                let adjust = &mut self.state.msr.tsc_adjust;
                *adjust = adjust.wrapping_add(value.wrapping_sub(now));
            }
            Owner::Machine => {
                let deadline = number == index::IA32_TSC_DEADLINE && value != 0;
                let adjust = if deadline {
                    self.state.msr.tsc_adjust
                } else {
                    0
                };
                // 0 would disarm: a deadline that far in the past has passed in any case.
                let value = match value.wrapping_sub(adjust) {
                    0 if deadline => 1,
                    v => v,
                };
                io.msr_write(number, value).map_err(refused)?;
            }
        }
        self.after_msr(before, io)
    }

    /// What follows from a changed EFER or IA32_TSC_ADJUST.
    fn after_msr(&mut self, (efer, adjust): (Efer, u64), io: &mut dyn CpuIo) -> Exec {
        if (self.state.efer ^ efer).contains(Efer::NXE) {
            self.flush_tlb(MmuEvent::All);
        }
        let moved = self.state.msr.tsc_adjust.wrapping_sub(adjust);
        if moved != 0
            && let Ok(deadline) = io.msr_read(index::IA32_TSC_DEADLINE)
            && deadline != 0
        {
            // The armed deadline stays where the guest's counter says.
            let deadline = deadline.wrapping_sub(moved).max(1);
            io.msr_write(index::IA32_TSC_DEADLINE, deadline)
                .map_err(refused)?;
        }
        self.refresh();
        Ok(())
    }
}

fn rdmsr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    let value = cpu.read_msr(ecx(cpu), op.pos, io)?;
    set_edx_eax(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    cpl0(cpu)?;
    cpu.write_msr(ecx(cpu), edx_eax(cpu), op.pos, io)
}

/// CR4.TSD keeps the counter to CPL 0.
fn tsc_allowed(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::TSD) && cpu.state.cpl != 0 {
        return Err(gp());
    }
    Ok(())
}

fn rdtsc(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    tsc_allowed(cpu)?;
    let now = cpu.tsc(op.pos, io);
    set_edx_eax(cpu, now);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    rdtsc(cpu, op, io)?;
    cpu.state.gpr[Gpr::Rcx as usize] = u64::from(cpu.state.msr.tsc_aux);
    Ok(())
}

/// No model has a counter, so that every index is a wrong one (SDM vol. 2, RDPMC).
fn rdpmc(_: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    Err(gp())
}
