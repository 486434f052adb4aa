//! Rows against iced's own tables: an independent source. Where they differ, the SDM was read and
//! the exception stands here with its reason.

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, MemorySize, OpAccess, OpCodeOperandKind, OpKind,
    Register,
};
use mimeo_isa_x86::form::{flag, gpr};
use mimeo_isa_x86::{Access, Class, Form, ImplicitMemory, Modes, Unit, forms};

/// An instruction of this form with operands apart from each other and from implicit registers.
fn instance(form: &Form, memory: bool) -> Instruction {
    let mut instruction = Instruction::default();
    instruction.set_code(form.code);
    instruction.set_code_size(match form.modes {
        Modes::Legacy => iced_x86::CodeSize::Code32,
        _ => iced_x86::CodeSize::Code64,
    });
    let info = form.code.op_code();
    for n in 0..info.op_count() {
        set_operand(&mut instruction, n, info.op_kind(n), memory);
    }
    instruction.set_immediate8(5);
    instruction
}

fn set_operand(i: &mut Instruction, n: u32, kind: OpCodeOperandKind, memory: bool) {
    let name = format!("{kind:?}");
    let memory_only = name.starts_with("mem");
    let special = match name.as_str() {
        "seg_rSI" => Some(OpKind::MemorySegRSI),
        "es_rDI" => Some(OpKind::MemoryESRDI),
        "seg_rDI" => Some(OpKind::MemorySegRDI),
        _ => None,
    };
    if let Some(kind) = special {
        i.set_op_kind(n, kind);
    } else if memory_only || name == "seg_rBX_al" || (memory && name.contains("or_mem")) {
        i.set_op_kind(n, OpKind::Memory);
        i.set_memory_base(Register::R13);
        if name == "seg_rBX_al" {
            i.set_memory_base(Register::RBX);
            i.set_memory_index(Register::AL);
        }
        if name.contains("vsib") {
            i.set_memory_index(Register::XMM11);
        }
    } else if name.starts_with("imm") || name.starts_with("br") || name.starts_with("far") {
        i.set_op_kind(n, OpKind::Immediate8);
    } else {
        i.set_op_kind(n, OpKind::Register);
        i.set_op_register(n, register(&name, n));
    }
}

/// Explicit registers are numbered from 8, out of the way of implicit ones.
fn register(kind: &str, n: u32) -> Register {
    let fixed = Register::values().find(|r| format!("{r:?}").to_lowercase() == kind);
    if let Some(fixed) = fixed {
        return fixed;
    }
    if kind == "imm8_const_1" || kind == "st0" {
        return Register::ST0;
    }
    let base = match kind.split('_').next().unwrap_or_default() {
        "r8" => Register::R8L,
        "r16" => Register::R8W,
        "r32" => Register::R8D,
        "r64" => Register::R8,
        "mm" => Register::MM0,
        "xmm" => Register::XMM8,
        "ymm" => Register::YMM8,
        "sti" => Register::ST1,
        "cr" => Register::CR0,
        "dr" => Register::DR0,
        "seg" => Register::ES,
        other => panic!("operand kind {kind} ({other})"),
    };
    base + n
}

fn iced_access(access: OpAccess) -> Option<Access> {
    Some(match access {
        OpAccess::Read | OpAccess::CondRead => Access::Read,
        OpAccess::Write | OpAccess::CondWrite => Access::Write,
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => Access::ReadWrite,
        OpAccess::NoMemAccess | OpAccess::None => return None,
    })
}

fn excepted(list: &[(&[Code], &str)], code: Code) -> bool {
    list.iter().any(|(codes, _)| codes.contains(&code))
}

fn has_memory_operand(form: &Form) -> bool {
    let info = form.code.op_code();
    (0..info.op_count()).any(|n| {
        let kind = format!("{:?}", info.op_kind(n));
        kind.contains("mem") || kind.starts_with("seg_r") || kind.starts_with("es_r")
    })
}

