//! Transfers of control, near and far (SDM vol. 1, 5.1.7; vol. 3, 6.8).

use crate::Feature;
use crate::form::flag::{CF, OF, PF, SF, SYSTEM, ZF};
use crate::form::gpr::{NONE, R11, RCX, RDX, RSP};
use crate::form::{Form, Group};

forms! {
    // BOUND
    [Form::interp(Group::Control)] {
        legacy: Bound_r16_m1616 r 4, Bound_r32_m3232 r 8;
    }
    // Jcc
    [Form::control(Group::Control).reads_flags(OF)] {
        any: Jo_rel8_16, Jno_rel8_16, Jo_rel16, Jno_rel16;
        legacy: Jo_rel8_32, Jno_rel8_32, Jo_rel32_32, Jno_rel32_32;
        m64: Jo_rel8_64, Jno_rel8_64, Jo_rel32_64, Jno_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(CF)] {
        any: Jb_rel8_16, Jae_rel8_16, Jb_rel16, Jae_rel16;
        legacy: Jb_rel8_32, Jae_rel8_32, Jb_rel32_32, Jae_rel32_32;
        m64: Jb_rel8_64, Jae_rel8_64, Jb_rel32_64, Jae_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(ZF)] {
        any: Je_rel8_16, Jne_rel8_16, Je_rel16, Jne_rel16;
        legacy: Je_rel8_32, Jne_rel8_32, Je_rel32_32, Jne_rel32_32;
        m64: Je_rel8_64, Jne_rel8_64, Je_rel32_64, Jne_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(CF | ZF)] {
        any: Jbe_rel8_16, Ja_rel8_16, Jbe_rel16, Ja_rel16;
        legacy: Jbe_rel8_32, Ja_rel8_32, Jbe_rel32_32, Ja_rel32_32;
        m64: Jbe_rel8_64, Ja_rel8_64, Jbe_rel32_64, Ja_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(SF)] {
        any: Js_rel8_16, Jns_rel8_16, Js_rel16, Jns_rel16;
        legacy: Js_rel8_32, Jns_rel8_32, Js_rel32_32, Jns_rel32_32;
        m64: Js_rel8_64, Jns_rel8_64, Js_rel32_64, Jns_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(PF)] {
        any: Jp_rel8_16, Jnp_rel8_16, Jp_rel16, Jnp_rel16;
        legacy: Jp_rel8_32, Jnp_rel8_32, Jp_rel32_32, Jnp_rel32_32;
        m64: Jp_rel8_64, Jnp_rel8_64, Jp_rel32_64, Jnp_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(SF | OF)] {
        any: Jl_rel8_16, Jge_rel8_16, Jl_rel16, Jge_rel16;
        legacy: Jl_rel8_32, Jge_rel8_32, Jl_rel32_32, Jge_rel32_32;
        m64: Jl_rel8_64, Jge_rel8_64, Jl_rel32_64, Jge_rel32_64;
    }
    [Form::control(Group::Control).reads_flags(ZF | SF | OF)] {
        any: Jle_rel8_16, Jg_rel8_16, Jle_rel16, Jg_rel16;
        legacy: Jle_rel8_32, Jg_rel8_32, Jle_rel32_32, Jg_rel32_32;
        m64: Jle_rel8_64, Jg_rel8_64, Jle_rel32_64, Jg_rel32_64;
    }
    // CALL far
    [Form::monitor(Group::Control).ends_block().pushes(4)] {
        legacy: Call_ptr1616;
        any: Call_m1616 r 4;
    }
    [Form::monitor(Group::Control).ends_block().pushes(8)] {
        legacy: Call_ptr1632;
        any: Call_m1632 r 6;
    }
    // RET near
    [Form::control(Group::Control).pops(2)] {
        any: Retnw_imm16, Retnw;
    }
    [Form::control(Group::Control).pops(4)] {
        legacy: Retnd_imm16, Retnd;
    }
    [Form::control(Group::Control).pops(8)] {
        m64: Retnq_imm16, Retnq;
    }
    // RET far
    [Form::monitor(Group::Control).ends_block().pops(4)] {
        any: Retfw_imm16, Retfw;
    }
    [Form::monitor(Group::Control).ends_block().pops(8)] {
        any: Retfd_imm16, Retfd;
    }
    [Form::monitor(Group::Control).ends_block().pops(16)] {
        m64: Retfq_imm16, Retfq;
    }
    // INT, INTO
    [Form::monitor(Group::Control).ends_block().reads_flags(SYSTEM).writes_flags(SYSTEM)] {
        any: Int3, Int_imm8, Int1;
        legacy: Into;
    }
    // IRET
    [Form::monitor(Group::Control).ends_block().pops(6).reads_flags(SYSTEM)
        .writes_flags(SYSTEM)] {
        any: Iretw;
    }
    [Form::monitor(Group::Control).ends_block().pops(12).reads_flags(SYSTEM)
        .writes_flags(SYSTEM)] {
        any: Iretd;
    }
    [Form::monitor(Group::Control).ends_block().pops(40).reads_flags(SYSTEM)
        .writes_flags(SYSTEM)] {
        m64: Iretq;
    }
    // LOOPNE, LOOPE
    [Form::control(Group::Control).reads_flags(ZF).implicit(RCX, RCX)] {
        legacy: Loopne_rel8_16_CX, Loopne_rel8_32_CX, Loopne_rel8_32_ECX, Loope_rel8_16_CX,
            Loope_rel8_32_CX, Loope_rel8_32_ECX;
        any: Loopne_rel8_16_ECX, Loope_rel8_16_ECX;
        m64: Loopne_rel8_64_ECX, Loopne_rel8_16_RCX, Loopne_rel8_64_RCX, Loope_rel8_64_ECX,
            Loope_rel8_16_RCX, Loope_rel8_64_RCX;
    }
    // LOOP
    [Form::control(Group::Control).implicit(RCX, RCX)] {
        legacy: Loop_rel8_16_CX, Loop_rel8_32_CX, Loop_rel8_32_ECX;
        any: Loop_rel8_16_ECX;
        m64: Loop_rel8_64_ECX, Loop_rel8_16_RCX, Loop_rel8_64_RCX;
    }
    // JCXZ
    [Form::control(Group::Control).implicit(RCX, NONE)] {
        legacy: Jcxz_rel8_16, Jcxz_rel8_32, Jecxz_rel8_32;
        any: Jecxz_rel8_16;
        m64: Jecxz_rel8_64, Jrcxz_rel8_16, Jrcxz_rel8_64;
    }
    // CALL near
    [Form::control(Group::Control).pushes(2)] {
        any: Call_rel16, Call_rm16 r 2;
    }
    [Form::control(Group::Control).pushes(4)] {
        legacy: Call_rel32_32, Call_rm32 r 4;
    }
    [Form::control(Group::Control).pushes(8)] {
        m64: Call_rel32_64, Call_rm64 r 8;
    }
    // JMP near
    [Form::control(Group::Control)] {
        any: Jmp_rel16, Jmp_rel8_16, Jmp_rm16 r 2;
        legacy: Jmp_rel32_32, Jmp_rel8_32, Jmp_rm32 r 4;
        m64: Jmp_rel32_64, Jmp_rel8_64, Jmp_rm64 r 8;
    }
    // JMP far
    [Form::monitor(Group::Control).ends_block()] {
        legacy: Jmp_ptr1616, Jmp_ptr1632;
        any: Jmp_m1616 r 4, Jmp_m1632 r 6;
        m64: Jmp_m1664 r 10;
    }
    // CALL far
    [Form::monitor(Group::Control).ends_block().pushes(16)] {
        m64: Call_m1664 r 10;
    }
    // SYSCALL
    [Form::monitor(Group::Control).needs(Feature::Syscall).ends_block()
        .implicit(NONE, RCX | R11).reads_flags(SYSTEM).writes_flags(SYSTEM)] {
        any: Syscall;
    }
    // SYSRET
    [Form::monitor(Group::Control).needs(Feature::Syscall).cpl0().ends_block()
        .implicit(RCX | R11, NONE).writes_flags(SYSTEM)] {
        any: Sysretd;
        m64: Sysretq;
    }
    // SYSENTER
    [Form::monitor(Group::Control).needs(Feature::Sep).ends_block().implicit(NONE, RSP)
        .reads_flags(SYSTEM).writes_flags(SYSTEM)] {
        any: Sysenter;
    }
    // SYSEXIT
    [Form::monitor(Group::Control).needs(Feature::Sep).cpl0().ends_block()
        .implicit(RCX | RDX, RSP)] {
        any: Sysexitd;
        m64: Sysexitq;
    }
}
