//! One processor: its state and what is derived from it, single steps, events.

use crate::mem::Tlb;
use crate::{Op, Trap, TrapKind, decode, system};
use mimeo_arch_x86::cpuid::CpuModel;
use mimeo_arch_x86::paging::PagingContext;
use mimeo_arch_x86::{Activity, Cr0, Cr4, Efer, Exception, Gpr, RFlags, Seg, X86State};
use mimeo_memory::{GuestMemory, PageTracker, Seat};
use mimeo_vcpu::{CpuIo, EngineConfig, EngineError, EventBits, VcpuEvents};
use std::collections::VecDeque;
use std::sync::Arc;

/// How one step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The instruction completed.
    Retired,
    /// It raised this exception, which has been delivered (RIP is at the handler).
    Exception(Exception),
    /// A repeated string instruction stopped between iterations for a pending event.
    Interrupted,
    /// The processor is halted or waits for a SIPI (nothing was executed, or HLT was).
    Halted,
    /// Triple fault: the processor is in shutdown.
    TripleFault,
}

/// What [`Cpu::poll_events`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// Go on executing (something may have been delivered).
    Run,
    /// Halted or waiting for a SIPI, and no event wakes it.
    Idle,
    /// Delivering an event ended in a triple fault.
    TripleFault,
}

/// The registers that the paging context was computed from.
pub(crate) type PagingKey = (Cr0, u64, Cr4, Efer, u32, [u64; 4]);

/// One x86 processor.
pub struct Cpu {
    /// The architectural state. After changing it from outside call [`Self::refresh`].
    pub state: X86State,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    pub(crate) tracker: Arc<PageTracker>,
    /// This vCPU's part in the bus lock. An engine holds [`Seat::enter`]'s guard while it executes guest
    /// code; [`Self::poll_events`] gives way.
    pub seat: Seat,
    /// What CPUID says.
    pub model: Arc<CpuModel>,
    /// Events from outside.
    pub events: Arc<VcpuEvents>,
    /// This vCPU's index (its initial APIC id) and the VM's number of vCPUs.
    pub index: u32,
    /// The VM's number of vCPUs.
    pub cpus: u32,
    /// Instructions retired before the current block (or, between instructions, in all).
    pub retired: u64,
    pub(crate) tlb: Tlb,
    /// Executing 64-bit code (derived).
    pub(crate) code64: bool,
    /// Long mode is active (derived).
    pub(crate) long_mode: bool,
    /// Default operand and address size of the code segment: 16, 32 or 64 (derived).
    pub(crate) bits: u32,
    /// Memory accesses are implicit supervisor ones (during [`Self::as_system`]).
    pub(crate) implicit: bool,
    /// #AC applies (derived).
    pub(crate) check_alignment: bool,
    /// A data or I/O breakpoint is enabled (derived).
    pub(crate) watch_data: bool,
    /// DR6 bits of a debug trap to be delivered after the current instruction.
    pub pending_debug: u64,
    /// No single-step trap follows the current instruction, whatever TF was before it.
    pub(crate) no_step: bool,
    pub(crate) paging: PagingContext,
    pub(crate) paging_for: PagingKey,
    /// Leave the running block after the current instruction.
    pub(crate) leave_block: bool,
    /// State of the native SIMD and x87 helpers.
    pub(crate) simd: crate::simd::Simd,
    recent: VecDeque<(u64, Exception)>,
    /// Exceptions and interrupts delivered, for the statistics.
    pub(crate) delivered: u64,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu")
            .field("index", &self.index)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

const RECENT: usize = 16;

impl Cpu {
    /// A processor after RESET; every one but the first waits for a SIPI.
    #[must_use]
    pub fn new(config: &EngineConfig, index: u32, events: Arc<VcpuEvents>) -> Self {
        let mut state = X86State::reset(config.cpu.signature());
        if index != 0 {
            state.activity = Activity::WaitForSipi;
        }
        let paging = PagingContext::new(&state, &config.cpu);
        let paging_for = (
            state.cr0,
            state.cr3,
            state.cr4,
            state.efer,
            state.pkru,
            state.pdptr,
        );
        let kick = events.clone();
        let kick = Box::new(move || kick.raise(EventBits::ENGINE));
        let mut cpu = Self {
            state,
            seat: config.memory.bus_lock().seat(kick),
            tracker: config.memory.tracker().clone(),
            memory: config.memory.clone(),
            model: config.cpu.clone(),
            events,
            index,
            cpus: config.cpus,
            retired: 0,
            tlb: Tlb::new(),
            code64: false,
            long_mode: false,
            bits: 16,
            implicit: false,
            check_alignment: false,
            watch_data: false,
            pending_debug: 0,
            no_step: false,
            paging,
            paging_for,
            leave_block: false,
            simd: crate::simd::Simd::default(),
            recent: VecDeque::with_capacity(RECENT),
            delivered: 0,
        };
        cpu.refresh();
        cpu
    }

