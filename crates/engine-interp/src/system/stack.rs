//! Stacks of transfers: frames pushed as a whole, so that nothing has moved when a push faults; the
//! stacks that the TSS names (SDM vol. 3, 6.8.5, 7.12.1).

use super::segment::{self, Faults};
use crate::mem::Access;
use crate::{Cpu, Exec, Trap};
use mimeo_arch_x86::selector::Selector;
use mimeo_arch_x86::{Exception, Gpr, Seg, Segment, Vector, tss};
use mimeo_vcpu::CpuIo;

/// The most values a frame has: a call gate's 31 parameters, SS, ESP, CS, EIP.
const MAX: usize = 35;

/// A frame to be pushed: the first value added is pushed first.
pub(super) struct Frame {
    values: [u64; MAX],
    len: usize,
    /// Bytes of each push: 2, 4 or 8.
    size: u8,
}

impl Frame {
    /// An empty frame of pushes of `size` bytes.
    pub(super) const fn new(size: u8) -> Self {
        Self {
            values: [0; MAX],
            len: 0,
            size,
        }
    }

    /// Adds a value; more than [`MAX`] are never added.
    pub(super) fn push(&mut self, value: impl Into<u64>) {
        self.values[self.len] = value.into();
        self.len += 1;
    }

    fn bytes(&self) -> u64 {
        self.len as u64 * u64::from(self.size)
    }
}

/// A stack to push on, which need not be the current one yet.
#[derive(Clone, Copy)]
pub(super) struct Stack {
    /// Its segment.
    pub(super) ss: Segment,
    /// The stack pointer.
    pub(super) sp: u64,
    /// Its width: 16 or 32 bits by SS.B, 64 bits.
    pub(super) mask: u64,
    /// The privilege level that the pushes have.
    pub(super) cpl: u8,
    /// Error code of #SS when the frame does not fit.
    pub(super) code: u32,
}

impl Stack {
    /// The current stack.
    pub(super) fn current(cpu: &Cpu, code: u32) -> Self {
        Self {
            ss: *cpu.state.segment(Seg::Ss),
            sp: cpu.gpr(Gpr::Rsp),
            mask: cpu.stack_mask(),
            cpl: cpu.state.cpl,
            code,
        }
    }

