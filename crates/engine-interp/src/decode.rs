//! From bytes to [`Op`]s.

use crate::op::Op;
use crate::{Cpu, Trap, exec, simd, system};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic};
use mimeo_arch_x86::cpuid::Vendor;
use mimeo_arch_x86::{Cr0, Exception, RFlags, Seg};
use mimeo_isa_x86::Class;

/// The longest instruction.
pub(crate) const MAX_LEN: usize = 15;

/// What a group's `lower` made of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lower {
    /// Not one of this group's.
    No,
    /// The op is complete.
    Plain,
    /// The op is complete and must be the last of its block.
    End,
}

/// iced's options for a CPU model: where vendors decode differently.
pub(crate) fn options(cpu: &Cpu) -> u32 {
    if cpu.model.vendor() == Vendor::Amd {
        DecoderOptions::AMD
    } else {
        DecoderOptions::NONE
    }
}

/// Turns a decoded instruction into an op; says whether it ends a block. What has no row in the
/// instruction table, or whose row this CPU model or code size lacks, raises #UD.
pub(crate) fn lower(cpu: &mut Cpu, i: &Instruction, bits: u32) -> (Op, bool) {
    let mut op = Op::from_instruction(i, bits);
    let Some(form) = mimeo_isa_x86::lookup(i.code()) else {
        return (op, true);
    };
    let lock = i.has_lock_prefix() && !(form.lockable && crate::op::is_mem(i, 0));
    if !form.modes.contains(bits) || lock {
        return (op, true);
    }
    if !form.available(|f| cpu.model.has(f)) {
        return match without_feature(i) {
            Some(older) => lower(cpu, &older, bits),
            None => (op, true),
        };
    }
    if form.class == Class::Nop && i.mnemonic() != Mnemonic::Pause {
        op.run = exec::nop;
        return (op, false);
    }
    let mut done = exec::lower(i, &mut op, bits);
    if done == Lower::No {
        done = system::lower(i, &mut op, bits);
    }
    if done == Lower::No {
        done = simd::lower(cpu, i, &mut op);
    }
    let end = match done {
        Lower::No | Lower::End => true,
        Lower::Plain => i.flow_control() != FlowControl::Next,
    };
    (op, end)
}

/// What an encoding means on processors that lack its feature, where that is not #UD: TZCNT and
/// LZCNT are BSF and BSR with an ignored prefix (SDM vol. 2).
fn without_feature(i: &Instruction) -> Option<Instruction> {
    let code = match i.code() {
        Code::Tzcnt_r16_rm16 => Code::Bsf_r16_rm16,
        Code::Tzcnt_r32_rm32 => Code::Bsf_r32_rm32,
        Code::Tzcnt_r64_rm64 => Code::Bsf_r64_rm64,
        Code::Lzcnt_r16_rm16 => Code::Bsr_r16_rm16,
        Code::Lzcnt_r32_rm32 => Code::Bsr_r32_rm32,
        Code::Lzcnt_r64_rm64 => Code::Bsr_r64_rm64,
        _ => return None,
    };
    let mut older = *i;
    older.set_code(code);
    Some(older)
}

/// Fetches and decodes the one instruction at CS:RIP.
///
/// # Errors
/// The fetch's fault: #PF, #GP(0) for limit, canonical form or more than 15 bytes.
pub(crate) fn one(cpu: &mut Cpu) -> Result<Op, Trap> {
    let i = instruction(cpu)?;
    let bits = cpu.bits;
    Ok(lower(cpu, &i, bits).0)
}

/// Bytes of code that the segment's limit leaves at RIP.
///
/// # Errors
/// #GP(0) if there is none.
pub(crate) fn limit_left(cpu: &Cpu) -> Result<u64, Trap> {
    if cpu.code64 {
        return Ok(MAX_LEN as u64);
    }
    let limit = u64::from(cpu.state.segment(Seg::Cs).limit);
    if cpu.state.rip > limit {
        return Err(Exception::gp(0).into());
    }
    Ok(limit - cpu.state.rip + 1)
}

/// The linear address of CS:RIP.
#[inline(always)]
pub(crate) fn code_linear(cpu: &Cpu) -> u64 {
    if cpu.code64 {
        cpu.state.rip
    } else {
        cpu.state.segment(Seg::Cs).base.wrapping_add(cpu.state.rip) & 0xffff_ffff
    }
}

/// Fetches and decodes the instruction at CS:RIP.
pub(crate) fn instruction(cpu: &mut Cpu) -> Result<Instruction, Trap> {
    let left = limit_left(cpu)?.min(MAX_LEN as u64) as usize;
    let linear = code_linear(cpu);
    let mut buf = [0u8; MAX_LEN];
    let first = (4096 - (linear & 0xfff) as usize).min(left);
    let gpa = cpu.translate_fetch(linear)?;
    fetch(cpu, gpa, &mut buf[..first]);
    let options = options(cpu);
    let i = decode(&buf[..first], cpu.bits, options);
    let i = match i {
        Ok(i) => return Ok(i),
        Err(DecoderError::NoMoreBytes) if first < left => {
            let mut next = linear.wrapping_add(first as u64);
            if !cpu.long_mode {
                next &= 0xffff_ffff;
            }
            let gpa = cpu.translate_fetch(next)?;
            fetch(cpu, gpa, &mut buf[first..left]);
            decode(&buf[..left], cpu.bits, options)
        }
        other => other,
    };
    match i {
        Ok(i) => Ok(i),
        // More bytes than the limit leaves, or than an instruction may have.
        Err(DecoderError::NoMoreBytes) => Err(Exception::gp(0).into()),
        Err(_) if left == MAX_LEN && is_too_long(&buf, cpu.bits, options) => {
            Err(Exception::gp(0).into())
        }
        Err(_) => Err(Exception::ud().into()),
    }
}

