//! FMA and F16C (SDM vol. 1, 14.4 and 14.5).

use crate::Feature;
use crate::form::{Form, Group, Unit};

forms! {
    // floating point
    [Form::native(Group::Fma).needs(Feature::F16c).unit(Unit::Avx).mxcsr()] {
        any: VEX_Vcvtph2ps_xmm_xmmm64 r 8, VEX_Vcvtph2ps_ymm_xmmm128 r 16,
            VEX_Vcvtps2ph_xmmm64_xmm_imm8 w 8, VEX_Vcvtps2ph_xmmm128_ymm_imm8 w 16;
    }
    [Form::native(Group::Fma).needs(Feature::Fma).unit(Unit::Avx).mxcsr()] {
        any: VEX_Vfmaddsub132ps_xmm_xmm_xmmm128 r 16, VEX_Vfmaddsub132ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmaddsub132pd_xmm_xmm_xmmm128 r 16, VEX_Vfmaddsub132pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsubadd132ps_xmm_xmm_xmmm128 r 16, VEX_Vfmsubadd132ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsubadd132pd_xmm_xmm_xmmm128 r 16, VEX_Vfmsubadd132pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd132ps_xmm_xmm_xmmm128 r 16, VEX_Vfmadd132ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd132pd_xmm_xmm_xmmm128 r 16, VEX_Vfmadd132pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd132ss_xmm_xmm_xmmm32 r 4, VEX_Vfmadd132sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfmsub132ps_xmm_xmm_xmmm128 r 16, VEX_Vfmsub132ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsub132pd_xmm_xmm_xmmm128 r 16, VEX_Vfmsub132pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsub132ss_xmm_xmm_xmmm32 r 4, VEX_Vfmsub132sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfnmadd132ps_xmm_xmm_xmmm128 r 16, VEX_Vfnmadd132ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmadd132pd_xmm_xmm_xmmm128 r 16, VEX_Vfnmadd132pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmadd132ss_xmm_xmm_xmmm32 r 4, VEX_Vfnmadd132sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfnmsub132ps_xmm_xmm_xmmm128 r 16, VEX_Vfnmsub132ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmsub132pd_xmm_xmm_xmmm128 r 16, VEX_Vfnmsub132pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmsub132ss_xmm_xmm_xmmm32 r 4, VEX_Vfnmsub132sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfmaddsub213ps_xmm_xmm_xmmm128 r 16, VEX_Vfmaddsub213ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmaddsub213pd_xmm_xmm_xmmm128 r 16, VEX_Vfmaddsub213pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsubadd213ps_xmm_xmm_xmmm128 r 16, VEX_Vfmsubadd213ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsubadd213pd_xmm_xmm_xmmm128 r 16, VEX_Vfmsubadd213pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd213ps_xmm_xmm_xmmm128 r 16, VEX_Vfmadd213ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd213pd_xmm_xmm_xmmm128 r 16, VEX_Vfmadd213pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd213ss_xmm_xmm_xmmm32 r 4, VEX_Vfmadd213sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfmsub213ps_xmm_xmm_xmmm128 r 16, VEX_Vfmsub213ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsub213pd_xmm_xmm_xmmm128 r 16, VEX_Vfmsub213pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsub213ss_xmm_xmm_xmmm32 r 4, VEX_Vfmsub213sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfnmadd213ps_xmm_xmm_xmmm128 r 16, VEX_Vfnmadd213ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmadd213pd_xmm_xmm_xmmm128 r 16, VEX_Vfnmadd213pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmadd213ss_xmm_xmm_xmmm32 r 4, VEX_Vfnmadd213sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfnmsub213ps_xmm_xmm_xmmm128 r 16, VEX_Vfnmsub213ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmsub213pd_xmm_xmm_xmmm128 r 16, VEX_Vfnmsub213pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmsub213ss_xmm_xmm_xmmm32 r 4, VEX_Vfnmsub213sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfmaddsub231ps_xmm_xmm_xmmm128 r 16, VEX_Vfmaddsub231ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmaddsub231pd_xmm_xmm_xmmm128 r 16, VEX_Vfmaddsub231pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsubadd231ps_xmm_xmm_xmmm128 r 16, VEX_Vfmsubadd231ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsubadd231pd_xmm_xmm_xmmm128 r 16, VEX_Vfmsubadd231pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd231ps_xmm_xmm_xmmm128 r 16, VEX_Vfmadd231ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd231pd_xmm_xmm_xmmm128 r 16, VEX_Vfmadd231pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmadd231ss_xmm_xmm_xmmm32 r 4, VEX_Vfmadd231sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfmsub231ps_xmm_xmm_xmmm128 r 16, VEX_Vfmsub231ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsub231pd_xmm_xmm_xmmm128 r 16, VEX_Vfmsub231pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfmsub231ss_xmm_xmm_xmmm32 r 4, VEX_Vfmsub231sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfnmadd231ps_xmm_xmm_xmmm128 r 16, VEX_Vfnmadd231ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmadd231pd_xmm_xmm_xmmm128 r 16, VEX_Vfnmadd231pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmadd231ss_xmm_xmm_xmmm32 r 4, VEX_Vfnmadd231sd_xmm_xmm_xmmm64 r 8,
            VEX_Vfnmsub231ps_xmm_xmm_xmmm128 r 16, VEX_Vfnmsub231ps_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmsub231pd_xmm_xmm_xmmm128 r 16, VEX_Vfnmsub231pd_ymm_ymm_ymmm256 r 32,
            VEX_Vfnmsub231ss_xmm_xmm_xmmm32 r 4, VEX_Vfnmsub231sd_xmm_xmm_xmmm64 r 8;
    }
}
