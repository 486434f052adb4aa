//! A toy vCPU is recorded against a toy machine and replayed without it.

use mimeo_arch_x86::X86State;
use mimeo_bus::Nanos;
use mimeo_memory::GuestMemory;
use mimeo_replay::{
    DmaRecorder, Ended, LogError, LogReader, LogWriter, Pump, RecordedCpu, SharedLog, VirtualClock,
    record, replay,
};
use mimeo_vcpu::{CpuIo, EngineError, EventBits, Exit, MsrError, StopAt, Vcpu, VcpuEvents};
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Each "instruction" mixes one answer of the world into RAX; every 64th one is HLT.
struct Toy {
    state: X86State,
    retired: u64,
    events: Arc<VcpuEvents>,
    /// A defect for the divergence test: uses another port from this instruction on.
    wrong_from: u64,
}

impl Toy {
    fn new(events: Arc<VcpuEvents>, wrong_from: u64) -> Self {
        Self {
            state: X86State::reset(0),
            retired: 0,
            events,
            wrong_from,
        }
    }
}

impl Vcpu for Toy {
    fn run(&mut self, stop: StopAt, io: &mut dyn CpuIo) -> Result<Exit, EngineError> {
        while Some(self.retired) != stop.retired {
            if self.events.pending().any(EventBits::STOP) {
                return Ok(Exit::Stopped);
            }
            let mut a = self.state.gpr[0].rotate_left(7);
            if self.events.pending().any(EventBits::INTR) {
                a ^= u64::from(io.ack_interrupt().unwrap_or(0)) << 32;
            }
            let port = if self.retired >= self.wrong_from {
                0x61
            } else {
                0x60
            };
            a ^= match self.retired % 4 {
                0 => u64::from(io.port_read(port, 1)),
                1 => io.tsc(self.retired),
                2 => io.msr_read(0x10).unwrap_or(3),
                _ => {
                    io.mmio_write(0x5000, 4, a & 0xff);
                    0
                }
            };
            self.state.gpr[0] = a;
            self.retired += 1;
            if self.retired.is_multiple_of(64) {
                return Ok(Exit::Halted);
            }
        }
        Ok(Exit::InstructionLimit)
    }
    fn state(&self) -> &X86State {
        &self.state
    }
    fn restore(&mut self, state: X86State) {
        self.state = state;
    }
    fn retired(&self) -> u64 {
        self.retired
    }
}

/// Answers from a generator; an MMIO write makes it write guest memory and raise INTR.
struct Machine {
    seed: u64,
    memory: Arc<GuestMemory>,
    events: Arc<VcpuEvents>,
}

impl Machine {
    fn next(&mut self) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.seed >> 33
    }
}

impl CpuIo for Machine {
    fn port_read(&mut self, _: u16, _: u8) -> u32 {
        self.next() as u32
    }
    fn port_write(&mut self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&mut self, _: u64, _: u8) -> u64 {
        self.next()
    }
    fn mmio_write(&mut self, _: u64, _: u8, v: u64) {
        let at = self.next() % 8000;
        self.memory.write(at, &v.to_le_bytes()).unwrap();
        self.events.raise(EventBits::INTR);
    }
    fn ack_interrupt(&mut self) -> Option<u8> {
        self.events.take(EventBits::INTR);
        Some(self.next() as u8)
    }
    fn cr8_read(&mut self) -> u8 {
        0
    }
    fn cr8_write(&mut self, _: u8) {}
    fn msr_read(&mut self, _: u32) -> Result<u64, MsrError> {
        let v = self.next();
        if v.is_multiple_of(3) {
            Err(MsrError)
        } else {
            Ok(v)
        }
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Result<(), MsrError> {
        Ok(())
    }
    fn tsc(&mut self, _: u64) -> u64 {
        unreachable!("the recorder answers from the virtual clock")
    }
    fn hypercall(&mut self, _: [u64; 5]) -> u64 {
        0
    }
}

/// A timer every 1000 ns that interrupts the CPU; ends at 50 us.
struct Ticks(Arc<VcpuEvents>, Nanos);

impl Pump for Ticks {
    fn pump(&mut self, now: Nanos) -> Result<Option<Nanos>, ()> {
        if now >= 50_000 {
            return Err(());
        }
        while self.1 <= now {
            self.0.raise(EventBits::INTR);
            self.1 += 1000;
        }
        Ok(Some(self.1))
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(b)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn recording() -> (Vec<u8>, u64) {
    let out = Shared::default();
    let log = SharedLog::new(LogWriter::new(Box::new(out.clone())).unwrap());
    let memory = Arc::new(GuestMemory::ram(8192).unwrap());
    let observer = DmaRecorder::new(&memory, log.clone());
    assert!(
        memory
            .tracker()
            .set_device_write_observer(Arc::new(observer))
            .is_ok()
    );
    let events = [Arc::new(VcpuEvents::default())];
    let mut io = Machine {
        seed: 1,
        memory: memory.clone(),
        events: events[0].clone(),
    };
    let mut toy = Toy::new(events[0].clone(), u64::MAX);
    let clock = VirtualClock::new(2_000_000);
    let mut cpus = [RecordedCpu {
        vcpu: &mut toy,
        io: &mut io,
    }];
    let mut pump = Ticks(events[0].clone(), 0);
    match record(&mut cpus, &events, &memory, &clock, &log, 100, &mut pump) {
        Ended::Stopped { hash } => (out.0.lock().unwrap().clone(), hash),
        other => panic!("{other:?}"),
    }
}

fn replayed(bytes: Vec<u8>, wrong_from: u64) -> Ended {
    let memory = GuestMemory::ram(8192).unwrap();
    let events = [Arc::new(VcpuEvents::default())];
    let mut toy = Toy::new(events[0].clone(), wrong_from);
    let mut log = LogReader::new(Box::new(std::io::Cursor::new(bytes))).unwrap();
    replay(&mut [&mut toy], &events, &memory, &mut log)
}

#[test]
fn a_replay_reaches_the_recorded_state() {
    let (bytes, hash) = recording();
    assert!(bytes.len() > 10_000, "the toy was busy");
    match replayed(bytes, u64::MAX) {
        Ended::Stopped { hash: again } => assert_eq!(again, hash),
        other => panic!("{other:?}"),
    }
}

#[test]
fn recording_twice_gives_the_same_log() {
    assert_eq!(recording(), recording());
}

#[test]
fn another_request_is_a_divergence_and_a_short_log_is_damage() {
    let (bytes, _) = recording();
    let ended = replayed(bytes.clone(), 1000);
    assert!(
        matches!(ended, Ended::Log(LogError::Diverged { .. })),
        "{ended:?}"
    );
    let half = bytes[..bytes.len() / 2].to_vec();
    let ended = replayed(half, u64::MAX);
    assert!(
        matches!(ended, Ended::Log(LogError::Damaged(_))),
        "{ended:?}"
    );
}
