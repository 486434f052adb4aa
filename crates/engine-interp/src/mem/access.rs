//! Checked access to guest memory: a fast path through the TLB, a slow path for everything else
//! (misses, page straddles, MMIO, ROM, alignment checks, data breakpoints).

use super::raw::HostPage;
use super::{Access, Width};
use crate::op::{NO_REG, RIP_REG};
use crate::{Cpu, Op, Trap};
use mimeo_arch_x86::{Exception, Vector};
use mimeo_vcpu::CpuIo;

/// Where a linear address leads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Memory of ours, with its page index.
    Memory(HostPage, u32),
    /// A device (or a write to ROM): through [`CpuIo`].
    Device(u64),
}

/// One or two pieces of a range, each within a page: place, offset in the page, bytes.
pub(super) type Pieces = [Option<(Place, usize, usize)>; 2];

impl Cpu {
    /// The effective address of an op's memory operand: the offset in its segment.
    #[inline(always)]
    pub fn ea(&self, op: &Op) -> u64 {
        let mut a = op.disp as i64 as u64;
        if op.base != NO_REG {
            a = a.wrapping_add(if op.base == RIP_REG {
                self.state.rip
            } else {
                self.state.gpr[usize::from(op.base & 15)]
            });
        }
        if op.index != NO_REG {
            a = a.wrapping_add(self.state.gpr[usize::from(op.index & 15)] << (op.scale & 3));
        }
        match op.addr {
            8 => a,
            4 => a & 0xffff_ffff,
            _ => a & 0xffff,
        }
    }

    /// Loads an op's memory operand.
    ///
    /// # Errors
    /// The access's fault.
    #[inline(always)]
    pub fn load_op<T: Width>(&mut self, op: &Op, io: &mut dyn CpuIo) -> Result<T, Trap> {
        self.load(op.seg, self.ea(op), io)
    }

    /// Stores an op's memory operand.
    ///
    /// # Errors
    /// The access's fault; nothing has been written then.
    #[inline(always)]
    pub fn store_op<T: Width>(&mut self, op: &Op, v: T, io: &mut dyn CpuIo) -> Result<(), Trap> {
        self.store(op.seg, self.ea(op), v, io)
    }

    /// Loads from `seg:offset` with the rights of the current privilege level.
    ///
    /// # Errors
    /// #GP, #SS, #PF, #AC.
    #[inline(always)]
    pub fn load<T: Width>(&mut self, seg: u8, offset: u64, io: &mut dyn CpuIo) -> Result<T, Trap> {
        let linear = self.linear(seg, offset, T::BYTES, Access::Read)?;
        self.read(seg, linear, io)
    }

    /// Stores to `seg:offset` with the rights of the current privilege level.
    ///
    /// # Errors
    /// #GP, #SS, #PF, #AC; nothing has been written then.
    #[inline(always)]
    pub fn store<T: Width>(
        &mut self,
        seg: u8,
        offset: u64,
        v: T,
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let linear = self.linear(seg, offset, T::BYTES, Access::Write)?;
        self.write(seg, linear, v, io)
    }

    /// Loads from a linear address; `seg` says whether a non-canonical one is #SS or #GP.
    ///
    /// # Errors
    /// #GP, #SS, #PF, #AC.
    #[inline(always)]
    pub fn read<T: Width>(&mut self, seg: u8, linear: u64, io: &mut dyn CpuIo) -> Result<T, Trap> {
        // The tag of the last byte's page: differs from the entry's for a straddle.
        let last = linear.wrapping_add(T::BYTES as u64 - 1);
        if let Some(e) = self.tlb.entry(linear)
            && e.read == (last & !0xfff) | self.tlb.key
        {
            return Ok(e.host.load(linear as usize));
        }
        self.read_slow(seg, linear, T::BYTES, io).map(T::trunc)
    }

    /// Stores to a linear address.
    ///
    /// # Errors
    /// #GP, #SS, #PF, #AC; nothing has been written then.
    #[inline(always)]
    pub fn write<T: Width>(
        &mut self,
        seg: u8,
        linear: u64,
        v: T,
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let last = linear.wrapping_add(T::BYTES as u64 - 1);
        if let Some(e) = self.tlb.entry(linear)
            && e.write == (last & !0xfff) | self.tlb.key
        {
            let page = e.page;
            e.host.store(linear as usize, v);
            self.stored(page, linear as usize & 4095, T::BYTES);
            return Ok(());
        }
        self.write_slow(seg, linear, v.zext(), T::BYTES, io)
    }

