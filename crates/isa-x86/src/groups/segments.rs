//! Segment registers and their bases (SDM vol. 1, 5.1.12).

use crate::Feature;
use crate::form::{Form, Group};

forms! {
    // PUSH Sreg
    [Form::monitor(Group::Segments).pushes(2)] {
        legacy: Pushw_ES, Pushw_CS, Pushw_SS, Pushw_DS;
        any: Pushw_FS, Pushw_GS;
    }
    [Form::monitor(Group::Segments).pushes(4)] {
        legacy: Pushd_ES, Pushd_CS, Pushd_SS, Pushd_DS, Pushd_FS, Pushd_GS;
    }
    // POP Sreg
    [Form::monitor(Group::Segments).ends_block().pops(2)] {
        legacy: Popw_ES, Popw_SS, Popw_DS;
        any: Popw_FS, Popw_GS;
    }
    [Form::monitor(Group::Segments).ends_block().pops(4)] {
        legacy: Popd_ES, Popd_SS, Popd_DS, Popd_FS, Popd_GS;
    }
    // MOV r/m, Sreg
    [Form::monitor(Group::Segments)] {
        any: Mov_rm16_Sreg w 2, Mov_r32m16_Sreg w 2;
        m64: Mov_r64m16_Sreg w 2;
    }
    // MOV Sreg, LDS LES LFS LGS LSS
    [Form::monitor(Group::Segments).ends_block()] {
        any: Mov_Sreg_rm16 r 2, Mov_Sreg_r32m16 r 2, Lss_r16_m1616 r 4, Lss_r32_m1632 r 6,
            Lfs_r16_m1616 r 4, Lfs_r32_m1632 r 6, Lgs_r16_m1616 r 4, Lgs_r32_m1632 r 6;
        m64: Mov_Sreg_r64m16 r 2, Lss_r64_m1664 r 10, Lfs_r64_m1664 r 10, Lgs_r64_m1664 r 10;
        legacy: Les_r16_m1616 r 4, Les_r32_m1632 r 6, Lds_r16_m1616 r 4, Lds_r32_m1632 r 6;
    }
    // SWAPGS
    [Form::monitor(Group::Segments).cpl0()] {
        m64: Swapgs;
    }
    // PUSH Sreg
    [Form::monitor(Group::Segments).pushes(8)] {
        m64: Pushq_FS, Pushq_GS;
    }
    // POP Sreg
    [Form::monitor(Group::Segments).ends_block().pops(8)] {
        m64: Popq_FS, Popq_GS;
    }
    // RDFSBASE, WRFSBASE
    [Form::monitor(Group::Segments).needs(Feature::Fsgsbase)] {
        m64: Rdfsbase_r32, Rdfsbase_r64, Rdgsbase_r32, Rdgsbase_r64, Wrfsbase_r32, Wrfsbase_r64,
            Wrgsbase_r32, Wrgsbase_r64;
    }
}
