//! IN and OUT, and the right to use a port (SDM vol. 1, 19.5; vol. 3, 9.2.1).

use super::operand::is_v86;
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Trap};
use iced_x86::{Code, Instruction};
use mimeo_arch_x86::{Cr0, Exception, Gpr, tss};
use mimeo_vcpu::CpuIo;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Lower> {
    let (run, size): (Handler, u8) = match i.code() {
        Code::In_AL_imm8 => (in_imm, 1),
        Code::In_AX_imm8 => (in_imm, 2),
        Code::In_EAX_imm8 => (in_imm, 4),
        Code::In_AL_DX => (in_dx, 1),
        Code::In_AX_DX => (in_dx, 2),
        Code::In_EAX_DX => (in_dx, 4),
        Code::Out_imm8_AL => (out_imm, 1),
        Code::Out_imm8_AX => (out_imm, 2),
        Code::Out_imm8_EAX => (out_imm, 4),
        Code::Out_DX_AL => (out_dx, 1),
        Code::Out_DX_AX => (out_dx, 2),
        Code::Out_DX_EAX => (out_dx, 4),
        _ => return None,
    };
    op.run = run;
    op.size = size;
    Some(Lower::End)
}

fn in_imm(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    input(cpu, op.imm as u8 as u16, op.size, io)
}

fn in_dx(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    input(cpu, cpu.gpr(Gpr::Rdx) as u16, op.size, io)
}

fn out_imm(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    output(cpu, op.imm as u8 as u16, op.size, io)
}

fn out_dx(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    output(cpu, cpu.gpr(Gpr::Rdx) as u16, op.size, io)
}

fn input(cpu: &mut Cpu, port: u16, size: u8, io: &mut dyn CpuIo) -> Exec {
    cpu.check_port(port, size, io)?;
    let value = u64::from(io.port_read(port, size));
    let rax = &mut cpu.state.gpr[Gpr::Rax as usize];
    *rax = match size {
        1 => (*rax & !0xff) | (value & 0xff),
        2 => (*rax & !0xffff) | (value & 0xffff),
        _ => value,
    };
    Ok(())
}

fn output(cpu: &mut Cpu, port: u16, size: u8, io: &mut dyn CpuIo) -> Exec {
    cpu.check_port(port, size, io)?;
    let value = cpu.gpr(Gpr::Rax) as u32;
    let value = match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value,
    };
    io.port_write(port, size, value);
    Ok(())
}

impl Cpu {
    /// Whether the current privilege allows an access of `size` bytes to `port`; notes I/O
    /// breakpoints. For IN, OUT, INS and OUTS, before anything is transferred.
    ///
    /// # Errors
    /// #GP(0), or the page fault of reading the bitmap.
    pub(crate) fn check_port(&mut self, port: u16, size: u8, io: &mut dyn CpuIo) -> Exec {
        let s = &self.state;
        let by_iopl = !is_v86(self) && s.cpl <= s.rflags.iopl();
        if s.cr0.contains(Cr0::PE) && !by_iopl {
            self.check_bitmap(port, size, io)?;
        }
        super::debug::note_port(self, port, size);
        Ok(())
    }

    /// The I/O permission bitmap of the 32-bit or 64-bit TSS: all bits of the access must be clear.
    fn check_bitmap(&mut self, port: u16, size: u8, io: &mut dyn CpuIo) -> Exec {
        let denied = || Trap::from(Exception::gp(0));
        let tr = self.state.tr;
        // Types 9 and 11; a 16-bit TSS has no bitmap.
        let wide = tr.attr & 0x1d == 9;
        if tr.unusable() || !wide || tr.limit < tss::tss32::LIMIT {
            return Err(denied());
        }
        let start: u16 = self.read_system(tr.base.wrapping_add(tss::tss32::IO_MAP.into()), io)?;
        // Always two bytes, so that an access across a byte needs one read.
        let byte = u32::from(start) + u32::from(port / 8);
        if byte + 1 > tr.limit {
            return Err(denied());
        }
        let bits: u16 = self.read_system(tr.base.wrapping_add(byte.into()), io)?;
        let mask = ((1u16 << size) - 1) << (port % 8);
        if bits & mask == 0 {
            Ok(())
        } else {
            Err(denied())
        }
    }
}
