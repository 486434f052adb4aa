//! The row of the instruction table.

use iced_x86::Code;
use mimeo_arch_x86::cpuid::Feature;

/// The instruction group: the file of the table, of the interpreter and of the tests that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the files' own")]
pub enum Group {
    Integer,
    Shifts,
    Bits,
    Moves,
    Flags,
    Strings,
    Stack,
    Control,
    Segments,
    System,
    Hints,
    Xsave,
    X87,
    Mmx,
    Sse,
    Sse2,
    Sse3,
    Sse4,
    Crypto,
    Avx,
    Avx2,
    Fma,
}

/// How an instruction may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Unprivileged and innocuous: all it touches is its explicit operands, the implicit
    /// registers, flags and the FP unit that the row names. It may run on the host CPU, re-encoded,
    /// with registers and the ModRM memory operand redirected.
    Native,
    /// Sensitive or privileged (Popek and Goldberg): behaviour or result depends on privilege,
    /// on descriptors, on the CPU model or on the machine. Always the monitor's own code.
    Monitor,
    /// A near branch: the engine's own control flow.
    Control,
    /// Unprivileged, but never run on the host as it is: memory that is not one plain ModRM
    /// operand (stack, strings, masks, gathers, state areas), or control state such as MXCSR.
    Interp,
    /// Changes nothing but RIP and never faults on its operand.
    Nop,
}

/// What is done with an explicit memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// No memory operand in any encoding.
    None,
    /// Loaded.
    Read,
    /// Stored.
    Write,
    /// Loaded and stored; faults as a store.
    ReadWrite,
    /// Only its address is computed (LEA, INVLPG); no access and no fault of its own.
    Address,
    /// A hint (prefetch, no-operation); no access and no fault.
    Hint,
}

/// The memory operand of a form, when its encoding has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemOperand {
    /// What is done with it.
    pub access: Access,
    /// Size in bytes; for strings that of one element, for vectors the whole operand, 0 where it
    /// depends on other state (XSAVE: on XCR0; LEA, hints: none; near branches: none).
    pub size: u16,
    /// Required alignment in bytes, 1 when there is none; else #GP(0) (SDM vol. 1, 10.4.1.1 and 14.9).
    pub align: u8,
    /// Elements are accessed one by one under a mask (VMASKMOV, VPMASKMOV, gathers), or at
    /// addresses of an index vector.
    pub masked: bool,
    /// BT, BTS, BTR, BTC with a register bit offset: the access is `size` bytes at the operand's
    /// address plus the signed bit offset divided by its width.
    pub bit_string: bool,
}

/// Memory that is reached otherwise than by a ModRM operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImplicitMemory {
    /// None.
    None,
    /// The stack, so many bytes pushed (ENTER: of each push).
    Push(u8),
    /// The stack, so many bytes popped.
    Pop(u8),
    /// A string element at seg:rSI.
    Source,
    /// A string element at ES:rDI.
    Destination,
    /// String elements at seg:rSI and ES:rDI.
    SourceAndDestination,
    /// A byte at seg:rBX + AL.
    Xlat,
    /// An absolute offset in the instruction (MOV moffs).
    Moffs,
    /// Bytes at seg:rDI under a mask (MASKMOVQ, MASKMOVDQU).
    MaskMove,
    /// The monitored line at seg:rAX.
    Monitor,
}

/// Code sizes in which a form exists, as iced's decoder bitness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Modes {
    /// 16-, 32- and 64-bit code.
    Any,
    /// 64-bit code only.
    Only64,
    /// 16- and 32-bit code only.
    Legacy,
}

impl Modes {
    /// Whether the form exists in code of this size (16, 32 or 64 bits).
    #[inline]
    #[must_use]
    pub const fn contains(self, bits: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Only64 => bits == 64,
            Self::Legacy => bits != 64,
        }
    }
}

