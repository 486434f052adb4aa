//! The guest side: the interpreter on a small long-mode guest with the same linear addresses.

use crate::case::{Case, Fault, Outcome, Registers, State};
use crate::layout::{CODE, DATA, DATA_LEN, PAGE, READ_ONLY, REGION, START};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_arch_x86::state::{DescriptorTable, FpState};
use mimeo_arch_x86::{Activity, Cr0, Cr4, Efer, Exception, RFlags, Seg, Segment, Vector, X86State};
use mimeo_engine_interp::{Cpu, Step};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{EngineConfig, NoIo, VcpuEvents};
use std::sync::Arc;

// Physical layout: tables in the first 2 MB, identity-mapped for the supervisor; the region of
// `layout` from `FRAMES` on.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const STACK: u64 = 0x9000;
const HANDLER: u64 = 0xa000;
const FRAMES: u64 = 0x20_0000;

const KERNEL_CODE: u16 = 0x08;
const TSS_SELECTOR: u16 = 0x10;
const USER_CODE32: u16 = 0x23;
const USER_CODE64: u16 = 0x33;
const USER_DATA: u16 = 0x2b;

/// The interpreter and its guest.
pub struct Guest {
    cpu: Cpu,
    memory: Arc<GuestMemory>,
    base: X86State,
}

/// What the interpreter answered instead of executing.
#[derive(Debug)]
pub struct Broken(pub String);

fn code(selector: u16, bits: u32, dpl: u32) -> Segment {
    let size = if bits == 64 { 0xa000 } else { 0xc000 };
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr: size | 0x9b | dpl << 5,
    }
}

fn user_data() -> Segment {
    Segment {
        selector: USER_DATA,
        base: 0,
        limit: u32::MAX,
        attr: 0xc0f3,
    }
}

