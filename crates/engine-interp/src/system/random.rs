//! RDRAND, RDSEED and RDPID (SDM vol. 2).
//!
//! Random numbers are SipHash under a key that the host's random source gave and that is never used
//! twice; there is always one, so that CF is always set.

use crate::decode::Lower;
use crate::exec::{flags, regs};
use crate::{Cpu, Exec, Handler, Op};
use iced_x86::{Instruction, Mnemonic};
use mimeo_arch_x86::RFlags;
use mimeo_vcpu::CpuIo;
use std::hash::{BuildHasher, Hasher, RandomState};

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let run: Handler = match (i.mnemonic(), i.op0_register().size()) {
        (Mnemonic::Rdrand | Mnemonic::Rdseed, 2) => random::<u16>,
        (Mnemonic::Rdrand | Mnemonic::Rdseed, 4) => random::<u32>,
        (Mnemonic::Rdrand | Mnemonic::Rdseed, _) => random::<u64>,
        (Mnemonic::Rdpid, _) => rdpid,
        _ => return None,
    };
    op.r0 = crate::op::reg_number(i.op0_register());
    op.run = run;
    Some(Lower::Plain)
}

fn random<T: crate::Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = RandomState::new().build_hasher().finish();
    regs::set(cpu, op.r0, T::trunc(v));
    let status = RFlags::from_bits_retain(flags::STATUS);
    cpu.state.rflags.remove(status);
    cpu.state.rflags.insert(RFlags::CF);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let v = u64::from(cpu.state.msr.tsc_aux);
    regs::set(cpu, op.r0, v);
    Ok(())
}
