//! Which host instructions may appear at all.

use iced_x86::{
    Code, CpuidFeature as F, EncodingKind, FlowControl, Instruction, InstructionInfo,
    Mnemonic as M, OpAccess, OpKind, Register,
};

/// Extensions whose instructions are plain computation on registers and explicit operands.
const EXTENSIONS: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::INTEL8086_ONLY,
    F::X64,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::LZCNT,
    F::MOVBE,
    F::AES,
    F::PCLMULQDQ,
    F::SHA,
    F::AVX,
    F::AVX2,
    F::FMA,
    F::F16C,
    F::BMI1,
    F::BMI2,
    F::ADX,
    F::VAES,
    F::VPCLMULQDQ,
    F::GFNI,
    F::MULTIBYTENOP,
    F::PREFETCHW,
    F::CET_IBT,
    F::PAUSE,
    F::TSC,
];

/// Instructions of those extensions that must not run on the host: they touch system state, depend on
/// the host's descriptor tables, or trap by design.
const DENIED: &[M] = &[
    M::Sgdt,
    M::Sidt,
    M::Sldt,
    M::Str,
    M::Smsw,
    M::Lgdt,
    M::Lidt,
    M::Lldt,
    M::Ltr,
    M::Lmsw,
    M::Clts,
    M::Lar,
    M::Lsl,
    M::Verr,
    M::Verw,
    M::Arpl,
    M::Cli,
    M::Sti,
    M::Hlt,
    M::In,
    M::Out,
    M::Int,
    M::Int1,
    M::Int3,
    M::Into,
    M::Bound,
    M::Iret,
    M::Iretd,
    M::Iretq,
    M::Ud0,
    M::Ud1,
    M::Ud2,
    M::Cpuid,
    M::Rdpmc,
    M::Rdmsr,
    M::Wrmsr,
    M::Lds,
    M::Les,
    M::Lfs,
    M::Lgs,
    M::Lss,
    M::Invd,
    M::Wbinvd,
    M::Invlpg,
    M::Rsm,
    M::Popf,
    M::Popfd,
    M::Popfq,
    M::Std,
];

/// REP MOVS and REP STOS with 64-bit addresses and no segment override: the element's size as a shift, and
/// whether it is MOVS.
pub(crate) fn string_move(i: &Instruction) -> Option<(u8, bool)> {
    let shape = match i.code() {
        Code::Movsb_m8_m8 => (0, true),
        Code::Movsw_m16_m16 => (1, true),
        Code::Movsd_m32_m32 => (2, true),
        Code::Movsq_m64_m64 => (3, true),
        Code::Stosb_m8_AL => (0, false),
        Code::Stosw_m16_AX => (1, false),
        Code::Stosd_m32_EAX => (2, false),
        Code::Stosq_m64_RAX => (3, false),
        _ => return None,
    };
    let wide = i.op_kinds().all(|k| {
        matches!(
            k,
            OpKind::MemoryESRDI | OpKind::MemorySegRSI | OpKind::Register
        )
    });
    let plain = i.has_rep_prefix() && !i.has_repne_prefix();
    (wide && plain && i.segment_prefix() == Register::None).then_some(shape)
}

/// Why `i` may not appear, if it may not. Memory operands and branch targets are checked elsewhere.
pub(crate) fn denied(i: &Instruction, info: &InstructionInfo) -> Option<String> {
    if i.is_invalid() {
        return Some("not an instruction".into());
    }
    if let Some(f) = i.cpuid_features().iter().find(|f| !EXTENSIONS.contains(f)) {
        return Some(format!("{f:?} is not on the list of extensions"));
    }
    if DENIED.contains(&i.mnemonic()) || i.is_privileged() || i.is_stack_instruction() {
        return Some("system or stack instruction".into());
    }
    match i.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {}
        FlowControl::IndirectBranch if i.op0_kind() == OpKind::Memory => {}
        other => return Some(format!("control flow {other:?}")),
    }
    let explicit = (0..i.op_count())
        .filter(|&n| i.op_kind(n) == OpKind::Memory)
        .count();
    let accessed = info
        .used_memory()
        .iter()
        .filter(|m| m.access() != OpAccess::NoMemAccess)
        .count();
    if string_move(i).is_some() {
        return None;
    }
    if accessed > explicit || i.is_string_instruction() || i.is_vsib() {
        return Some("touches memory that is not a plain operand".into());
    }
    if i.has_rep_prefix() && i.mnemonic() != M::Pause || i.has_repne_prefix() {
        return Some("repeat prefix".into());
    }
    for r in info.used_registers() {
        let writes = !matches!(
            r.access(),
            OpAccess::None | OpAccess::Read | OpAccess::CondRead
        );
        let full = r.register().full_register();
        if writes
            && (full == Register::RSP || full.is_segment_register() || full.is_cr() || full.is_dr())
        {
            return Some(format!("writes {full:?}"));
        }
    }
    None
}

/// The host itself faults when this instruction's memory operand of `size` bytes is not aligned to its
/// size (SDM vol. 1, 10.4.1 and 14.9), so that it cannot straddle a page.
pub(crate) fn faults_misaligned(i: &Instruction, size: usize) -> bool {
    if i.code() == Code::Cmpxchg16b_m128 {
        return true;
    }
    let m = i.mnemonic();
    if i.encoding() == EncodingKind::Legacy {
        let unaligned = matches!(
            m,
            M::Movups
                | M::Movupd
                | M::Movdqu
                | M::Lddqu
                | M::Pcmpestri
                | M::Pcmpestrm
                | M::Pcmpistri
                | M::Pcmpistrm
        );
        let xmm = (0..i.op_count()).any(|n| {
            i.op_kind(n) == OpKind::Register
                && (i.op_register(n).is_xmm() || i.op_register(n).is_mm())
        });
        return size == 16 && xmm && !unaligned;
    }
    matches!(
        m,
        M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    ) && (size == 16 || size == 32)
}