    /// Replaces the whole state (restore, engine switch).
    pub fn set_state(&mut self, state: X86State) {
        self.state = state;
        self.pending_debug = 0;
        if self.state.nmi_pending && !self.state.nmi_blocked {
            self.events.raise(EventBits::NMI);
        }
        self.flush_tlb(crate::MmuEvent::All);
        self.refresh();
    }

    /// Recomputes the execution mode from CS, EFER and RFLAGS.
    pub(crate) fn refresh_mode(&mut self) {
        let s = &self.state;
        self.long_mode = s.long_mode();
        self.code64 = s.code64();
        let real = !s.cr0.contains(Cr0::PE) || s.rflags.contains(RFlags::VM);
        self.bits = if self.code64 {
            64
        } else if s.segment(Seg::Cs).db() && !real {
            32
        } else {
            16
        };
        // Real mode keeps the D bit of the descriptor cache ("unreal" code segments).
        if real && !s.rflags.contains(RFlags::VM) && s.segment(Seg::Cs).db() {
            self.bits = 32;
        }
        self.leave_block = true;
    }

    /// The last exceptions delivered with the RIP they happened at, oldest first.
    #[must_use]
    pub fn recent_exceptions(&self) -> Vec<(u64, Exception)> {
        self.recent.iter().copied().collect()
    }

    pub(crate) fn note_exception(&mut self, e: Exception) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((self.state.rip, e));
    }

    /// RSP, ESP or SP as the stack segment's size says: the mask of stack addresses.
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.code64 {
            u64::MAX
        } else if self.state.segment(Seg::Ss).db() {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer's low part as the stack segment's size says.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: u64) {
        let r = &mut self.state.gpr[Gpr::Rsp as usize];
        if self.code64 {
            *r = sp;
        } else if self.state.seg[Seg::Ss as usize].db() {
            *r = sp & 0xffff_ffff;
        } else {
            *r = *r & !0xffff | sp & 0xffff;
        }
    }

    /// Executes exactly one instruction at RIP (or nothing, when halted). Faults and traps are
    /// delivered through the IDT. Looks at no event: [`Self::poll_events`] does.
    ///
    /// # Errors
    /// Failures of the host.
    pub fn step(&mut self, io: &mut dyn CpuIo) -> Result<Step, EngineError> {
        if self.state.activity != Activity::Running {
            return Ok(match self.state.activity {
                Activity::Shutdown => Step::TripleFault,
                _ => Step::Halted,
            });
        }
        let shadow = self.begin_step();
        match decode::one(self) {
            Err(trap) => self.finish_fault(trap, 0, io),
            Ok(op) => self.execute_single(&op, shadow, io),
        }
    }

    /// Decodes the instruction at RIP, to be executed (more than once, while its bytes stay) by
    /// [`Self::step_op`]; `None` where fetching or decoding it faults.
    pub fn decode(&mut self) -> Option<Op> {
        decode::one(self).ok()
    }

    /// [`Self::step`] for an instruction that [`Self::decode`] has decoded at this RIP.
    ///
    /// # Errors
    /// Failures of the host.
    pub fn step_op(&mut self, op: &Op, io: &mut dyn CpuIo) -> Result<Step, EngineError> {
        let start = self.begin_step();
        self.execute_single(op, start, io)
    }

    /// Remembers the shadows and TF before an instruction.
    pub(crate) fn begin_step(&mut self) -> StepStart {
        StepStart {
            mov_ss: self.state.mov_ss_shadow,
            tf: self.state.rflags.contains(RFlags::TF),
        }
    }

