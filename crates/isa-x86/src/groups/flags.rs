//! Instructions on RFLAGS itself (SDM vol. 1, 5.1.11).

use crate::Feature;
use crate::form::flag::{AC, AF, CF, DF, IF, PF, SF, SYSTEM, ZF};
use crate::form::gpr::{NONE, RAX};
use crate::form::{Form, Group};

forms! {
    // PUSHF
    [Form::monitor(Group::Flags).iopl().reads_flags(SYSTEM).pushes(2)] {
        any: Pushfw;
    }
    [Form::monitor(Group::Flags).iopl().reads_flags(SYSTEM).pushes(4)] {
        legacy: Pushfd;
    }
    [Form::monitor(Group::Flags).iopl().reads_flags(SYSTEM).pushes(8)] {
        m64: Pushfq;
    }
    // POPF
    [Form::monitor(Group::Flags).iopl().ends_block().writes_flags(SYSTEM).pops(2)] {
        any: Popfw;
    }
    [Form::monitor(Group::Flags).iopl().ends_block().writes_flags(SYSTEM).pops(4)] {
        legacy: Popfd;
    }
    [Form::monitor(Group::Flags).iopl().ends_block().writes_flags(SYSTEM).pops(8)] {
        m64: Popfq;
    }
    // SAHF
    [Form::native(Group::Flags).writes_flags(SF | ZF | AF | PF | CF).implicit(RAX, NONE)] {
        any: Sahf;
    }
    // LAHF
    [Form::native(Group::Flags).reads_flags(SF | ZF | AF | PF | CF).implicit(NONE, RAX)] {
        any: Lahf;
    }
    // SALC
    [Form::interp(Group::Flags).reads_flags(CF).implicit(NONE, RAX)] {
        legacy: Salc;
    }
    // CMC
    [Form::native(Group::Flags).reads_flags(CF).writes_flags(CF)] {
        any: Cmc;
    }
    // CLC
    [Form::native(Group::Flags).clears_flags(CF)] {
        any: Clc;
    }
    // STC
    [Form::native(Group::Flags).sets_flags(CF)] {
        any: Stc;
    }
    // CLI
    [Form::monitor(Group::Flags).iopl().clears_flags(IF)] {
        any: Cli;
    }
    // STI
    [Form::monitor(Group::Flags).iopl().ends_block().sets_flags(IF)] {
        any: Sti;
    }
    // CLD
    [Form::native(Group::Flags).clears_flags(DF)] {
        any: Cld;
    }
    // STD
    [Form::native(Group::Flags).sets_flags(DF)] {
        any: Std;
    }
    // CLAC
    [Form::monitor(Group::Flags).needs(Feature::Smap).cpl0().ends_block().clears_flags(AC)] {
        any: Clac;
    }
    // STAC
    [Form::monitor(Group::Flags).needs(Feature::Smap).cpl0().ends_block().sets_flags(AC)] {
        any: Stac;
    }
}
