//! INS and OUTS with their repeat prefix (SDM vol. 2). The port's permission is checked first, then
//! memory, and only then is anything transferred, so that a fault loses nothing.

use crate::decode::Lower;
use crate::exec::string::{address, advance, repeat};
use crate::mem::Access;
use crate::{Cpu, Exec, Op, Width};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::{Gpr, Seg};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    op.run = match i.code() {
        Code::Insb_m8_DX => ins::<u8>,
        Code::Insw_m16_DX => ins::<u16>,
        Code::Insd_m32_DX => ins::<u32>,
        Code::Outsb_DX_m8 => outs::<u8>,
        Code::Outsw_DX_m16 => outs::<u16>,
        Code::Outsd_DX_m32 => outs::<u32>,
        _ => return None,
    };
    Some(Lower::End)
}

fn ins<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let port = cpu.gpr(Gpr::Rdx) as u16;
    repeat(cpu, op, io, |cpu, op, io, _| {
        let size = T::BYTES as u8;
        cpu.check_port(port, size, io)?;
        let es = Seg::Es as u8;
        let offset = address(cpu, Gpr::Rdi, op.addr);
        let linear = cpu.linear(es, offset, T::BYTES, Access::Write)?;
        cpu.probe(es, linear, T::BYTES, Access::Write)?;
        let value = T::trunc(io.port_read(port, size).into());
        cpu.write(es, linear, value, io)?;
        advance::<T>(cpu, Gpr::Rdi, op.addr, 1);
        Ok((1, false))
    })
}

fn outs<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let port = cpu.gpr(Gpr::Rdx) as u16;
    repeat(cpu, op, io, |cpu, op, io, _| {
        let size = T::BYTES as u8;
        cpu.check_port(port, size, io)?;
        let offset = address(cpu, Gpr::Rsi, op.addr);
        let value: T = cpu.load(op.seg, offset, io)?;
        io.port_write(port, size, value.zext() as u32);
        advance::<T>(cpu, Gpr::Rsi, op.addr, 1);
        Ok((1, false))
    })
}
