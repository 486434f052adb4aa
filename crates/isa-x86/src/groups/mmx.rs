//! MMX (SDM vol. 1, chapter 9).

use crate::Feature;
use crate::form::{Form, Group, Unit};

forms! {
    // integer, moves and logic
    [Form::native(Group::Mmx).needs(Feature::Mmx).unit(Unit::Mmx)] {
        any: Punpcklbw_mm_mmm32 r 4, Punpcklwd_mm_mmm32 r 4, Punpckldq_mm_mmm32 r 4,
            Packsswb_mm_mmm64 r 8, Pcmpgtb_mm_mmm64 r 8, Pcmpgtw_mm_mmm64 r 8,
            Pcmpgtd_mm_mmm64 r 8, Packuswb_mm_mmm64 r 8, Punpckhbw_mm_mmm64 r 8,
            Punpckhwd_mm_mmm64 r 8, Punpckhdq_mm_mmm64 r 8, Packssdw_mm_mmm64 r 8,
            Movd_mm_rm32 r 4, Movq_mm_mmm64 r 8, Psrlw_mm_imm8, Psraw_mm_imm8, Psllw_mm_imm8,
            Psrld_mm_imm8, Psrad_mm_imm8, Pslld_mm_imm8, Psrlq_mm_imm8, Psllq_mm_imm8,
            Pcmpeqb_mm_mmm64 r 8, Pcmpeqw_mm_mmm64 r 8, Pcmpeqd_mm_mmm64 r 8, Emms,
            Movd_rm32_mm w 4, Movq_mmm64_mm w 8, Psrlw_mm_mmm64 r 8, Psrld_mm_mmm64 r 8,
            Psrlq_mm_mmm64 r 8, Paddq_mm_mmm64 r 8, Pmullw_mm_mmm64 r 8, Psubusb_mm_mmm64 r 8,
            Psubusw_mm_mmm64 r 8, Pand_mm_mmm64 r 8, Paddusb_mm_mmm64 r 8, Paddusw_mm_mmm64 r 8,
            Pandn_mm_mmm64 r 8, Psraw_mm_mmm64 r 8, Psrad_mm_mmm64 r 8, Pmulhw_mm_mmm64 r 8,
            Psubsb_mm_mmm64 r 8, Psubsw_mm_mmm64 r 8, Por_mm_mmm64 r 8, Paddsb_mm_mmm64 r 8,
            Paddsw_mm_mmm64 r 8, Pxor_mm_mmm64 r 8, Psllw_mm_mmm64 r 8, Pslld_mm_mmm64 r 8,
            Psllq_mm_mmm64 r 8, Pmaddwd_mm_mmm64 r 8, Psubb_mm_mmm64 r 8, Psubw_mm_mmm64 r 8,
            Psubd_mm_mmm64 r 8, Paddb_mm_mmm64 r 8, Paddw_mm_mmm64 r 8, Paddd_mm_mmm64 r 8;
        m64: Movq_mm_rm64 r 8, Movq_rm64_mm w 8;
    }
}
