//! A monitor over /dev/kvm, just enough for the programs under `guests/`: the kernel's interrupt
//! controllers and PIT, a polled serial port, the debug-exit port and QEMU's test device.
//!
//! On a host whose KVM is not the hardware's ([`probe`]) nothing is compared with it.
//!
//! It shares no code with Mimeo's machines, so that the two cannot be wrong together. Entry state
//! and information structure: Multiboot 0.6.96, section 3.2 and 3.3. Not modelled: serial input
//! and interrupts, RTC, i8042.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Exit status after a triple fault.
pub const STATUS_TRIPLE_FAULT: i32 = 3;
/// Exit status when KVM or the host fails.
pub const STATUS_HOST_ERROR: u8 = 64;

const RAM: usize = 64 << 20;
const INFO: u64 = 0x9000;
const LINE: u64 = 0x9100;
const MULTIBOOT_MAGIC: u64 = 0x2bad_b002;
const TESTDEV_MMIO: u64 = 0xff00_0000;
const TESTDEV_MMIO_LEN: usize = 0x1_0000;

/// Why a guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// An operation on /dev/kvm failed.
    #[error("/dev/kvm: {what}: {source}")]
    Kvm {
        /// What was attempted.
        what: &'static str,
        /// The system's answer.
        source: kvm_ioctls::Error,
    },
    /// Guest memory could not be made or written.
    #[error("guest memory: {0}")]
    Memory(String),
    /// The image is no ELF32 file that fits.
    #[error("image: {0}")]
    Image(String),
    /// KVM gave up on the guest.
    #[error("the guest stopped: {0}")]
    Stopped(String),
}

fn kvm<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, KvmError> {
    result.map_err(|source| KvmError::Kvm { what, source })
}

fn memory<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, KvmError> {
    result.map_err(|e| KvmError::Memory(e.to_string()))
}

/// QEMU's test device, as far as memory goes.
struct TestDevice {
    register: u32,
    mmio: Vec<u8>,
}

/// A machine ready to run.
pub struct Machine {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    device: Arc<Mutex<TestDevice>>,
    // The VM refers to it: it must outlive the descriptors above.
    ram: GuestMemoryMmap,
}

impl Machine {
    /// Lays out a machine with a Multiboot image loaded.
    ///
    /// # Errors
    /// If KVM refuses or the image does not fit.
    pub fn new(image: &[u8], line: &str, cpus: u32) -> Result<Self, KvmError> {
        let system = kvm("open", Kvm::new())?;
        let vm = kvm("create VM", system.create_vm())?;
        kvm("TSS address", vm.set_tss_address(0xfffb_d000))?;
        kvm("interrupt controllers", vm.create_irq_chip())?;
        let pit = kvm_pit_config {
            flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        kvm("PIT", vm.create_pit2(pit))?;
        let ram: GuestMemoryMmap = memory(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]))?;
        set_ram(&vm, &ram)?;
        let entry = load(image, &ram)?;
        boot_information(&ram, line)?;
        let cpuid = kvm(
            "supported CPUID",
            system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES),
        )?;
        let mut vcpus = Vec::new();
        for index in 0..cpus {
            let vcpu = kvm("create vCPU", vm.create_vcpu(u64::from(index)))?;
            let mine = cpuid_of(&cpuid, index, cpus);
            kvm("set CPUID", vcpu.set_cpuid2(&mine))?;
            if index == 0 {
                enter(&vcpu, entry)?;
            }
            vcpus.push(vcpu);
        }
        Ok(Self {
            vm: Arc::new(vm),
            vcpus,
            device: Arc::new(Mutex::new(TestDevice {
                register: 0,
                mmio: vec![0; TESTDEV_MMIO_LEN],
            })),
            ram,
        })
    }

    /// Runs until the guest ends; gives the process's exit status. Other vCPU threads are left to
    /// the process's end.
    ///
    /// # Errors
    /// If KVM gives up on the guest.
    pub fn run(self) -> Result<u8, KvmError> {
        let (sender, receiver) = mpsc::channel();
        for mut vcpu in self.vcpus {
            let (vm, device, sender) = (self.vm.clone(), self.device.clone(), sender.clone());
            std::thread::spawn(move || {
                let result = run_vcpu(&mut vcpu, &vm, &device);
                // The receiver is gone only when the machine has ended.
                let _ = sender.send(result);
            });
        }
        drop(sender);
        let result = receiver
            .recv()
            .unwrap_or_else(|_| Err(KvmError::Stopped("no vCPU is left".to_owned())));
        // vCPU threads may still be in the guest: its memory stays until the process ends.
        std::mem::forget(self.ram);
        result
    }
}

