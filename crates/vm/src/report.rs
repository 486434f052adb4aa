//! What a person reads of a CPU after a triple fault or when asked for: registers, the instruction, the last exceptions.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_arch_x86::paging::{PagingContext, PhysMem, probe};
use mimeo_arch_x86::{Exception, Seg, X86State};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::Vcpu;
use std::fmt;

/// Longest legal instruction (SDM vol. 2, 2.3.11).
const MAX_INSTRUCTION: usize = 15;

/// A vCPU as it stands: after a triple fault, when the third fault was raised.
#[derive(Debug, Clone)]
pub struct CpuReport {
    /// Which vCPU.
    pub cpu: u32,
    /// Its registers.
    pub state: X86State,
    /// The bytes at CS:RIP that could be read, at most 15.
    pub code: Vec<u8>,
    /// (RIP, exception) of the last exceptions, newest last.
    pub exceptions: Vec<(u64, Exception)>,
}

struct Tables<'a>(&'a GuestMemory);

impl PhysMem for Tables<'_> {
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        self.0.read_u32(gpa)
    }
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        self.0.read_u64(gpa)
    }
    fn cas_u32(&self, _: u64, _: u32, _: u32) -> Option<bool> {
        None
    }
    fn cas_u64(&self, _: u64, _: u64, _: u64) -> Option<bool> {
        None
    }
}

/// Reads up to `len` bytes of linear memory without changing anything; stops at the first byte that
/// is not mapped RAM or ROM.
fn read_linear(
    state: &X86State,
    cpu: &CpuModel,
    memory: &GuestMemory,
    at: u64,
    len: usize,
) -> Vec<u8> {
    let context = PagingContext::new(state, cpu);
    let mut bytes = Vec::with_capacity(len);
    for i in 0..len as u64 {
        let mut linear = at.wrapping_add(i);
        if !state.long_mode() {
            linear &= 0xffff_ffff;
        }
        let mut byte = [0];
        match probe(&Tables(memory), &context, linear) {
            Some(t) if memory.read(t.gpa, &mut byte).is_ok() => bytes.push(byte[0]),
            _ => break,
        }
    }
    bytes
}

impl CpuReport {
    /// Takes down what `vcpu` holds.
    #[must_use]
    pub fn new(cpu: u32, vcpu: &dyn Vcpu, model: &CpuModel, memory: &GuestMemory) -> Self {
        let state = vcpu.save();
        let base = if state.code64() {
            0
        } else {
            state.segment(Seg::Cs).base
        };
        let at = base.wrapping_add(state.rip);
        Self {
            cpu,
            code: read_linear(&state, model, memory, at, MAX_INSTRUCTION),
            exceptions: vcpu.recent_exceptions(),
            state,
        }
    }

    /// The instruction at RIP in Intel syntax, if its bytes can be read and decoded.
    #[must_use]
    pub fn instruction(&self) -> Option<String> {
        let cs = self.state.segment(Seg::Cs);
        let bits = match (self.state.code64(), cs.db()) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        };
        let mut decoder = Decoder::with_ip(bits, &self.code, self.state.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        let mut text = String::new();
        IntelFormatter::new().format(&instruction, &mut text);
        Some(text)
    }
}

impl fmt::Display for CpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.state;
        writeln!(f, "vCPU {} ({:?})", self.cpu, s.activity)?;
        let names = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        for (names, values) in names.chunks(4).zip(s.gpr.chunks(4)) {
            for (name, value) in names.iter().zip(values) {
                write!(f, "  {name} {value:016x}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  rip {:016x}  rflags {:08x}  cpl {}  cr2 {:016x}",
            s.rip,
            s.rflags.bits(),
            s.cpl,
            s.cr2
        )?;
        writeln!(
            f,
            "  cr0 {:08x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
            s.cr0.bits(),
            s.cr3,
            s.cr4.bits(),
            s.efer.bits()
        )?;
        for (name, seg) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().zip(&s.seg) {
            writeln!(
                f,
                "  {name}  {:04x}  base {:016x}  limit {:08x}  attr {:05x}",
                seg.selector, seg.base, seg.limit, seg.attr
            )?;
        }
        writeln!(
            f,
            "  gdt base {:016x} limit {:04x}  idt base {:016x} limit {:04x}",
            s.gdtr.base, s.gdtr.limit, s.idtr.base, s.idtr.limit
        )?;
        writeln!(
            f,
            "  tr  {:04x}  base {:016x}  limit {:08x}",
            s.tr.selector, s.tr.base, s.tr.limit
        )?;
        let bytes: Vec<String> = self.code.iter().map(|b| format!("{b:02x}")).collect();
        match self.instruction() {
            Some(text) => writeln!(f, "  at  {text}    [{}]", bytes.join(" "))?,
            None if bytes.is_empty() => writeln!(f, "  at  an address that is not mapped memory")?,
            None => writeln!(
                f,
                "  at  bytes that are no instruction: {}",
                bytes.join(" ")
            )?,
        }
        for (rip, e) in &self.exceptions {
            write!(f, "  exception #{:?} at {rip:016x}", e.vector)?;
            if let Some(code) = e.error_code {
                write!(f, " error code {code:04x}")?;
            }
            if let Some(cr2) = e.cr2 {
                write!(f, " address {cr2:016x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
