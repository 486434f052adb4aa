//! Integer arithmetic and logic (SDM vol. 1, 5.1.2 to 5.1.4; vol. 2 by mnemonic).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::form::gpr::{RAX, RBX, RCX, RDX};
use crate::form::{Form, Group};

forms! {
    // ADD, SUB, NEG, XADD
    [Form::native(Group::Integer).writes_flags(STATUS).lockable()] {
        any: Add_rm8_r8 rw 1, Add_rm16_r16 rw 2, Add_rm32_r32 rw 4, Sub_rm8_r8 rw 1,
            Sub_rm16_r16 rw 2, Sub_rm32_r32 rw 4, Add_rm8_imm8 rw 1, Sub_rm8_imm8 rw 1,
            Add_rm16_imm16 rw 2, Add_rm32_imm32 rw 4, Sub_rm16_imm16 rw 2, Sub_rm32_imm32 rw 4,
            Add_rm16_imm8 rw 2, Add_rm32_imm8 rw 4, Sub_rm16_imm8 rw 2, Sub_rm32_imm8 rw 4,
            Neg_rm8 rw 1, Neg_rm16 rw 2, Neg_rm32 rw 4, Xadd_rm8_r8 rw 1, Xadd_rm16_r16 rw 2,
            Xadd_rm32_r32 rw 4;
        m64: Add_rm64_r64 rw 8, Sub_rm64_r64 rw 8, Add_rm64_imm32 rw 8, Sub_rm64_imm32 rw 8,
            Add_rm64_imm8 rw 8, Sub_rm64_imm8 rw 8, Neg_rm64 rw 8, Xadd_rm64_r64 rw 8;
        legacy: Add_rm8_imm8_82 rw 1, Sub_rm8_imm8_82 rw 1;
    }
    // ADD, SUB, CMP
    [Form::native(Group::Integer).writes_flags(STATUS)] {
        any: Add_r8_rm8 r 1, Add_r16_rm16 r 2, Add_r32_rm32 r 4, Add_AL_imm8, Add_AX_imm16,
            Add_EAX_imm32, Sub_r8_rm8 r 1, Sub_r16_rm16 r 2, Sub_r32_rm32 r 4, Sub_AL_imm8,
            Sub_AX_imm16, Sub_EAX_imm32, Cmp_rm8_r8 r 1, Cmp_rm16_r16 r 2, Cmp_rm32_r32 r 4,
            Cmp_r8_rm8 r 1, Cmp_r16_rm16 r 2, Cmp_r32_rm32 r 4, Cmp_AL_imm8, Cmp_AX_imm16,
            Cmp_EAX_imm32, Cmp_rm8_imm8 r 1, Cmp_rm16_imm16 r 2, Cmp_rm32_imm32 r 4,
            Cmp_rm16_imm8 r 2, Cmp_rm32_imm8 r 4;
        m64: Add_r64_rm64 r 8, Add_RAX_imm32, Sub_r64_rm64 r 8, Sub_RAX_imm32, Cmp_rm64_r64 r 8,
            Cmp_r64_rm64 r 8, Cmp_RAX_imm32, Cmp_rm64_imm32 r 8, Cmp_rm64_imm8 r 8;
        legacy: Cmp_rm8_imm8_82 r 1;
    }
    // OR, AND, XOR
    [Form::native(Group::Integer).writes_flags(SF | ZF | PF).clears_flags(OF | CF)
        .undefined_flags(AF).lockable()] {
        any: Or_rm8_r8 rw 1, Or_rm16_r16 rw 2, Or_rm32_r32 rw 4, And_rm8_r8 rw 1,
            And_rm16_r16 rw 2, And_rm32_r32 rw 4, Xor_rm8_r8 rw 1, Xor_rm16_r16 rw 2,
            Xor_rm32_r32 rw 4, Or_rm8_imm8 rw 1, And_rm8_imm8 rw 1, Xor_rm8_imm8 rw 1,
            Or_rm16_imm16 rw 2, Or_rm32_imm32 rw 4, And_rm16_imm16 rw 2, And_rm32_imm32 rw 4,
            Xor_rm16_imm16 rw 2, Xor_rm32_imm32 rw 4, Or_rm16_imm8 rw 2, Or_rm32_imm8 rw 4,
            And_rm16_imm8 rw 2, And_rm32_imm8 rw 4, Xor_rm16_imm8 rw 2, Xor_rm32_imm8 rw 4;
        m64: Or_rm64_r64 rw 8, And_rm64_r64 rw 8, Xor_rm64_r64 rw 8, Or_rm64_imm32 rw 8,
            And_rm64_imm32 rw 8, Xor_rm64_imm32 rw 8, Or_rm64_imm8 rw 8, And_rm64_imm8 rw 8,
            Xor_rm64_imm8 rw 8;
        legacy: Or_rm8_imm8_82 rw 1, And_rm8_imm8_82 rw 1, Xor_rm8_imm8_82 rw 1;
    }
    // OR, AND, XOR, TEST
    [Form::native(Group::Integer).writes_flags(SF | ZF | PF).clears_flags(OF | CF)
        .undefined_flags(AF)] {
        any: Or_r8_rm8 r 1, Or_r16_rm16 r 2, Or_r32_rm32 r 4, Or_AL_imm8, Or_AX_imm16,
            Or_EAX_imm32, And_r8_rm8 r 1, And_r16_rm16 r 2, And_r32_rm32 r 4, And_AL_imm8,
            And_AX_imm16, And_EAX_imm32, Xor_r8_rm8 r 1, Xor_r16_rm16 r 2, Xor_r32_rm32 r 4,
            Xor_AL_imm8, Xor_AX_imm16, Xor_EAX_imm32, Test_rm8_r8 r 1, Test_rm16_r16 r 2,
            Test_rm32_r32 r 4, Test_AL_imm8, Test_AX_imm16, Test_EAX_imm32, Test_rm8_imm8 r 1,
            Test_rm8_imm8_F6r1 r 1, Test_rm16_imm16 r 2, Test_rm32_imm32 r 4,
            Test_rm16_imm16_F7r1 r 2, Test_rm32_imm32_F7r1 r 4;
        m64: Or_r64_rm64 r 8, Or_RAX_imm32, And_r64_rm64 r 8, And_RAX_imm32, Xor_r64_rm64 r 8,
            Xor_RAX_imm32, Test_rm64_r64 r 8, Test_RAX_imm32, Test_rm64_imm32 r 8,
            Test_rm64_imm32_F7r1 r 8;
    }
    // ADC, SBB
    [Form::native(Group::Integer).reads_flags(CF).writes_flags(STATUS).lockable()] {
        any: Adc_rm8_r8 rw 1, Adc_rm16_r16 rw 2, Adc_rm32_r32 rw 4, Sbb_rm8_r8 rw 1,
            Sbb_rm16_r16 rw 2, Sbb_rm32_r32 rw 4, Adc_rm8_imm8 rw 1, Sbb_rm8_imm8 rw 1,
            Adc_rm16_imm16 rw 2, Adc_rm32_imm32 rw 4, Sbb_rm16_imm16 rw 2, Sbb_rm32_imm32 rw 4,
            Adc_rm16_imm8 rw 2, Adc_rm32_imm8 rw 4, Sbb_rm16_imm8 rw 2, Sbb_rm32_imm8 rw 4;
        m64: Adc_rm64_r64 rw 8, Sbb_rm64_r64 rw 8, Adc_rm64_imm32 rw 8, Sbb_rm64_imm32 rw 8,
            Adc_rm64_imm8 rw 8, Sbb_rm64_imm8 rw 8;
        legacy: Adc_rm8_imm8_82 rw 1, Sbb_rm8_imm8_82 rw 1;
    }
    [Form::native(Group::Integer).reads_flags(CF).writes_flags(STATUS)] {
        any: Adc_r8_rm8 r 1, Adc_r16_rm16 r 2, Adc_r32_rm32 r 4, Adc_AL_imm8, Adc_AX_imm16,
            Adc_EAX_imm32, Sbb_r8_rm8 r 1, Sbb_r16_rm16 r 2, Sbb_r32_rm32 r 4, Sbb_AL_imm8,
            Sbb_AX_imm16, Sbb_EAX_imm32;
        m64: Adc_r64_rm64 r 8, Adc_RAX_imm32, Sbb_r64_rm64 r 8, Sbb_RAX_imm32;
    }
    // DAA, DAS
    [Form::interp(Group::Integer).reads_flags(AF | CF).writes_flags(SF | ZF | AF | PF | CF)
        .undefined_flags(OF).implicit(RAX, RAX)] {
        legacy: Daa, Das;
    }
    // AAA, AAS
    [Form::interp(Group::Integer).reads_flags(AF).writes_flags(AF | CF)
        .undefined_flags(OF | SF | ZF | PF).implicit(RAX, RAX)] {
        legacy: Aaa, Aas;
    }
    // INC, DEC
    [Form::native(Group::Integer).writes_flags(OF | SF | ZF | AF | PF)] {
        legacy: Inc_r16, Inc_r32, Dec_r16, Dec_r32;
    }
    // IMUL
    [Form::native(Group::Integer).writes_flags(OF | CF).undefined_flags(SF | ZF | AF | PF)] {
        any: Imul_r16_rm16_imm16 r 2, Imul_r32_rm32_imm32 r 4, Imul_r16_rm16_imm8 r 2,
            Imul_r32_rm32_imm8 r 4, Imul_r16_rm16 r 2, Imul_r32_rm32 r 4;
        m64: Imul_r64_rm64_imm32 r 8, Imul_r64_rm64_imm8 r 8, Imul_r64_rm64 r 8;
    }
    // CBW, CWDE, CDQE
    [Form::native(Group::Integer).implicit(RAX, RAX)] {
        any: Cbw, Cwde;
        m64: Cdqe;
    }
    // CWD, CDQ, CQO
    [Form::native(Group::Integer).implicit(RAX, RDX)] {
        any: Cwd, Cdq;
        m64: Cqo;
    }
    // AAM, AAD
    [Form::interp(Group::Integer).writes_flags(SF | ZF | PF).undefined_flags(OF | AF | CF)
        .implicit(RAX, RAX)] {
        legacy: Aam_imm8, Aad_imm8;
    }
    // NOT
    [Form::native(Group::Integer).lockable()] {
        any: Not_rm8 rw 1, Not_rm16 rw 2, Not_rm32 rw 4;
        m64: Not_rm64 rw 8;
    }
    // MUL, IMUL
    [Form::native(Group::Integer).writes_flags(OF | CF).undefined_flags(SF | ZF | AF | PF)
        .implicit(RAX, RAX)] {
        any: Mul_rm8 r 1, Imul_rm8 r 1;
    }
    // DIV, IDIV
    [Form::native(Group::Integer).undefined_flags(STATUS).implicit(RAX, RAX)] {
        any: Div_rm8 r 1, Idiv_rm8 r 1;
    }
    // MUL, IMUL
    [Form::native(Group::Integer).writes_flags(OF | CF).undefined_flags(SF | ZF | AF | PF)
        .implicit(RAX, RAX | RDX)] {
        any: Mul_rm16 r 2, Mul_rm32 r 4, Imul_rm16 r 2, Imul_rm32 r 4;
        m64: Mul_rm64 r 8, Imul_rm64 r 8;
    }
    // DIV, IDIV
    [Form::native(Group::Integer).undefined_flags(STATUS).implicit(RAX | RDX, RAX | RDX)] {
        any: Div_rm16 r 2, Div_rm32 r 4, Idiv_rm16 r 2, Idiv_rm32 r 4;
        m64: Div_rm64 r 8, Idiv_rm64 r 8;
    }
    // INC, DEC
    [Form::native(Group::Integer).writes_flags(OF | SF | ZF | AF | PF).lockable()] {
        any: Inc_rm8 rw 1, Dec_rm8 rw 1, Inc_rm16 rw 2, Inc_rm32 rw 4, Dec_rm16 rw 2,
            Dec_rm32 rw 4;
        m64: Inc_rm64 rw 8, Dec_rm64 rw 8;
    }
    // CMPXCHG
    [Form::native(Group::Integer).writes_flags(STATUS).lockable().implicit(RAX, RAX)] {
        any: Cmpxchg_rm8_r8 rw 1, Cmpxchg_rm16_r16 rw 2, Cmpxchg_rm32_r32 rw 4;
        m64: Cmpxchg_rm64_r64 rw 8;
    }
    // CMPXCHG8B
    [Form::native(Group::Integer).needs(Feature::Cx8).writes_flags(ZF).lockable()
        .implicit(RAX | RBX | RCX | RDX, RAX | RDX)] {
        any: Cmpxchg8b_m64 rw 8;
    }
    // CMPXCHG16B
    [Form::native(Group::Integer).needs(Feature::Cx16).writes_flags(ZF).lockable()
        .implicit(RAX | RBX | RCX | RDX, RAX | RDX).aligned()] {
        m64: Cmpxchg16b_m128 rw 16;
    }
    // ADCX
    [Form::native(Group::Integer).needs(Feature::Adx).reads_flags(CF).writes_flags(CF)] {
        any: Adcx_r32_rm32 r 4;
        m64: Adcx_r64_rm64 r 8;
    }
    // ADOX
    [Form::native(Group::Integer).needs(Feature::Adx).reads_flags(OF).writes_flags(OF)] {
        any: Adox_r32_rm32 r 4;
        m64: Adox_r64_rm64 r 8;
    }
}