/// Whether KVM really runs a guest here: an openable device proves nothing.
///
/// # Errors
/// What failed.
pub fn probe() -> Result<(), KvmError> {
    // A KVM without the processor's virtualization (pvm) emulates the guest's kernel mode itself: it
    // runs Linux, but it is no reference for what the hardware does.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags"));
    if !flags.is_some_and(|l| l.split_whitespace().any(|f| f == "vmx" || f == "svm")) {
        return Err(KvmError::Stopped(
            "the CPU shows neither VT-x nor SVM: this KVM emulates".to_owned(),
        ));
    }
    // mov al, 0x10; out 0xf4, al; hlt
    let code = [0xb0, 0x10, 0xe6, 0xf4, 0xf4];
    let mut image = vec![0u8; 84];
    image[..8].copy_from_slice(b"\x7fELF\x01\x01\x01\0");
    image[24..28].copy_from_slice(&0x10_0000u32.to_le_bytes()); // entry
    image[28..32].copy_from_slice(&52u32.to_le_bytes()); // program headers
    image[44] = 1;
    image[52] = 1; // PT_LOAD
    for (at, value) in [
        (56, 84u32),
        (60, 0x10_0000),
        (64, 0x10_0000),
        (68, 5),
        (72, 5),
    ] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image.extend_from_slice(&code);
    match Machine::new(&image, "", 1)?.run()? {
        0x21 => Ok(()),
        other => Err(KvmError::Stopped(format!("the probe guest gave {other}"))),
    }
}

#[expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION takes a raw host address"
)]
fn set_ram(vm: &VmFd, ram: &GuestMemoryMmap) -> Result<(), KvmError> {
    let host = memory(ram.get_host_address(GuestAddress(0)))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: `host` is the start of a mapping of RAM bytes which `Machine` keeps, and which `run`
    // leaks, so that it outlives the VM; the guest's writes go to memory that Rust sees only
    // through vm-memory's volatile accesses.
    kvm("set memory", unsafe { vm.set_user_memory_region(region) })
}

fn le32(bytes: &[u8], at: usize) -> Result<u32, KvmError> {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or_else(|| KvmError::Image("truncated".to_owned()))
}

/// Copies an ELF32 file's segments to their physical addresses; gives the entry point.
fn load(image: &[u8], ram: &GuestMemoryMmap) -> Result<u32, KvmError> {
    if image.get(..5) != Some(b"\x7fELF\x01") {
        return Err(KvmError::Image("no ELF32 file".to_owned()));
    }
    let table = le32(image, 28)? as usize;
    let count = le32(image, 44)? & 0xffff;
    for i in 0..count as usize {
        let header = table + i * 32;
        if le32(image, header)? != 1 {
            continue;
        }
        let offset = le32(image, header + 4)? as usize;
        let address = GuestAddress(u64::from(le32(image, header + 12)?));
        let size = le32(image, header + 16)? as usize;
        let bytes = image
            .get(offset..offset.saturating_add(size))
            .ok_or_else(|| KvmError::Image("truncated".to_owned()))?;
        memory(ram.write_slice(bytes, address))?;
    }
    le32(image, 24)
}

