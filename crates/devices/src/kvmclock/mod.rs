//! KVM's paravirtual clock.
//!
//! Models: Linux `Documentation/virt/kvm/x86/msr.rst` (MSR_KVM_SYSTEM_TIME_NEW 4B56_4D01h and
//! MSR_KVM_WALL_CLOCK_NEW 4B56_4D00h) and `pvclock-abi.h`'s two structures with their version
//! protocol: a reader that sees an odd version, or another one afterwards, reads again. The counter
//! is the same on all CPUs and constant, so the stable flag is set and all pages hold one reference
//! point. Not modelled: the old MSRs 11h and 12h, steal time, PV EOI.
//!
//! Not a bus device: a board passes the two MSRs on.

use mimeo_bus::{Clock, RestoreError, SaveRestore, TscClock};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::MsrError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// MSR_KVM_WALL_CLOCK_NEW.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `flags`: the counter is stable across CPUs.
const TSC_STABLE: u8 = 1;
/// `flags`: the guest was stopped by its host (soft-lockup watchdogs take note).
const GUEST_STOPPED: u8 = 2;

/// Saved state of the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmClockV1 {
    /// MSR_KVM_SYSTEM_TIME_NEW of each CPU; bit 0 enables.
    pub system_time: Vec<u64>,
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub wall_clock: u64,
    /// Versions of each CPU's page and of the wall clock's; even.
    pub versions: Vec<u32>,
    /// Version of the wall clock's structure.
    pub wall_version: u32,
}

/// A counter value and the VM time that it stands for.
#[derive(Debug, Clone, Copy)]
struct Reference {
    tsc: u64,
    nanos: u64,
}

/// The clock of all CPUs of a VM.
pub struct KvmClock {
    s: KvmClockV1,
    reference: Reference,
    /// Nanoseconds = (counts << shift, or >> -shift) * multiplier >> 32.
    multiplier: u32,
    shift: i8,
    unix_at_zero: i64,
    memory: Arc<GuestMemory>,
    clock: Arc<dyn Clock>,
    tsc: Arc<dyn TscClock>,
}

