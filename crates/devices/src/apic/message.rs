//! Interrupt messages: what an ICR write, an IOAPIC entry or an MSI says (SDM vol. 3, 12.6.1 and
//! 12.11).

/// Delivery mode (ICR bits 8 to 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// To every addressed APIC.
    Fixed,
    /// To the addressed APIC whose processor runs at the lowest priority.
    LowestPriority,
    /// System management interrupt: not modelled, dropped.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI; the vector is the page number of the start address.
    StartUp,
    /// From the 8259A: the vector is fetched from it.
    ExtInt,
}

impl Delivery {
    /// From the three-bit field of an ICR, LVT entry, redirection entry or MSI. Code 3 is reserved
    /// (remote read); code 6 is start-up in an ICR.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this ID.
    Physical(u32),
    /// The APICs whose logical address matches.
    Logical(u32),
    /// The sender itself (an index on the bus).
    Itself(usize),
    /// Everybody.
    All,
    /// Everybody but the sender (an index on the bus).
    AllBut(usize),
}

/// An interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for.
    pub to: Destination,
    /// The destination came as 32 bits (from an x2APIC): 0xff is an ordinary value then, and
    /// 0xffff_ffff everybody.
    pub wide: bool,
    /// How it is delivered.
    pub delivery: Delivery,
    /// The vector.
    pub vector: u8,
    /// Level-triggered: its EOI is told to the IOAPICs.
    pub level: bool,
    /// Deliver to one of the addressed only, as for [`Delivery::LowestPriority`].
    pub to_one: bool,
}

/// ICR bits (SDM vol. 3, figures 12-12 and 12-28).
pub(super) mod icr {
    pub const LOGICAL: u64 = 1 << 11;
    /// Delivery status in an xAPIC; an x2APIC has none and ignores it.
    pub const STATUS: u64 = 1 << 12;
    pub const ASSERT: u64 = 1 << 14;
    pub const TRIGGER_LEVEL: u64 = 1 << 15;
    /// Bits that raise #GP in x2APIC mode.
    pub const X2_RESERVED: u64 = 0xfff3_2000;
    /// Bits of the low half that an xAPIC keeps.
    pub const LOW_WRITABLE: u64 = 0x000c_cfff;
}

impl Message {
    /// What a write of `value` to the ICR of the APIC at `sender` asks for; `None` for what has no
    /// effect: the INIT level de-assert, which only older processors' arbitration needed, and
    /// reserved delivery modes.
    #[must_use]
    pub fn from_icr(value: u64, sender: usize, x2apic: bool) -> Option<Self> {
        let delivery = match Delivery::from_bits((value >> 8) as u32)? {
            Delivery::ExtInt => return None,
            Delivery::Init if value & icr::TRIGGER_LEVEL != 0 && value & icr::ASSERT == 0 => {
                return None;
            }
            d => d,
        };
        let dest = if x2apic {
            (value >> 32) as u32
        } else {
            (value >> 56) as u32
        };
        let to = match (value >> 18) & 3 {
            0 if value & icr::LOGICAL != 0 => Destination::Logical(dest),
            0 => Destination::Physical(dest),
            1 => Destination::Itself(sender),
            2 => Destination::All,
            _ => Destination::AllBut(sender),
        };
        Some(Self {
            to,
            wide: x2apic,
            delivery,
            vector: value as u8,
            // The trigger mode matters for the INIT level de-assert only (SDM vol. 3, 12.6.1).
            level: false,
            to_one: delivery == Delivery::LowestPriority,
        })
    }

    /// What a message-signalled interrupt asks for (SDM vol. 3, 12.11); `None` when `address` is not
    /// in FEE0_0000h to FEEF_FFFFh or the mode is reserved.
    #[must_use]
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let delivery = match Delivery::from_bits(data >> 8)? {
            Delivery::StartUp => return None,
            d => d,
        };
        let dest = (address >> 12) as u32 & 0xff;
        let redirect = address & 8 != 0;
        Some(Self {
            to: if address & 4 != 0 {
                Destination::Logical(dest)
            } else {
                Destination::Physical(dest)
            },
            wide: false,
            delivery,
            vector: data as u8,
            level: data & 0x8000 != 0,
            to_one: redirect || delivery == Delivery::LowestPriority,
        })
    }
}
