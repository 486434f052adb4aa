//! The x87 FPU (SDM vol. 1, chapter 8).

use crate::Feature;
use crate::form::flag::{AF, CF, OF, PF, SF, ZF};
use crate::form::{Form, Group, X87};

forms! {
    // WAIT
    [Form::native(Group::X87).x87(X87::Wait)] {
        any: Wait;
    }
    // arithmetic, comparison and functions, load and store
    [Form::native(Group::X87).x87(X87::Data)] {
        any: Fadd_m32fp r 4, Fmul_m32fp r 4, Fcom_m32fp r 4, Fcomp_m32fp r 4, Fsub_m32fp r 4,
            Fsubr_m32fp r 4, Fdiv_m32fp r 4, Fdivr_m32fp r 4, Fadd_st0_sti, Fmul_st0_sti,
            Fcom_st0_sti, Fcomp_st0_sti, Fsub_st0_sti, Fsubr_st0_sti, Fdiv_st0_sti, Fdivr_st0_sti,
            Fld_m32fp r 4, Fst_m32fp w 4, Fstp_m32fp w 4, Fld_sti, Fxch_st0_sti, Fnop, Fstpnce_sti,
            Fchs, Fabs, Ftst, Fxam, Fld1, Fldl2t, Fldl2e, Fldpi, Fldlg2, Fldln2, Fldz, F2xm1,
            Fyl2x, Fptan, Fpatan, Fxtract, Fprem1, Fdecstp, Fincstp, Fprem, Fyl2xp1, Fsqrt,
            Fsincos, Frndint, Fscale, Fsin, Fcos, Fiadd_m32int r 4, Fimul_m32int r 4,
            Ficom_m32int r 4, Ficomp_m32int r 4, Fisub_m32int r 4, Fisubr_m32int r 4,
            Fidiv_m32int r 4, Fidivr_m32int r 4, Fucompp, Fild_m32int r 4, Fist_m32int w 4,
            Fistp_m32int w 4, Fld_m80fp r 10, Fstp_m80fp w 10, Fadd_m64fp r 8, Fmul_m64fp r 8,
            Fcom_m64fp r 8, Fcomp_m64fp r 8, Fsub_m64fp r 8, Fsubr_m64fp r 8, Fdiv_m64fp r 8,
            Fdivr_m64fp r 8, Fadd_sti_st0, Fmul_sti_st0, Fcom_st0_sti_DCD0, Fcomp_st0_sti_DCD8,
            Fsubr_sti_st0, Fsub_sti_st0, Fdivr_sti_st0, Fdiv_sti_st0, Fld_m64fp r 8, Fst_m64fp w 8,
            Fstp_m64fp w 8, Ffree_sti, Fxch_st0_sti_DDC8, Fst_sti, Fstp_sti, Fucom_st0_sti,
            Fucomp_st0_sti, Fiadd_m16int r 2, Fimul_m16int r 2, Ficom_m16int r 2,
            Ficomp_m16int r 2, Fisub_m16int r 2, Fisubr_m16int r 2, Fidiv_m16int r 2,
            Fidivr_m16int r 2, Faddp_sti_st0, Fmulp_sti_st0, Fcomp_st0_sti_DED0, Fcompp,
            Fsubrp_sti_st0, Fsubp_sti_st0, Fdivrp_sti_st0, Fdivp_sti_st0, Fild_m16int r 2,
            Fist_m16int w 2, Fistp_m16int w 2, Fbld_m80bcd r 10, Fild_m64int r 8,
            Fbstp_m80bcd w 10, Fistp_m64int w 8, Ffreep_sti, Fxch_st0_sti_DFC8, Fstp_sti_DFD0,
            Fstp_sti_DFD8;
    }
    // control and environment
    [Form::interp(Group::X87).x87(X87::Control)] {
        any: Fldenv_m14byte r 14, Fldenv_m28byte r 28, Frstor_m94byte r 94, Frstor_m108byte r 108;
    }
    [Form::native(Group::X87).x87(X87::Control)] {
        any: Fldcw_m2byte r 2;
    }
    [Form::interp(Group::X87).x87(X87::NoWait)] {
        any: Fnstenv_m14byte w 14, Fnstenv_m28byte w 28, Fnsave_m94byte w 94,
            Fnsave_m108byte w 108;
    }
    [Form::native(Group::X87).x87(X87::NoWait)] {
        any: Fnstcw_m2byte w 2, Fneni, Fndisi, Fnclex, Fninit, Fnsetpm, Fnstsw_m2byte w 2,
            Fnstsw_AX;
    }
    // FCMOVcc
    [Form::native(Group::X87).needs(Feature::Cmov).reads_flags(CF).x87(X87::Data)] {
        any: Fcmovb_st0_sti, Fcmovnb_st0_sti;
    }
    [Form::native(Group::X87).needs(Feature::Cmov).reads_flags(ZF).x87(X87::Data)] {
        any: Fcmove_st0_sti, Fcmovne_st0_sti;
    }
    [Form::native(Group::X87).needs(Feature::Cmov).reads_flags(CF | ZF).x87(X87::Data)] {
        any: Fcmovbe_st0_sti, Fcmovnbe_st0_sti;
    }
    [Form::native(Group::X87).needs(Feature::Cmov).reads_flags(PF).x87(X87::Data)] {
        any: Fcmovu_st0_sti, Fcmovnu_st0_sti;
    }
    // load and store
    [Form::native(Group::X87).needs(Feature::Pni).x87(X87::Data)] {
        any: Fisttp_m32int w 4, Fisttp_m64int w 8, Fisttp_m16int w 2;
    }
    // compare to flags
    [Form::native(Group::X87).needs(Feature::Cmov).writes_flags(ZF | PF | CF)
        .clears_flags(OF | SF | AF).x87(X87::Data)] {
        any: Fucomi_st0_sti, Fcomi_st0_sti, Fucomip_st0_sti, Fcomip_st0_sti;
    }
}
