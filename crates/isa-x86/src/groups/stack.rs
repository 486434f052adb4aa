//! Stack instructions (SDM vol. 1, 6.2 and 6.5).

use crate::form::gpr::{ALL_LEGACY, RBP, RSP};
use crate::form::{Form, Group};

forms! {
    // PUSH
    [Form::interp(Group::Stack).pushes(2)] {
        any: Push_r16, Push_imm16, Pushw_imm8, Push_rm16 r 2;
    }
    [Form::interp(Group::Stack).pushes(4)] {
        legacy: Push_r32, Pushd_imm32, Pushd_imm8, Push_rm32 r 4;
    }
    [Form::interp(Group::Stack).pushes(8)] {
        m64: Push_r64, Pushq_imm32, Pushq_imm8, Push_rm64 r 8;
    }
    // POP
    [Form::interp(Group::Stack).pops(2)] {
        any: Pop_r16, Pop_rm16 w 2;
    }
    [Form::interp(Group::Stack).pops(4)] {
        legacy: Pop_r32, Pop_rm32 w 4;
    }
    [Form::interp(Group::Stack).pops(8)] {
        m64: Pop_r64, Pop_rm64 w 8;
    }
    // PUSHA
    [Form::interp(Group::Stack).pushes(16).implicit(ALL_LEGACY, RSP)] {
        legacy: Pushaw;
    }
    [Form::interp(Group::Stack).pushes(32).implicit(ALL_LEGACY, RSP)] {
        legacy: Pushad;
    }
    // POPA
    [Form::interp(Group::Stack).pops(16).implicit(RSP, ALL_LEGACY)] {
        legacy: Popaw;
    }
    [Form::interp(Group::Stack).pops(32).implicit(RSP, ALL_LEGACY)] {
        legacy: Popad;
    }
    // ENTER
    [Form::interp(Group::Stack).pushes(2).implicit(RBP | RSP, RBP | RSP)] {
        any: Enterw_imm16_imm8;
    }
    [Form::interp(Group::Stack).pushes(4).implicit(RBP | RSP, RBP | RSP)] {
        legacy: Enterd_imm16_imm8;
    }
    [Form::interp(Group::Stack).pushes(8).implicit(RBP | RSP, RBP | RSP)] {
        m64: Enterq_imm16_imm8;
    }
    // LEAVE
    [Form::interp(Group::Stack).pops(2).implicit(RBP, RBP | RSP)] {
        any: Leavew;
    }
    [Form::interp(Group::Stack).pops(4).implicit(RBP, RBP | RSP)] {
        legacy: Leaved;
    }
    [Form::interp(Group::Stack).pops(8).implicit(RBP, RBP | RSP)] {
        m64: Leaveq;
    }
}