    /// Executes one decoded instruction with everything that surrounds it: shadows, single-step,
    /// breakpoints, delivery.
    pub(crate) fn execute_single(
        &mut self,
        op: &Op,
        start: StepStart,
        io: &mut dyn CpuIo,
    ) -> Result<Step, EngineError> {
        if let Some(e) = system::debug::instruction_breakpoint(self, start.mov_ss) {
            return self.finish_fault(e.into(), 0, io);
        }
        self.state.sti_shadow = false;
        self.state.mov_ss_shadow = false;
        let before = self.state.rip;
        let next = self.next_rip(op.len);
        self.state.rip = next;
        // RF holds for one instruction, which may set it anew (IRET).
        let rf = self.state.rflags & RFlags::RF;
        self.state.rflags -= RFlags::RF;
        self.no_step = false;
        match (op.run)(self, op, io) {
            Ok(()) => {
                self.retired += 1;
                let branched = self.state.rip != next;
                system::debug::after_instruction(self, start, branched, io)
            }
            Err(trap) if matches!(trap.kind(), TrapKind::Yield) => {
                // Between two iterations of a string instruction: debug traps are due, and RF is
                // what an interrupt saves (SDM vol. 3, 19.3.1.1).
                self.state.rip = before;
                self.state.rflags |= rf;
                match system::debug::after_instruction(self, start, false, io) {
                    Ok(Step::Retired) => Ok(Step::Interrupted),
                    other => other,
                }
            }
            Err(trap) => {
                self.state.rip = before;
                self.state.rflags |= rf;
                self.pending_debug = 0;
                // The shadows belong to the boundary before the faulting instruction; its
                // exception ends them (SDM vol. 3, 7.8.3).
                self.finish_fault(trap, op.len, io)
            }
        }
        .map(|step| {
            self.refresh();
            if step == Step::Retired && self.state.activity != Activity::Running {
                Step::Halted
            } else {
                step
            }
        })
    }

    /// RIP after an instruction of `len` bytes at RIP.
    #[inline(always)]
    pub(crate) fn next_rip(&self, len: u8) -> u64 {
        let next = self.state.rip.wrapping_add(u64::from(len));
        if self.code64 {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    pub(crate) fn finish_fault(
        &mut self,
        trap: Trap,
        _len: u8,
        io: &mut dyn CpuIo,
    ) -> Result<Step, EngineError> {
        match trap.into_kind() {
            TrapKind::Engine(e) => Err(e),
            TrapKind::Yield => Ok(Step::Interrupted),
            TrapKind::Exception(e) | TrapKind::NewTask(e) => self.raise(e, io),
        }
    }

    /// Delivers an exception; RIP is what the handler is to return to. Faults while delivering are
    /// combined into double and triple faults (SDM vol. 3, 7.15, interrupt 8).
    ///
    /// # Errors
    /// Failures of the host.
    pub fn raise(&mut self, e: Exception, io: &mut dyn CpuIo) -> Result<Step, EngineError> {
        let step = system::interrupt::raise(self, e, io);
        self.refresh();
        step
    }

    /// INT n, INT3, INTO and INT1 after the instruction: delivers vector `n`, RIP being the next
    /// instruction's.
    ///
    /// # Errors
    /// The fault of the delivery (the caller's instruction then faults).
    pub fn software_interrupt(
        &mut self,
        vector: u8,
        kind: system::interrupt::Source,
        io: &mut dyn CpuIo,
    ) -> Result<(), Trap> {
        let r = system::interrupt::deliver(self, vector, kind, None, io);
        self.refresh();
        r
    }

    /// Whether [`Self::poll_events`] may have something to do: two loads, for every block end.
    #[inline(always)]
    #[must_use]
    pub fn events_pending(&self) -> bool {
        let mut mask = EventBits::INTR.0
            | EventBits::NMI.0
            | EventBits::INIT.0
            | EventBits::SIPI.0
            | EventBits::ENGINE.0
            | EventBits::STOP.0;
        if !self.state.rflags.contains(RFlags::IF) {
            mask &= !EventBits::INTR.0;
        }
        self.events.pending().0 & mask != 0
    }

    /// At an instruction boundary: other vCPUs' bus locks, INIT, SIPI, NMI and external interrupts, in their priority, with
    /// the STI and MOV SS shadows (SDM vol. 3, table 7-2). Does not look at
    /// [`EventBits::STOP`].
    ///
    /// # Errors
    /// Failures of the host.
    pub fn poll_events(&mut self, io: &mut dyn CpuIo) -> Result<Poll, EngineError> {
        if self.events.pending().any(EventBits::ENGINE) {
            // First taken, then looked: a request in between raises it again.
            self.events.take(EventBits::ENGINE);
            self.seat.give_way();
        }
        let r = system::events::poll(self, io);
        self.refresh();
        r
    }

    /// A general register.
    #[inline(always)]
    #[must_use]
    pub fn gpr(&self, r: Gpr) -> u64 {
        self.state.gpr[r as usize]
    }
}

/// What held at the start of an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepStart {
    /// The MOV SS shadow.
    pub(crate) mov_ss: bool,
    /// RFLAGS.TF.
    pub(crate) tf: bool,
}
