//! Moves between registers and memory (SDM vol. 1, 5.1.1).

use crate::Feature;
use crate::form::flag::{CF, OF, PF, SF, ZF};
use crate::form::{Form, Group, ImplicitMemory};

forms! {
    // MOVSXD, MOV, LEA, XCHG rAX, MOVZX, MOVSX
    [Form::native(Group::Moves)] {
        m64: Movsxd_r16_rm16 r 2, Movsxd_r32_rm32 r 4, Movsxd_r64_rm32 r 4, Mov_rm64_r64 w 8,
            Mov_r64_rm64 r 8, Lea_r64_m address 0, Xchg_r64_RAX, Mov_r64_imm64, Mov_rm64_imm32 w 8,
            Movzx_r64_rm8 r 1, Movzx_r64_rm16 r 2, Movsx_r64_rm8 r 1, Movsx_r64_rm16 r 2;
        any: Mov_rm8_r8 w 1, Mov_rm16_r16 w 2, Mov_rm32_r32 w 4, Mov_r8_rm8 r 1, Mov_r16_rm16 r 2,
            Mov_r32_rm32 r 4, Lea_r16_m address 0, Lea_r32_m address 0, Xchg_r16_AX, Xchg_r32_EAX,
            Mov_r8_imm8, Mov_r16_imm16, Mov_r32_imm32, Mov_rm8_imm8 w 1, Mov_rm16_imm16 w 2,
            Mov_rm32_imm32 w 4, Movzx_r16_rm8 r 1, Movzx_r32_rm8 r 1, Movzx_r16_rm16 r 2,
            Movzx_r32_rm16 r 2, Movsx_r16_rm8 r 1, Movsx_r32_rm8 r 1, Movsx_r16_rm16 r 2,
            Movsx_r32_rm16 r 2;
    }
    // XCHG r/m
    [Form::native(Group::Moves).lockable().implicit_lock()] {
        any: Xchg_rm8_r8 rw 1, Xchg_rm16_r16 rw 2, Xchg_rm32_r32 rw 4;
        m64: Xchg_rm64_r64 rw 8;
    }
    // MOV moffs
    [Form::interp(Group::Moves).memory(ImplicitMemory::Moffs)] {
        any: Mov_AL_moffs8 r 1, Mov_AX_moffs16 r 2, Mov_EAX_moffs32 r 4, Mov_moffs8_AL w 1,
            Mov_moffs16_AX w 2, Mov_moffs32_EAX w 4;
        m64: Mov_RAX_moffs64 r 8, Mov_moffs64_RAX w 8;
    }
    // CMOVcc
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(OF)] {
        any: Cmovo_r16_rm16 r 2, Cmovo_r32_rm32 r 4, Cmovno_r16_rm16 r 2, Cmovno_r32_rm32 r 4;
        m64: Cmovo_r64_rm64 r 8, Cmovno_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(CF)] {
        any: Cmovb_r16_rm16 r 2, Cmovb_r32_rm32 r 4, Cmovae_r16_rm16 r 2, Cmovae_r32_rm32 r 4;
        m64: Cmovb_r64_rm64 r 8, Cmovae_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(ZF)] {
        any: Cmove_r16_rm16 r 2, Cmove_r32_rm32 r 4, Cmovne_r16_rm16 r 2, Cmovne_r32_rm32 r 4;
        m64: Cmove_r64_rm64 r 8, Cmovne_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(CF | ZF)] {
        any: Cmovbe_r16_rm16 r 2, Cmovbe_r32_rm32 r 4, Cmova_r16_rm16 r 2, Cmova_r32_rm32 r 4;
        m64: Cmovbe_r64_rm64 r 8, Cmova_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(SF)] {
        any: Cmovs_r16_rm16 r 2, Cmovs_r32_rm32 r 4, Cmovns_r16_rm16 r 2, Cmovns_r32_rm32 r 4;
        m64: Cmovs_r64_rm64 r 8, Cmovns_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(PF)] {
        any: Cmovp_r16_rm16 r 2, Cmovp_r32_rm32 r 4, Cmovnp_r16_rm16 r 2, Cmovnp_r32_rm32 r 4;
        m64: Cmovp_r64_rm64 r 8, Cmovnp_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(SF | OF)] {
        any: Cmovl_r16_rm16 r 2, Cmovl_r32_rm32 r 4, Cmovge_r16_rm16 r 2, Cmovge_r32_rm32 r 4;
        m64: Cmovl_r64_rm64 r 8, Cmovge_r64_rm64 r 8;
    }
    [Form::native(Group::Moves).needs(Feature::Cmov).reads_flags(ZF | SF | OF)] {
        any: Cmovle_r16_rm16 r 2, Cmovle_r32_rm32 r 4, Cmovg_r16_rm16 r 2, Cmovg_r32_rm32 r 4;
        m64: Cmovle_r64_rm64 r 8, Cmovg_r64_rm64 r 8;
    }
    // SETcc
    [Form::native(Group::Moves).reads_flags(OF)] {
        any: Seto_rm8 w 1, Setno_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(CF)] {
        any: Setb_rm8 w 1, Setae_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(ZF)] {
        any: Sete_rm8 w 1, Setne_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(CF | ZF)] {
        any: Setbe_rm8 w 1, Seta_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(SF)] {
        any: Sets_rm8 w 1, Setns_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(PF)] {
        any: Setp_rm8 w 1, Setnp_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(SF | OF)] {
        any: Setl_rm8 w 1, Setge_rm8 w 1;
    }
    [Form::native(Group::Moves).reads_flags(ZF | SF | OF)] {
        any: Setle_rm8 w 1, Setg_rm8 w 1;
    }
    // MOVBE
    [Form::native(Group::Moves).needs(Feature::Movbe)] {
        any: Movbe_r16_m16 r 2, Movbe_r32_m32 r 4, Movbe_m16_r16 w 2, Movbe_m32_r32 w 4;
        m64: Movbe_r64_m64 r 8, Movbe_m64_r64 w 8;
    }
}