impl Guest {
    /// Builds the guest. `read_only` is the content of the read-only page.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn new(model: Arc<CpuModel>, read_only: &[u8]) -> Result<Self, Broken> {
        let fail = |e: &dyn std::fmt::Display| Broken(e.to_string());
        let memory = Arc::new(GuestMemory::ram(4 << 20).map_err(|e| fail(&e))?);
        let write = |gpa: u64, bytes: &[u8]| memory.write(gpa, bytes).map_err(|e| fail(&e));
        let entry = |gpa: u64, value: u64| write(gpa, &value.to_le_bytes());
        entry(PML4, PDPT | 7)?;
        entry(PDPT, PD | 7)?;
        entry(PD, 0x83)?;
        entry(PD + 8 * (REGION >> 21), PT | 7)?;
        let page = |linear: u64| PT + 8 * (linear >> 12 & 511);
        let frame = |linear: u64| FRAMES + (linear - REGION);
        entry(page(CODE), frame(CODE) | 5)?;
        entry(page(DATA), frame(DATA) | 7)?;
        entry(page(DATA + PAGE), frame(DATA + PAGE) | 7)?;
        entry(page(READ_ONLY), frame(READ_ONLY) | 5)?;
        write(frame(READ_ONLY), read_only)?;
        // GDT: the kernel's code segment is all that delivery loads.
        entry(GDT + u64::from(KERNEL_CODE), 0x00af_9b00_0000_ffff)?;
        entry(TSS + 4, STACK)?;
        for vector in 0..32 {
            let gate = HANDLER & 0xffff | u64::from(KERNEL_CODE) << 16 | 0x8e00 << 32;
            entry(IDT + 16 * vector, gate)?;
        }
        let config = EngineConfig {
            memory: memory.clone(),
            cpu: model.clone(),
            cpus: 1,
        };
        let cpu = Cpu::new(&config, 0, Arc::new(VcpuEvents::default()));
        Ok(Self {
            cpu,
            memory,
            base: base_state(&model),
        })
    }

    /// Executes one case.
    ///
    /// # Errors
    /// The interpreter failed in a way that no guest may cause.
    pub fn run(&mut self, case: &Case) -> Result<(Outcome, State), Broken> {
        let fail = |e: &dyn std::fmt::Display| Broken(e.to_string());
        let frame = |linear: u64| FRAMES + (linear - REGION);
        self.memory
            .write(frame(START), &case.bytes)
            .map_err(|e| fail(&e))?;
        self.memory
            .write(frame(DATA), &case.state.data)
            .map_err(|e| fail(&e))?;
        let mut state = self.base.clone();
        state.gpr = case.state.registers.gpr;
        state.rip = case.state.registers.rip;
        state.rflags = RFlags::from_bits_retain(case.state.registers.rflags);
        state.fp = case.state.fp.clone();
        state.seg[Seg::Cs as usize] = if case.bits == 64 {
            code(USER_CODE64, 64, 3)
        } else {
            code(USER_CODE32, 32, 3)
        };
        for (n, base) in [Seg::Fs, Seg::Gs]
            .into_iter()
            .zip(case.state.registers.bases)
        {
            state.seg[n as usize].base = base;
        }
        self.cpu.set_state(state);
        let outcome = loop {
            match self.cpu.step(&mut NoIo).map_err(|e| fail(&e))? {
                Step::Retired => break Outcome::Done,
                Step::Interrupted => {}
                Step::Exception(e) => break Outcome::Fault(fault(&e)?),
                other => return Err(Broken(format!("{other:?}"))),
            }
        };
        let s = &self.cpu.state;
        let mut registers = Registers {
            gpr: s.gpr,
            rip: s.rip,
            rflags: s.rflags.bits(),
            bases: case.state.registers.bases,
        };
        if outcome != Outcome::Done {
            self.interrupted(&mut registers)?;
        }
        let mut after = State {
            registers,
            fp: s.fp.clone(),
            data: vec![0; DATA_LEN],
        };
        self.memory
            .read(frame(DATA), &mut after.data)
            .map_err(|e| fail(&e))?;
        Ok((outcome, after))
    }

    /// Takes RIP, RFLAGS and RSP from the frame that exception delivery pushed.
    fn interrupted(&self, registers: &mut Registers) -> Result<(), Broken> {
        let word = |n: u64| {
            self.memory
                .read_u64(STACK - 8 * n)
                .ok_or_else(|| Broken("no exception frame".into()))
        };
        registers.gpr[4] = word(2)?;
        registers.rflags = word(3)? & !RFlags::RF.bits();
        registers.rip = word(5)?;
        Ok(())
    }
}

fn fault(e: &Exception) -> Result<Fault, Broken> {
    Ok(match e.vector {
        Vector::De => Fault::Divide,
        Vector::Of | Vector::Br | Vector::Gp => Fault::General,
        Vector::Pf => Fault::Page(e.cr2.unwrap_or_default()),
        Vector::Ss | Vector::Ac => Fault::Stack,
        Vector::Mf | Vector::Xm => Fault::FloatingPoint,
        Vector::Ud => Fault::Undefined,
        _ => return Err(Broken(format!("unexpected {e:?}"))),
    })
}

/// A process under Linux, as far as an instruction can see.
fn base_state(model: &CpuModel) -> X86State {
    let mut s = X86State::reset(model.signature());
    s.activity = Activity::Running;
    s.cpl = 3;
    s.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG;
    s.cr3 = PML4;
    s.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE;
    s.efer = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    s.xcr0 = model.xcr0_supported() & 7;
    s.seg = [user_data(); 6];
    for n in [Seg::Fs as usize, Seg::Gs as usize] {
        s.seg[n] = Segment {
            attr: Segment::UNUSABLE,
            ..Segment::default()
        };
    }
    s.seg[Seg::Cs as usize] = code(USER_CODE64, 64, 3);
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0xfff,
    };
    s.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    s.tr = Segment {
        selector: TSS_SELECTOR,
        base: TSS,
        limit: 0x67,
        attr: 0x8b,
    };
    s.fp = FpState::default();
    s
}