/// The FP or SIMD unit that a form uses: decides its #UD and #NM conditions
/// (SDM vol. 2, 2.5 to 2.7 and vol. 3, 14.1 and 12.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// None.
    None,
    /// x87: #NM by CR0.EM or CR0.TS (WAIT: by CR0.MP and CR0.TS).
    X87,
    /// MMX registers: #UD by CR0.EM, #NM by CR0.TS, pending x87 exceptions.
    Mmx,
    /// MMX and XMM registers together: the conditions of both.
    MmxSse,
    /// XMM by legacy encoding: #UD by CR0.EM or without CR4.OSFXSR, #NM by CR0.TS.
    Sse,
    /// VEX: #UD without CR4.OSXSAVE or XCR0[2:1] = 3, outside protected mode; #NM by CR0.TS.
    Avx,
    /// General registers by VEX encoding (BMI): #UD in real and virtual-8086 mode.
    VexGpr,
    /// FXSAVE and FXRSTOR: #NM by CR0.EM or CR0.TS.
    Fxsave,
    /// XSAVE family: #UD without CR4.OSXSAVE, #NM by CR0.TS.
    Xsave,
}

/// How an x87 form treats pending exceptions and the last-instruction pointers
/// (SDM vol. 1, 8.1.8 and 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum X87 {
    /// Not an x87 instruction.
    None,
    /// A control instruction without wait: never raises #MF.
    NoWait,
    /// A control instruction that raises pending exceptions first.
    Control,
    /// WAIT/FWAIT: raises pending exceptions.
    Wait,
    /// Raises pending exceptions first, and records FIP, FDP and FOP.
    Data,
}

/// Bits of RFLAGS in rows.
pub mod flag {
    /// Carry.
    pub const CF: u32 = 1 << 0;
    /// Parity.
    pub const PF: u32 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u32 = 1 << 4;
    /// Zero.
    pub const ZF: u32 = 1 << 6;
    /// Sign.
    pub const SF: u32 = 1 << 7;
    /// Interrupt enable.
    pub const IF: u32 = 1 << 9;
    /// Direction.
    pub const DF: u32 = 1 << 10;
    /// Overflow.
    pub const OF: u32 = 1 << 11;
    /// Alignment check.
    pub const AC: u32 = 1 << 18;
    /// The six status flags.
    pub const STATUS: u32 = CF | PF | AF | ZF | SF | OF;
    /// Everything, the system flags included.
    pub const SYSTEM: u32 = 0x003f_7fd5;
}

/// General registers in rows: bit n is the register of encoding n.
pub mod gpr {
    /// No register.
    pub const NONE: u16 = 0;
    /// RAX, EAX, AX, AL, AH.
    pub const RAX: u16 = 1 << 0;
    /// RCX.
    pub const RCX: u16 = 1 << 1;
    /// RDX.
    pub const RDX: u16 = 1 << 2;
    /// RBX.
    pub const RBX: u16 = 1 << 3;
    /// RSP.
    pub const RSP: u16 = 1 << 4;
    /// RBP.
    pub const RBP: u16 = 1 << 5;
    /// RSI.
    pub const RSI: u16 = 1 << 6;
    /// RDI.
    pub const RDI: u16 = 1 << 7;
    /// R11.
    pub const R11: u16 = 1 << 11;
    /// The first eight.
    pub const ALL_LEGACY: u16 = 0xff;
}

/// Effect on RFLAGS, as sets of bits (see [`flag`]). A bit is in at most one of `written`,
/// `undefined`, `cleared` and `set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags {
    /// The outcome depends on them.
    pub read: u32,
    /// Given a defined value that depends on operands.
    pub written: u32,
    /// Left with an undefined value.
    pub undefined: u32,
    /// Set to 0.
    pub cleared: u32,
    /// Set to 1.
    pub set: u32,
    /// Nothing above but `read` happens for some operand values (shift by a masked count of zero, `rep`
    /// with a count of zero): the old flags then survive.
    pub conditional: bool,
}

