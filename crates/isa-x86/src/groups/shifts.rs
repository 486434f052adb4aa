//! Shifts and rotates (SDM vol. 1, 5.1.5). Flags change only when the masked count is not zero.

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::{Form, Group, Unit};

forms! {
    // ROL, ROR
    [Form::native(Group::Shifts).writes_flags(CF).undefined_flags(OF).conditional_flags()] {
        any: Rol_rm8_imm8 rw 1, Ror_rm8_imm8 rw 1, Rol_rm16_imm8 rw 2, Rol_rm32_imm8 rw 4,
            Ror_rm16_imm8 rw 2, Ror_rm32_imm8 rw 4, Rol_rm8_CL rw 1, Ror_rm8_CL rw 1,
            Rol_rm16_CL rw 2, Rol_rm32_CL rw 4, Ror_rm16_CL rw 2, Ror_rm32_CL rw 4;
        m64: Rol_rm64_imm8 rw 8, Ror_rm64_imm8 rw 8, Rol_rm64_CL rw 8, Ror_rm64_CL rw 8;
    }
    // RCL, RCR
    [Form::native(Group::Shifts).reads_flags(CF).writes_flags(CF).undefined_flags(OF)
        .conditional_flags()] {
        any: Rcl_rm8_imm8 rw 1, Rcr_rm8_imm8 rw 1, Rcl_rm16_imm8 rw 2, Rcl_rm32_imm8 rw 4,
            Rcr_rm16_imm8 rw 2, Rcr_rm32_imm8 rw 4, Rcl_rm8_CL rw 1, Rcr_rm8_CL rw 1,
            Rcl_rm16_CL rw 2, Rcl_rm32_CL rw 4, Rcr_rm16_CL rw 2, Rcr_rm32_CL rw 4;
        m64: Rcl_rm64_imm8 rw 8, Rcr_rm64_imm8 rw 8, Rcl_rm64_CL rw 8, Rcr_rm64_CL rw 8;
    }
    // SHL, SHR, SAL, SAR, SHLD, SHRD
    [Form::native(Group::Shifts).writes_flags(SF | ZF | PF | CF).undefined_flags(OF | AF)
        .conditional_flags()] {
        any: Shl_rm8_imm8 rw 1, Shr_rm8_imm8 rw 1, Sal_rm8_imm8 rw 1, Sar_rm8_imm8 rw 1,
            Shl_rm16_imm8 rw 2, Shl_rm32_imm8 rw 4, Shr_rm16_imm8 rw 2, Shr_rm32_imm8 rw 4,
            Sal_rm16_imm8 rw 2, Sal_rm32_imm8 rw 4, Sar_rm16_imm8 rw 2, Sar_rm32_imm8 rw 4,
            Shl_rm8_CL rw 1, Shr_rm8_CL rw 1, Sal_rm8_CL rw 1, Sar_rm8_CL rw 1, Shl_rm16_CL rw 2,
            Shl_rm32_CL rw 4, Shr_rm16_CL rw 2, Shr_rm32_CL rw 4, Sal_rm16_CL rw 2,
            Sal_rm32_CL rw 4, Sar_rm16_CL rw 2, Sar_rm32_CL rw 4, Shld_rm16_r16_imm8 rw 2,
            Shld_rm32_r32_imm8 rw 4, Shld_rm16_r16_CL rw 2, Shld_rm32_r32_CL rw 4,
            Shrd_rm16_r16_imm8 rw 2, Shrd_rm32_r32_imm8 rw 4, Shrd_rm16_r16_CL rw 2,
            Shrd_rm32_r32_CL rw 4;
        m64: Shl_rm64_imm8 rw 8, Shr_rm64_imm8 rw 8, Sal_rm64_imm8 rw 8, Sar_rm64_imm8 rw 8,
            Shl_rm64_CL rw 8, Shr_rm64_CL rw 8, Sal_rm64_CL rw 8, Sar_rm64_CL rw 8,
            Shld_rm64_r64_imm8 rw 8, Shld_rm64_r64_CL rw 8, Shrd_rm64_r64_imm8 rw 8,
            Shrd_rm64_r64_CL rw 8;
    }
    // ROL, ROR
    [Form::native(Group::Shifts).writes_flags(OF | CF)] {
        any: Rol_rm8_1 rw 1, Ror_rm8_1 rw 1, Rol_rm16_1 rw 2, Rol_rm32_1 rw 4, Ror_rm16_1 rw 2,
            Ror_rm32_1 rw 4;
        m64: Rol_rm64_1 rw 8, Ror_rm64_1 rw 8;
    }
    // RCL, RCR
    [Form::native(Group::Shifts).reads_flags(CF).writes_flags(OF | CF)] {
        any: Rcl_rm8_1 rw 1, Rcr_rm8_1 rw 1, Rcl_rm16_1 rw 2, Rcl_rm32_1 rw 4, Rcr_rm16_1 rw 2,
            Rcr_rm32_1 rw 4;
        m64: Rcl_rm64_1 rw 8, Rcr_rm64_1 rw 8;
    }
    // SHL, SHR, SAL, SAR
    [Form::native(Group::Shifts).writes_flags(OF | SF | ZF | PF | CF).undefined_flags(AF)] {
        any: Shl_rm8_1 rw 1, Shr_rm8_1 rw 1, Sal_rm8_1 rw 1, Sar_rm8_1 rw 1, Shl_rm16_1 rw 2,
            Shl_rm32_1 rw 4, Shr_rm16_1 rw 2, Shr_rm32_1 rw 4, Sal_rm16_1 rw 2, Sal_rm32_1 rw 4,
            Sar_rm16_1 rw 2, Sar_rm32_1 rw 4;
        m64: Shl_rm64_1 rw 8, Shr_rm64_1 rw 8, Sal_rm64_1 rw 8, Sar_rm64_1 rw 8;
    }
    // SHLX, SARX, SHRX, RORX
    [Form::native(Group::Shifts).needs(Feature::Bmi2).unit(Unit::VexGpr)] {
        any: VEX_Shlx_r32_rm32_r32 r 4, VEX_Sarx_r32_rm32_r32 r 4, VEX_Shrx_r32_rm32_r32 r 4,
            VEX_Rorx_r32_rm32_imm8 r 4;
        m64: VEX_Shlx_r64_rm64_r64 r 8, VEX_Sarx_r64_rm64_r64 r 8, VEX_Shrx_r64_rm64_r64 r 8,
            VEX_Rorx_r64_rm64_imm8 r 8;
    }
}