/// Whether 15 bytes that do not decode are the beginning of a longer instruction: #GP(0), not #UD
/// (SDM vol. 3, 7.15, interrupt 13). Without prefixes that change nothing (repeated ones, segment
/// overrides, a REX that is not last) it decodes, or needs more bytes.
fn is_too_long(bytes: &[u8; MAX_LEN], bits: u32, options: u32) -> bool {
    const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    const OTHERS: [u8; 5] = [0x66, 0x67, 0xf0, 0xf2, 0xf3];
    let is_rex = |b: u8| bits == 64 && b & 0xf0 == 0x40;
    let is_prefix = |b: u8| SEGMENTS.contains(&b) || OTHERS.contains(&b) || is_rex(b);
    let count = bytes.iter().take_while(|b| is_prefix(**b)).count();
    let (prefixes, rest) = bytes.split_at(count);
    if rest.is_empty() {
        return true;
    }
    let mut short: Vec<u8> = Vec::with_capacity(MAX_LEN);
    for (n, b) in prefixes.iter().enumerate() {
        let counts = OTHERS.contains(b) || (is_rex(*b) && n + 1 == count);
        if counts && !short.contains(b) {
            short.push(*b);
        }
    }
    if short.len() == count {
        return false;
    }
    short.extend(rest);
    !matches!(
        decode(&short, bits, options),
        Err(DecoderError::InvalidInstruction)
    )
}

/// Code outside RAM and ROM reads as all ones.
fn fetch(cpu: &Cpu, gpa: u64, buf: &mut [u8]) {
    if cpu.memory.read(gpa, buf).is_err() {
        buf.fill(0xff);
    }
}

/// Decodes the first instruction of `bytes`, its address taken as 0.
pub(crate) fn decode(bytes: &[u8], bits: u32, options: u32) -> Result<Instruction, DecoderError> {
    let mut decoder = Decoder::new(bits, bytes, options);
    let i = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(i),
        e => Err(e),
    }
}

/// Whether CS:RIP runs in real or virtual-8086 mode.
pub(crate) fn real_or_v86(cpu: &Cpu) -> bool {
    !cpu.state.cr0.contains(Cr0::PE) || cpu.state.rflags.contains(RFlags::VM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of the instruction table outside the SIMD groups has a handler.
    #[test]
    fn every_row_is_lowered() {
        use mimeo_isa_x86::{Group, forms};
        let mut missing = Vec::new();
        for form in forms().filter(|f| f.group < Group::Xsave && f.class != Class::Nop) {
            let i = sample(form.code);
            let bits = if form.modes.contains(64) { 64 } else { 32 };
            let mut op = Op::from_instruction(&i, bits);
            if exec::lower(&i, &mut op, bits) == Lower::No
                && system::lower(&i, &mut op, bits) == Lower::No
            {
                missing.push(form.code);
            }
        }
        assert!(missing.is_empty(), "no handler: {missing:?}");
    }

    /// An instruction of the form with plausible operands.
    fn sample(code: Code) -> Instruction {
        use iced_x86::{OpCodeOperandKind as K, OpKind, Register as R};
        let mut i = Instruction::default();
        i.set_code(code);
        for n in 0..code.op_code().op_count() {
            let kind = match code.op_code().op_kind(n) {
                K::imm8 | K::imm8_const_1 => OpKind::Immediate8,
                K::imm8sex16 => OpKind::Immediate8to16,
                K::imm8sex32 => OpKind::Immediate8to32,
                K::imm8sex64 => OpKind::Immediate8to64,
                K::imm16 => OpKind::Immediate16,
                K::imm32 => OpKind::Immediate32,
                K::imm32sex64 => OpKind::Immediate32to64,
                K::imm64 => OpKind::Immediate64,
                K::farbr2_2 => OpKind::FarBranch16,
                K::farbr4_2 => OpKind::FarBranch32,
                K::br16_1 | K::br16_2 => OpKind::NearBranch16,
                K::br32_1 | K::br32_4 => OpKind::NearBranch32,
                K::br64_1 | K::br64_4 => OpKind::NearBranch64,
                K::mem | K::mem_offs => OpKind::Memory,
                K::seg_rSI => OpKind::MemorySegRSI,
                K::es_rDI => OpKind::MemoryESRDI,
                K::seg_rBX_al => OpKind::Memory,
                K::cl => {
                    i.set_op_register(n, R::CL);
                    OpKind::Register
                }
                K::seg_reg => {
                    i.set_op_register(n, R::DS);
                    OpKind::Register
                }
                _ => {
                    i.set_op_register(n, R::EAX);
                    OpKind::Register
                }
            };
            i.set_op_kind(n, kind);
        }
        i
    }
}
