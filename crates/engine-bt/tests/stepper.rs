//! An NMI at every host instruction of translated code, by a stepper from outside (ENGINE-REVIEW F15: a
//! trap flag set inside the process would be lost at the first POPF).
//!
//! The parent traces the vCPU's thread of a child process (ptrace(2)), steps it to the nth host
//! instruction inside the code cache, has another thread of the child raise the NMI there, and lets go.
//! The guest must end with the same registers and memory as undisturbed, and must have seen exactly one
//! NMI. One run for each n; by default every few of them, with `MIMEO_SOAK=1` every one.
#![expect(unsafe_code, reason = "ptrace and signals")]

mod common;

use common::{Layout, Machine, long_mode};
use mimeo_arch_x86::{RFlags, X86State};
use mimeo_engine_bt::BtEngine;
use mimeo_memory::GuestMemory;
use mimeo_vcpu::{Engine, EventBits, Exit, NoIo, StopAt, Vcpu};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STACK: u64 = 0x21_0000;
const NMIS: u64 = 0x22_0000;
const CHILD: &str = "MIMEO_STEPPED_CHILD";
const ACK: u8 = 6;
/// Ends a run in which the guest saw no NMI.
const UNSEEN: i32 = libc::SIGWINCH;

/// Loads, stores, read-modify-writes with live flags, high registers, pushes, calls, returns, a loop, an
/// indirect jump, a straddling access, vectors; then HLT.
const PROGRAM: &[u8] = &[
    0xb9, 3, 0, 0, 0, // mov ecx, 3
    0x48, 0x8b, 0x03, // again: mov rax, [rbx]
    0x48, 0x01, 0xd0, // add rax, rdx
    0x48, 0x11, 0x43, 0x08, // adc [rbx+8], rax
    0x4c, 0x8b, 0x53, 0x10, // mov r10, [rbx+16]
    0x4d, 0x11, 0xd3, // adc r11, r10
    0x50, // push rax
    0x41, 0x53, // push r11
    0xe8, 0x19, 0, 0, 0, // call function
    0x41, 0x5e, // pop r14
    0x5d, // pop rbp
    0x48, 0x89, 0xab, 0xfc, 0x0f, 0, 0, // mov [rbx+0xffc], rbp (straddles)
    0x0f, 0x10, 0x43, 0x20, // movups xmm0, [rbx+32]
    0x0f, 0x11, 0x43, 0x40, // movups [rbx+64], xmm0
    0xff, 0xc9, // dec ecx
    0x75, 0xd1, // jnz again
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
    0x9c, // function: pushf
    0x48, 0xff, 0x43, 0x18, // inc qword [rbx+24]
    0x9d, // popf
    0xff, 0xe6, // jmp rsi
    0x0f, 0x0b, // ud2
    0x48, 0x83, 0xd2, 0x00, // there: adc rdx, 0
    0xc3, // ret
];
/// Offset of `there` in the program.
const THERE: u64 = PROGRAM.len() as u64 - 5;

fn prepare(memory: &GuestMemory) {
    let put = |at: u64, v: u64| memory.write(at, &v.to_le_bytes()).unwrap();
    put(0x1000, 0x2007);
    put(0x2000, 0x3007);
    put(0x3000, 0x4007);
    put(0x3008, 0x5007);
    for n in 0..512u64 {
        put(0x4000 + n * 8, n << 12 | 0x67);
        put(0x5000 + n * 8, (n + 512) << 12 | 0x67);
    }
    // Vector 2 at 8000h, on IST 1: inc qword [NMIS]; iretq. All others at a UD2, which ends in a triple
    // fault.
    let handler = [
        0x48, 0xff, 0x04, 0x25, 0, 0, 0x22, 0, // inc qword [NMIS]
        0x48, 0xcf, // iretq
    ];
    memory.write(0x8000, &handler).unwrap();
    put(0x9020, 0x8000 | 8 << 16 | 0x8e01 << 32);
    put(0x9028, 0);
    memory.write(0xa000 + 36, &0xf000u64.to_le_bytes()).unwrap();
    put(0xb008, 0x00af_9b00_0000_ffff);
    put(0xb010, 0x00cf_9300_0000_ffff);
    memory.write(CODE, PROGRAM).unwrap();
}