impl Flags {
    /// Every flag that may change.
    #[inline]
    #[must_use]
    pub const fn changed(&self) -> u32 {
        self.written | self.undefined | self.cleared | self.set
    }
}

/// One instruction form: a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The form, as iced's decoder names it.
    pub code: Code,
    /// Its group.
    pub group: Group,
    /// How it may be carried out.
    pub class: Class,
    /// CPUID features that must all be present, else #UD.
    pub features: [Option<Feature>; 2],
    /// Code sizes in which it exists.
    pub modes: Modes,
    /// The explicit memory operand (or the element of a string), when it has one.
    pub mem: MemOperand,
    /// Memory reached otherwise.
    pub implicit_memory: ImplicitMemory,
    /// General registers read besides the explicit operands (see [`gpr`]).
    pub gpr_read: u16,
    /// General registers written besides the explicit operands.
    pub gpr_written: u16,
    /// XMM0 is read besides the explicit operands.
    pub xmm0_read: bool,
    /// XMM0 is written besides the explicit operands.
    pub xmm0_written: bool,
    /// Effect on RFLAGS.
    pub flags: Flags,
    /// The LOCK prefix is allowed when the destination is memory; else it is #UD.
    pub lockable: bool,
    /// Locked even without the prefix when an operand is memory (XCHG).
    pub implicit_lock: bool,
    /// A translated block ends after it: it branches, traps or changes how what follows executes.
    pub ends_block: bool,
    /// #GP(0) when CPL is not 0 (MONITOR, MWAIT: #UD).
    pub cpl0: bool,
    /// Depends on IOPL (or the I/O permission bitmap).
    pub iopl: bool,
    /// #GP(0) at CPL above 0 when CR4.UMIP is set.
    pub umip: bool,
    /// FP or SIMD unit used.
    pub unit: Unit,
    /// x87 exception and pointer behaviour.
    pub x87: X87,
    /// Depends on MXCSR's control bits or may set its exception flags: may raise #XM.
    pub mxcsr: bool,
}

impl Form {
    const fn new(group: Group, class: Class) -> Self {
        Self {
            code: Code::INVALID,
            group,
            class,
            features: [None, None],
            modes: Modes::Any,
            mem: MemOperand {
                access: Access::None,
                size: 0,
                align: 1,
                masked: false,
                bit_string: false,
            },
            implicit_memory: ImplicitMemory::None,
            gpr_read: 0,
            gpr_written: 0,
            xmm0_read: false,
            xmm0_written: false,
            flags: Flags {
                read: 0,
                written: 0,
                undefined: 0,
                cleared: 0,
                set: 0,
                conditional: false,
            },
            lockable: false,
            implicit_lock: false,
            ends_block: false,
            cpl0: false,
            iopl: false,
            umip: false,
            unit: Unit::None,
            x87: X87::None,
            mxcsr: false,
        }
    }

    /// Whether every feature that the form needs is present, by the caller's predicate.
    #[inline]
    pub fn available(&self, mut has: impl FnMut(Feature) -> bool) -> bool {
        self.features.iter().flatten().all(|f| has(*f))
    }
}

/// The vocabulary of the rows.
impl Form {
    pub(crate) const fn native(group: Group) -> Self {
        Self::new(group, Class::Native)
    }

    pub(crate) const fn monitor(group: Group) -> Self {
        Self::new(group, Class::Monitor)
    }

    pub(crate) const fn control(group: Group) -> Self {
        Self::new(group, Class::Control).ends_block()
    }

    pub(crate) const fn interp(group: Group) -> Self {
        Self::new(group, Class::Interp)
    }

    pub(crate) const fn nop(group: Group) -> Self {
        Self::new(group, Class::Nop)
    }

    pub(crate) const fn code(mut self, code: Code, modes: Modes) -> Self {
        self.code = code;
        self.modes = modes;
        self
    }

