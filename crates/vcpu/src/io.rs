//! What a running vCPU asks of the machine.

/// The access is not one that the machine-owned MSR allows: the engine raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrError;

/// The machine as one vCPU sees it. Called on the vCPU's own thread, never re-entrantly.
///
/// Sizes are in bytes: 1, 2 or 4 for ports; 1, 2, 4 or 8 for MMIO. Accesses that the guest made
/// larger or across a boundary are split by the engine, lowest address first. Everything that can
/// differ between two runs of the same guest passes through this trait (deterministic mode logs
/// and replays exactly these answers).
pub trait CpuIo {
    /// IN. Unclaimed ports read as all ones.
    fn port_read(&mut self, port: u16, size: u8) -> u32;

    /// OUT. Unclaimed ports ignore writes.
    fn port_write(&mut self, port: u16, size: u8, value: u32);

    /// A load from a guest-physical address that is not RAM. Unclaimed addresses read as all ones.
    fn mmio_read(&mut self, gpa: u64, size: u8) -> u64;

    /// A store to a guest-physical address that is not RAM (or is ROM).
    fn mmio_write(&mut self, gpa: u64, size: u8, value: u64);

    /// Acknowledges the highest-priority deliverable external interrupt: moves it to in-service and
    /// gives its vector; `None` when it has gone (spurious wake).
    fn ack_interrupt(&mut self) -> Option<u8>;

    /// CR8 (the APIC's task priority, 0 to 15).
    fn cr8_read(&mut self) -> u8;

    /// MOV to CR8; `value` is 0 to 15 (the engine has checked).
    fn cr8_write(&mut self, value: u8);

    /// RDMSR of a machine-owned MSR: IA32_APIC_BASE, x2APIC 800h-8FFh, IA32_TSC_DEADLINE and the KVM
    /// paravirtual MSRs. An MSR that nobody knows gives [`MsrError`]. As in [`Self::tsc`],
    /// IA32_TSC_DEADLINE is a value of the counter before IA32_TSC_ADJUST: the engine adds it on
    /// reading and subtracts it on writing (zero stays zero).
    ///
    /// # Errors
    /// [`MsrError`] where the hardware would raise #GP(0).
    fn msr_read(&mut self, msr: u32) -> Result<u64, MsrError>;

    /// WRMSR of a machine-owned MSR.
    ///
    /// # Errors
    /// [`MsrError`] where the hardware would raise #GP(0).
    fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), MsrError>;

    /// The guest's time-stamp counter now, before IA32_TSC_ADJUST is added. `retired` is the number
    /// of instructions this vCPU has retired (a deterministic clock derives time from it).
    fn tsc(&mut self, retired: u64) -> u64;

    /// While the guest's counter is the host's plus a constant: that constant ([`Self::tsc`] minus the
    /// host's RDTSC). An engine may then read the counter itself, until `run` returns. By default
    /// `None`: every reading is [`Self::tsc`].
    fn tsc_offset(&mut self) -> Option<u64> {
        None
    }

    /// VMCALL/VMMCALL with (RAX, RBX, RCX, RDX, RSI): the result for RAX.
    fn hypercall(&mut self, args: [u64; 5]) -> u64;

    /// 64 unpredictable bits, for RDRAND and RDSEED; `None` when the source has none (the
    /// instruction then reports failure). By default the host kernel's generator.
    fn random(&mut self) -> Option<u64> {
        crate::random::host()
    }
}

/// A machine without devices: reads give all ones, MSRs are unknown, the TSC counts instructions. For
/// tests and fuzzers of engines.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoIo;

impl CpuIo for NoIo {
    fn port_read(&mut self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&mut self, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&mut self, _: u64, _: u8, _: u64) {}
    fn ack_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn cr8_read(&mut self) -> u8 {
        0
    }
    fn cr8_write(&mut self, _: u8) {}
    fn msr_read(&mut self, _: u32) -> Result<u64, MsrError> {
        Err(MsrError)
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Result<(), MsrError> {
        Err(MsrError)
    }
    fn tsc(&mut self, retired: u64) -> u64 {
        retired
    }
    fn hypercall(&mut self, _: [u64; 5]) -> u64 {
        0
    }
}
