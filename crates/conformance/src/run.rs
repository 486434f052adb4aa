//! Running the cases of forms.

use crate::case::Case;
use crate::guest::{Broken, Guest};
use crate::host::Host;
use crate::random::Random;
use crate::{compare, exclude, generate};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_isa_x86::{Form, forms};
use mimeo_machines::host_cpu;
use std::sync::Arc;

/// How a form came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// So many cases were executed on both sides and agreed.
    Agreed(u64),
    /// Not executed, because.
    Skipped(&'static str),
    /// The first case that differed, described.
    Differs(String),
}

/// Both sides.
pub struct Pair {
    host: Host,
    guest: Guest,
    model: Arc<CpuModel>,
}

/// Why nothing can be tested on this host.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl Pair {
    /// Starts the child process and builds the guest.
    ///
    /// # Errors
    /// The host refuses ptrace or memory: nothing can be compared here.
    pub fn new() -> Result<Self, Unavailable> {
        let model = CpuModel::build("x86-64-v3", &host_cpu())
            .map_err(|e| Unavailable(e.to_string()))?
            .0;
        let model = Arc::new(model);
        let mut r = Random::new(0);
        let read_only: Vec<u8> = (0..512)
            .flat_map(|_| r.vector_quad().to_le_bytes())
            .collect();
        let host = Host::new(&read_only)
            .map_err(|e| Unavailable(format!("no traced child process: {e}")))?;
        let guest = Guest::new(model.clone(), &read_only).map_err(|Broken(e)| Unavailable(e))?;
        Ok(Self { host, guest, model })
    }

    /// Executes `cases` cases of a form; stops at the first difference.
    pub fn form(&mut self, form: &Form, cases: u64, seed: u64) -> Verdict {
        if let Some(why) = exclude::form(form) {
            return Verdict::Skipped(why);
        }
        if !form.available(|f| self.model.has(f)) {
            return Verdict::Skipped("this host lacks it");
        }
        let mut done = 0;
        for n in 0..cases {
            let mut r = Random::new(seed ^ (form.code as u64) << 32 ^ n);
            let Some(case) = generate::case(form, &mut r) else {
                continue;
            };
            let found = match self.once(form, &case) {
                Ok(found) => found,
                Err(e) => vec![e],
            };
            if !found.is_empty() {
                return Verdict::Differs(describe(form, &case, n, &found));
            }
            done += 1;
        }
        if done == 0 {
            Verdict::Skipped("not encodable in 64-bit or 32-bit code")
        } else {
            Verdict::Agreed(done)
        }
    }

    fn once(&mut self, form: &Form, case: &Case) -> Result<Vec<String>, String> {
        let host = self.host.run(case).map_err(|e| format!("host: {e}"))?;
        let guest = self
            .guest
            .run(case)
            .map_err(|Broken(e)| format!("interpreter: {e}"))?;
        Ok(compare::differences(form, case, &host, &guest))
    }
}

fn describe(form: &Form, case: &Case, n: u64, found: &[String]) -> String {
    let i = Decoder::with_ip(
        case.bits,
        &case.bytes,
        case.state.registers.rip,
        DecoderOptions::NONE,
    )
    .decode();
    let r = &case.state.registers;
    format!(
        "{:?} case {n}, {}-bit: {:02x?} {:?} {:?}\n  {}\n  before: {:x?} flags {:x} fcw {:x} fsw {:x} \
         ftw {:x} mxcsr {:x}",
        form.code,
        case.bits,
        case.bytes,
        i.mnemonic(),
        (0..i.op_count()).map(|k| i.op_kind(k)).collect::<Vec<_>>(),
        found.join("\n  "),
        r.gpr,
        r.rflags,
        case.state.fp.fcw,
        case.state.fp.fsw,
        case.state.fp.ftw,
        case.state.fp.mxcsr,
    ) + &memory(&i, case)
        + &if case.uses_fp {
            format!("\n  ymm {:x?}", case.state.fp.ymm)
        } else {
            String::new()
        }
}

/// The XSAVE header, or else the bytes of the memory operand, for the report.
fn memory(i: &Instruction, case: &Case) -> String {
    let gpr = &case.state.registers.gpr;
    let operand = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory);
    let linear = operand.and_then(|n| {
        i.virtual_address(n, 0, |r, _, _| {
            Some(if r == Register::FS {
                case.state.registers.bases[0]
            } else if r == Register::GS {
                case.state.registers.bases[1]
            } else if r.is_gpr() {
                let mask = if r.size() == 4 { 0xffff_ffff } else { u64::MAX };
                gpr[r.number() & 15] & mask
            } else {
                0
            })
        })
    });
    let Some(linear) = linear else {
        return String::new();
    };
    let mut data = case.state.data.clone();
    let xsave = matches!(i.mnemonic(), Mnemonic::Xrstor | Mnemonic::Xrstor64);
    let at = linear.wrapping_add(if xsave { 512 } else { 0 });
    let bytes = crate::case::slice(&mut data, at, 32);
    format!("\n  memory at {at:x}: {bytes:02x?}")
}

/// Cases a form: `MIMEO_CONFORMANCE_CASES`, or the default.
#[must_use]
pub fn cases(default: u64) -> u64 {
    std::env::var("MIMEO_CONFORMANCE_CASES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// Runs every form that `wanted` accepts.
///
/// # Errors
/// Nothing can be compared on this host.
pub fn all(
    cases: u64,
    wanted: impl Fn(&Form) -> bool,
) -> Result<Vec<(&'static Form, Verdict)>, Unavailable> {
    let mut pair = Pair::new()?;
    Ok(forms()
        .filter(|f| wanted(f))
        .map(|f| (f, pair.form(f, cases, 1)))
        .collect())
}
