//! Default-deny: every code that iced knows is either a row or belongs to a family that is denied
//! for a stated reason. A code of a new iced release fails this test until somebody decides.

use iced_x86::{Code, CpuidFeature as F, Decoder, DecoderOptions, EncodingKind};
use mimeo_isa_x86::{forms, lookup};

/// Encodings that no guest has.
const ENCODINGS: &[(EncodingKind, &str)] = &[
    (EncodingKind::EVEX, "AVX-512 is hidden"),
    (EncodingKind::MVEX, "Knights Corner"),
    (
        EncodingKind::XOP,
        "AMD XOP, LWP, TBM: withdrawn by the vendor",
    ),
    (EncodingKind::D3NOW, "3DNow!: withdrawn by the vendor"),
];

/// CPUID features that no guest has.
const FEATURES: &[(F, &str)] = &[
    (F::RTM, "TSX is hidden"),
    (F::HLE_or_RTM, "TSX is hidden"),
    (F::TSXLDTRK, "TSX is hidden"),
    (F::IA64, "not this architecture"),
    (
        F::CET_SS,
        "shadow stacks are hidden (RDSSP stays as the no-operation that it then is)",
    ),
    (F::OSS, "SGX"),
    (F::SGX1, "SGX"),
    (
        F::VMX,
        "nested virtualization is a later engine's (VMCALL is the hypercall)",
    ),
    (F::INVEPT, "VMX"),
    (F::INVVPID, "VMX"),
    (
        F::SVM,
        "nested virtualization is a later engine's (VMMCALL is the hypercall)",
    ),
    (F::SKINIT_or_SVM, "SVM"),
    (F::SEV_SNP, "confidential guests"),
    (F::SEV_ES, "confidential guests"),
    (F::RMPQUERY, "confidential guests"),
    (F::TDX, "confidential guests"),
    (F::PCONFIG, "memory encryption"),
    (F::TSE, "memory encryption"),
    (
        F::MONITORX,
        "hidden; stores nothing but its address is a raw register",
    ),
    (F::MCOMMIT, "AMD, hidden"),
    (F::CLZERO, "AMD, hidden; stores 64 bytes at rAX"),
    (F::RDPRU, "AMD, hidden"),
    (F::INVLPGB, "AMD, hidden"),
    (F::SSE4A, "AMD only, not in the model"),
    (F::FMA4, "AMD only, withdrawn"),
    (F::XOP, "AMD only, withdrawn"),
    (F::LWP, "AMD only, withdrawn"),
    (F::TBM, "AMD only, withdrawn"),
    (F::D3NOW, "withdrawn"),
    (F::CL1INVMB, "Intel research chip"),
    (F::INTEL8086_ONLY, "old steppings"),
    (F::INTEL286_ONLY, "old steppings"),
    (F::INTEL386_ONLY, "old steppings"),
    (F::INTEL386_A0_ONLY, "old steppings"),
    (F::INTEL486_A_ONLY, "old steppings"),
    (F::FPU287XL_ONLY, "old coprocessors"),
    (F::FPU387SL_ONLY, "old coprocessors"),
    (F::UMOV, "old steppings"),
    (F::MOV_TR, "test registers of the 386 and 486"),
    (F::MPX, "withdrawn; decoded as reserved no-operations"),
    (F::SMX, "no GETSEC"),
    (F::SMM, "RSM outside SMM is #UD, and there is no SMM"),
    (F::AVX512F, "AVX-512 is hidden"),
    (F::AVX512BW, "AVX-512 is hidden"),
    (F::AVX512DQ, "AVX-512 is hidden"),
    (F::KNC, "Knights Corner"),
    (F::AMX_TILE, "AMX is hidden"),
    (F::AMX_BF16, "AMX is hidden"),
    (F::AMX_INT8, "AMX is hidden"),
    (F::AMX_FP16, "AMX is hidden"),
    (F::AMX_COMPLEX, "AMX is hidden"),
    (F::PTWRITE, "processor trace is hidden"),
    (F::WAITPKG, "hidden; UMONITOR's address is a raw register"),
    (F::PCOMMIT, "withdrawn"),
    (F::XSAVES, "supervisor state is hidden"),
    (F::GFNI, "above x86-64-v3"),
    (F::VAES, "above x86-64-v3"),
    (F::VPCLMULQDQ, "above x86-64-v3"),
    (F::AVX_VNNI, "above x86-64-v3"),
    (F::AVX_VNNI_INT8, "above x86-64-v3"),
    (F::AVX_VNNI_INT16, "above x86-64-v3"),
    (F::AVX_IFMA, "above x86-64-v3"),
    (F::AVX_NE_CONVERT, "above x86-64-v3"),
    (F::CMPCCXADD, "above x86-64-v3"),
    (F::RAO_INT, "above x86-64-v3"),
    (F::SHA512, "above x86-64-v3"),
    (F::SM3, "above x86-64-v3"),
    (F::SM4, "above x86-64-v3"),
    (F::MOVDIR64B, "hidden; its destination is a raw register"),
    (F::MOVDIRI, "hidden"),
    (F::ENQCMD, "hidden; its destination is a raw register"),
    (F::SERIALIZE, "hidden"),
    (F::AESKLE, "key locker is hidden"),
    (F::KL, "key locker is hidden"),
    (F::UINTR, "user interrupts are hidden"),
    (F::HRESET, "hidden"),
    (F::LKGS, "FRED is hidden"),
    (F::FRED, "FRED is hidden"),
    (F::UDBG, "debug-only parts"),
    (F::WRMSRNS, "hidden"),
    (F::MSRLIST, "hidden"),
    (F::PADLOCK_ACE, "VIA"),
    (F::PADLOCK_PHE, "VIA"),
    (F::PADLOCK_PMM, "VIA"),
    (F::PADLOCK_RNG, "VIA"),
    (F::PADLOCK_GMI, "VIA"),
    (F::PADLOCK_UNDOC, "VIA"),
    (F::CENTAUR_AIS, "VIA"),
    (F::CYRIX_SHR, "Cyrix"),
    (F::CYRIX_SMINT, "Cyrix"),
    (F::CYRIX_SMINT_0F7E, "Cyrix"),
    (F::CYRIX_DMI, "Cyrix"),
    (F::CYRIX_SMM, "Cyrix"),
    (F::CYRIX_DDI, "Cyrix"),
    (F::CYRIX_EMMI, "Cyrix"),
    (F::CYRIX_FPU, "Cyrix"),
];

