//! Task-state segments (SDM vol. 3, 9.2.1, 9.6 and 9.7).

/// Byte offsets in a 32-bit TSS.
pub mod tss32 {
    /// Previous task link (16 bits).
    pub const LINK: u32 = 0;
    /// ESP0; SS0 is four bytes on; levels 1 and 2 follow at eight bytes each.
    pub const ESP0: u32 = 4;
    /// CR3.
    pub const CR3: u32 = 0x1c;
    /// EIP, then EFLAGS.
    pub const EIP: u32 = 0x20;
    /// EFLAGS.
    pub const EFLAGS: u32 = 0x24;
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI, four bytes each.
    pub const EAX: u32 = 0x28;
    /// ES, CS, SS, DS, FS, GS, two bytes each at distances of four.
    pub const ES: u32 = 0x48;
    /// LDT selector.
    pub const LDT: u32 = 0x60;
    /// Bit 0: the debug trap flag T.
    pub const TRAP: u32 = 0x64;
    /// Offset of the I/O permission bitmap (16 bits).
    pub const IO_MAP: u32 = 0x66;
    /// The least limit of a 32-bit TSS.
    pub const LIMIT: u32 = 0x67;
}

/// Byte offsets in a 16-bit TSS.
pub mod tss16 {
    /// Previous task link.
    pub const LINK: u32 = 0;
    /// SP0; SS0 is two bytes on; levels 1 and 2 follow at four bytes each.
    pub const SP0: u32 = 2;
    /// IP.
    pub const IP: u32 = 0x0e;
    /// FLAGS.
    pub const FLAGS: u32 = 0x10;
    /// AX, CX, DX, BX, SP, BP, SI, DI, two bytes each.
    pub const AX: u32 = 0x12;
    /// ES, CS, SS, DS, two bytes each.
    pub const ES: u32 = 0x22;
    /// LDT selector.
    pub const LDT: u32 = 0x2a;
    /// The least limit of a 16-bit TSS.
    pub const LIMIT: u32 = 0x2b;
}

/// Byte offsets in a 64-bit TSS.
pub mod tss64 {
    /// RSP0, then RSP1 and RSP2, eight bytes each.
    pub const RSP0: u32 = 4;
    /// IST1 to IST7, eight bytes each.
    pub const IST1: u32 = 0x24;
    /// Offset of the I/O permission bitmap (16 bits), as in a 32-bit TSS.
    pub const IO_MAP: u32 = 0x66;
    /// The least limit of a 64-bit TSS.
    pub const LIMIT: u32 = 0x67;
}