    /// Pushes `frame`; gives the new stack pointer (its bits outside the mask are the old ones').
    ///
    /// # Errors
    /// #SS or #PF; nothing has been written then.
    pub(super) fn push(
        &self,
        cpu: &mut Cpu,
        frame: &Frame,
        io: &mut dyn CpuIo,
    ) -> Result<u64, Trap> {
        let size = usize::from(frame.size);
        let sp = self.sp.wrapping_sub(frame.bytes()) & self.mask;
        let top = self.sp.wrapping_sub(1) & self.mask;
        if sp <= top && top - sp + 1 == frame.bytes() {
            let mut bytes = [0u8; MAX * 8];
            for (n, value) in frame.values[..frame.len].iter().rev().enumerate() {
                bytes[n * size..][..size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            let len = frame.bytes() as usize;
            let linear = self.linear(cpu, sp, len)?;
            let written = self.as_owner(cpu, |cpu| {
                cpu.write_bytes(Seg::Ss as u8, linear, &bytes[..len], io)
            });
            if written.is_err() {
                // The fault is that of the first push, at the highest address.
                self.push_each(cpu, frame, io)?;
            }
        } else {
            self.push_each(cpu, frame, io)?;
        }
        Ok(sp | (self.sp & !self.mask))
    }

    /// Push by push, all checked first: a frame that wraps around the end of the stack segment.
    fn push_each(&self, cpu: &mut Cpu, frame: &Frame, io: &mut dyn CpuIo) -> Exec {
        let size = usize::from(frame.size);
        let at = |n: usize| self.sp.wrapping_sub(((n + 1) * size) as u64) & self.mask;
        for n in 0..frame.len {
            let linear = self.linear(cpu, at(n), size)?;
            self.as_owner(cpu, |cpu| {
                cpu.probe(Seg::Ss as u8, linear, size, Access::Write)
            })?;
        }
        for (n, value) in frame.values[..frame.len].iter().enumerate() {
            let linear = self.linear(cpu, at(n), size)?;
            let bytes = value.to_le_bytes();
            self.as_owner(cpu, |cpu| {
                cpu.write_bytes(Seg::Ss as u8, linear, &bytes[..size], io)
            })?;
        }
        Ok(())
    }

    /// The linear address of `len` bytes at `sp`.
    fn linear(&self, cpu: &Cpu, sp: u64, len: usize) -> Result<u64, Trap> {
        let last = sp.wrapping_add(len as u64 - 1);
        let (linear, ok) = if self.mask == u64::MAX {
            (sp, cpu.is_canonical(sp) && cpu.is_canonical(last))
        } else {
            let linear = self.ss.base.wrapping_add(sp) & 0xffff_ffff;
            (
                linear,
                cpu.segment_allows(&self.ss, sp, last, Access::Write),
            )
        };
        if ok {
            Ok(linear)
        } else {
            Err(Exception::ss(self.code).into())
        }
    }

    /// Runs an access with the rights of this stack's privilege level.
    fn as_owner<R>(&self, cpu: &mut Cpu, f: impl FnOnce(&mut Cpu) -> R) -> R {
        if self.cpl < 3 && cpu.state.cpl == 3 {
            cpu.as_system(f)
        } else {
            f(cpu)
        }
    }
}

/// Values read from the stack, before the stack pointer moves.
pub(super) struct Reader {
    sp: u64,
    mask: u64,
    size: u8,
    taken: u64,
}

impl Reader {
    /// Of values of `size` bytes from the top of the current stack.
    pub(super) fn new(cpu: &Cpu, size: u8) -> Self {
        Self {
            sp: cpu.gpr(Gpr::Rsp),
            mask: cpu.stack_mask(),
            size,
            taken: 0,
        }
    }

    /// The next value, zero-extended.
    ///
    /// # Errors
    /// #SS(0), #PF, #AC.
    pub(super) fn pop(&mut self, cpu: &mut Cpu, io: &mut dyn CpuIo) -> Result<u64, Trap> {
        let at = self.sp.wrapping_add(self.taken) & self.mask;
        let ss = Seg::Ss as u8;
        let value = match self.size {
            2 => u64::from(cpu.load::<u16>(ss, at, io)?),
            4 => u64::from(cpu.load::<u32>(ss, at, io)?),
            _ => cpu.load(ss, at, io)?,
        };
        self.taken += u64::from(self.size);
        Ok(value)
    }

    /// Passes over `bytes` of parameters.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.taken += bytes;
    }

    /// The stack pointer behind what was read (its bits outside the mask are the old ones').
    pub(super) fn sp(&self) -> u64 {
        let sp = self.sp.wrapping_add(self.taken) & self.mask;
        match self.mask {
            // A 32-bit stack pointer clears the upper half.
            0xffff => sp | (self.sp & !self.mask),
            _ => sp,
        }
    }
}

/// The width of a stack pointer with segment `ss` outside 64-bit mode.
pub(super) fn mask_of(ss: &Segment) -> u64 {
    if ss.db() { 0xffff_ffff } else { 0xffff }
}

/// The stack that the TSS holds for privilege level `cpl`, outside long mode.
///
/// # Errors
/// #TS(TSS), #TS(SS), #SS(SS), page faults. `ext`: the EXT bit of their error codes.
pub(super) fn from_tss(
    cpu: &mut Cpu,
    cpl: u8,
    ext: bool,
    io: &mut dyn CpuIo,
) -> Result<Stack, Trap> {
    let tr = cpu.state.tr;
    let wide = tr.attr & 8 != 0;
    let (offset, size) = if wide {
        (tss::tss32::ESP0 + 8 * u32::from(cpl), 6)
    } else {
        (tss::tss16::SP0 + 4 * u32::from(cpl), 4)
    };
    if tr.unusable() || offset + (size - 1) > tr.limit {
        let code = Selector(tr.selector).error_code(ext);
        return Err(Exception::with_code(Vector::Ts, code).into());
    }
    let at = tr.base.wrapping_add(offset.into());
    let (sp, selector) = if wide {
        let sp: u32 = cpu.read_system(at, io)?;
        (u64::from(sp), cpu.read_system(at.wrapping_add(4), io)?)
    } else {
        let sp: u16 = cpu.read_system(at, io)?;
        (u64::from(sp), cpu.read_system(at.wrapping_add(2), io)?)
    };
    let selector = Selector(selector);
    let faults = Faults {
        bad: Vector::Ts,
        ext,
    };
    let ss = segment::load_ss(cpu, selector, cpl, faults, io)?;
    Ok(Stack {
        ss,
        sp,
        mask: mask_of(&ss),
        cpl,
        code: selector.error_code(ext),
    })
}

/// The stack that the 64-bit TSS holds at byte `offset` (an RSPn or ISTn), for `cpl`.
///
/// # Errors
/// #TS(TSS) beyond its limit, #SS(EXT) where the pointer is not canonical, page faults.
pub(super) fn from_tss64(
    cpu: &mut Cpu,
    offset: u32,
    cpl: u8,
    ext: bool,
    io: &mut dyn CpuIo,
) -> Result<Stack, Trap> {
    let tr = cpu.state.tr;
    if tr.unusable() || offset + 7 > tr.limit {
        let code = Selector(tr.selector).error_code(ext);
        return Err(Exception::with_code(Vector::Ts, code).into());
    }
    let sp: u64 = cpu.read_system(tr.base.wrapping_add(offset.into()), io)?;
    if !cpu.is_canonical(sp) {
        return Err(Exception::ss(ext.into()).into());
    }
    Ok(Stack {
        ss: segment::null_ss(cpl.into(), cpl),
        sp,
        mask: u64::MAX,
        cpl,
        code: ext.into(),
    })
}
