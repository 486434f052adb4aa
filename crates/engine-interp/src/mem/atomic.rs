//! LOCKed read-modify-write, atomic against other vCPUs (SDM vol. 3, 10.1.2).
//!
//! Operands that lie inside one naturally aligned 8-byte word use the host's compare-and-exchange on
//! guest memory. For others (split locks) the other vCPUs stop ([`mimeo_memory::BusLock`]): the
//! host's own split lock would be atomic too, but many hosts punish it with up to milliseconds each or
//! end the process.
//!
//! Not atomic: LOCK on device registers.

use super::access::Place;
use super::raw::HostPage;
use super::{Access, Width};
use crate::{Cpu, Trap};
use mimeo_arch_x86::Exception;
use mimeo_vcpu::CpuIo;

impl Cpu {
    /// LOCKed read-modify-write of `seg:offset`: `f` gives the new value (and may be called again).
    /// Gives the old value.
    ///
    /// # Errors
    /// #GP, #SS, #PF, #AC; nothing has changed then.
    pub fn modify_locked<T: Width>(
        &mut self,
        seg: u8,
        offset: u64,
        io: &mut dyn CpuIo,
        f: impl Fn(T) -> T,
    ) -> Result<T, Trap> {
        let linear = self.linear(seg, offset, T::BYTES, Access::Write)?;
        let at = linear as usize & 4095;
        let last = linear.wrapping_add(T::BYTES as u64 - 1);
        if let Some(e) = self.tlb.entry(linear)
            && e.write == (last & !0xfff) | self.tlb.key
            && at.is_multiple_of(T::BYTES)
        {
            let (host, page) = (e.host, e.page);
            let old = exchange(host, at, &f);
            self.stored(page, at, T::BYTES);
            return Ok(old);
        }
        self.modify_locked_slow(seg, linear, io, &f)
    }

    /// As [`Self::modify_locked`], of a linear address (descriptors).
    ///
    /// # Errors
    /// #GP, #SS, #PF; nothing has changed then.
    #[cold]
    pub(crate) fn modify_locked_slow<T: Width>(
        &mut self,
        seg: u8,
        linear: u64,
        io: &mut dyn CpuIo,
        f: &dyn Fn(T) -> T,
    ) -> Result<T, Trap> {
        let pieces = self.pieces(seg, linear, T::BYTES, Access::Write)?;
        let at = linear as usize & 4095;
        if let (Some((Place::Memory(host, page), ..)), None) = (pieces[0], pieces[1]) {
            if at.is_multiple_of(T::BYTES) {
                let old = exchange(host, at, f);
                self.stored(page, at, T::BYTES);
                return Ok(old);
            }
            if at % 8 + T::BYTES <= 8 {
                let old = exchange_inside(host, at, f);
                self.stored(page, at, T::BYTES);
                return Ok(old);
            }
        }
        let _alone = self.seat.alone();
        let old = T::trunc(self.read_pieces(&pieces, io));
        let new = f(old);
        self.write_pieces(&pieces, new.zext(), io);
        Ok(old)
    }

    /// CMPXCHG16B's exchange: 16 bytes at an address that is a multiple of 16. Gives the old value;
    /// `new` was stored if it equals `expected`, the old value was stored back otherwise.
    ///
    /// # Errors
    /// #GP(0) where the address is not a multiple of 16, #SS, #PF.
    pub fn compare_exchange16(
        &mut self,
        seg: u8,
        offset: u64,
        expected: u128,
        new: u128,
        io: &mut dyn CpuIo,
    ) -> Result<u128, Trap> {
        let linear = self.linear(seg, offset, 16, Access::Write)?;
        self.check_canonical(seg, linear, 16)?;
        if linear % 16 != 0 {
            return Err(Exception::gp(0).into());
        }
        let pieces = self.pieces(seg, linear, 16, Access::Write)?;
        if let Some((Place::Memory(host, page), at, _)) = pieces[0] {
            let old = match host.cas16(at, expected, new) {
                Ok(old) | Err(old) => old,
            };
            self.stored(page, at, 16);
            return Ok(old);
        }
        let mut bytes = [0; 16];
        self.read_bytes(seg, linear, &mut bytes, io)?;
        let old = u128::from_le_bytes(bytes);
        let value = if old == expected { new } else { old };
        self.write_bytes(seg, linear, &value.to_le_bytes(), io)?;
        Ok(old)
    }
}

fn exchange<T: Width>(host: HostPage, at: usize, f: impl Fn(T) -> T) -> T {
    let mut old = host.load::<T>(at);
    loop {
        match host.cas(at, old, f(old)) {
            Ok(was) => return was,
            Err(was) => old = was,
        }
    }
}

/// A misaligned operand inside one aligned quadword.
fn exchange_inside<T: Width>(host: HostPage, at: usize, f: impl Fn(T) -> T) -> T {
    let (word, shift) = (at & !7, (at & 7) * 8);
    let mask = (u64::MAX >> (64 - T::BITS)) << shift;
    let mut old = host.load::<u64>(word);
    loop {
        let part = T::trunc((old & mask) >> shift);
        let new = old & !mask | f(part).zext() << shift;
        match host.cas(word, old, new) {
            Ok(_) => return part,
            Err(was) => old = was,
        }
    }
}