fn machine() -> Machine {
    let bt = |c| Box::new(BtEngine::new(c).unwrap()) as Box<dyn Engine>;
    Machine::new(bt, prepare, &common::model())
}

fn start() -> X86State {
    let mut s = long_mode(&Layout {
        cr3: 0x1000,
        tss: 0xa000,
        idt: 0x9000,
        gdt: 0xb000,
        rip: CODE,
    });
    s.rflags = RFlags::from_bits_retain(3);
    s.gpr[2] = u64::MAX - 5;
    s.gpr[3] = DATA;
    s.gpr[4] = STACK;
    s.gpr[6] = CODE + THERE;
    s
}

/// One run of the program from its start: the state at its end, and the data.
fn once(memory: &GuestMemory, vcpu: &mut dyn Vcpu) -> (X86State, Vec<u8>, u64) {
    let pattern: Vec<u8> = (0..0x2000u32).map(|n| (n * 11) as u8).collect();
    memory.write(DATA, &pattern).unwrap();
    memory.write(NMIS, &[0; 8]).unwrap();
    vcpu.restore(start());
    loop {
        match vcpu.run(StopAt::default(), &mut NoIo).unwrap() {
            Exit::Halted if vcpu.state().rip == CODE + PROGRAM.len() as u64 - 17 => break,
            // The NMI came at the very end: HLT has been left, and is reached again.
            Exit::Halted => {}
            other => panic!("{other:?}: {:x?}", vcpu.state()),
        }
    }
    let mut data = vec![0; 0x2000];
    memory.read(DATA, &mut data).unwrap();
    (vcpu.save(), data, memory.read_u64(NMIS).unwrap())
}

/// The traced process.
fn child() {
    let Machine {
        memory,
        events,
        mut vcpu,
    } = machine();
    let (state, data, none) = once(&memory, &mut *vcpu);
    assert_eq!(none, 0);
    std::thread::spawn(move || {
        let mut byte = [0];
        while std::io::stdin().read_exact(&mut byte).is_ok() {
            events.raise(EventBits::NMI);
            let mut out = std::io::stdout();
            out.write_all(&[ACK]).and_then(|()| out.flush()).unwrap();
        }
    });
    // SAFETY: no arguments.
    println!("\nthread {}", unsafe { libc::gettid() });
    std::io::stdout().flush().unwrap();
    // The markers mean nothing to this process itself: only the tracer sees them.
    for signal in [libc::SIGUSR1, libc::SIGUSR2, UNSEEN] {
        // SAFETY: ignoring a signal.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Until the tracer is there.
    while !traced() {
        std::thread::yield_now();
    }
    loop {
        // SAFETY: a signal to this thread, which the tracer takes.
        unsafe { libc::raise(libc::SIGUSR2) };
        let (s, d, nmis) = once(&memory, &mut *vcpu);
        let diff = mimeo_arch_x86::state::diff(&state, &s);
        assert!(diff.is_empty(), "{diff:?}");
        assert!(d == data, "memory differs");
        assert!(nmis <= 1);
        let seen = if nmis == 1 { libc::SIGUSR1 } else { UNSEEN };
        // SAFETY: as above.
        unsafe { libc::raise(seen) };
    }
}

fn traced() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("TracerPid:"));
    line.is_some_and(|l| !l.ends_with("\t0"))
}

/// What a traced thread did.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Signal(i32),
    Gone(i32),
}

struct Tracer {
    tid: i32,
}

impl Tracer {
    fn request(&self, request: libc::c_uint, data: usize) {
        // SAFETY: requests that only take numbers.
        let result = unsafe { libc::ptrace(request, self.tid, 0usize, data) };
        assert!(result != -1, "{}", std::io::Error::last_os_error());
    }

