//! The decimal adjustments and BOUND, which 64-bit mode does not have (SDM vol. 2, AAA, AAD, AAM,
//! AAS, DAA, DAS, BOUND).

use super::flags::{self, AF, CF, STATUS};
use super::regs::{get, set};
use crate::decode::Lower;
use crate::{Cpu, Exec, Handler, Op, Width};
use iced_x86::{Instruction, Mnemonic};
use mimeo_arch_x86::{Exception, Vector};
use mimeo_vcpu::CpuIo;

const AL: u8 = 0;
const AX: u8 = 0;
const AH: u8 = 16;

/// DAA and DAS.
fn decimal<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let old = get::<u8>(cpu, AL);
    let old_cf = flags::any(cpu, CF);
    let adjust_low = old & 0xf > 9 || flags::any(cpu, AF);
    let adjust_high = old > 0x99 || old_cf;
    let mut al = old;
    let mut cf = false;
    if adjust_low {
        let (r, carry) = if SUBTRACT {
            al.overflowing_sub(6)
        } else {
            al.overflowing_add(6)
        };
        al = r;
        cf = old_cf || carry;
    }
    if adjust_high {
        al = if SUBTRACT {
            al.wrapping_sub(0x60)
        } else {
            al.wrapping_add(0x60)
        };
        cf = true;
    }
    set(cpu, AL, al);
    let af = if adjust_low { AF } else { 0 };
    flags::put(cpu, STATUS, flags::szp(al) | af | u64::from(cf));
    Ok(())
}

/// AAA and AAS.
fn ascii<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op, _: &mut dyn CpuIo) -> Exec {
    let adjust = get::<u8>(cpu, AL) & 0xf > 9 || flags::any(cpu, AF);
    if adjust {
        let ax = get::<u16>(cpu, AX);
        let ax = if SUBTRACT {
            ax.wrapping_sub(0x106)
        } else {
            ax.wrapping_add(0x106)
        };
        set(cpu, AX, ax);
    }
    let al = get::<u8>(cpu, AL) & 0xf;
    set(cpu, AL, al);
    let carry = if adjust { AF | CF } else { 0 };
    flags::put(cpu, STATUS, flags::szp(al) | carry);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let (al, ah) = (get::<u8>(cpu, AL), get::<u8>(cpu, AH));
    let r = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    set(cpu, AX, u16::from(r));
    flags::put(cpu, STATUS, flags::szp(r));
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op, _: &mut dyn CpuIo) -> Exec {
    let base = op.imm as u8;
    let al = get::<u8>(cpu, AL);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Exception::new(Vector::De).into());
    };
    set(cpu, AH, high);
    set(cpu, AL, low);
    flags::put(cpu, STATUS, flags::szp(low));
    Ok(())
}

fn bound<T: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let offset = cpu.ea(op);
    let low = cpu.load::<T>(op.seg, offset, io)?.sext();
    let index = get::<T>(cpu, op.r0).sext();
    if index < low {
        return Err(Exception::new(Vector::Br).into());
    }
    let next = offset.wrapping_add(T::BYTES as u64) & super::address_mask(op.addr);
    let high = cpu.load::<T>(op.seg, next, io)?.sext();
    if index > high {
        return Err(Exception::new(Vector::Br).into());
    }
    Ok(())
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Lower {
    let run: Handler = match i.mnemonic() {
        Mnemonic::Daa => decimal::<false>,
        Mnemonic::Das => decimal::<true>,
        Mnemonic::Aaa => ascii::<false>,
        Mnemonic::Aas => ascii::<true>,
        Mnemonic::Aad => aad,
        Mnemonic::Aam => aam,
        Mnemonic::Bound if op.size == 2 => bound::<u16>,
        Mnemonic::Bound => bound::<u32>,
        _ => return Lower::No,
    };
    Lower::plain(op, run)
}
