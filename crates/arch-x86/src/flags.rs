//! RFLAGS (SDM vol. 1, 3.4.3).

bitflags::bitflags! {
    /// The flags register. Bit 1 always reads as one and is kept set in [`crate::X86State`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
    #[serde(transparent)]
    pub struct RFlags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Reserved, always one.
        const FIXED1 = 1 << 1;
        /// Parity of the low byte.
        const PF = 1 << 2;
        /// Auxiliary (BCD) carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap (single-step).
        const TF = 1 << 8;
        /// Interrupt enable.
        const IF = 1 << 9;
        /// Direction of string instructions.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, low bit.
        const IOPL0 = 1 << 12;
        /// I/O privilege level, high bit.
        const IOPL1 = 1 << 13;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume (masks instruction breakpoints for one instruction).
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, and SMAP override.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID is available (toggles).
        const ID = 1 << 21;
        /// The six arithmetic flags.
        const STATUS = Self::CF.bits() | Self::PF.bits() | Self::AF.bits() | Self::ZF.bits()
            | Self::SF.bits() | Self::OF.bits();
        /// Both IOPL bits.
        const IOPL = Self::IOPL0.bits() | Self::IOPL1.bits();
    }
}

impl RFlags {
    /// The I/O privilege level, 0 to 3.
    #[inline]
    #[must_use]
    pub fn iopl(self) -> u8 {
        ((self.bits() >> 12) & 3) as u8
    }
}