fn boot_information(ram: &GuestMemoryMmap, line: &str) -> Result<(), KvmError> {
    let mut info = [0u32; 29];
    info[0] = 1 | 4; // memory sizes, command line
    info[1] = 640;
    info[2] = (RAM >> 10) as u32 - 1024;
    info[4] = LINE as u32;
    for (i, word) in info.iter().enumerate() {
        memory(ram.write_obj(*word, GuestAddress(INFO + 4 * i as u64)))?;
    }
    memory(ram.write_slice(line.as_bytes(), GuestAddress(LINE)))
}

/// The host's CPUID with this vCPU's APIC id and the number of CPUs.
fn cpuid_of(host: &CpuId, index: u32, cpus: u32) -> CpuId {
    let mut cpuid = host.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0xffff | cpus << 16 | index << 24,
            0xb | 0x1f => entry.edx = index,
            _ => {}
        }
    }
    cpuid
}

/// Multiboot's entry state.
fn enter(vcpu: &VcpuFd, entry: u32) -> Result<(), KvmError> {
    let mut sregs = kvm("get registers", vcpu.get_sregs())?;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(8, 0xb);
    let data = flat(0x10, 3);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.cr0 = 0x11;
    kvm("set registers", vcpu.set_sregs(&sregs))?;
    let regs = kvm_regs {
        rax: MULTIBOOT_MAGIC,
        rbx: INFO,
        rip: u64::from(entry),
        rflags: 2,
        ..Default::default()
    };
    kvm("set registers", vcpu.set_regs(&regs))
}

/// Runs one vCPU until the machine ends.
fn run_vcpu(vcpu: &mut VcpuFd, vm: &VmFd, device: &Mutex<TestDevice>) -> Result<u8, KvmError> {
    loop {
        let exit = match vcpu.run() {
            Err(e) if e.errno() == 4 => continue, // EINTR
            other => kvm("run", other)?,
        };
        let mut device = device.lock().unwrap_or_else(|p| p.into_inner());
        match exit {
            VcpuExit::IoOut(port, data) => {
                if let Some(status) = port_write(port, data, vm, &mut device)? {
                    return Ok(status);
                }
            }
            VcpuExit::IoIn(port, data) => port_read(port, data, &device),
            VcpuExit::MmioRead(address, data) => {
                data.fill(0xff);
                if let Some(from) = testdev_range(address, data.len()) {
                    data.copy_from_slice(&device.mmio[from]);
                }
            }
            VcpuExit::MmioWrite(address, data) => {
                if let Some(to) = testdev_range(address, data.len()) {
                    device.mmio[to].copy_from_slice(data);
                }
            }
            VcpuExit::Shutdown => return Ok(STATUS_TRIPLE_FAULT as u8),
            VcpuExit::Intr => {}
            other => return Err(KvmError::Stopped(format!("{other:?}"))),
        }
    }
}

fn testdev_range(address: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let offset = usize::try_from(address.checked_sub(TESTDEV_MMIO)?).ok()?;
    (offset + len <= TESTDEV_MMIO_LEN).then_some(offset..offset + len)
}

/// A write to a port; gives the exit status when it ends the machine.
fn port_write(
    port: u16,
    data: &[u8],
    vm: &VmFd,
    device: &mut TestDevice,
) -> Result<Option<u8>, KvmError> {
    match port {
        0x3f8 => {
            let mut out = std::io::stdout().lock();
            // A closed pipe means that nobody listens any more.
            let _ = out.write_all(data).and_then(|()| out.flush());
        }
        0xf4 => return Ok(Some(data[0] << 1 | 1)),
        0xe0 => {
            let mut value = [0; 4];
            value[..data.len()].copy_from_slice(data);
            device.register = u32::from_le_bytes(value);
        }
        0x2000..=0x2017 => {
            let line = u32::from(port - 0x2000);
            kvm("interrupt line", vm.set_irq_line(line, data[0] != 0))?;
        }
        _ => {}
    }
    Ok(None)
}

fn port_read(port: u16, data: &mut [u8], device: &TestDevice) {
    let value: u32 = match port {
        0x3fd => 0x60, // transmitter empty
        0xe0 => device.register,
        _ => u32::MAX,
    };
    let len = data.len();
    data.copy_from_slice(&value.to_le_bytes()[..len]);
}
