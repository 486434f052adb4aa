//! Privileged behaviour on hand-built tables: a GDT, an IDT and TSSs in a megabyte of RAM.

mod debug;
mod descriptors;
mod gates;
mod interrupts;
mod privilege;
mod tasks;
mod v86;

use crate::{Cpu, Step};
use mimeo_arch_x86::cpuid::{CpuModel, Feature, FeatureSet, HostCpu, Vendor};
use mimeo_arch_x86::{
    Cr0, Cr4, DescriptorTable, Efer, Exception, Gpr, RFlags, Seg, Segment, Vector, X86State,
};
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{CpuIo, EngineConfig, MsrError, VcpuEvents};
use std::sync::Arc;

pub(super) const GDT: u64 = 0x1000;
pub(super) const IDT: u64 = 0x2000;
pub(super) const TSS: u64 = 0x3000;
pub(super) const TSS2: u64 = 0x3400;
pub(super) const LDT: u64 = 0x3800;
pub(super) const CODE: u64 = 0x8000;
pub(super) const HANDLER: u64 = 0x9000;
pub(super) const STACK: u64 = 0x7000;
pub(super) const KERNEL_STACK: u64 = 0x6000;

/// Selectors of the standard GDT.
pub(super) const KCODE: u16 = 0x08;
pub(super) const KDATA: u16 = 0x10;
pub(super) const UCODE: u16 = 0x1b;
pub(super) const UDATA: u16 = 0x23;
pub(super) const KCODE64: u16 = 0x28;
pub(super) const UCODE64: u16 = 0x33;
/// Free for the test: entries 0x38 to 0x7f.
pub(super) const FREE: u16 = 0x40;
pub(super) const TSS_SEL: u16 = 0x80;
pub(super) const TSS2_SEL: u16 = 0x90;
pub(super) const LDT_SEL: u16 = 0xa0;

/// An 8-byte descriptor: `access` is bits 40 to 47, `flags` bits 52 to 55.
pub(super) fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
        | (base >> 24) << 56
}

/// A gate: `access` is its type, DPL and present bits.
pub(super) fn gate(selector: u16, offset: u32, access: u8, count: u8) -> u64 {
    u64::from(offset & 0xffff)
        | u64::from(selector) << 16
        | u64::from(count) << 32
        | u64::from(access) << 40
        | u64::from(offset >> 16) << 48
}

/// A machine whose ports are recorded and whose MSRs are refused.
#[derive(Default)]
pub(super) struct Io {
    pub(super) writes: Vec<(u16, u8, u32)>,
}

impl CpuIo for Io {
    fn port_read(&mut self, port: u16, _: u8) -> u32 {
        u32::from(port) | 0xabcd_0000
    }
    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.writes.push((port, size, value));
    }
    fn mmio_read(&mut self, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&mut self, _: u64, _: u8, _: u64) {}
    fn ack_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn cr8_read(&mut self) -> u8 {
        5
    }
    fn cr8_write(&mut self, _: u8) {}
    fn msr_read(&mut self, _: u32) -> Result<u64, MsrError> {
        Err(MsrError)
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Result<(), MsrError> {
        Err(MsrError)
    }
    fn tsc(&mut self, retired: u64) -> u64 {
        retired
    }
    fn hypercall(&mut self, _: [u64; 5]) -> u64 {
        0
    }
}

pub(super) struct Machine {
    pub(super) cpu: Cpu,
    pub(super) io: Io,
}

/// Which code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Real,
    Protected,
    Long,
}

fn model(vendor: Vendor) -> CpuModel {
    let host = HostCpu {
        vendor,
        signature: 0x806f8,
        brand: String::new(),
        features: FeatureSet::of(Feature::ALL),
        physical_bits: 46,
        fdp_excptn_only: true,
        zero_fcs_fds: true,
    };
    let all = "x86-64-v3,+monitor,+pku,+la57";
    CpuModel::build(all, &host).expect("a model that exists").0
}