/// Codes denied by name.
const NAMED: &[(&str, &[Code])] = &[
    (
        "not instructions",
        &[
            Code::INVALID,
            Code::DeclareByte,
            Code::DeclareWord,
            Code::DeclareDword,
            Code::DeclareQword,
            Code::Zero_bytes,
        ],
    ),
    (
        "#UD by definition (SDM vol. 2, UD)",
        &[
            Code::Ud0,
            Code::Ud0_r16_rm16,
            Code::Ud0_r32_rm32,
            Code::Ud0_r64_rm64,
            Code::Ud1_r16_rm16,
            Code::Ud1_r32_rm32,
            Code::Ud1_r64_rm64,
            Code::Ud2,
        ],
    ),
    (
        "assembler aliases of WAIT and the form without wait; the decoder gives those two",
        &[
            Code::Fstenv_m14byte,
            Code::Fstenv_m28byte,
            Code::Fstcw_m2byte,
            Code::Feni,
            Code::Fdisi,
            Code::Fclex,
            Code::Finit,
            Code::Fsetpm,
            Code::Fsave_m94byte,
            Code::Fsave_m108byte,
            Code::Fstsw_m2byte,
            Code::Fstsw_AX,
        ],
    ),
];

fn denied(code: Code) -> Option<&'static str> {
    let info = code.op_code();
    if let Some((_, why)) = ENCODINGS.iter().find(|(e, _)| *e == info.encoding()) {
        return Some(why);
    }
    if let Some((why, _)) = NAMED.iter().find(|(_, codes)| codes.contains(&code)) {
        return Some(why);
    }
    let features = code.cpuid_features();
    FEATURES
        .iter()
        .find(|(f, _)| features.contains(f))
        .map(|(_, why)| *why)
}

/// Rows whose iced feature is denied as a family, each with its reason.
const ALLOWED_OF_DENIED: &[(Code, &str)] = &[
    (
        Code::Rdsspd_r32,
        "a no-operation without CET; C libraries probe with it",
    ),
    (
        Code::Rdsspq_r64,
        "a no-operation without CET; C libraries probe with it",
    ),
    (Code::Vmcall, "the hypercall"),
    (Code::Vmmcall, "the hypercall"),
];

#[test]
fn every_code_is_a_row_or_denied() {
    let mut wrong = Vec::new();
    for code in Code::values() {
        let allowed = ALLOWED_OF_DENIED.iter().any(|(c, _)| *c == code);
        match (lookup(code).is_some(), denied(code)) {
            (true, None) | (false, Some(_)) => {}
            (true, Some(_)) if allowed => {}
            (true, Some(why)) => wrong.push(format!("{code:?} has a row but is denied: {why}")),
            (false, None) => wrong.push(format!("{code:?} is neither a row nor denied")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lookup_gives_the_form_of_the_code() {
    for form in forms() {
        assert_eq!(lookup(form.code).map(|f| f.code), Some(form.code));
    }
    let last = Code::values().last().expect("iced has codes");
    assert!(lookup(last).is_none_or(|f| f.code == last));
}

#[test]
fn wait_prefixed_aliases_are_never_decoded() {
    for bytes in [
        [0x9b_u8, 0xd9, 0x30],
        [0x9b, 0xd9, 0x38],
        [0x9b, 0xdd, 0x30],
        [0x9b, 0xdd, 0x38],
        [0x9b, 0xdb, 0xe3],
        [0x9b, 0xdf, 0xe0],
    ] {
        let first = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        assert_eq!(first.code(), Code::Wait, "{bytes:x?}");
    }
}