    fn wait(&self) -> Stop {
        let mut status = 0;
        // SAFETY: waits for a thread of our own child.
        let got = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL) };
        assert_eq!(got, self.tid, "{}", std::io::Error::last_os_error());
        if libc::WIFSTOPPED(status) {
            Stop::Signal(libc::WSTOPSIG(status))
        } else {
            Stop::Gone(status)
        }
    }

    fn pc(&self) -> u64 {
        // SAFETY: plain data, filled by the call.
        let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: the thread is stopped; the structure is the one that the request fills.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.tid, 0usize, &raw mut regs) };
        assert!(result != -1, "{}", std::io::Error::last_os_error());
        regs.rip
    }
}

/// The executable mapping that is shared: the code cache.
fn cache(pid: u32) -> std::ops::Range<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|l| l.contains(" r-xs ")).unwrap();
    let (range, _) = line.split_once(' ').unwrap();
    let (from, to) = range.split_once('-').unwrap();
    u64::from_str_radix(from, 16).unwrap()..u64::from_str_radix(to, 16).unwrap()
}

#[test]
fn an_nmi_at_every_host_instruction() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let every = if std::env::var_os("MIMEO_SOAK").is_some() {
        1
    } else {
        41
    };
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["an_nmi_at_every_host_instruction", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = process.stdin.take().unwrap();
    let mut answers = process.stdout.take().unwrap();
    let mut text = String::new();
    let tid = loop {
        let mut byte = [0];
        answers.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
        let line = text.lines().last().unwrap_or("");
        if let Some(number) = line.strip_prefix("thread ")
            && byte[0] == b'\n'
        {
            break number.parse().unwrap();
        }
    };
    let range = cache(process.id());
    let tracer = Tracer { tid };
    // SAFETY: takes numbers only.
    let seized = unsafe {
        libc::ptrace(
            libc::PTRACE_SEIZE,
            tid,
            0usize,
            libc::PTRACE_O_EXITKILL as usize,
        )
    };
    if seized == -1 {
        println!(
            "skipped: ptrace is not allowed here: {}",
            std::io::Error::last_os_error()
        );
        let _ = process.kill();
        let _ = process.wait();
        return;
    }
    let (mut nth, mut points) = (0u64, 0);
    'runs: loop {
        // The beginning of a run: its SIGUSR2 is taken away.
        while tracer.wait() != Stop::Signal(libc::SIGUSR2) {
            tracer.request(libc::PTRACE_CONT, 0);
        }
        let mut inside = 0;
        while inside <= nth {
            tracer.request(libc::PTRACE_SINGLESTEP, 0);
            match tracer.wait() {
                Stop::Signal(libc::SIGTRAP) => {}
                // The end came before the nth instruction: all have had theirs.
                Stop::Signal(UNSEEN) => break 'runs,
                other => panic!("{other:?} while stepping to {nth}"),
            }
            inside += u64::from(range.contains(&tracer.pc()));
        }
        commands.write_all(&[1]).unwrap();
        let mut byte = [0];
        while byte[0] != ACK {
            answers.read_exact(&mut byte).unwrap();
        }
        points += 1;
        // Its signals are its own: the kick, and the traps of its own stepping.
        let mut pass = 0;
        loop {
            tracer.request(libc::PTRACE_CONT, pass);
            match tracer.wait() {
                Stop::Signal(libc::SIGUSR1) => break,
                Stop::Signal(UNSEEN) => panic!("the NMI at host instruction {nth} was lost"),
                Stop::Signal(signal) => pass = signal as usize,
                Stop::Gone(status) => panic!("an NMI at host instruction {nth}: {status:#x}"),
            }
        }
        tracer.request(libc::PTRACE_CONT, 0);
        nth += every;
    }
    println!("{points} places, {nth} host instructions");
    assert!(nth > 100, "only {nth} host instructions were executed");
    let _ = process.kill();
    // The traced thread is its tracer's to reap, before the process is anybody's.
    while !matches!(tracer.wait(), Stop::Gone(_)) {}
    let _ = process.wait();
}