#[test]
fn memory_operands() {
    let mut factory = InstructionInfoFactory::new();
    let mut wrong = Vec::new();
    for form in forms() {
        let has = has_memory_operand(form);
        if has != (form.mem.access != Access::None) {
            wrong.push(format!("{:?}: memory operand {has}", form.code));
            continue;
        }
        if !has {
            continue;
        }
        let instruction = instance(form, true);
        let info = factory.info(&instruction);
        let mut theirs = None;
        for n in 0..instruction.op_count() {
            if instruction.op_kind(n) != OpKind::Register
                && instruction.op_kind(n) != OpKind::Immediate8
            {
                let a = iced_access(info.op_access(n));
                theirs = match (theirs, a) {
                    (Some(Access::Write), Some(Access::Read)) => Some(Access::ReadWrite),
                    (None, a) => a,
                    (t, _) => t,
                };
            }
        }
        let ours = match form.mem.access {
            Access::Address | Access::Hint => None,
            a => Some(a),
        };
        let size = form.code.op_code().memory_size();
        let bytes = if size == MemorySize::Unknown || theirs.is_none() {
            0
        } else {
            size.size()
        };
        if ours != theirs || (usize::from(form.mem.size) != bytes && ours.is_some()) {
            wrong.push(format!(
                "{:?}: ours {ours:?} {}, theirs {theirs:?} {bytes}",
                form.code, form.mem.size
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const FLAG_EXCEPTIONS: &[(&[Code], &str)] = &[(
    &[Code::Vmcall],
    "iced has the VMX instruction's flags; the hypercall leaves RFLAGS alone",
)];

#[test]
fn flags() {
    let mut wrong = Vec::new();
    let only_status = flag::STATUS | flag::DF | flag::IF | flag::AC;
    for form in forms() {
        let f = form.flags;
        for (a, b) in [
            (f.written, f.undefined),
            (f.written, f.cleared | f.set),
            (f.undefined, f.cleared | f.set),
            (f.cleared, f.set),
        ] {
            assert_eq!(a & b, 0, "{:?}: a flag has two effects", form.code);
        }
        // System transfers change RFLAGS as a whole; iced and we count different system bits.
        if (f.read | f.written) & !only_status != 0 || excepted(FLAG_EXCEPTIONS, form.code) {
            continue;
        }
        let i = instance(form, false);
        let theirs = [
            i.rflags_read(),
            i.rflags_written(),
            i.rflags_undefined(),
            i.rflags_cleared(),
            i.rflags_set(),
        ]
        .map(rflags);
        let ours = [f.read, f.written, f.undefined, f.cleared, f.set];
        if ours != theirs {
            wrong.push(format!(
                "{:?}: ours {ours:x?}, theirs {theirs:x?}",
                form.code
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// iced's flag bits as ours; its x87 condition codes are not RFLAGS.
fn rflags(bits: u32) -> u32 {
    use iced_x86::RflagsBits as R;
    [
        (R::OF, flag::OF),
        (R::SF, flag::SF),
        (R::ZF, flag::ZF),
        (R::AF, flag::AF),
        (R::CF, flag::CF),
        (R::PF, flag::PF),
        (R::DF, flag::DF),
        (R::IF, flag::IF),
        (R::AC, flag::AC),
    ]
    .iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .map(|(_, ours)| ours)
    .sum()
}

#[test]
fn implicit_registers() {
    let mut factory = InstructionInfoFactory::new();
    let mut wrong = Vec::new();
    for form in forms() {
        if form.class == Class::Monitor && form.ends_block {
            continue;
        }
        let instruction = instance(form, true);
        let explicit: Vec<Register> = (0..instruction.op_count())
            .filter(|n| instruction.op_kind(*n) == OpKind::Register)
            .map(|n| instruction.op_register(n).full_register())
            .collect();
        let (mut read, mut written) = (0_u16, 0_u16);
        for used in factory.info(&instruction).used_registers() {
            let full = used.register().full_register();
            if !full.is_gpr64() || explicit.contains(&full) || full >= Register::R12 {
                continue;
            }
            let bit = 1 << full.number();
            match used.access() {
                OpAccess::Read | OpAccess::CondRead => read |= bit,
                OpAccess::Write | OpAccess::CondWrite => written |= bit,
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                    read |= bit;
                    written |= bit;
                }
                OpAccess::NoMemAccess | OpAccess::None => {}
            }
        }
        // Strings: iced counts RCX only with a REP prefix; the row always.
        let rep = if matches!(
            form.implicit_memory,
            ImplicitMemory::Source
                | ImplicitMemory::Destination
                | ImplicitMemory::SourceAndDestination
        ) {
            gpr::RCX
        } else {
            0
        };
        if (form.gpr_read & !rep, form.gpr_written & !rep) != (read & !rep, written & !rep) {
            wrong.push(format!(
                "{:?}: ours {:x} {:x}, theirs {read:x} {written:x}",
                form.code, form.gpr_read, form.gpr_written
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const PRIVILEGE_EXCEPTIONS: &[(&[Code], &str)] = &[
    (
        &[Code::Vmcall],
        "a hypercall from user mode is answered by the machine, not by #UD",
    ),
    (
        &[Code::Monitorw, Code::Monitord, Code::Monitorq, Code::Mwait],
        "#UD above CPL 0 (SDM vol. 2, MONITOR); iced lists AMD's MSR-controlled user mode",
    ),
];

#[test]
fn modes_privilege_and_lock() {
    let mut wrong = Vec::new();
    for form in forms() {
        let info = form.code.op_code();
        for (bits, theirs) in [
            (16, info.mode16()),
            (32, info.mode32()),
            (64, info.mode64()),
        ] {
            if form.modes.contains(bits) != theirs {
                wrong.push(format!("{:?}: {bits}-bit code {theirs}", form.code));
            }
        }
        if form.lockable != info.can_use_lock_prefix() {
            wrong.push(format!("{:?}: lock", form.code));
        }
        // Those that CR4 or IOPL can open to user code (RDPMC, RDTSC, CLI) are not plain CPL 0.
        if !excepted(PRIVILEGE_EXCEPTIONS, form.code)
            && form.cpl0 == (info.cpl1() || info.cpl2() || info.cpl3())
        {
            wrong.push(format!("{:?}: cpl0 {}", form.code, form.cpl0));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `Native` promises: nothing happens outside the row's operands, registers and unit.
#[test]
fn native_is_innocuous() {
    for form in forms().filter(|f| f.class == Class::Native) {
        assert_eq!(
            form.implicit_memory,
            ImplicitMemory::None,
            "{:?}",
            form.code
        );
        assert!(!form.cpl0 && !form.iopl && !form.umip, "{:?}", form.code);
        assert!(!form.mem.masked && form.mem.size <= 32, "{:?}", form.code);
        let info = form.code.op_code();
        assert!(
            !info.is_privileged() && !info.is_save_restore(),
            "{:?}",
            form.code
        );
        let mut factory = InstructionInfoFactory::new();
        let instruction = instance(form, false);
        let memory = factory.info(&instruction).used_memory();
        assert!(
            memory.len() <= usize::from(form.mem.access != Access::None),
            "{:?} touches memory that is not its operand",
            form.code
        );
        assert_ne!(form.unit, Unit::Xsave, "{:?}", form.code);
    }
}
