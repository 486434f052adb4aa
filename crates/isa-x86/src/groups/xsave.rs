//! FXSAVE and the XSAVE family (SDM vol. 1, 10.5 and chapter 13).

use crate::Feature;
use crate::form::gpr::{NONE, RAX, RCX, RDX};
use crate::form::{Form, Group, Unit};

forms! {
    // XGETBV
    [Form::monitor(Group::Xsave).needs(Feature::Xsave).implicit(RCX, RAX | RDX)
        .unit(Unit::Xsave)] {
        any: Xgetbv;
    }
    // XSETBV
    [Form::monitor(Group::Xsave).needs(Feature::Xsave).cpl0().ends_block()
        .implicit(RAX | RCX | RDX, NONE).unit(Unit::Xsave)] {
        any: Xsetbv;
    }
    // FXSAVE FXRSTOR
    [Form::interp(Group::Xsave).needs(Feature::Fxsr).unit(Unit::Fxsave).aligned()] {
        any: Fxsave_m512byte w 512, Fxrstor_m512byte r 512;
        m64: Fxsave64_m512byte w 512, Fxrstor64_m512byte r 512;
    }
    // XSAVE, XRSTOR, XRSTOR64
    [Form::interp(Group::Xsave).needs(Feature::Xsave).implicit(RAX | RDX, NONE)
        .unit(Unit::Xsave).align(64)] {
        any: Xsave_mem rw 0, Xrstor_mem r 0;
        m64: Xsave64_mem rw 0, Xrstor64_mem r 0;
    }
    // XSAVE
    [Form::interp(Group::Xsave).needs(Feature::Xsaveopt).implicit(RAX | RDX, NONE)
        .unit(Unit::Xsave).align(64)] {
        any: Xsaveopt_mem rw 0;
        m64: Xsaveopt64_mem rw 0;
    }
    [Form::interp(Group::Xsave).needs(Feature::Xsavec).implicit(RAX | RDX, NONE)
        .unit(Unit::Xsave).align(64)] {
        any: Xsavec_mem w 0;
        m64: Xsavec64_mem w 0;
    }
}