    /// `align` was declared before the operand was known: 0 means the operand's own size.
    pub(crate) const fn operand(mut self, access: Access, size: u16) -> Self {
        self.mem.access = access;
        self.mem.size = size;
        if self.mem.align == 0 {
            self.mem.align = if size == 32 { 32 } else { 16 };
        }
        self
    }

    pub(crate) const fn needs(mut self, feature: Feature) -> Self {
        if self.features[0].is_none() {
            self.features[0] = Some(feature);
        } else {
            assert!(
                self.features[1].is_none(),
                "a form has at most two features"
            );
            self.features[1] = Some(feature);
        }
        self
    }

    pub(crate) const fn reads_flags(mut self, bits: u32) -> Self {
        self.flags.read = bits;
        self
    }

    pub(crate) const fn writes_flags(mut self, bits: u32) -> Self {
        self.flags.written = bits;
        self
    }

    pub(crate) const fn undefined_flags(mut self, bits: u32) -> Self {
        self.flags.undefined = bits;
        self
    }

    pub(crate) const fn clears_flags(mut self, bits: u32) -> Self {
        self.flags.cleared = bits;
        self
    }

    pub(crate) const fn sets_flags(mut self, bits: u32) -> Self {
        self.flags.set = bits;
        self
    }

    pub(crate) const fn conditional_flags(mut self) -> Self {
        self.flags.conditional = true;
        self
    }

    pub(crate) const fn implicit(mut self, read: u16, written: u16) -> Self {
        self.gpr_read = read;
        self.gpr_written = written;
        self
    }

    pub(crate) const fn reads_xmm0(mut self) -> Self {
        self.xmm0_read = true;
        self
    }

    pub(crate) const fn writes_xmm0(mut self) -> Self {
        self.xmm0_written = true;
        self
    }

    pub(crate) const fn memory(mut self, memory: ImplicitMemory) -> Self {
        self.implicit_memory = memory;
        self
    }

    pub(crate) const fn pushes(self, bytes: u8) -> Self {
        let mut form = self.memory(ImplicitMemory::Push(bytes));
        form.gpr_read |= gpr::RSP;
        form.gpr_written |= gpr::RSP;
        form
    }

    pub(crate) const fn pops(self, bytes: u8) -> Self {
        let mut form = self.memory(ImplicitMemory::Pop(bytes));
        form.gpr_read |= gpr::RSP;
        form.gpr_written |= gpr::RSP;
        form
    }

    pub(crate) const fn aligned(mut self) -> Self {
        self.mem.align = 0;
        self
    }

    pub(crate) const fn align(mut self, bytes: u8) -> Self {
        self.mem.align = bytes;
        self
    }

    pub(crate) const fn masked(mut self) -> Self {
        self.mem.masked = true;
        self
    }

    pub(crate) const fn bit_string(mut self) -> Self {
        self.mem.bit_string = true;
        self
    }

    pub(crate) const fn lockable(mut self) -> Self {
        self.lockable = true;
        self
    }

    pub(crate) const fn implicit_lock(mut self) -> Self {
        self.implicit_lock = true;
        self
    }

    pub(crate) const fn ends_block(mut self) -> Self {
        self.ends_block = true;
        self
    }

    pub(crate) const fn cpl0(mut self) -> Self {
        self.cpl0 = true;
        self
    }

    pub(crate) const fn iopl(mut self) -> Self {
        self.iopl = true;
        self
    }

    pub(crate) const fn umip(mut self) -> Self {
        self.umip = true;
        self
    }

    pub(crate) const fn unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    pub(crate) const fn x87(mut self, x87: X87) -> Self {
        self.unit = Unit::X87;
        self.x87 = x87;
        self
    }

    pub(crate) const fn mxcsr(mut self) -> Self {
        self.mxcsr = true;
        self
    }
}