impl Machine {
    /// An Intel machine about to run `code` at privilege level `cpl`.
    pub(super) fn new(mode: Mode, cpl: u8, code: &[u8]) -> Self {
        Self::of(Vendor::Intel, mode, cpl, code)
    }

    pub(super) fn of(vendor: Vendor, mode: Mode, cpl: u8, code: &[u8]) -> Self {
        let config = EngineConfig {
            memory: Arc::new(GuestMemory::ram(1 << 20).expect("a megabyte")),
            cpu: Arc::new(model(vendor)),
            cpus: 1,
        };
        let cpu = Cpu::new(&config, 0, Arc::new(VcpuEvents::default()));
        let mut m = Self {
            cpu,
            io: Io::default(),
        };
        m.tables(mode == Mode::Long);
        m.put(CODE, code);
        m.cpu.set_state(state(mode, cpl));
        m
    }

    fn tables(&mut self, long: bool) {
        let rows = [
            (KCODE, descriptor(0, 0xf_ffff, 0x9b, 0xc)),
            (KDATA, descriptor(0, 0xf_ffff, 0x93, 0xc)),
            (UCODE, descriptor(0, 0xf_ffff, 0xfb, 0xc)),
            (UDATA, descriptor(0, 0xf_ffff, 0xf3, 0xc)),
            (KCODE64, descriptor(0, 0xf_ffff, 0x9b, 0xa)),
            (UCODE64, descriptor(0, 0xf_ffff, 0xfb, 0xa)),
            (TSS_SEL, descriptor(TSS as u32, 0x1ff, 0x8b, 0)),
            (TSS2_SEL, descriptor(TSS2 as u32, 0x1ff, 0x89, 0)),
            (LDT_SEL, descriptor(LDT as u32, 0x3f, 0x82, 0)),
        ];
        for (selector, d) in rows {
            self.set_gdt(selector, d);
        }
        // Ring 0's stack, in the 64-bit or the 32-bit TSS; no I/O bitmap.
        if long {
            self.put(TSS + 4, &KERNEL_STACK.to_le_bytes());
        } else {
            self.put(TSS + 4, &(KERNEL_STACK as u32).to_le_bytes());
            self.put(TSS + 8, &KDATA.to_le_bytes());
        }
        self.put(TSS + 0x66, &0xffffu16.to_le_bytes());
    }

    pub(super) fn put(&mut self, gpa: u64, bytes: &[u8]) {
        self.cpu.memory.write(gpa, bytes).expect("in RAM");
    }

    pub(super) fn set_gdt(&mut self, selector: u16, d: u64) {
        self.put(GDT + u64::from(selector & !7), &d.to_le_bytes());
    }

    pub(super) fn gdt(&self, selector: u16) -> u64 {
        self.u64(GDT + u64::from(selector & !7))
    }

    /// A protected-mode IDT entry.
    pub(super) fn set_idt(&mut self, vector: u8, d: u64) {
        self.put(IDT + u64::from(vector) * 8, &d.to_le_bytes());
    }

    /// A long-mode IDT entry below 4 GB.
    pub(super) fn set_idt64(&mut self, vector: u8, d: u64) {
        self.put(IDT + u64::from(vector) * 16, &d.to_le_bytes());
    }

    pub(super) fn u64(&self, gpa: u64) -> u64 {
        self.cpu.memory.read_u64(gpa).expect("in RAM")
    }

    pub(super) fn u32(&self, gpa: u64) -> u32 {
        self.cpu.memory.read_u32(gpa).expect("in RAM")
    }

    pub(super) fn u16(&self, gpa: u64) -> u16 {
        let mut b = [0; 2];
        self.cpu.memory.read(gpa, &mut b).expect("in RAM");
        u16::from_le_bytes(b)
    }

    pub(super) fn step(&mut self) -> Step {
        self.cpu.step(&mut self.io).expect("no host failure")
    }

    /// Executes one instruction that must complete.
    pub(super) fn ok(&mut self) {
        let step = self.step();
        assert_eq!(step, Step::Retired, "{:x?}", self.cpu.recent_exceptions());
    }

