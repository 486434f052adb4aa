//! Runs of string elements inside one page of memory.

use super::access::Place;
use super::{Access, Width};
use crate::{Cpu, Trap};
use mimeo_arch_x86::Seg;
use mimeo_vcpu::CpuIo;

const ES: u8 = Seg::Es as u8;

impl Cpu {
    /// How many elements at `seg:offset`, going up, stay in their page, under the segment's limit and
    /// under the address size's wrap; with the linear address of the first. (0, _) where the single
    /// path must look (and fault).
    fn run_length<T: Width>(
        &self,
        seg: u8,
        offset: u64,
        count: u64,
        addr: u8,
        access: Access,
    ) -> (u64, u64) {
        let wrap = match addr {
            8 => u64::MAX,
            4 => 0x1_0000_0000 - offset,
            _ => 0x1_0000 - offset,
        };
        let Ok(linear) = self.linear(seg, offset, T::BYTES, access) else {
            return (0, 0);
        };
        let bytes = (4096 - (linear & 0xfff)).min(wrap);
        let n = count.min(bytes / T::BYTES as u64);
        if n > 1
            && self
                .linear(seg, offset, n as usize * T::BYTES, access)
                .is_err()
        {
            return (0, 0);
        }
        (n, linear)
    }

    /// Copies up to `count` elements upwards; gives how many (0: do one the slow way).
    ///
    /// # Errors
    /// The fault of the first element.
    pub(crate) fn copy_run<T: Width>(
        &mut self,
        seg: u8,
        from: u64,
        to: u64,
        count: u64,
        addr: u8,
        _io: &mut dyn CpuIo,
    ) -> Result<u64, Trap> {
        if self.watch_data || self.check_alignment {
            return Ok(0);
        }
        let (n, source) = self.run_length::<T>(seg, from, count, addr, Access::Read);
        let (m, target) = self.run_length::<T>(ES, to, n, addr, Access::Write);
        let n = n.min(m);
        if n < 2 {
            return Ok(0);
        }
        self.check_canonical(seg, source, T::BYTES)?;
        let a = self.place(source, Access::Read)?;
        self.check_canonical(ES, target, T::BYTES)?;
        let b = self.place(target, Access::Write)?;
        let (Place::Memory(src, _), Place::Memory(dst, page)) = (a, b) else {
            return Ok(0);
        };
        let (from, to) = (source as usize & 4095, target as usize & 4095);
        let len = n as usize * T::BYTES;
        if src == dst && from < to && to < from + len {
            // The copy feeds itself: the guest's order matters.
            for k in 0..n as usize {
                let v = src.load::<T>(from + k * T::BYTES);
                dst.store(to + k * T::BYTES, v);
            }
        } else {
            src.copy_to(from, dst, to, len);
        }
        self.stored(page, to, len);
        Ok(n)
    }

    /// Stores `v` up to `count` times upwards at ES:`to`; gives how many (0: do one the slow way).
    ///
    /// # Errors
    /// The fault of the first element.
    pub(crate) fn fill_run<T: Width>(
        &mut self,
        to: u64,
        v: T,
        count: u64,
        addr: u8,
    ) -> Result<u64, Trap> {
        if self.watch_data || self.check_alignment {
            return Ok(0);
        }
        let (n, target) = self.run_length::<T>(ES, to, count, addr, Access::Write);
        if n < 2 {
            return Ok(0);
        }
        self.check_canonical(ES, target, T::BYTES)?;
        let Place::Memory(dst, page) = self.place(target, Access::Write)? else {
            return Ok(0);
        };
        let (at, len) = (target as usize & 4095, n as usize * T::BYTES);
        let bytes = v.zext().to_le_bytes();
        if bytes[..T::BYTES].iter().all(|b| *b == bytes[0]) {
            dst.fill(at, bytes[0], len);
        } else {
            for k in 0..n as usize {
                dst.store(at + k * T::BYTES, v);
            }
        }
        self.stored(page, at, len);
        Ok(n)
    }
}
