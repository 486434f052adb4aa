//! System and sensitive instructions (SDM vol. 1, 5.20; Popek and Goldberg's table).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::form::gpr::{NONE, RAX, RBX, RCX, RDX, RSI};
use crate::form::{Form, Group, ImplicitMemory};

forms! {
    // ARPL
    [Form::interp(Group::System).writes_flags(ZF)] {
        legacy: Arpl_rm16_r16 rw 2, Arpl_r32m16_r32 rw 2;
    }
    // IN, OUT
    [Form::monitor(Group::System).iopl().ends_block()] {
        any: In_AL_imm8, In_AX_imm8, In_EAX_imm8, Out_imm8_AL, Out_imm8_AX, Out_imm8_EAX, In_AL_DX,
            In_AX_DX, In_EAX_DX, Out_DX_AL, Out_DX_AX, Out_DX_EAX;
    }
    // HLT, LMSW, INVLPG, CLTS
    [Form::monitor(Group::System).cpl0().ends_block()] {
        any: Hlt, Lmsw_rm16 r 2, Lmsw_r32m16 r 2, Invlpg_m address 0, Clts;
        m64: Lmsw_r64m16 r 2;
    }
    // SLDT, STR, SGDT SIDT, SMSW
    [Form::monitor(Group::System).umip()] {
        any: Sldt_rm16 w 2, Sldt_r32m16 w 2, Str_rm16 w 2, Str_r32m16 w 2, Smsw_rm16 w 2,
            Smsw_r32m16 w 2;
        m64: Sldt_r64m16 w 2, Str_r64m16 w 2, Sgdt_m1664 w 10, Sidt_m1664 w 10, Smsw_r64m16 w 2;
        legacy: Sgdt_m1632_16 w 6, Sgdt_m1632 w 6, Sidt_m1632_16 w 6, Sidt_m1632 w 6;
    }
    // LLDT LTR, LGDT LIDT, INVD WBINVD
    [Form::monitor(Group::System).cpl0()] {
        any: Lldt_rm16 r 2, Lldt_r32m16 r 2, Ltr_rm16 r 2, Ltr_r32m16 r 2, Invd, Wbinvd, Wbnoinvd;
        m64: Lldt_r64m16 r 2, Ltr_r64m16 r 2, Lgdt_m1664 r 10, Lidt_m1664 r 10;
        legacy: Lgdt_m1632_16 r 6, Lgdt_m1632 r 6, Lidt_m1632_16 r 6, Lidt_m1632 r 6;
    }
    // VERR VERW, LAR LSL
    [Form::monitor(Group::System).writes_flags(ZF)] {
        any: Verr_rm16 r 2, Verr_r32m16 r 2, Verw_rm16 r 2, Verw_r32m16 r 2, Lar_r16_rm16 r 2,
            Lar_r32_r32m16 r 2, Lsl_r16_rm16 r 2, Lsl_r32_r32m16 r 2;
        m64: Verr_r64m16 r 2, Verw_r64m16 r 2, Lar_r64_r64m16 r 2, Lsl_r64_r64m16 r 2;
    }
    // VMCALL VMMCALL
    [Form::monitor(Group::System).ends_block().implicit(RAX | RBX | RCX | RDX | RSI, RAX)] {
        any: Vmcall, Vmmcall;
    }
    // MONITORW, MONITORD, MONITORQ
    [Form::monitor(Group::System).needs(Feature::Monitor).cpl0()
        .implicit(RAX | RCX | RDX, NONE).memory(ImplicitMemory::Monitor)] {
        legacy: Monitorw;
        any: Monitord;
        m64: Monitorq;
    }
    // MWAIT
    [Form::monitor(Group::System).needs(Feature::Monitor).cpl0().ends_block()
        .implicit(RAX | RCX, NONE)] {
        any: Mwait;
    }
    // RDPKRU
    [Form::monitor(Group::System).needs(Feature::Pku).implicit(RCX, RAX | RDX)] {
        any: Rdpkru;
    }
    // WRPKRU
    [Form::monitor(Group::System).needs(Feature::Pku).ends_block()
        .implicit(RAX | RCX | RDX, NONE)] {
        any: Wrpkru;
    }
    // RDTSCP
    [Form::monitor(Group::System).needs(Feature::Rdtscp).implicit(NONE, RAX | RCX | RDX)] {
        any: Rdtscp;
    }
    // MOV CR/DR
    [Form::monitor(Group::System).cpl0().undefined_flags(STATUS)] {
        legacy: Mov_r32_cr, Mov_r32_dr;
        m64: Mov_r64_cr, Mov_r64_dr;
    }
    [Form::monitor(Group::System).cpl0().ends_block().undefined_flags(STATUS)] {
        legacy: Mov_cr_r32, Mov_dr_r32;
        m64: Mov_cr_r64, Mov_dr_r64;
    }
    // WRMSR
    [Form::monitor(Group::System).needs(Feature::Msr).cpl0().ends_block()
        .implicit(RAX | RCX | RDX, NONE)] {
        any: Wrmsr;
    }
    // RDTSC
    [Form::monitor(Group::System).needs(Feature::Tsc).implicit(NONE, RAX | RDX)] {
        any: Rdtsc;
    }
    // RDMSR
    [Form::monitor(Group::System).needs(Feature::Msr).cpl0().implicit(RCX, RAX | RDX)] {
        any: Rdmsr;
    }
    // RDPMC
    [Form::monitor(Group::System).implicit(RCX, RAX | RDX)] {
        any: Rdpmc;
    }
    // CPUID
    [Form::monitor(Group::System).implicit(RAX | RCX, RAX | RBX | RCX | RDX)] {
        any: Cpuid;
    }
    // RDRAND RDSEED
    [Form::monitor(Group::System).needs(Feature::Rdrand).writes_flags(CF)
        .clears_flags(OF | SF | ZF | AF | PF)] {
        any: Rdrand_r16, Rdrand_r32;
        m64: Rdrand_r64;
    }
    [Form::monitor(Group::System).needs(Feature::Rdseed).writes_flags(CF)
        .clears_flags(OF | SF | ZF | AF | PF)] {
        any: Rdseed_r16, Rdseed_r32;
        m64: Rdseed_r64;
    }
    // RDPID
    [Form::monitor(Group::System).needs(Feature::Rdpid)] {
        legacy: Rdpid_r32;
        m64: Rdpid_r64;
    }
    // INVPCID
    [Form::monitor(Group::System).needs(Feature::Invpcid).cpl0().ends_block()] {
        legacy: Invpcid_r32_m128 r 16;
        m64: Invpcid_r64_m128 r 16;
    }
}
