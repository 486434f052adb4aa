//! String instructions and XLAT (SDM vol. 1, 5.1.8).

use crate::form::flag::{DF, STATUS};
use crate::form::gpr::{RAX, RBX, RCX, RDI, RSI};
use crate::form::{Form, Group, ImplicitMemory};

forms! {
    // INS
    [Form::monitor(Group::Strings).iopl().ends_block().reads_flags(DF)
        .implicit(RDI | RCX, RDI | RCX).memory(ImplicitMemory::Destination)] {
        any: Insb_m8_DX w 1, Insw_m16_DX w 2, Insd_m32_DX w 4;
    }
    // OUTS
    [Form::monitor(Group::Strings).iopl().ends_block().reads_flags(DF)
        .implicit(RSI | RCX, RSI | RCX).memory(ImplicitMemory::Source)] {
        any: Outsb_DX_m8 r 1, Outsw_DX_m16 r 2, Outsd_DX_m32 r 4;
    }
    // MOVS
    [Form::interp(Group::Strings).reads_flags(DF).implicit(RSI | RDI | RCX, RSI | RDI | RCX)
        .memory(ImplicitMemory::SourceAndDestination)] {
        any: Movsb_m8_m8 rw 1, Movsw_m16_m16 rw 2, Movsd_m32_m32 rw 4;
        m64: Movsq_m64_m64 rw 8;
    }
    // CMPS
    [Form::interp(Group::Strings).reads_flags(DF).writes_flags(STATUS).conditional_flags()
        .implicit(RSI | RDI | RCX, RSI | RDI | RCX)
        .memory(ImplicitMemory::SourceAndDestination)] {
        any: Cmpsb_m8_m8 r 1, Cmpsw_m16_m16 r 2, Cmpsd_m32_m32 r 4;
        m64: Cmpsq_m64_m64 r 8;
    }
    // STOS
    [Form::interp(Group::Strings).reads_flags(DF).implicit(RDI | RCX, RDI | RCX)
        .memory(ImplicitMemory::Destination)] {
        any: Stosb_m8_AL w 1, Stosw_m16_AX w 2, Stosd_m32_EAX w 4;
        m64: Stosq_m64_RAX w 8;
    }
    // LODS
    [Form::interp(Group::Strings).reads_flags(DF).implicit(RSI | RCX, RSI | RCX)
        .memory(ImplicitMemory::Source)] {
        any: Lodsb_AL_m8 r 1, Lodsw_AX_m16 r 2, Lodsd_EAX_m32 r 4;
        m64: Lodsq_RAX_m64 r 8;
    }
    // SCAS
    [Form::interp(Group::Strings).reads_flags(DF).writes_flags(STATUS).conditional_flags()
        .implicit(RDI | RCX, RDI | RCX).memory(ImplicitMemory::Destination)] {
        any: Scasb_AL_m8 r 1, Scasw_AX_m16 r 2, Scasd_EAX_m32 r 4;
        m64: Scasq_RAX_m64 r 8;
    }
    // XLAT
    [Form::interp(Group::Strings).memory(ImplicitMemory::Xlat).implicit(RAX | RBX, RAX)] {
        any: Xlat_m8 r 1;
    }
}