    /// Executes one instruction that must fault; its first exception. (Its delivery may end in a
    /// shutdown, where the test has no IDT.)
    pub(super) fn fault(&mut self) -> (Vector, Option<u32>) {
        let before = self.cpu.state.clone();
        let step = self.step();
        let e = match step {
            Step::Exception(e) => e,
            Step::TripleFault => self.first_exception(),
            other => panic!("{other:?} instead of a fault"),
        };
        // Whatever was delivered afterwards, the fault itself changed no general register.
        if step == Step::TripleFault {
            assert_eq!(self.cpu.state.gpr, before.gpr);
            assert_eq!(self.cpu.state.rip, before.rip);
        }
        (e.vector, e.error_code)
    }

    fn first_exception(&self) -> Exception {
        let all = self.cpu.recent_exceptions();
        all.first().expect("an exception was noted").1
    }

    pub(super) fn sel(&self, seg: Seg) -> u16 {
        self.cpu.state.segment(seg).selector
    }

    pub(super) fn set(&mut self, r: Gpr, value: u64) {
        self.cpu.state.gpr[r as usize] = value;
    }

    pub(super) fn get(&self, r: Gpr) -> u64 {
        self.cpu.state.reg(r)
    }

    /// Changes the state and what follows from it.
    pub(super) fn with(&mut self, change: impl FnOnce(&mut X86State)) {
        change(&mut self.cpu.state);
        self.cpu.refresh();
    }
}

fn flat(selector: u16, attr: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attr,
    }
}

fn state(mode: Mode, cpl: u8) -> X86State {
    let mut s = X86State::reset(0);
    s.rip = CODE;
    s.gpr[Gpr::Rsp as usize] = STACK;
    s.cr0 = Cr0::ET;
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0xaf,
    };
    s.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    if mode == Mode::Real {
        s.seg = [Segment::real_mode(0); 6];
        s.idtr = DescriptorTable {
            base: 0,
            limit: 0x3ff,
        };
        return s;
    }
    s.cr0 |= Cr0::PE | Cr0::NE;
    s.cpl = cpl;
    let dpl = u32::from(cpl) << 5;
    let (code, data) = match (mode, cpl) {
        (Mode::Long, 0) => (KCODE64, KDATA),
        (Mode::Long, _) => (UCODE64, UDATA),
        (_, 0) => (KCODE, KDATA),
        _ => (UCODE, UDATA),
    };
    s.seg = [flat(data, 0xc093 | dpl); 6];
    let size = if mode == Mode::Long { 0xa09b } else { 0xc09b };
    s.seg[Seg::Cs as usize] = flat(code, size | dpl);
    s.tr = Segment {
        selector: TSS_SEL,
        base: TSS,
        limit: 0x1ff,
        attr: 0x8b,
    };
    s.ldtr.attr = Segment::UNUSABLE;
    if mode == Mode::Long {
        // The tests of this folder need no translation of their own: one 1 GB page at 0.
        s.cr4 = Cr4::PAE;
        s.efer = Efer::LME | Efer::LMA | Efer::SCE;
        s.cr0 |= Cr0::PG;
        s.cr3 = PAGING;
    }
    s.rflags = RFlags::FIXED1;
    s
}

/// Page tables of the long-mode tests.
const PAGING: u64 = 0xa_0000;

impl Machine {
    /// Long mode with its page tables: the first gigabyte, user-accessible.
    pub(super) fn long(cpl: u8, code: &[u8]) -> Self {
        Self::long_of(Vendor::Intel, cpl, code)
    }

    pub(super) fn long_of(vendor: Vendor, cpl: u8, code: &[u8]) -> Self {
        let mut m = Self::of(vendor, Mode::Long, cpl, code);
        m.put(PAGING, &(PAGING + 0x1000 + 7).to_le_bytes());
        m.put(PAGING + 0x1000, &0x87u64.to_le_bytes());
        m
    }
}