/// (multiplier, shift) that turn counts of `hz` into nanoseconds.
fn scale(hz: u64) -> (u32, i8) {
    let (mut hz, mut shift) = (u128::from(hz.max(1)), 0i8);
    while hz > 2_000_000_000 {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= 1_000_000_000 {
        hz <<= 1;
        shift += 1;
    }
    // hz is above 10^9, so the quotient is below 2^32.
    (((1_000_000_000u128 << 32) / hz) as u32, shift)
}

impl KvmClock {
    /// The clock of `cpus` CPUs; `unix_at_zero` is the wall-clock time (nanoseconds since 1970) at VM
    /// time zero.
    pub fn new(
        cpus: usize,
        memory: Arc<GuestMemory>,
        clock: Arc<dyn Clock>,
        tsc: Arc<dyn TscClock>,
        unix_at_zero: i64,
    ) -> Self {
        let (multiplier, shift) = scale(tsc.hz());
        let mut this = Self {
            s: KvmClockV1 {
                system_time: vec![0; cpus],
                wall_clock: 0,
                versions: vec![0; cpus],
                wall_version: 0,
            },
            reference: Reference { tsc: 0, nanos: 0 },
            multiplier,
            shift,
            unix_at_zero,
            memory,
            clock,
            tsc,
        };
        this.take_reference();
        this
    }

    /// RESET: no page is written any more.
    pub fn reset(&mut self) {
        self.s.system_time.fill(0);
        self.s.versions.fill(0);
        (self.s.wall_clock, self.s.wall_version) = (0, 0);
    }

    fn take_reference(&mut self) {
        self.reference = Reference {
            tsc: self.tsc.tsc(),
            nanos: self.clock.now(),
        };
    }

    /// RDMSR on CPU `cpu`.
    ///
    /// # Errors
    /// [`MsrError`] for other MSRs.
    pub fn msr_read(&self, cpu: usize, msr: u32) -> Result<u64, MsrError> {
        match msr {
            MSR_WALL_CLOCK => Ok(self.s.wall_clock),
            MSR_SYSTEM_TIME => self.s.system_time.get(cpu).copied().ok_or(MsrError),
            _ => Err(MsrError),
        }
    }

    /// WRMSR on CPU `cpu`. An address outside of RAM or not a multiple of four is remembered and
    /// nothing is written there.
    ///
    /// # Errors
    /// [`MsrError`] for other MSRs.
    pub fn msr_write(&mut self, cpu: usize, msr: u32, value: u64) -> Result<(), MsrError> {
        match msr {
            MSR_WALL_CLOCK => {
                self.s.wall_clock = value;
                self.write_wall_clock();
            }
            MSR_SYSTEM_TIME => {
                *self.s.system_time.get_mut(cpu).ok_or(MsrError)? = value;
                self.write_system_time(cpu, 0);
            }
            _ => return Err(MsrError),
        }
        Ok(())
    }

    /// Time and counter do not go on as before (the VM was paused or restored): all pages get a new
    /// reference point. `stopped` tells the guest that it was stopped. No vCPU may run meanwhile.
    pub fn refresh(&mut self, stopped: bool) {
        self.take_reference();
        let flags = if stopped { GUEST_STOPPED } else { 0 };
        for cpu in 0..self.s.system_time.len() {
            self.write_system_time(cpu, flags);
        }
    }

    /// Writes `body` behind a version field by the protocol. `version` is even and stays so.
    fn publish(memory: &GuestMemory, gpa: u64, version: &mut u32, body: &[u8]) {
        let (odd, even) = (version.wrapping_add(1), version.wrapping_add(2));
        let Some(body_at) = gpa.checked_add(4).filter(|_| gpa & 3 == 0) else {
            return;
        };
        // All of it must be guest memory, or none is written.
        let mut probe = [0; 64];
        let len = (4 + body.len()).min(probe.len());
        if memory.read(gpa, &mut probe[..len]).is_err() {
            return;
        }
        let _ = memory.write(gpa, &odd.to_le_bytes());
        fence(Ordering::SeqCst);
        let _ = memory.write(body_at, body);
        fence(Ordering::SeqCst);
        let _ = memory.write(gpa, &even.to_le_bytes());
        *version = even;
    }

    fn write_system_time(&mut self, cpu: usize, flags: u8) {
        let value = self.s.system_time[cpu];
        if value & 1 == 0 {
            return;
        }
        // After `version`: pad, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags.
        let mut body = [0; 28];
        body[4..12].copy_from_slice(&self.reference.tsc.to_le_bytes());
        body[12..20].copy_from_slice(&self.reference.nanos.to_le_bytes());
        body[20..24].copy_from_slice(&self.multiplier.to_le_bytes());
        body[24] = self.shift.to_le_bytes()[0];
        body[25] = TSC_STABLE | flags;
        let version = &mut self.s.versions[cpu];
        Self::publish(&self.memory, value & !1, version, &body);
    }

    fn write_wall_clock(&mut self) {
        if self.s.wall_clock == 0 {
            return;
        }
        // The wall clock when system time was zero: seconds and nanoseconds.
        let unix = u64::try_from(self.unix_at_zero).unwrap_or(0);
        let seconds = (unix / 1_000_000_000) as u32;
        let nanos = (unix % 1_000_000_000) as u32;
        let mut body = [0; 8];
        body[..4].copy_from_slice(&seconds.to_le_bytes());
        body[4..].copy_from_slice(&nanos.to_le_bytes());
        let (at, version) = (self.s.wall_clock, &mut self.s.wall_version);
        Self::publish(&self.memory, at, version, &body);
    }
}

impl SaveRestore for KvmClock {
    type Saved = KvmClockV1;

    fn save(&self) -> KvmClockV1 {
        self.s.clone()
    }

    /// The pages are guest memory and restored with it; call [`KvmClock::refresh`] once the clocks
    /// go on.
    fn restore(&mut self, saved: &KvmClockV1) -> Result<(), RestoreError> {
        let check = |ok, what| RestoreError::unless(ok, "the KVM clock", what);
        let cpus = self.s.system_time.len();
        check(
            saved.system_time.len() == cpus && saved.versions.len() == cpus,
            "it is of another number of CPUs",
        )?;
        let odd = saved.versions.iter().fold(saved.wall_version, |a, v| a | v) & 1;
        check(odd == 0, "a version is odd")?;
        self.s = saved.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestClock;

    fn clock() -> (KvmClock, Arc<GuestMemory>, Arc<TestClock>) {
        let memory = Arc::new(GuestMemory::ram(8192).unwrap());
        let time = Arc::new(TestClock::default());
        time.set(7_000_000_005);
        let unix = 1_700_000_000_123_456_789;
        let k = KvmClock::new(2, memory.clone(), time.clone(), time.clone(), unix);
        (k, memory, time)
    }

    fn bytes<const N: usize>(memory: &GuestMemory, gpa: u64) -> [u8; N] {
        let mut b = [0; N];
        memory.read(gpa, &mut b).unwrap();
        b
    }

    /// What a guest computes from its page for a counter value.
    fn guest_time(page: &[u8; 32], tsc: u64) -> u64 {
        let u64_at = |i: usize| u64::from_le_bytes(page[i..i + 8].try_into().unwrap());
        let delta = tsc - u64_at(8);
        let shift = page[28] as i8;
        let delta = if shift < 0 {
            delta >> -shift
        } else {
            delta << shift
        };
        let mul = u32::from_le_bytes(page[24..28].try_into().unwrap());
        u64_at(16) + ((u128::from(delta) * u128::from(mul)) >> 32) as u64
    }

    #[test]
    fn scales_are_exact_to_a_part_in_2_to_the_31() {
        for hz in [
            1,
            999_999_999,
            1_000_000_000,
            2_000_000_000,
            2_700_123_456,
            5_000_000_000,
        ] {
            let (mul, shift) = scale(hz);
            let shifted = if shift < 0 { hz >> -shift } else { hz << shift };
            let second = (u128::from(shifted) * u128::from(mul)) >> 32;
            assert!(
                (999_999_998..=1_000_000_000).contains(&second),
                "{hz}: {second}"
            );
        }
    }

    #[test]
    fn a_page_follows_the_version_protocol_and_tells_the_time() {
        let (mut k, memory, time) = clock();
        k.msr_write(1, MSR_SYSTEM_TIME, 0x1001).unwrap();
        let page: [u8; 32] = bytes(&memory, 0x1000);
        assert_eq!((page[0], page[29]), (2, 1));
        assert_eq!(guest_time(&page, 9_000_000_000), 9_000_000_000);
        assert_eq!(k.msr_read(1, MSR_SYSTEM_TIME), Ok(0x1001));
        assert_eq!(k.msr_read(0, MSR_SYSTEM_TIME), Ok(0));
        time.set(20_000_000_000);
        k.refresh(true);
        let page: [u8; 32] = bytes(&memory, 0x1000);
        assert_eq!((page[0], page[29]), (4, 3));
        assert_eq!(page[16..24], 20_000_000_000u64.to_le_bytes());
        k.msr_write(1, MSR_SYSTEM_TIME, 0).unwrap();
        k.refresh(false);
        assert_eq!(bytes::<1>(&memory, 0x1000), [4], "disabled");
    }

    #[test]
    fn the_wall_clock_is_that_of_time_zero() {
        let (mut k, memory, _) = clock();
        k.msr_write(0, MSR_WALL_CLOCK, 0x500).unwrap();
        let page: [u8; 12] = bytes(&memory, 0x500);
        assert_eq!(page[..4], 2u32.to_le_bytes());
        assert_eq!(page[4..8], 1_700_000_000u32.to_le_bytes());
        assert_eq!(page[8..], 123_456_789u32.to_le_bytes());
    }

    #[test]
    fn hostile_addresses_write_nothing() {
        let (mut k, memory, _) = clock();
        for address in [8188, u64::MAX, 8192 - 28, 1 << 52, 0x1002] {
            k.msr_write(0, MSR_SYSTEM_TIME, address | 1).unwrap();
        }
        for address in [8190, u64::MAX, 8192 - 8, 1 << 52, 0x1002] {
            k.msr_write(0, MSR_WALL_CLOCK, address).unwrap();
        }
        assert_eq!(bytes::<8192>(&memory, 0), [0; 8192]);
        assert_eq!(k.msr_write(0, 0x11, 0), Err(MsrError));
        assert_eq!(k.msr_write(2, MSR_SYSTEM_TIME, 1), Err(MsrError));
    }
}