    /// Read-modify-write of one memory operand, not locked: `f` gives the new value. Checked as a
    /// write before the read.
    ///
    /// # Errors
    /// #GP, #SS, #PF, #AC; `f` has not been called then.
    #[inline(always)]
    pub fn modify<T: Width>(
        &mut self,
        seg: u8,
        offset: u64,
        io: &mut dyn CpuIo,
        f: impl FnOnce(&mut Self, T) -> T,
    ) -> Result<(), Trap> {
        let linear = self.linear(seg, offset, T::BYTES, Access::Write)?;
        let last = linear.wrapping_add(T::BYTES as u64 - 1);
        if let Some(e) = self.tlb.entry(linear)
            && e.write == (last & !0xfff) | self.tlb.key
        {
            let (page, host) = (e.page, e.host);
            let v = f(self, host.load(linear as usize));
            host.store(linear as usize, v);
            self.stored(page, linear as usize & 4095, T::BYTES);
            return Ok(());
        }
        let pieces = self.pieces(seg, linear, T::BYTES, Access::Write)?;
        let old = self.read_pieces(&pieces, io);
        let v = f(self, T::trunc(old));
        self.write_pieces(&pieces, v.zext(), io);
        Ok(())
    }

    /// After a store of `len` bytes into page `page`: tells the tracker when somebody watches.
    #[inline(always)]
    pub(super) fn stored(&mut self, page: u32, offset: usize, len: usize) {
        if self.tracker.watched(page as usize) {
            self.stored_watched(page, offset, len);
        }
    }

    #[cold]
    fn stored_watched(&mut self, page: u32, offset: usize, len: usize) {
        self.memory.after_store(page as usize, offset, len);
        // The running block may just have been changed: leave it after this instruction.
        self.leave_block = true;
    }

    /// Reads bytes from `seg:offset` (at most 4096), all checked first.
    ///
    /// # Errors
    /// #GP, #SS, #PF.
    pub fn load_bytes(
        &mut self,
        seg: u8,
        offset: u64,
        buf: &mut [u8],
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let linear = self.linear(seg, offset, buf.len(), Access::Read)?;
        self.read_bytes(seg, linear, buf, io)
    }

    /// Writes bytes to `seg:offset` (at most 4096), all checked first.
    ///
    /// # Errors
    /// #GP, #SS, #PF; nothing has been written then.
    pub fn store_bytes(
        &mut self,
        seg: u8,
        offset: u64,
        buf: &[u8],
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let linear = self.linear(seg, offset, buf.len(), Access::Write)?;
        self.write_bytes(seg, linear, buf, io)
    }

    /// Reads bytes from a linear address (at most 4096).
    ///
    /// # Errors
    /// #GP, #SS, #PF.
    pub fn read_bytes(
        &mut self,
        seg: u8,
        linear: u64,
        buf: &mut [u8],
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        if let Some(e) = self.tlb.entry(linear)
            && e.read == (linear.wrapping_add(buf.len().max(1) as u64 - 1) & !0xfff) | self.tlb.key
            && buf.len() <= 4096
        {
            e.host.read(linear as usize & 4095, buf);
            return Ok(());
        }
        let pieces = self.pieces(seg, linear, buf.len(), Access::Read)?;
        let mut at = 0;
        for (place, offset, len) in pieces.into_iter().flatten() {
            let part = &mut buf[at..at + len];
            match place {
                Place::Memory(host, _) => host.read(offset, part),
                Place::Device(gpa) => device_read(gpa, part, io),
            }
            at += len;
        }
        Ok(())
    }

    /// Writes bytes to a linear address (at most 4096).
    ///
    /// # Errors
    /// #GP, #SS, #PF; nothing has been written then.
    pub fn write_bytes(
        &mut self,
        seg: u8,
        linear: u64,
        buf: &[u8],
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let pieces = self.pieces(seg, linear, buf.len(), Access::Write)?;
        let mut at = 0;
        for (place, offset, len) in pieces.into_iter().flatten() {
            let part = &buf[at..at + len];
            match place {
                Place::Memory(host, page) => {
                    host.write(offset, part);
                    self.stored(page, offset, len);
                }
                Place::Device(gpa) => device_write(gpa, part, io),
            }
            at += len;
        }
        Ok(())
    }

    /// Checks a range (at most 4096 bytes) for access without touching it.
    ///
    /// # Errors
    /// #GP, #SS, #PF.
    pub fn probe(&mut self, seg: u8, linear: u64, len: usize, access: Access) -> Result<(), Trap> {
        self.pieces(seg, linear, len, access).map(|_| ())
    }

    #[cold]
    #[inline(never)]
    fn read_slow(
        &mut self,
        seg: u8,
        linear: u64,
        size: usize,
        io: &mut dyn CpuIo,
    ) -> Result<u64, Trap> {
        let pieces = self.pieces(seg, linear, size, Access::Read)?;
        Ok(self.read_pieces(&pieces, io))
    }

    #[cold]
    #[inline(never)]
    fn write_slow(
        &mut self,
        seg: u8,
        linear: u64,
        v: u64,
        size: usize,
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let pieces = self.pieces(seg, linear, size, Access::Write)?;
        self.write_pieces(&pieces, v, io);
        Ok(())
    }

