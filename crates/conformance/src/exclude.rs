//! What is not compared, each with its reason.

use iced_x86::Code;
use mimeo_isa_x86::{Class, Form, X87};

/// Why a whole form is not tested here; `None`: it is.
#[must_use]
pub fn form(form: &Form) -> Option<&'static str> {
    if form.class == Class::Monitor {
        return Some("sensitive: tested by bare-metal guests");
    }
    match form.code {
        Code::Bswap_r16 => Some("the result is undefined (SDM vol. 2, BSWAP)"),
        Code::Wait => Some("nothing to compare but a pending #MF, which other forms cover"),
        _ => None,
    }
}

/// x87 instructions without wait keep an exception pending that the case set up; the others start
/// without one.
#[must_use]
pub fn may_start_pending(form: &Form) -> bool {
    matches!(form.x87, X87::NoWait | X87::Data | X87::Control)
}

/// Shifts of 16-bit operands by more than 16: result and flags are undefined (SDM vol. 2, SHLD).
#[must_use]
pub fn limit_count(code: Code) -> bool {
    matches!(
        code,
        Code::Shld_rm16_r16_CL
            | Code::Shrd_rm16_r16_CL
            | Code::Shld_rm16_r16_imm8
            | Code::Shrd_rm16_r16_imm8
    )
}
