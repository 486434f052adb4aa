//! Host registers that Rust has no names for: GS base, x87 state.
#![expect(unsafe_code, reason = "wrgsbase, fxsave64, fxrstor64, fninit")]

use mimeo_arch_x86::state::FpState;
use std::arch::asm;
use std::sync::OnceLock;

const HWCAP2_FSGSBASE: u64 = 2;
const ARCH_SET_GS: libc::c_int = 0x1001;
const ARCH_GET_GS: libc::c_int = 0x1004;

fn fsgsbase() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    // SAFETY: getauxval has no preconditions.
    *HAS.get_or_init(|| unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0)
}

/// Whether XGETBV tells which state components are in use (CPUID.(EAX=0DH,ECX=1):EAX bit 2).
pub(crate) fn tells_use() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 0xd && __cpuid_count(0xd, 1).eax & 4 != 0
}

/// Whether PEXT takes a few cycles here. AMD's processors before Zen 3 take up to hundreds, by the mask: told by
/// timing, not by name.
pub(crate) fn fast_pext() -> bool {
    use std::arch::x86_64::{_pext_u64, _rdtsc};
    const STEPS: u64 = 64;

    #[target_feature(enable = "bmi2")]
    fn chain() -> u64 {
        // SAFETY: RDTSC has no preconditions.
        let from = unsafe { _rdtsc() };
        let mut x = 1u64;
        for _ in 0..STEPS {
            x = _pext_u64(!x << 12, 0xffff_ffff_f000);
        }
        std::hint::black_box(x);
        // SAFETY: as above.
        unsafe { _rdtsc() }.wrapping_sub(from)
    }

    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(|| {
        is_x86_feature_detected!("bmi2")
            // SAFETY: the CPU has BMI2.
            && (0..16).map(|_| unsafe { chain() }).min().is_some_and(|t| t < 16 * STEPS)
    })
}

/// This thread's GS base.
pub(crate) fn gs_base() -> u64 {
    let mut base = 0u64;
    if fsgsbase() {
        // SAFETY: the kernel allows the instruction (AT_HWCAP2); it only reads.
        unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    } else {
        // SAFETY: writes one word to a local.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut base) };
    }
    base
}

/// Sets this thread's GS base. Nothing in a Rust program on Linux uses GS (TLS is FS).
pub(crate) fn set_gs_base(base: u64) {
    if fsgsbase() {
        // SAFETY: the kernel allows the instruction; no code of this process relies on GS.
        unsafe { asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}

/// Whether the GS base stays what it is set to, over system calls, preemption and signals' delivery. A
/// sandbox that rewrites system calls may keep its own data behind GS; there it must not be touched.
pub(crate) fn gs_base_is_ours() -> bool {
    /// More than any rewriting sandbox needs to notice a hot system call.
    const CALLS: usize = 2000;
    // Somewhere harmless to point at, in case code of this process does use GS.
    let page = vec![0u64; 1024];
    let probe = page.as_ptr() as u64;
    let before = gs_base();
    set_gs_base(probe);
    let stays = (0..CALLS).all(|n| {
        if n % 256 == 0 {
            std::thread::yield_now();
        }
        // SAFETY: no arguments, cannot fail.
        unsafe { libc::syscall(libc::SYS_getppid) };
        gs_base() == probe
    });
    set_gs_base(before);
    stays && page.iter().all(|word| *word == 0)
}

/// An FXSAVE image.
#[repr(C, align(16))]
struct Image([u8; 512]);

/// Loads the guest's x87 state into the host's registers.
pub(crate) fn load_x87(fp: &FpState) {
    let mut image = Image([0; 512]);
    let b = &mut image.0;
    b[0..2].copy_from_slice(&fp.fcw.to_le_bytes());
    b[2..4].copy_from_slice(&fp.fsw.to_le_bytes());
    b[4] = fp.ftw;
    b[6..8].copy_from_slice(&fp.fop.to_le_bytes());
    b[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    for (n, st) in fp.st.iter().enumerate() {
        b[32 + 16 * n..42 + 16 * n].copy_from_slice(&st.to_le_bytes()[..10]);
    }
    // SAFETY: a valid image with the default MXCSR; every register that it loads is declared
    // as clobbered or is x87 state that Rust does not use.
    unsafe {
        asm!("fxrstor64 [{}]", in(reg) &raw const image, options(nostack),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _);
    }
}

/// Stores the host's x87 registers as the guest's. Gives the instruction pointer as the host's FPU
/// recorded it: an address in the code cache, which the caller maps back.
pub(crate) fn store_x87(fp: &mut FpState) -> u64 {
    let mut image = Image([0; 512]);
    // SAFETY: the area is 512 bytes, 16-aligned.
    unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut image, options(nostack)) };
    let b = &image.0;
    let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    fp.fcw = u16_at(0);
    fp.fsw = u16_at(2);
    fp.ftw = b[4];
    fp.fop = u16_at(6) & 0x7ff;
    for (n, st) in fp.st.iter_mut().enumerate() {
        let mut v = [0; 16];
        v[..10].copy_from_slice(&b[32 + 16 * n..42 + 16 * n]);
        *st = u128::from_le_bytes(v);
    }
    let mut fip = [0; 8];
    fip.copy_from_slice(&b[8..16]);
    u64::from_le_bytes(fip)
}

/// Puts the host's x87 into its default state (System V ABI: empty, all exceptions masked).
pub(crate) fn reset_x87() {
    // SAFETY: Rust does not use x87 state.
    unsafe { asm!("fninit", options(nomem, nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x87_state_survives_the_host() {
        let mut fp = FpState {
            fcw: 0x37f,
            fsw: 0x3800,
            ftw: 0x80,
            ..FpState::default()
        };
        fp.st[0] = 0x3fff_8000_0000_0000_0000;
        let mut back = FpState::default();
        load_x87(&fp);
        store_x87(&mut back);
        reset_x87();
        assert_eq!((back.fcw, back.fsw, back.ftw), (fp.fcw, fp.fsw, fp.ftw));
        assert_eq!(back.st, fp.st);
    }
}