    /// Translates a range of at most 4096 bytes, checking everything before anything moves.
    pub(super) fn pieces(
        &mut self,
        seg: u8,
        linear: u64,
        len: usize,
        access: Access,
    ) -> Result<Pieces, Trap> {
        self.check_canonical(seg, linear, len)?;
        if self.check_alignment && len.is_power_of_two() && linear & (len as u64 - 1) != 0 {
            return Err(Exception::with_code(Vector::Ac, 0).into());
        }
        let offset = (linear & 0xfff) as usize;
        let first = len.min(4096 - offset);
        let a = self.place(linear, access)?;
        let b = if first < len {
            let next = self.wrap_linear(linear.wrapping_add(first as u64));
            Some((self.place(next, access)?, 0, (len - first).min(4096)))
        } else {
            None
        };
        if self.watch_data {
            self.note_data_access(linear, len, access);
        }
        Ok([Some((a, offset, first)), b])
    }

    /// Linear addresses have 32 bits outside long mode.
    #[inline]
    fn wrap_linear(&self, linear: u64) -> u64 {
        if self.long_mode {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }

    pub(super) fn read_pieces(&mut self, pieces: &Pieces, io: &mut dyn CpuIo) -> u64 {
        let mut bytes = [0u8; 8];
        let mut at = 0;
        for &(place, offset, len) in pieces.iter().flatten() {
            let end = (at + len).min(8);
            match place {
                // Whole naturally aligned operands stay single accesses.
                Place::Memory(host, _) if at == 0 && pieces[1].is_none() => {
                    return match len {
                        1 => host.load::<u8>(offset).zext(),
                        2 => host.load::<u16>(offset).zext(),
                        4 => host.load::<u32>(offset).zext(),
                        _ => host.load::<u64>(offset),
                    };
                }
                Place::Memory(host, _) => host.read(offset, &mut bytes[at..end]),
                Place::Device(gpa) => device_read(gpa, &mut bytes[at..end], io),
            }
            at = end;
        }
        u64::from_le_bytes(bytes)
    }

    pub(super) fn write_pieces(&mut self, pieces: &Pieces, v: u64, io: &mut dyn CpuIo) {
        let bytes = v.to_le_bytes();
        let mut at = 0;
        for &(place, offset, len) in pieces.iter().flatten() {
            let end = (at + len).min(8);
            match place {
                Place::Memory(host, page) => {
                    if at == 0 && pieces[1].is_none() {
                        match len {
                            1 => host.store::<u8>(offset, v as u8),
                            2 => host.store::<u16>(offset, v as u16),
                            4 => host.store::<u32>(offset, v as u32),
                            _ => host.store::<u64>(offset, v),
                        }
                    } else {
                        host.write(offset, &bytes[at..end]);
                    }
                    self.stored(page, offset, end - at);
                }
                Place::Device(gpa) => device_write(gpa, &bytes[at..end], io),
            }
            at = end;
        }
    }

    /// Compares a data access with the enabled data breakpoints (SDM vol. 3, 19.2.5); hits are
    /// reported by a #DB after the instruction.
    fn note_data_access(&mut self, linear: u64, len: usize, access: Access) {
        let s = &self.state;
        for n in 0..4 {
            let kind = s.dr7 >> (16 + 4 * n) & 3;
            let wanted = kind == 3 || (kind == 1 && access == Access::Write);
            if s.dr7 >> (2 * n) & 3 == 0 || !wanted {
                continue;
            }
            let size = match s.dr7 >> (18 + 4 * n) & 3 {
                0 => 1,
                1 => 2,
                2 => 8,
                _ => 4,
            };
            let start = s.dr[n] & !(size - 1);
            if start < linear.wrapping_add(len as u64) && linear < start.wrapping_add(size) {
                self.pending_debug |= 1 << n;
            }
        }
    }
}

/// Reads a device in naturally aligned pieces, lowest address first.
fn device_read(mut gpa: u64, mut buf: &mut [u8], io: &mut dyn CpuIo) {
    while !buf.is_empty() {
        let n = chunk(gpa, buf.len());
        let v = io.mmio_read(gpa, n as u8).to_le_bytes();
        let (head, tail) = buf.split_at_mut(n);
        head.copy_from_slice(&v[..n]);
        buf = tail;
        gpa += n as u64;
    }
}

/// Writes a device in naturally aligned pieces, lowest address first.
fn device_write(mut gpa: u64, mut buf: &[u8], io: &mut dyn CpuIo) {
    while !buf.is_empty() {
        let n = chunk(gpa, buf.len());
        let mut v = [0; 8];
        v[..n].copy_from_slice(&buf[..n]);
        io.mmio_write(gpa, n as u8, u64::from_le_bytes(v));
        buf = &buf[n..];
        gpa += n as u64;
    }
}

fn chunk(gpa: u64, len: usize) -> usize {
    let mut n = 8;
    while n > len || !gpa.is_multiple_of(n as u64) {
        n /= 2;
    }
    n
}
